"""The shared forward against the padded one: the same numbers from fewer tokens, or the padded one itself."""

import copy
import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GraniteConfig, LlamaConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from prefdata.logprobs import Tree, attention, forward, head, padded, score, shared
from tests.tiny_models import CONFIGS, VOCABULARY, tiny_model

SHARING = [family for family in CONFIGS if family != "bloom"]
# a pair with a common beginning, equal branches, one that is the beginning of another, one token, two alone
TREES = [
    Tree([1, 2, 3, 4, 5], [[6, 7, 8, 9, 10, 11], [6, 7, 12, 13]]),
    Tree([7, 7, 8], [[1, 2, 3], [1, 2, 3], [1, 2], [1, 9, 9, 9], [4], [4]]),
    Tree([30], [[31], [31, 32, 33]]),
    Tree([20, 21, 22, 23, 24, 25, 26], [[27, 28, 29]]),
]


def build(family: str, window: int = 64, seed: int = 0, spread: float = 0.3) -> Any:
    """A tiny model whose windows are wide enough; `spread` is that of its weights."""
    config = CONFIGS[family]()
    config.initializer_range = spread
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = window
    return tiny_model(family, seed, config=config)


def oracle_of(model: Any) -> Any:
    """The same weights under the model's own attention, never prepared."""
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return other


def no_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def loss(logps: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Something that weighs every token of every branch on its own."""
    flat = torch.cat(logps)
    return (flat * torch.linspace(-1, 2, len(flat))).sum()


def differences(model: Any, trees: list[Tree], oracle: Any, floor: float = 1e-3) -> tuple[float, float]:
    """How far loss and gradients lie from the padded forward's: of each parameter's largest entry, the worst.

    A gradient that cancels to rounding, as of a key's bias, is measured by `floor` of the largest entry of all.
    """
    found, expected = loss(shared.forward(model, trees).logps), loss(padded.forward(oracle, trees).logps)
    found.backward()
    expected.backward()
    ours, theirs = dict(model.named_parameters()), dict(oracle.named_parameters())
    trained = [name for name, parameter in theirs.items() if parameter.requires_grad]
    largest = max(float(theirs[name].grad.abs().max()) for name in trained)
    gaps = [
        float((ours[name].grad - theirs[name].grad).abs().max())
        / max(float(theirs[name].grad.abs().max()), floor * largest)
        for name in trained
    ]
    return abs(float(found.detach() - expected.detach())) / abs(float(expected.detach())), max(gaps)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", SHARING)
def test_loss_and_gradients_equal_the_padded_forward(family, training):
    model = no_dropout(build(family)).train(training)
    oracle = oracle_of(model)
    assert shared.prepare(model).obstacle(model, TREES) is None
    assert max(differences(model, TREES, oracle)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi3"])
def test_equal_with_gradient_checkpointing(family):
    model = no_dropout(build(family)).train()
    oracle = oracle_of(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shared.prepare(model)
    assert max(differences(model, TREES, oracle)) < 1e-5


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "neox"])
def test_equal_with_lora(family, checkpointed):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapter = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(build(family), adapter).train()
    oracle = copy.deepcopy(model)
    oracle.get_base_model().set_attn_implementation("eager")
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    assert shared.prepare(model).obstacle(model, TREES) is None
    assert max(differences(model, TREES, oracle)) < 1e-5


# three ids, so that branches share much
IDS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
RANDOM_TREES = st.lists(st.builds(Tree, IDS, st.lists(IDS, min_size=1, max_size=5)), min_size=1, max_size=3)


# with the wider weights, Gemma 2's own rounding is 2e-5
@pytest.mark.parametrize(("family", "spread"), [("llama", 0.3), ("gemma2", 0.1)])
def test_equal_on_random_trees(family, spread):
    model = build(family, spread=spread)
    oracle = oracle_of(model)
    shared.prepare(model)

    @given(RANDOM_TREES)
    @settings(max_examples=40, deadline=None)
    def check(trees):
        model.zero_grad()
        oracle.zero_grad()
        found, expected = (
            run(one, trees, extras=True, collisions=True) for run, one in ((forward, model), (padded.forward, oracle))
        )
        for name in ("logps", "entropies", "hits", "collisions", "levels"):
            for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        # with one id only, whole gradients cancel
        assert differences(model, trees, oracle, floor=1.0)[1] < 1e-5

    check()


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_bfloat16_errs_no_more_than_the_padded_forward(autocast):
    def found(model: Any, run: Any, autocast: bool) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logps = run(model, TREES).logps
        loss(logps).backward()
        return [torch.cat(logps).detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()]).float()]

    errors = {shared.forward: torch.zeros(2), padded.forward: torch.zeros(2)}
    for seed in range(8):  # one draw of rounding says little
        model = build("llama", seed=seed)
        exact = found(oracle_of(model), padded.forward, False)
        rough = model if autocast else model.to(torch.bfloat16)
        oracle = oracle_of(rough)
        oracle.set_attn_implementation("sdpa")
        shared.prepare(rough)
        for run, subject in ((shared.forward, rough), (padded.forward, oracle)):
            gaps = zip(found(subject, run, autocast), exact, strict=True)
            errors[run] += torch.stack([(one - other).square().mean() for one, other in gaps])
    assert bool((errors[shared.forward] > 0).all())
    ratios = (errors[shared.forward] / errors[padded.forward]).sqrt()
    assert bool((ratios <= 1.5).all()), ratios


# -- what cannot be shared ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_a_window_is_shared_if_every_path_fits(family, caplog):
    tree = Tree([1, 2, 3], [[4, 5, 6], [4, 7], [8]])  # six tokens on the longest path
    for window, fits in ((6, True), (5, False)):
        model = build(family, window)
        oracle = oracle_of(model)
        assert (shared.prepare(model).obstacle(model, [tree]) is None) is fits
        for _ in range(2):
            for one, other in zip(forward(model, [tree]).logps, padded.forward(oracle, [tree]).logps, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    (record,) = caplog.records  # once, of the model with the narrow window
    assert "the 5 tokens of its window" in record.getMessage()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_stretch_for_the_whole_batch_are_padded(kind):
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16, **factors}
    config = CONFIGS["llama"]()
    config.max_position_embeddings, config.rope_parameters = 16 if kind == "dynamic" else 64, rope
    model = tiny_model("llama", config=config)
    sharing = shared.prepare(model)
    assert sharing.obstacle(model, [Tree([1] * 10, [[2] * 6])]) is None
    assert "16 tokens" in sharing.obstacle(model, [Tree([1] * 10, [[2] * 7])])


def test_a_layer_with_too_narrow_a_window_is_never_ignored():
    model = build("mistral", window=5)
    shared.prepare(model)
    with pytest.raises(RuntimeError, match="window of 5"):
        shared.forward(model, [Tree([1, 2, 3], [[4, 5, 6, 7]])])


def test_scoring_shares_the_rows_that_fit_and_no_others(monkeypatch):
    model = build("mistral", window=8)
    expected = score(oracle_of(model), TREES)
    shared_trees, padded_trees = [], []
    run_shared, run_padded = shared.forward, padded.forward
    shared.prepare(model)
    monkeypatch.setattr(
        shared, "forward", lambda m, trees, **k: shared_trees.append(trees) or run_shared(m, trees, **k)
    )
    monkeypatch.setattr(
        padded, "forward", lambda m, trees, **k: padded_trees.append(trees) or run_padded(m, trees, **k)
    )
    found = score(model, TREES)
    assert {tree.depth for trees in shared_trees for tree in trees} == {7, 4}
    assert {tree.depth for trees in padded_trees for tree in trees} == {11, 9, 10}
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=1e-5, rtol=1e-5)


def test_bloom_is_padded_and_says_so_once(caplog):
    model = tiny_model("bloom")
    expected = padded.forward(tiny_model("bloom"), TREES).logps
    for _ in range(2):
        assert all(torch.equal(one, other) for one, other in zip(forward(model, TREES).logps, expected, strict=True))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "Bloom" in caplog.text


def test_a_model_whose_numbers_would_change_keeps_its_attention(caplog):
    # Granite divides its logits after the head, which nothing in its make announces
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = GraniteConfig(vocab_size=VOCABULARY, logits_scaling=4.0, initializer_range=0.3, **small)
    model = AutoModelForCausalLM.from_config(config).eval()
    expected = padded.forward(copy.deepcopy(model), TREES).logps
    for one, other in zip(forward(model, TREES).logps, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert model.config._attn_implementation == "sdpa"
    assert "differs by" in caplog.text


@pytest.mark.parametrize("where", ["module", "attribute"])
def test_dropout_in_training_is_padded_and_in_eval_shared(where):
    model = no_dropout(build("gpt2"))
    sharing = shared.prepare(model)
    assert sharing.obstacle(model.train(), TREES) is None
    if where == "module":
        model.transformer.h[1].mlp.dropout.p = 0.1
    else:
        model.transformer.h[1].attention_dropout = 0.1
    assert sharing.obstacle(model, TREES) == "its dropout is on"
    assert sharing.obstacle(model.eval(), TREES) is None


def test_what_changes_after_the_first_forward_is_seen():
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    model = build("llama")
    sharing = shared.prepare(model)
    assert sharing.obstacle(model, TREES) is None
    assert "compiled" in sharing.obstacle(torch.compile(model), TREES)
    model.set_attn_implementation("sdpa")  # which would pass over the tree without a word
    assert "set to sdpa" in sharing.obstacle(model, TREES)
    model.set_attn_implementation(attention.NAME)
    soft = get_peft_model(copy.deepcopy(model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "prompt of its own" in sharing.obstacle(soft, TREES)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    assert "head" in sharing.obstacle(adapted, TREES)


# -- set once ----------------------------------------------------------------------------------------------------------


def test_the_attention_is_set_once(monkeypatch):
    model = build("llama").train()
    forward(model, TREES)
    assert model.training
    assert model.config._attn_implementation == attention.NAME
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda *_: pytest.fail("set again"))
    forward(model, TREES)
    score(model, TREES)


@pytest.mark.parametrize("family", SHARING)
def test_a_prepared_model_still_serves_padded_batches_and_generation(family):
    model = build(family, window=6)
    oracle = oracle_of(model)
    shared.prepare(model)
    assert model.config._attn_implementation == attention.NAME
    for one, other in zip(padded.forward(model, TREES).logps, padded.forward(oracle, TREES).logps, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
    ids, mask = torch.tensor([[0, 0, 1, 2, 3], [9, 8, 7, 6, 5]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    drawn = [
        each.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
        for each in (model, oracle)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_attention_without_a_mask_is_that_of_sdpa(cap):
    """A static cache is longer than what it holds, and its first queries then come without a mask."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 4) for heads in (4, 2, 2))
    module = torch.nn.Module()
    module.num_key_value_groups, module.training = 2, False

    def by_hand(queries, keys):
        every = (each[:, :, :keys].repeat_interleave(2, dim=1) for each in (key, value))
        seen, read = every
        scores = queries @ seen.transpose(2, 3) / 2
        scores = scores if cap is None else cap * (scores / cap).tanh()
        allowed = torch.ones(queries.shape[2], keys).tril(keys - queries.shape[2]).bool()
        return (scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ read).transpose(1, 2)

    for queries, keys in ((query[:, :, :3], 3), (query[:, :, :1], 5), (query, 5)):
        found, _ = attention.tree_attention(module, queries, key, value, None, softcap=cap)
        torch.testing.assert_close(found, by_hand(queries, keys))


def test_soft_capped_attention_is_never_left_to_sdpa():
    config = CONFIGS["gemma2"]()
    config._attn_implementation = "sdpa"
    config.sliding_window = 2  # too narrow for anything to be shared
    model = tiny_model("gemma2", config=config)
    oracle = oracle_of(model)
    for one, other in zip(forward(model, TREES).logps, padded.forward(oracle, TREES).logps, strict=True):
        torch.testing.assert_close(one, other)
    assert model.config._attn_implementation == "eager"


def test_a_saved_model_knows_nothing_of_it(tmp_path):
    model = build("llama")
    forward(model, TREES)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


# -- what it costs -----------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.seen = max(self.seen, tensor.numel())
        return result


def candidates(count: int, trunk: int = 40, length: int = 20) -> Tree:
    return Tree([1] * trunk, [[2 + i, *[3] * (length - 1)] for i in range(count)])


def test_every_token_runs_once():
    model, seen = build("llama"), []
    shared.prepare(model)
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    forward(model, [candidates(16)] * 2)
    assert seen == [2 * (40 + 16 * 19)]  # the last token of a branch predicts nothing


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_no_mask_of_row_by_row(family):
    model, tree = build(family), candidates(16)
    shared.prepare(model)
    with Largest() as largest:
        loss(forward(model, [tree]).logps).backward()
    row = 40 + 16 * 19
    assert row * 48 <= largest.seen < row * row


def test_no_logits_of_all_scored_tokens(monkeypatch):
    vocabulary, chunk = 3000, 8
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=vocabulary, **small))
    shared.prepare(model)
    monkeypatch.setattr(head, "_CHUNK_ROWS", chunk)
    tree = candidates(4, trunk=2)
    with Largest() as largest:
        loss(forward(model, [tree], extras=True, collisions=True).logps).backward()
    assert largest.seen == max(chunk, 16) * vocabulary  # the head's own weight is 16 x vocabulary
    assert largest.seen < 4 * 20 * vocabulary


# -- the head ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("kept", [0, 3 * 11, 2**24])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_equals_its_closed_form(monkeypatch, cap, rows, kept, frozen):
    torch.manual_seed(0)
    monkeypatch.setattr(head, "_CHUNK_ROWS", rows)
    monkeypatch.setattr(head, "_BLOCK_ROWS", 2)
    monkeypatch.setattr(head, "_KEPT_LOGITS", kept)
    hidden, weight, bias = torch.randn(7, 5), torch.randn(11, 5), torch.randn(11)
    read, targets = torch.tensor([0, 0, 0, 1, 2, 4, 4, 6]), torch.tensor([1, 2, 9, 0, 10, 4, 5, 3])
    upstream = torch.randn(8)
    found, expected = [], []
    for results in (found, expected):
        inputs = [each.clone().requires_grad_(not frozen or i == 0) for i, each in enumerate((hidden, weight, bias))]
        if results is found:
            logps, entropies, hits, collisions, levels = head.target_logps(
                *inputs, read, targets, cap=cap, extras=True, collisions=True
            )
        else:
            logits = torch.nn.functional.linear(*inputs)
            logits = logits if cap is None else cap * (logits / cap).tanh()
            every = logits.log_softmax(1)[read]
            logps, hits = every.gather(1, targets[:, None]).squeeze(1), (every.argmax(1) == targets).float()
            entropies = -(every.exp() * every).sum(1)
            collisions = every.exp().square().sum(1).log()
            levels = logits.mean(1)[read]
        (logps * upstream).sum().backward()
        assert [each.grad is None for each in inputs] == [False, frozen, frozen]
        results += [
            logps,
            entropies.detach(),
            hits,
            collisions.detach(),
            levels.detach(),
            *(each.grad for each in inputs if each.grad is not None),
        ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_head_may_be_run_backward_twice():
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 5, requires_grad=True), torch.randn(9, 5, requires_grad=True)
    places = torch.arange(4)
    logps, *_ = head.target_logps(hidden, weight, None, places, places)
    first = torch.autograd.grad(logps.sum(), (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(logps.sum(), (hidden, weight))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
