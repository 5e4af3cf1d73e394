"""A judge over a server: both orders, verdicts that can't be read, and its probabilities fitted to people's."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefdata.builds import ingest, job
from prefdata.builds.score_rewards import Options
from prefdata.builds.score_rewards import job as score_rewards
from prefdata.errors import UserError
from prefdata.scorers.judge import verdict
from prefdata.verify import verify
from prefdata.versions import Version
from tests import tiny_world
from tests.openai_server import Answer, OpenAIServer, openai_server
from tests.samples import samples_dir

_SIDES = re.compile(r"\[Answer A\]\n(.*)\n\[End of answer A\]\n\n\[Answer B\]\n(.*)\n\[End of answer B\]", re.DOTALL)


def says(text: str) -> Answer:
    message = {"role": "assistant", "content": text}
    return Answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def shown(body: dict[str, Any]) -> tuple[str, str]:
    found = _SIDES.search(body["messages"][-1]["content"])
    assert found is not None
    return found[1], found[2]


def longer(path: str, body: dict[str, Any], number: int) -> Answer:
    """Likes the longer answer; a tie where they are of one length."""
    first, second = (len(text.split()) for text in shown(body))
    return says(f"Reasons. [[{'A' if first > second else 'B' if second > first else 'C'}]]")


def odd(path: str, body: dict[str, Any], number: int) -> Answer:
    """By the first answer's number of words: what stands first, no verdict, two verdicts, a refusal, or the longer one."""
    words = len(shown(body)[0].split())
    if words == 2:
        return says("The first. [[A]]")
    if words == 3:
        return says("Both are fine answers.")
    if words == 4:
        return says("[[A]] ... or rather [[B]]")
    if words == 5:
        return Answer({"error": {"message": "too long"}}, 400)
    return longer(path, body, number)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """v1: pairs whose sides have 2 to 9 words."""
    folder = tmp_path_factory.mktemp("judged")
    model = tiny_world.save_model(folder / "model")
    splits = {
        split: tiny_world.table(tiny_world.pair_rows(count, seed=seed))
        for split, count, seed in (("train", 40, 1), ("test", 8, 2))
    }
    tiny_world.publish(folder / "data", splits, model)
    return str(folder / "data")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with openai_server(longer) as running:
        yield running


def judge(root: str, server: OpenAIServer, **options: Any) -> job.Outcome:
    given = {"source": "v1", "scorer": ("judge",), "with_reference": False} | options
    return job.run(score_rewards(Options(server=(server.url,), **given), root))


def rows_of(version: Version) -> list[dict[str, Any]]:
    return [row for split in version.splits for row in version.table(split).to_pylist()]


def words(row: dict[str, Any], side: str) -> int:
    return len(row[side][0]["content"].split())


def test_both_orders_are_asked_and_their_share_is_the_preference(root: str, server: OpenAIServer) -> None:
    version = judge(root, server).version
    rows = rows_of(version)
    assert len(rows) == 48
    assert len(server.asked) == 2 * 48
    orders = [shown(body) for _, body in server.asked]
    assert sorted(orders) == sorted((second, first) for first, second in orders)
    assert all(body["temperature"] == 0 for _, body in server.asked)
    for row in rows:
        chosen, rejected = words(row, "chosen"), words(row, "rejected")
        side = "chosen" if chosen > rejected else "rejected" if rejected > chosen else "tie"
        assert row["judged_chosen_first"] == row["judged_rejected_first"] == side
        assert row["preference"] == {"chosen": 1.0, "rejected": 0.0, "tie": 0.5}[side]
    (entry,) = version.manifest["scorers"]
    assert (entry["name"], entry["scorer"], entry["model"]) == ("judge", "judge", "m")
    assert verify(version) == []
    # asked again nothing is: the version is there, and so are the units for another one
    before = len(server.asked)
    assert not judge(root, server).published
    assert judge(root, server, with_reference=True).reused == 2
    assert len(server.asked) == before


def test_what_cannot_be_read_is_set_aside_and_disagreement_is_recorded(root: str) -> None:
    with openai_server(odd) as server:
        version = judge(root, server, scorer=("judge:m",), judge_tokens=99).version
    lines = {line["row_id"]: line for line in version.table("ledger").to_pylist()}
    assert len(lines) == 48
    kept = {row["row_id"]: row for row in rows_of(version)}
    disagreeing = 0
    for row in rows_of(judge_source(root)):
        line, sides = lines[row["row_id"]], {words(row, "chosen"), words(row, "rejected")}
        if sides & {3, 4, 5}:
            # the first order whose answer is none says why
            why = next(n for n in (words(row, "chosen"), words(row, "rejected")) if n in (3, 4, 5))
            assert line["stage"] == "score"
            assert line["reason"] == ("judge_refused" if why == 5 else "judge_unclear")
            assert row["row_id"] not in kept
        else:
            assert line["status"] == "kept"
            found = kept[row["row_id"]]
            votes = [
                {"chosen": 1, "tie": 0.5, "rejected": 0}[found[f"judged_{side}_first"]]
                for side in ("chosen", "rejected")
            ]
            assert found["preference"] == sum(votes) / 2
            disagreeing += votes[0] != votes[1]
    assert 0 < disagreeing < len(kept) < 48
    counts = version.manifest["counts"]
    assert counts["rows_in"] == counts["kept"] + counts["set_aside"] == 48


def judge_source(root: str) -> Version:
    from prefdata import versions

    return versions.find("v1", root=root)


def test_a_judge_is_fitted_to_what_people_said(tmp_path: Path, server: OpenAIServer) -> None:
    """PandaLM's pairs, each judged by three people, and a judge that only looks at length."""
    samples = samples_dir()
    source = tmp_path / "people.json"
    source.write_text(json.dumps(json.loads((samples / "human_judged" / "pandalm.json").read_text())[:120]))
    root, model = str(tmp_path / "data"), str(samples / "models" / "stories260k")
    people = job.run(ingest.Ingest(ingest.Options(source=(str(source),), model=model), root)).version
    version = judge(root, server, source=people.name, calibrate_on=people.name).version
    rows = {row["row_id"]: row for row in rows_of(people)}
    assert {row["row_id"] for row in rows_of(version)} == set(rows)
    assert len(server.asked) == 2 * len(rows)  # what stands in both versions is judged once
    (entry,) = version.manifest["scorers"]
    found = entry["calibration"]
    assert found["on"]["version"] == people.name
    assert found["pairs"] == len(rows)
    assert (found["disagreement"], found["position_bias"]) == (0.0, 0.0)
    assert found["length_coefficient"] > 2
    longer_is_better = []
    for row in rows.values():
        if row["preference"] != 0.5:
            sign = np.sign(words(row, "chosen") - words(row, "rejected")) * np.sign(row["preference"] - 0.5)
            longer_is_better.append((sign + 1) / 2)
    assert found["accuracy"] == pytest.approx(np.mean(longer_is_better))
    assert found["calibration_error"] < 0.3  # some ninety pairs
    for row in rows_of(version):
        vote = {"chosen": 1, "tie": 0, "rejected": -1}[row["judged_chosen_first"]]
        z = found["vote_weight"] * vote + found["length_weight"] * np.log(row["chosen_tokens"] / row["rejected_tokens"])
        assert row["preference"] == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"server": ()}, "say where it is asked"),
        ({"scorer": ("judge", "other=judge")}, "one judge judges pairs"),
        ({"weights": (1.0,)}, "one judge judges pairs"),
        ({"scorer": ("lexicon",)}, "lexicon does not score pairs"),
        ({"scorer": ("judge:gpt",), "api_key_env": "NO_SUCH_KEY_HERE"}, "NO_SUCH_KEY_HERE"),
    ],
)
def test_what_is_refused(root: str, server: OpenAIServer, options: dict[str, Any], told: str) -> None:
    given = {"source": "v1", "scorer": ("judge",), "server": (server.url,)} | options
    with pytest.raises(UserError, match=told):
        score_rewards(Options(**given), root)


def test_a_server_that_is_gone_leaves_finished_units(root: str, tmp_path: Path) -> None:
    model = tiny_world.save_model(tmp_path / "model")
    tiny_world.publish(tmp_path / "data", {"train": tiny_world.table(tiny_world.pair_rows(12, seed=5))}, model)

    def broken(path: str, body: dict[str, Any], number: int) -> Answer:
        return longer(path, body, number) if number < 10 else Answer({"error": "no such key"}, 401)

    with openai_server(broken) as server, pytest.raises(UserError, match="wants another key"):
        judge(str(tmp_path / "data"), server, unit_rows=4, concurrency=1)
    with openai_server(longer) as server:
        again = judge(str(tmp_path / "data"), server, unit_rows=4)
        assert (again.reused, again.computed) == (1, 2)
        assert len(server.asked) == 16


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[[A]]", "A"),
        ("so [[ B ]]. Again: [[B]]", "B"),
        ("[[C]]", "C"),
        ("[[A]] [[B]]", None),
        ("A", None),
        ("[A]", None),
        ("[[D]]", None),
        ("", None),
        ("-1", None),
    ],
)
def test_a_verdict_is_one_of_three_or_none(text: str, found: str | None) -> None:
    assert verdict(text) == found
