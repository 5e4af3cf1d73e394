"""The vllm engine: what it asks of vLLM and gives back, and what happens when its process dies.

The tests of the process's owner run everywhere, against a stand-in. Those of vLLM skip where it is not installed, or
fail there if PREFDATA_REQUIRE names it.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.demo import model as demo_model
from examples.demo import world
from prefdata import engines, models, versions
from prefdata.builds import ingest, job, sapo_negatives
from prefdata.engines import EngineDied, Request, Sample, Sampling, vllm
from prefdata.errors import UserError
from prefdata.verify import verify
from prefdata.work import Work
from tests.fake_vllm_worker import MISBEHAVE
from tests.required import lacking
from tests.samples import samples_dir
from tests.test_engines import expected_probs
from tests.tiny_models import random_requests, save_llama

ROOT = Path(__file__).parent.parent
VOCABULARY, POSITIONS = 512, 96
GREEDY = Sampling(temperature=0, end_ids=tuple(range(2, 60)))
FILTERED = Sampling(temperature=0.7, top_k=20, top_p=0.9, end_ids=(2, 7))


# -- without vLLM --------------------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, *, copies: int = 1, **settings: Any) -> vllm.VllmEngine:
    monkeypatch.setattr(vllm, "_WORKER", "tests.fake_vllm_worker")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return vllm.VllmEngine(
        {"then": "nothing", **settings},
        {"name": "tiny", "dtype": "float32"},
        environments=[environment] * copies,
        positions=100,
        vocabulary=VOCABULARY,
        room=vllm._room([], vllm._environments([], 1, 1)[0]),
    )


def requests_with(seeds: range) -> list[Request]:
    return [Request(f"r{seed}", (1,), 2, seed) for seed in seeds]


FINE, DEADLY = requests_with(range(MISBEHAVE)), requests_with(range(MISBEHAVE + 3))


def answered(samples: Iterator[Sample]) -> dict[str, tuple[int, ...]]:
    return {sample.key: sample.token_ids for sample in samples}


def expected(requests: list[Request]) -> dict[str, tuple[int, ...]]:
    return {request.key: (request.seed,) * request.max_new_tokens for request in requests}


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended, or does within so many seconds. Where nobody reaps it, it stays as a zombie."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def pid_of(engine: vllm.VllmEngine) -> int:
    return engine._processes[0]._process.pid


def test_without_vllm_the_engine_is_refused_before_anything_else(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed here: .*make env-vllm.*prefdata\[vllm\]") as refused:
        engines.load("vllm", "/no/such/model")
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="make env-vllm"):  # and not: there is no version
        sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(engine="vllm"), str(tmp_path))
    engines.require("transformers")


def test_only_engines_that_can_spread_a_model_take_sizes() -> None:
    sizes = {"tensor_parallel_size": 2, "data_parallel_size": 3}
    assert engines.parallel("vllm", **sizes) == sizes
    assert engines.parallel("transformers", tensor_parallel_size=1, data_parallel_size=1) == {}
    with pytest.raises(UserError, match="data_parallel_size is 3 and the engine transformers works on one device"):
        engines.parallel("transformers", tensor_parallel_size=1, data_parallel_size=3)


def test_each_copy_of_a_model_gets_its_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    made = vllm._environments(["0", "2", "5", "7"], 2, 2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in made] == ["0,2", "5,7"]
    with pytest.raises(UserError, match="needs 6 GPUs, and 4 can be seen"):
        vllm._environments(["0", "2", "5", "7"], 2, 3)
    (on_cpu,) = vllm._environments([], 1, 1)
    assert on_cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert on_cpu["OMP_NUM_THREADS"] == "3"  # what the user has set stays
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in made[0]


@pytest.mark.parametrize("copies", [1, 3])
def test_samples_come_back_to_their_requests_in_any_order(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    engine = stand_in(monkeypatch, copies=copies)
    for requests in (FINE, DEADLY, FINE[:1]):
        assert answered(engine.generate(requests, Sampling())) == expected(requests)
    assert list(engine.generate([], Sampling())) == []
    pids = [process._process.pid for process in engine._processes]
    assert len(set(pids)) == copies
    engine.close()
    assert all(gone(pid) for pid in pids)
    assert answered(engine.generate(FINE, Sampling())) == expected(FINE)  # a new process
    engine.close()


@pytest.mark.parametrize(("then", "how"), [("die", "killed by signal 9"), ("raise", "ValueError: no more blocks")])
def test_a_death_ends_its_call_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch, then: str, how: str) -> None:
    engine = stand_in(monkeypatch, copies=2, then=then)
    for _ in range(vllm.MAX_RESTARTS):
        with pytest.raises(EngineDied, match=how):
            list(engine.generate(DEADLY, Sampling()))
        assert answered(engine.generate(FINE, Sampling())) == expected(FINE)
    with pytest.raises(EngineDied):
        list(engine.generate(DEADLY, Sampling()))
    with pytest.raises(UserError, match=f"died {vllm.MAX_RESTARTS + 1} times with model tiny: .*{how}"):
        engine.generate(FINE, Sampling())


@pytest.mark.parametrize("copies", [1, 2])
def test_all_answers_of_a_request_come_back_with_their_numbers(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    engine = stand_in(monkeypatch, copies=copies)
    last = 2**63 - 1  # whatever is added to a seed must fit into 63 bits too
    requests = [Request("a", (1,), 2, 10, n=3), Request("b", (1,), 2, 20), Request("c", (1,), 2, last, n=2)]
    drawn = {(one.key, one.index): one.token_ids[0] for one in engine.generate(requests, Sampling())}
    assert {key: token for key, token in drawn.items() if key[0] != "c"} == {
        ("a", 0): 10,
        ("a", 1): 11,
        ("a", 2): 12,
        ("b", 0): 20,
    }
    assert 0 <= drawn["c", 0] < drawn["c", 1] <= last
    greedy = list(engine.generate(requests, Sampling(temperature=0)))
    assert sorted((one.key, one.index) for one in greedy) == sorted(drawn)
    assert len({one.token_ids for one in greedy if one.key == "a"}) == 1
    engine.close()


def test_a_death_between_the_answers_of_a_request_ends_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stand_in(monkeypatch, then="die")
    stream = engine.generate([Request("dead", (1,), 2, MISBEHAVE), Request("fine", (1,), 2, 9, n=2)], Sampling())
    assert next(stream).key == "fine"
    with pytest.raises(EngineDied):
        list(stream)
    engine.close()


def test_a_death_between_calls_is_noticed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stand_in(monkeypatch)
    list(engine.generate(FINE, Sampling()))
    os.kill(pid_of(engine), signal.SIGKILL)
    with pytest.raises(EngineDied):
        list(engine.generate(FINE, Sampling()))
    assert answered(engine.generate(FINE, Sampling())) == expected(FINE)
    engine.close()


def test_what_is_left_of_a_call_never_reaches_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stand_in(monkeypatch)
    half_read = engine.generate(DEADLY, Sampling())
    next(half_read)
    others = [replace(request, max_new_tokens=3) for request in FINE]
    assert answered(engine.generate(others, Sampling())) == expected(others)
    with pytest.raises(RuntimeError, match="another call"):
        next(half_read)
    dropped = engine.generate(DEADLY, Sampling())
    next(dropped)
    del dropped
    assert answered(engine.generate(FINE, Sampling())) == expected(FINE)
    engine.close()


def test_what_vllm_refuses_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^vLLM cannot run model tiny: head size 7$"):
        stand_in(monkeypatch, refuse="head size 7").generate(FINE, Sampling())
    with pytest.raises(UserError, match=r"tiny: ValueError: heads of size 7 have no kernel$"):
        stand_in(monkeypatch, refuse="failed. See root cause above.").generate(FINE, Sampling())


def test_bad_requests_and_sampling_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stand_in(monkeypatch)
    request = Request("a", (1,), 2, 0)
    for bad, why in (
        ([replace(request, max_new_tokens=100)], "the model has 100"),
        ([replace(request, prompt_ids=(VOCABULARY,))], "another model"),
    ):
        with pytest.raises(UserError, match=why):
            engine.generate(bad, Sampling())
    with pytest.raises(UserError, match=r"temperature is 3\.0 and vLLM takes 0 .greedy. or 0\.01 to 2\.0"):
        engine.generate([request], Sampling(temperature=3.0))
    assert engine._processes == []  # nothing was started for that
    with pytest.raises(UserError, match=r"need 61 positions and vLLM's cache holds 50, as VLLM_CPU_KVCACHE_SPACE=1 "):
        engine.generate([replace(request, max_new_tokens=60)], Sampling())
    assert "gpu_memory_utilization" in vllm._room(["0"], {})
    engine.close()
    with pytest.raises(UserError, match="not finite"):
        list(stand_in(monkeypatch, then="nan").generate(DEADLY, Sampling()))


def test_a_unit_is_tried_again_when_its_engine_dies(tmp_path: Path) -> None:
    class Stage:
        name, deaths = "generate", 0

        def compute(self, unit: job.Unit) -> Any:
            self.tries += 1
            if self.tries <= self.deaths:
                raise EngineDied("killed")
            return {}

    unit, work, stage = job.Unit("0" * 64, 1), Work(str(tmp_path)), Stage()
    stage.tries, stage.deaths = 0, job.ENGINE_RETRIES + 1
    with pytest.raises(EngineDied):
        job.run_unit(stage, unit, work)  # type: ignore[arg-type]
    assert stage.tries == job.ENGINE_RETRIES + 1
    stage.tries, stage.deaths = 0, job.ENGINE_RETRIES
    assert job.run_unit(stage, unit, work)  # type: ignore[arg-type]
    assert work.computed == 1


# -- with vLLM -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed() -> None:
    if find_spec("vllm") is None:
        lacking("vllm", "vLLM is not installed: make env-vllm")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its generation settings would spoil every answer, were they followed."""
    hostile = {"do_sample": True, "top_k": 1, "repetition_penalty": 5.0, "eos_token_id": list(range(3, 400))}
    folder = tmp_path_factory.mktemp("vllm") / "tiny"
    return str(save_llama(folder, vocabulary=VOCABULARY, positions=POSITIONS, head_size=32, **hostile))


@pytest.fixture(scope="module")
def engine(installed: None, tiny: str) -> Iterator[vllm.VllmEngine]:
    loaded = engines.load("vllm", tiny)
    assert isinstance(loaded, vllm.VllmEngine)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def demo() -> str:
    """The demo's model; trained in about a minute if `make demo` has not left it here."""
    return str(demo_model.cached(ROOT / ".demo" / "models", say=lambda _: None))


def requests_of(count: int) -> list[Request]:
    return random_requests(count, vocabulary=VOCABULARY, longest=POSITIONS // 2)


def by_key(samples: Iterator[Sample]) -> dict[str, Sample]:
    return {sample.key: sample for sample in samples}


def assert_greedy_agrees(engine: engines.Engine, folder: str, requests: list[Request], sampling: Sampling) -> int:
    """Equal tokens; where two differ, transformers' two likeliest are too close to call. How many answers are equal."""
    ours = by_key(engine.generate(requests, sampling))
    theirs = by_key(engines.load("transformers", folder, device="cpu").generate(requests, sampling))
    model = models.load_model(folder, device="cpu")
    equal = 0
    for request in requests:
        one, other = ours[request.key], theirs[request.key]
        equal += one == other
        pairs = zip(one.token_ids, other.token_ids, strict=False)
        differing = [at for at, (a, b) in enumerate(pairs) if a != b]
        if not differing:
            assert one == other  # also where and how they end
            continue
        ids = (*request.prompt_ids, *other.token_ids[: differing[0]])
        with torch.no_grad():
            likeliest = model(torch.tensor([ids])).logits[0, -1].topk(2).values
        assert likeliest[0] - likeliest[1] < 1e-3, f"{request.key} at {differing[0]}"
    return equal


def test_greedy_answers_equal_those_of_transformers(engine: vllm.VllmEngine, tiny: str) -> None:
    requests = requests_of(60)
    assert assert_greedy_agrees(engine, tiny, requests, GREEDY) >= 57
    answers = by_key(engine.generate(requests, GREEDY)).values()
    assert {answer.finish for answer in answers} == {"stop", "length"}
    assert {answer.token_logps for answer in answers} == {None}


def test_answers_end_at_an_end_id_or_their_limit(engine: vllm.VllmEngine) -> None:
    requests, ends = requests_of(60), tuple(range(40))
    limits = {request.key: request.max_new_tokens for request in requests}
    free = by_key(engine.generate(requests, replace(FILTERED, end_ids=())))
    assert all(len(one.token_ids) == limits[key] and one.finish == "length" for key, one in free.items())
    found = by_key(engine.generate(requests, replace(FILTERED, end_ids=(*ends, 10**6))))  # one it can never write
    assert {one.finish for one in found.values()} == {"stop", "length"}
    for key, one in found.items():
        assert not set(one.token_ids[:-1]) & set(ends)
        assert (one.finish == "stop") == (one.token_ids[-1] in ends)
        assert one.finish == "stop" or len(one.token_ids) == limits[key]
    full = Request("full", (1,) * (POSITIONS - 5), 5, 0)
    (sample,) = engine.generate([full], replace(FILTERED, end_ids=()))
    assert len(sample.token_ids) == 5


def test_a_seed_gives_the_same_tokens_and_another_seed_others(engine: vllm.VllmEngine) -> None:
    same = [Request(str(i), (1, 2, 3), 30, 12345) for i in range(4)]
    other = [Request(str(i), (1, 2, 3), 30, i) for i in range(4, 40)]
    first = by_key(engine.generate(same + other, Sampling()))
    assert len({first[request.key].token_ids for request in same}) == 1
    assert len({sample.token_ids for sample in first.values()}) == 1 + len(other)
    again = by_key(engine.generate((same + other)[::-1], Sampling()))
    assert {key: one.token_ids for key, one in again.items()} == {key: one.token_ids for key, one in first.items()}
    assert not engine.batch_invariant


def test_n_samples_of_a_request_have_the_seeds_after_its_own(engine: vllm.VllmEngine) -> None:
    requests = [Request(str(i), (i, *range(1, 40)), 20, 100 * i, n=3) for i in range(20)]
    found = {(one.key, one.index): one for one in engine.generate(requests, FILTERED)}
    assert set(found) == {(request.key, index) for request in requests for index in range(3)}
    assert len({one.token_ids for one in found.values()}) == 60
    for index in range(3):
        singles = [replace(request, n=1, seed=request.seed + index) for request in requests]
        alone = by_key(engine.generate(singles, FILTERED))
        assert {key: one.token_ids for key, one in alone.items()} == {
            r.key: found[r.key, index].token_ids for r in requests
        }
    greedy = {(one.key, one.index): one for one in engine.generate(requests, GREEDY)}
    assert greedy.keys() == found.keys()
    for key, one in by_key(engine.generate([replace(request, n=1) for request in requests], GREEDY)).items():
        assert [greedy[key, index].token_ids for index in range(3)] == [one.token_ids] * 3


def test_more_prompts_than_fit_into_one_step_change_no_draw(engine: vllm.VllmEngine) -> None:
    requests = [Request(str(i), (i, *range(1, 80)), 5, i) for i in range(150)]  # 12,000 tokens
    together = by_key(engine.generate(requests, Sampling()))
    alone = {
        key: one for request in requests[::25] for key, one in by_key(engine.generate([request], Sampling())).items()
    }
    assert len(together) == len(requests)
    assert {key: together[key].token_ids for key in alone} == {key: one.token_ids for key, one in alone.items()}


def test_log_probs_are_those_of_the_distribution_drawn_from(engine: vllm.VllmEngine, tiny: str) -> None:
    """Also a check that temperature, top_k and top_p arrive: a token outside of them would have no probability."""
    model, requests = models.load_model(tiny, device="cpu"), requests_of(12)
    for sampling in (Sampling(), FILTERED, Sampling(temperature=1.5, top_k=6)):
        prompts = {request.key: request.prompt_ids for request in requests}
        for sample in engine.generate(requests, sampling):
            ids, start = [*prompts[sample.key], *sample.token_ids], len(prompts[sample.key])
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            wanted = [
                math.log(expected_probs(row, sampling)[token])
                for row, token in zip(logits, sample.token_ids, strict=True)
            ]
            assert sample.token_logps is not None
            np.testing.assert_allclose(sample.token_logps, wanted, atol=2e-3)


def test_a_killed_process_ends_its_call_and_the_next_starts_another(engine: vllm.VllmEngine) -> None:
    requests = [Request(str(i), (1,), 90, i) for i in range(2000)]
    stream = engine.generate(requests, Sampling())
    next(stream)
    killed = pid_of(engine)
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EngineDied, match="killed by signal 9"):
        list(stream)
    assert len(list(engine.generate(requests[:3], Sampling()))) == 3
    assert pid_of(engine) != killed


def test_a_model_that_vllm_cannot_run_is_refused_with_its_reason(installed: None, tmp_path: Path) -> None:
    small = engines.load("vllm", str(save_llama(tmp_path / "small", vocabulary=VOCABULARY, positions=POSITIONS)))
    with pytest.raises(UserError, match=r"vLLM cannot run model .*head_dim=16") as refused:
        small.generate(requests_of(2), GREEDY)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_its_process_does_not_outlive_who_started_it(installed: None, tiny: str) -> None:
    code = (
        "import sys, time; from prefdata import engines; from prefdata.engines import Request, Sampling\n"
        "engine = engines.load('vllm', sys.argv[1])\n"
        "stream = engine.generate([Request(str(i), (1,), 90, i) for i in range(20_000)], Sampling())\n"
        "next(stream); print(engine._processes[0]._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tiny], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not gone(pid, 0.2)
        owner.kill()
    assert gone(pid)


@pytest.mark.slow
def test_two_copies_share_the_requests(installed: None, tiny: str, engine: vllm.VllmEngine) -> None:
    twice = engines.load("vllm", tiny, data_parallel_size=2)
    assert isinstance(twice, vllm.VllmEngine)
    requests = requests_of(20)
    found, alone = by_key(twice.generate(requests, FILTERED)), by_key(engine.generate(requests, FILTERED))
    assert len(twice._processes) == 2
    twice.close()
    assert {key: one.token_ids for key, one in found.items()} == {key: one.token_ids for key, one in alone.items()}


# -- builds --------------------------------------------------------------------------------------------------------


def sapo(root: Path, **options: Any) -> versions.Version:
    chosen = sapo_negatives.Options(source="v1", engine="vllm", **options)
    return job.run(sapo_negatives.BuildSapoNegatives(chosen, str(root))).version


@pytest.mark.slow
def test_a_build_on_the_demo_model_survives_a_kill(
    installed: None, demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.write_pairs(tmp_path / "all.jsonl", 0)
    lines = (tmp_path / "all.jsonl").read_text().splitlines()[:200]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    root = tmp_path / "data"
    job.run(ingest.Ingest(ingest.Options(source=(str(tmp_path / "pairs.jsonl"),), model=demo), str(root)))
    generate, killed = vllm.VllmEngine.generate, []

    def kill_once(self: vllm.VllmEngine, *arguments: Any) -> Iterator[Sample]:
        for number, sample in enumerate(generate(self, *arguments)):
            if number == 3 and not killed:
                killed.append(pid_of(self))
                os.kill(killed[0], signal.SIGKILL)
            yield sample

    monkeypatch.setattr(vllm.VllmEngine, "generate", kill_once)
    version = sapo(root, unit_rows=64)
    assert killed
    assert "killed by signal 9" in caplog.text
    assert verify(version) == []
    manifest = version.manifest
    assert (manifest["generator"]["engine"], manifest["generator"]["batch_invariant"]) == ("vllm", False)
    assert "data_parallel_size" not in manifest["config"]
    parents = len({row for split in version.splits for row in version.table(split)["parent_row_id"].to_pylist()})
    assert parents == manifest["counts"]["kept"] > 40  # where the model is sure of itself, no segment changes
    tasks = [json.loads(line)["prompt"] for line in lines[:40]]
    assert_demo_agrees(demo, tasks)


def assert_demo_agrees(demo: str, prompts: list[str]) -> None:
    """Greedy answers of the trained model, right or wrong, are the same in both engines."""
    from prefdata.records import Message
    from prefdata.tokens import Renderer

    renderer = Renderer.load(demo)
    rendered = [renderer.prompt((Message("user", prompt),)) for prompt in prompts]
    requests = [Request(str(i), tuple(ids), 60, i) for i, ids in enumerate(rendered) if isinstance(ids, list)]
    assert len(requests) == len(prompts)
    loaded = engines.load("vllm", demo)
    sampling = Sampling(temperature=0, end_ids=tuple(renderer.end_ids))
    assert assert_greedy_agrees(loaded, demo, requests, sampling) >= len(requests) - 3
    assert isinstance(loaded, vllm.VllmEngine)
    loaded.close()


@pytest.mark.slow
def test_a_build_on_real_transcripts_with_a_trained_model(installed: None, tmp_path: Path) -> None:
    samples = samples_dir()
    rows = (samples / "hh_helpful" / "train.jsonl").read_text().split("\n")[:80]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    model, root = str(samples / "models" / "stories260k"), tmp_path / "data"
    job.run(ingest.Ingest(ingest.Options(source=(str(tmp_path / "train.jsonl"),), model=model), str(root)))
    version = sapo(root)
    assert verify(version) == []
    assert version.manifest["counts"]["kept"] > 20
    means = [np.mean(version.table("train")[f"ref_{side}_logps"].to_numpy()) for side in ("chosen", "rejected")]
    assert means[1] > means[0]  # it wrote B' and not B
