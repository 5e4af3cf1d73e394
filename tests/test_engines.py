"""Engines: draws that depend on their request alone, from the distribution that was asked for."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from prefdata import engines, models
from prefdata.engines import Request, Sample, Sampling, fake
from prefdata.engines.transformers import TransformersEngine, inverse_cdf
from prefdata.errors import UserError
from prefdata.logprobs import Tree, score
from tests.samples import samples_dir
from tests.tiny_models import FAMILIES, POSITIONS, VOCABULARY, random_requests, save_tiny_model, tiny_model

FILTERED = Sampling(temperature=0.7, top_k=12, top_p=0.9)


def engine_of(model: Any, **options: Any) -> TransformersEngine:
    return TransformersEngine(model, {"name": "tiny"}, **options)


def by_key(samples: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {sample.key: (sample.token_ids, sample.finish) for sample in samples}


def expected_probs(logits: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """The filtered distribution, written out slowly: temperature, then top_k, then top_p."""
    probs = (logits.double() / sampling.temperature).softmax(-1).numpy()
    order = np.argsort(-probs)
    if sampling.top_k:
        probs[order[sampling.top_k :]] = 0
        probs /= probs.sum()
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= sampling.top_p]] = 0
    return probs / probs.sum()


def assert_drawn_from(counts: np.ndarray, probs: np.ndarray) -> None:
    """Chi-square, at 5 standard deviations; rare outcomes count as one."""
    assert counts[probs == 0].sum() == 0
    expected = probs * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("family", "sampling"),
    [*((family, FILTERED) for family in FAMILIES), ("llama", Sampling()), ("llama", Sampling(temperature=0))],
    ids=[*FAMILIES, "plain", "greedy"],
)
def test_a_request_gets_the_same_tokens_alone_in_a_batch_and_in_any_order(family, sampling):
    engine, requests = engine_of(tiny_model(family)), random_requests(8)
    sampling = replace(sampling, end_ids=(3, 7))
    together = by_key(engine.generate(requests, sampling))
    alone = by_key(itertools.chain.from_iterable(engine.generate([request], sampling) for request in requests))
    shuffled = by_key(engine.generate(requests[::-1], sampling))
    small = by_key(engine_of(tiny_model(family), batch_tokens=60).generate(requests, sampling))
    assert together == alone == shuffled == small
    assert list(together) != list(by_key(engine.generate([], sampling)))


def test_a_trained_model_too():
    folder = str(samples_dir() / "models" / "stories260k")
    engine = engines.load("transformers", folder, device="cpu")
    requests = [replace(r, prompt_ids=(1, *r.prompt_ids)) for r in random_requests(8, 1, vocabulary=512, longest=40)]
    together = by_key(engine.generate(requests, FILTERED))
    assert together == by_key(s for request in requests for s in engine.generate([request], FILTERED))
    assert engine.batch_invariant
    assert engine.fingerprint["model"] == models.describe(folder)


def test_another_seed_is_another_draw_and_greedy_has_none():
    engine = engine_of(tiny_model())
    requests = [Request(str(seed), (1, 2), 20, seed) for seed in range(50)]
    assert len({tokens for tokens, _ in by_key(engine.generate(requests, Sampling())).values()}) == 50
    assert len({tokens for tokens, _ in by_key(engine.generate(requests, Sampling(temperature=0))).values()}) == 1


def engines_to_ask() -> dict[str, engines.Engine]:
    """Both engines that run here; the third, vllm, has the same tests in a file of its own."""
    return {"transformers": engine_of(tiny_model()), "fake": engines.load("fake", "m", vocabulary=VOCABULARY)}


@pytest.mark.parametrize("name", ["transformers", "fake"])
@pytest.mark.parametrize(
    "sampling", [replace(FILTERED, end_ids=(3, 7)), Sampling(temperature=0)], ids=["drawn", "greedy"]
)
def test_answer_i_of_n_is_the_one_that_the_seed_plus_i_gets_alone(name, sampling):
    engine = engines_to_ask()[name]
    requests = [replace(one, n=1 + number % 4) for number, one in enumerate(random_requests())]
    samples = list(engine.generate(requests, sampling))
    found = {(one.key, one.index): replace(one, key="") for one in samples}
    assert len(found) == len(samples) == sum(request.n for request in requests)
    for request in requests:
        for index in range(request.n):
            single = replace(request, key="", n=1, seed=request.seed + index)
            (alone,) = engine.generate([single], sampling)
            one = found[request.key, index]
            assert (one.token_ids, one.finish) == (alone.token_ids, alone.finish)
    for request in requests:  # those of the longest answers, which cannot be equal by chance
        if request.n > 1 and request.max_new_tokens > 8:
            answers = {found[request.key, index].token_ids for index in range(request.n)}
            assert len(answers) == (1 if sampling.greedy else request.n)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.5, top_k=6), FILTERED], ids=["plain", "k", "kp"]
)
def test_the_first_two_tokens_have_the_distribution_asked_for(sampling):
    model = tiny_model()
    torch.nn.init.normal_(model.lm_head.weight, std=0.05)  # flat enough that many tokens occur
    samples = engine_of(model).generate([Request(str(i), (1, 2, 3), 2, i) for i in range(6000)], sampling)
    pairs = np.array([sample.token_ids for sample in samples])
    first = expected_probs(model(torch.tensor([[1, 2, 3]])).logits[0, -1].detach(), sampling)
    assert_drawn_from(np.bincount(pairs[:, 0], minlength=VOCABULARY), first)
    joint = np.zeros((VOCABULARY, VOCABULARY))
    for token in np.flatnonzero(first):
        logits = model(torch.tensor([[1, 2, 3, token]])).logits[0, -1].detach()
        joint[token] = first[token] * expected_probs(logits, sampling)
    counts = np.bincount(pairs[:, 0] * VOCABULARY + pairs[:, 1], minlength=VOCABULARY**2)
    assert_drawn_from(counts, joint.ravel())


def test_inverse_cdf_at_its_edges():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    chosen, logps = inverse_cdf(scores, torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert chosen.tolist() == [1, 1, 3, 3]  # never a token of probability 0
    torch.testing.assert_close(logps, torch.full((4,), math.log(0.5), dtype=torch.float64))


def test_log_probs_are_those_of_the_distribution_drawn_from():
    model, requests = tiny_model(), random_requests()
    for sampling in (Sampling(), FILTERED):
        prompts = {request.key: request.prompt_ids for request in requests}
        for sample in engine_of(model).generate(requests, sampling):
            ids = [*prompts[sample.key], *sample.token_ids]
            logits = model(torch.tensor([ids])).logits[0, len(prompts[sample.key]) - 1 : -1].detach()
            assert sample.token_logps is not None
            expected = [
                math.log(expected_probs(row, sampling)[t]) for row, t in zip(logits, sample.token_ids, strict=True)
            ]
            np.testing.assert_allclose(sample.token_logps, expected, atol=1e-5)


def test_unfiltered_log_probs_equal_the_scorers():
    model, requests = tiny_model("qwen2"), random_requests()
    samples = {sample.key: sample for sample in engine_of(model).generate(requests, Sampling(end_ids=(3,)))}
    found = score(model, [Tree(request.prompt_ids, [samples[request.key].token_ids]) for request in requests])
    for request, (logps,) in zip(requests, found, strict=True):
        np.testing.assert_allclose(samples[request.key].token_logps, logps, atol=1e-5)


def test_greedy_is_the_argmax_step_by_step():
    model, (request, *_) = tiny_model(), random_requests()
    ids = list(request.prompt_ids)
    for _ in range(request.max_new_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    (sample,) = engine_of(model).generate([request], Sampling(temperature=0))
    assert sample == Sample(request.key, tuple(ids[len(request.prompt_ids) :]), "length", None)


def test_every_row_stops_at_its_own_end_or_limit():
    requests = random_requests(40)
    limits = {request.key: request.max_new_tokens for request in requests}
    free = by_key(engine_of(tiny_model()).generate(requests, Sampling()))
    assert all(len(tokens) == limits[key] and finish == "length" for key, (tokens, finish) in free.items())
    ends = (0, 5, 6, 7)  # 0 is also what prompts are padded with
    found = by_key(engine_of(tiny_model()).generate(requests, Sampling(end_ids=ends)))
    assert {finish for _, finish in found.values()} == {"stop", "length"}
    for key, (tokens, finish) in found.items():
        # ending a row changes nothing before its end
        cut = next((i + 1 for i, token in enumerate(free[key][0]) if token in ends), None)
        assert (tokens, finish) == (free[key][0][:cut], "stop" if cut else "length")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_row_runs_past_the_models_positions_while_another_is_unfinished(family):
    long, short = tuple(range(40)), (1, 2, 3)
    requests = [
        Request("long prompt", long, POSITIONS - len(long), 1),
        Request("long answer", short, POSITIONS - len(short), 2),
    ]
    engine = engine_of(tiny_model(family))
    alone = by_key(sample for request in requests for sample in engine.generate([request], FILTERED))
    assert by_key(engine.generate(requests, FILTERED)) == alone


def test_only_the_sampling_given_counts(tmp_path):
    hostile = {
        "do_sample": True,
        "temperature": 0.01,
        "top_k": 1,
        "top_p": 0.1,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": list(range(20)),
        "min_new_tokens": 30,
        "max_length": 5,
        "eos_token_id": list(range(VOCABULARY)),
        "pad_token_id": 1,
    }
    plain, tampered = save_tiny_model(tmp_path / "plain"), save_tiny_model(tmp_path / "tampered", **hostile)
    requests, sampling = random_requests(), replace(FILTERED, end_ids=(3, 7))
    found = [by_key(engines.load("transformers", str(f)).generate(requests, sampling)) for f in (plain, tampered)]
    assert found[0] == found[1] == by_key(engine_of(tiny_model()).generate(requests, sampling))


def test_bad_requests_are_refused_before_the_run():
    engine = engine_of(tiny_model())
    fits = Request("a", (1,) * 60, POSITIONS - 60, 0)
    assert len(next(iter(engine.generate([fits], Sampling()))).token_ids) == POSITIONS - 60
    with pytest.raises(UserError, match=f"need {POSITIONS + 1} positions and the model has {POSITIONS}"):
        engine.generate([fits, replace(fits, key="b", max_new_tokens=POSITIONS - 59)], Sampling())
    with pytest.raises(UserError, match="another model"):
        engine.generate([Request("a", (VOCABULARY,), 1, 0)], Sampling())
    with pytest.raises(ValueError, match="same key"):
        engine.generate([fits, fits], Sampling())
    with pytest.raises(ValueError, match="empty prompt"):
        Request("a", (), 1, 0)
    with pytest.raises(ValueError, match="asks for 0"):
        Request("a", (1,), 0, 0)
    for none in (0, -1):
        with pytest.raises(ValueError, match=f"request 'a' asks for {none} answers: n must be at least 1"):
            Request("a", (1,), 1, 0, n=none)


@pytest.mark.parametrize(
    "knobs",
    [{"temperature": -1}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_p": math.nan}],
)
def test_sampling_out_of_range_is_refused(knobs):
    with pytest.raises(UserError, match=next(iter(knobs))):
        Sampling(**knobs)


def test_samples_stream_batch_by_batch(monkeypatch):
    model, calls = tiny_model(), []
    generate = model.generate

    def counting(**inputs):
        calls.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", counting)
    stream = engine_of(model, batch_tokens=80).generate(random_requests(), Sampling())
    assert calls == []
    next(stream)
    assert len(calls) == 1
    assert len(list(stream)) == 11
    assert sum(calls) == 12


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch):
    model, requests = tiny_model(), random_requests()
    expected = by_key(engine_of(model).generate(requests, FILTERED))
    generate = model.generate

    def cramped(**inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", cramped)
    assert by_key(engine_of(model).generate(requests, FILTERED)) == expected


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0)])
def test_logits_that_are_not_finite_stop_the_run(sampling):
    model = tiny_model()
    model.lm_head.weight.data[5] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        list(engine_of(model).generate(random_requests(), sampling))


def test_only_float32_on_the_cpu_claims_batch_invariance():
    assert engine_of(tiny_model()).batch_invariant
    assert not engine_of(tiny_model().to(torch.bfloat16)).batch_invariant


def test_global_randomness_is_neither_read_nor_moved():
    engine, requests = engine_of(tiny_model()), random_requests()
    torch.manual_seed(1)
    first = by_key(engine.generate(requests, Sampling()))
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert by_key(engine.generate(requests, Sampling())) == first


def test_an_unknown_engine_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="transformers, vllm, openai, fake"):
        engines.load("abacus", "model")
    for name in engines.ENGINES:
        file, _, class_name = engines.ENGINES[name].partition(":")
        module = __import__(f"prefdata.engines.{file}", fromlist=[class_name])
        assert getattr(module, class_name).name == name


def test_the_fake_draws_from_prompt_and_seed():
    engine = engines.load("fake", "some-model", dtype="bfloat16", trust_remote_code=False, vocabulary=10)
    requests = [Request(str(i), (1, i % 2), 30, i // 2) for i in range(8)]
    found = by_key(engine.generate(requests, Sampling()))
    assert len(set(found.values())) == 8
    assert found == by_key(engines.load("fake", "other", vocabulary=10).generate(requests[::-1], Sampling()))
    assert len(set(by_key(engine.generate(requests, Sampling(temperature=0))).values())) == 2
    assert engine.fingerprint["model"]["name"] == "some-model"


def test_the_fake_copies_ends_and_never_ends():
    request, sampling = Request("a", (1, 2), 3, 0), Sampling(end_ids=(9, 5))
    copier = engines.load("fake", "m", behaviour="copy", sequences=[[7, 7, 7], [1, 2, 3, 4, 5, 6]])
    assert by_key(copier.generate([request], sampling))["a"] == ((3, 4, 5), "stop")
    with pytest.raises(ValueError, match="no sequence begins"):
        list(copier.generate([replace(request, prompt_ids=(8,))], sampling))
    ender = engines.load("fake", "m", behaviour="end", after=1)
    tokens, finish = by_key(ender.generate([request], sampling))["a"]
    assert (len(tokens), tokens[-1], finish) == (2, 9, "stop")
    endless = engines.load("fake", "m", behaviour="never_end", vocabulary=10)
    long = replace(request, max_new_tokens=500)
    tokens, finish = by_key(endless.generate([long], sampling))["a"]
    assert (len(tokens), finish) == (500, "length")
    assert set(tokens) == set(range(10)) - {9, 5}
    with pytest.raises(UserError, match="draw, copy, end, never_end"):
        engines.load("fake", "m", behaviour="fly")


def test_the_fake_takes_any_script_and_remembers_what_it_was_asked():
    engine = fake.FakeEngine(lambda request, _: [request.seed, 1, 2, 3], positions=10)
    (sample,) = engine.generate([Request("a", (4,), 2, 8)], Sampling())
    assert sample == Sample("a", (8, 1), "length")
    assert engine.asked[0].prompt_ids == (4,)
    with pytest.raises(UserError, match="positions"):
        engine.generate([Request("a", (4,), 10, 8)], Sampling())
