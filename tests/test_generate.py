"""generate: samples by prompt, model, parameters and index; more of them later; prompts without room; several models."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefdata import engines, logprobs, models, reference
from prefdata.builds.generate import Generate, Options
from prefdata.builds.job import Outcome, run
from prefdata.builds.selecting import model_label
from prefdata.engines import Request, Sampling
from prefdata.errors import UserError
from prefdata.tokens import Renderer
from prefdata.verify import verify
from tests.tiny_world import pair_rows, publish, save_model, table


class World:
    def __init__(self, folder: Path, rows: int = 12) -> None:
        self.model = save_model(folder / "model")
        self.root = str(folder / "data")
        pairs = pair_rows(rows, seed=1)
        pairs[3] |= {name: pairs[2][name] for name in ("prompt_id", "prompt", "prompt_ids", "prompt_tokens")}
        tokenizer = {**Renderer.load(self.model).fingerprint, "max_length": 20}
        test = pair_rows(3, seed=2)
        test[0] |= {"prompt_ids": [5] * 20, "prompt_tokens": 20}
        self.version = publish(
            folder / "data", {"train": table(pairs), "test": table(test)}, self.model, tokenizer=tokenizer
        )

    def build(self, **options: Any) -> Outcome:
        given = {"source": "v1", "model": (self.model,), "samples": 3, "max_new_tokens": 6, "round": 1, **options}
        return run(Generate(Options(**given), self.root))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def samples(outcome: Outcome) -> list[dict[str, Any]]:
    return [row for split in outcome.version.splits for row in outcome.version.table(split).to_pylist()]


def test_every_prompt_has_its_draws_and_its_ledger_line(world: World) -> None:
    outcome = world.build(greedy=True)
    version = outcome.version
    assert verify(version) == []
    rows = samples(outcome)
    fit = {
        row["prompt_id"]: row
        for split in ("train", "test")
        for row in world.version.table(split).to_pylist()
        if row["prompt_tokens"] < 20
    }
    ledger = {line["row_id"]: line for line in version.ledger().to_pylist()}
    empty = {row["prompt_id"]: len(ledger[row["row_id"]]["shortfall"]) for row in fit.values()}
    assert Counter(row["prompt_id"] for row in rows) + Counter(empty) == Counter(dict.fromkeys(fit, 4))
    for row in rows:
        assert row["prompt_ids"] == fit[row["prompt_id"]]["prompt_ids"]
        assert row["completion_tokens"] == len(row["completion_ids"]) <= min(6, 20 - row["prompt_tokens"])
        assert row["completion_finish"] == ("stop" if row["completion_ids"][-1] == 2 else "length")
        assert (row["sample_index"], row["method"]) in {(0, "greedy"), (0, "sampled"), (1, "sampled"), (2, "sampled")}
        assert (row["sampler_token_logps"] is None) is (row["method"] == "greedy")
        assert row["generator"] == model_label(models.describe(world.model))
    assert len(ledger) == 15
    twins = [world.version.table("train")["row_id"][place].as_py() for place in (2, 3)]
    assert ledger[twins[0]]["made"] == ledger[twins[1]]["made"]  # both rows state the prompt
    long = world.version.table("test")["row_id"][0].as_py()
    assert (ledger[long]["reason"], ledger[long]["stage"]) == ("no_room_for_answer", "select")


def test_draws_are_those_of_the_engine_for_their_seeds(world: World) -> None:
    rows = samples(world.build())
    engine = engines.load("transformers", world.model)
    sampling = Sampling(1.0, 0, 1.0, tuple(world.version.manifest["tokenizer"]["end_ids"]))
    requests = [
        Request(row["row_id"], tuple(row["prompt_ids"]), min(6, 20 - len(row["prompt_ids"])), row["seed"])
        for row in rows
    ]
    drawn = {sample.key: list(sample.token_ids) for sample in engine.generate(requests, sampling)}
    assert all(drawn[row["row_id"]] == row["completion_ids"] for row in rows)


def test_equal_draws_are_two_rows(world: World) -> None:
    rows = samples(world.build(samples=12, max_new_tokens=1))
    assert len(rows) == len({row["row_id"] for row in rows})
    answers = Counter((row["prompt_id"], tuple(row["completion_ids"])) for row in rows)
    assert max(answers.values()) > 1  # of one token each, some come twice


def test_more_samples_keep_those_that_are_there(world: World) -> None:
    few = world.build(samples=2)
    more = world.build(samples=5)
    assert more.reused > 0
    by_key = {(row["prompt_id"], row["sample_index"]): row for row in samples(more)}
    for row in samples(few):
        same = by_key[row["prompt_id"], row["sample_index"]]
        logps = same.pop("ref_completion_token_logps"), row.pop("ref_completion_token_logps")
        np.testing.assert_allclose(*logps, atol=1e-5)  # in other company
        assert same.pop("ref_completion_logps") == pytest.approx(row.pop("ref_completion_logps"), abs=1e-4)
        assert same == row
    assert {index for _, index in by_key} == set(range(5))
    fewer = world.build(samples=4)
    assert {row["row_id"] for row in samples(fewer)} < {row["row_id"] for row in samples(more)}


def test_what_was_drawn_is_never_drawn_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.build(samples=4)
    asked: list[int] = []
    true_load = engines.load

    def load(*given: Any, **options: Any) -> Any:
        engine = true_load(*given, **options)
        true_generate = engine.generate

        def generate(requests: Any, sampling: Any) -> Any:
            asked.extend(request.n for request in requests)
            return true_generate(requests, sampling)

        engine.generate = generate  # type: ignore[method-assign]
        return engine

    monkeypatch.setattr(engines, "load", load)
    world.build(samples=6)
    assert set(asked) == {2}
    asked.clear()
    world.build(samples=5)
    assert asked == []


def test_chunks_change_no_draw(world: World, tmp_path: Path) -> None:
    whole = world.build()
    other = World(tmp_path / "other")
    small = other.build(unit_rows=2)
    assert small.computed > whole.computed
    assert small.version.logical_hash == whole.version.logical_hash


def test_several_models_write_side_by_side(world: World, tmp_path: Path) -> None:
    second = save_model(tmp_path / "second", seed=7)
    outcome = world.build(model=(world.model, second), samples=2)
    labels = Counter(row["generator"] for row in samples(outcome))
    assert set(labels) == {model_label(models.describe(name)) for name in (world.model, second)}
    assert outcome.version.manifest["generator"]["others"][0]["name"] == models.describe(second)["name"]
    stored = outcome.version.table("train")
    live = logprobs.score(models.load_model(world.model), reference.trees(stored))
    for row, (own,) in zip(stored["ref_completion_token_logps"].to_pylist(), live, strict=True):
        np.testing.assert_allclose(row, own, atol=1e-4)  # the first one's, whoever wrote the row


def test_another_round_or_seed_draws_anew_and_greedy_stays(world: World) -> None:
    first, second = world.build(greedy=True), world.build(greedy=True, round=2)

    def drawn(outcome: Outcome, method: str) -> set[str]:
        return {row["row_id"] for row in samples(outcome) if row["method"] == method}

    assert drawn(first, "greedy") == drawn(second, "greedy")
    assert not drawn(first, "sampled") & drawn(second, "sampled")


def test_without_a_reference_there_is_none(world: World) -> None:
    version = world.build(with_reference=False).version
    assert version.manifest["reference"] is None
    assert "ref_completion_logps" not in version.columns()
    assert verify(version) == []


def test_nothing_to_draw_is_refused(world: World) -> None:
    with pytest.raises(UserError, match="nothing would be drawn"):
        world.build(samples=0)


def test_answers_without_content_are_set_aside(world: World) -> None:
    outcome = world.build(samples=40, max_new_tokens=1, temperature=2.0)
    short = sum(len(line["shortfall"]) for line in outcome.version.ledger().to_pylist())
    rows = samples(outcome)
    assert all(row["completion_ids"] != [2] for row in rows)
    assert short > 0
