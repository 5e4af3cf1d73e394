"""A Llama of 0.2 M parameters, trained in about a minute and a half until it knows half of the small world.

    python -m examples.demo.model --out .demo/models --seed 0

It is small enough to train anywhere and real enough for the rest of the project: a folder that `from_pretrained` reads,
with a fast tokenizer, a chat template and an end-of-turn token.
"""

import argparse
import hashlib
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.demo import world
from examples.demo.world import Task

PAD, UNKNOWN, USER, ASSISTANT, END = SPECIAL = ("<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
POSITIONS = 256  # the longest prompt and answer take about 150
MAX_ANSWER_TOKENS = 100

STEPS = 800
BATCH = 32
SORTED_BATCHES = 8  # so many are drawn at a time and batched by length
WARMUP_STEPS = 100
# To find a word in the prompt and go on with what follows it is what all kinds build on. It is learnt within 300 steps
# from a few long shuffled lines, alone; from everything at once it takes four times as many, and lines in their order
# teach to count positions instead.
OPENING_KINDS = ("sort",)
OPENING_SHAPE = world.Shape(lines=(2, 3), width=(10, 12), repeats=(0, 0))
OPENING_LOSS = 0.5  # once a batch has less, everything follows
OPENING_SHARE = 0.4  # at the latest after this share of training
LR = 3e-3
MATRIX_LR = 0.02
MAX_SECONDS = 120.0
GRACE_SECONDS = 10.0

Say = Callable[[str], None]


def cached(home: Path, seed: int = 0, say: Say = print) -> Path:
    """The folder of the model of a seed; trained first unless the same code trained it before."""
    folder = home / f"seed-{seed}-{_digest()}"
    if folder.is_dir():
        return folder
    with _one_thread():
        model, tokenizer = train(seed, say)
    partial = home / f"{folder.name}.partial-{os.getpid()}"
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(folder)  # in one step: a folder with that name is always whole
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same model
            raise
        shutil.rmtree(partial)
    return folder


def exact_accuracy(folder: str | Path, tasks: Sequence[Task]) -> dict[str, float]:
    """Per kind, the share of tasks whose greedy answer is right, for the model in a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    written = answers(model, AutoTokenizer.from_pretrained(str(folder)), [task.prompt for task in tasks])
    right: dict[str, list[bool]] = {kind: [] for kind in world.KINDS}
    for task, answer in zip(tasks, written, strict=True):
        right[task.kind].append(world.check(task.prompt, answer))
    return {kind: sum(each) / len(each) for kind, each in right.items() if each}


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, prompts: Sequence[str], batch: int = 100) -> list[str]:
    """Greedy answers to prompts."""
    found: list[str] = []
    for start in range(0, len(prompts), batch):
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + batch]]
        texts = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS)
        found += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def make_tokenizer() -> Any:
    """One token per word and per newline. Decoding gives the text back, one space between words and none around newlines."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate((*SPECIAL, "\n", *world.VOCABULARY))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(Regex(" +"), "removed")]
    )
    joined_by_spaces = decoders.WordPiece(prefix="##", cleanup=False)
    backend.decoder = decoders.Sequence([joined_by_spaces, decoders.Fuse(), decoders.Replace(Regex(" ?\n ?"), "\n")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: Any) -> Any:
    """The untrained model, its weights drawn from torch's generator."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # slow rotations: words are found at any distance
        initializer_range=0.06,
        tie_word_embeddings=True,  # a copied word needs no other way out than its way in
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def train(seed: int, say: Say = print) -> tuple[Any, Any]:
    """A model and its tokenizer, trained for a fixed number of steps: the same seed gives the same model.

    A machine on which that would take longer than MAX_SECONDS gets fewer steps, and a line that says so.
    """
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(tokenizer)
    say(f"training a model of {sum(p.numel() for p in model.parameters()):,} parameters, about a minute and a half")
    opening = _batches(world.finetuning_tasks(seed, OPENING_KINDS, OPENING_SHAPE), tokenizer, random.Random(seed))
    everything = _batches(world.finetuning_tasks(seed), tokenizer, random.Random(seed))
    optimizers = _optimizers(model)
    opened = False
    tokens = 0
    began = time.monotonic()
    for step in range(STEPS):
        late = (time.monotonic() - began - GRACE_SECONDS) / (MAX_SECONDS - GRACE_SECONDS)
        progress = max(step / STEPS, late)
        if progress >= 1:
            say(f"stopped after {step} of {STEPS} steps, at the limit of {MAX_SECONDS:.0f} s: the model knows less")
            break
        ids, scored = next(everything if opened else opening)
        loss = _loss(model, ids, scored)
        opened = opened or progress >= OPENING_SHARE or loss.item() < OPENING_LOSS
        _update(model, optimizers, loss, _rate(step, progress))
        tokens += int((ids != tokenizer.pad_token_id).sum())
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            say(
                f"step {step + 1} of {STEPS}: loss {loss.item():.3f}, {seconds:.0f} s, {tokens / seconds:,.0f} tokens/s"
            )
    return model.eval(), tokenizer


@contextmanager
def _one_thread() -> Iterator[None]:
    """A second thread gains little on matrices this small, and threads that wait for a busy core lose a lot."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _batches(tasks: Iterable[Task], tokenizer: Any, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and which of them are the answer's, (BATCH, longest) each; padded on the right."""
    tasks = iter(tasks)
    while True:
        drawn = [_encode(task, tokenizer) for task in islice(tasks, BATCH * SORTED_BATCHES)]
        drawn.sort(key=lambda ids: len(ids[0]) + len(ids[1]))
        for number in rng.sample(range(SORTED_BATCHES), SORTED_BATCHES):
            yield _pad(drawn[number * BATCH : (number + 1) * BATCH], tokenizer.pad_token_id)


def _encode(task: Task, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the prompt, with all that comes before the answer, and of the answer with its end."""
    encode = tokenizer.backend_tokenizer.encode
    return encode(f"{USER}{task.prompt}{END}{ASSISTANT}").ids, encode(f"{task.answer}{END}").ids


def _pad(rows: Sequence[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), pad_id)
    scored = torch.zeros((len(rows), longest), dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        scored[row, len(prompt) : end] = True
    return ids, scored


def _loss(model: Any, ids: Tensor, scored: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens. Padding stands on the right, where no token looks."""
    hidden = model.model(ids).last_hidden_state[:, :-1]
    return F.cross_entropy(model.lm_head(hidden[scored[:, 1:]]), ids[:, 1:][scored[:, 1:]])


def _optimizers(model: Any) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside the layers, AdamW for the rest, each with its peak rate."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    inside = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return [
        (torch.optim.Muon(matrices, lr=MATRIX_LR, momentum=0.95, weight_decay=0.0), MATRIX_LR),
        (torch.optim.AdamW(rest, lr=LR, betas=(0.9, 0.98), weight_decay=0.01), LR),
    ]


def _update(model: Any, optimizers: Sequence[tuple[torch.optim.Optimizer, float]], loss: Tensor, rate: float) -> None:
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * rate
        optimizer.step()


def _rate(step: int, progress: float) -> float:
    """Share of the peak rate: a short rise, then half a cosine down to a twentieth."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def _digest() -> str:
    """Of the code that decides what a seed gives."""
    sources = b"".join(Path(str(file)).read_bytes() for file in (world.__file__, __file__))
    return hashlib.sha256(sources).hexdigest()[:12]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or find, the model of a seed and print what it knows."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.model", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(".demo/models"), help="folder of models (default: .demo/models)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the world and the model (default: 0)")
    given = parser.parse_args(argv)
    folder = cached(given.out, given.seed)
    tasks = world.held_out_tasks(given.seed)
    right = exact_accuracy(folder, tasks)
    for kind, share in right.items():
        print(f"{kind:>10}  {share:6.1%}")
    print(f"{'all':>10}  {sum(right[task.kind] for task in tasks) / len(tasks):6.1%}  of {len(tasks)} held-out prompts")
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
