"""The loop of examples/reward_loop.py on a tiny world: people's pairs, a reward model, scored samples, pairs."""

import json
from pathlib import Path

import pytest

from examples import reward_loop
from prefdata import models, versions
from prefdata.verify import verify
from tests import tiny_world


def write_pairs(file: Path, count: int, seed: int) -> None:
    """People who like an answer that repeats the prompt's first word."""
    rows = tiny_world.pair_rows(count, seed=seed)
    texts = [{side: row[side][0]["content"] for side in ("prompt", "chosen", "rejected")} for row in rows]
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))


def repeated(text: str) -> float:
    """The share of words that stood before."""
    words = text.split()
    return 1 - len(set(words)) / max(1, len(words))


def test_from_peoples_pairs_to_pairs_of_scored_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_world.save_model(tmp_path / "model")
    (tmp_path / "people").mkdir()
    write_pairs(tmp_path / "people" / "train.jsonl", 120, 1)
    write_pairs(tmp_path / "people" / "test.jsonl", 30, 2)
    prompts = tmp_path / "prompts.jsonl"
    asked = tiny_world.pair_rows(30, seed=3)
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"][0]["content"]}) + "\n" for row in asked))
    root = str(tmp_path / "data")

    def once() -> reward_loop.Outcome:
        return reward_loop.loop(Path("people"), model, prompts, root, Path("runs"), steps=60, samples=4, lr=3e-3)

    outcome = once()
    assert outcome.accuracy > 0.85
    made = versions.every(root)
    assert [version.manifest["build"] for version in made] == [
        "ingest",
        "ingest",
        "generate",
        "score-rewards",
        "build-paired",
    ]
    assert [verify(version) for version in made] == [[]] * 5
    _, _, answers, scored, paired = made
    (scorer,) = scored.manifest["scorers"]
    folder = tmp_path / "runs" / "rewards-v1-60"
    assert scorer["digest"] == models.model_digest(str(folder))
    assert scorer["tokens"] == "as stored"  # the reward model learnt from the very tokens that it reads
    assert scored.manifest["counts"]["kept"] == answers.manifest["counts"]["rows"]["train"] + (
        answers.manifest["counts"]["rows"].get("test", 0)
    )
    rows = [row for split in paired.splits for row in paired.table(split).to_pylist()]
    assert len(rows) > 20
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert all(row["ref_chosen_logps"] < 0 for row in rows)
    # it likes in samples what people liked in their pairs
    chosen, rejected = (sum(repeated(row[side][0]["content"]) for row in rows) for side in ("chosen", "rejected"))
    assert chosen > rejected
    rewards = {name: reward for name, reward, _ in outcome.lines}
    assert rewards["chosen"] > rewards["samples"] > rewards["rejected"]
    again = once()
    assert again == outcome
    assert len(versions.every(root)) == 5
    assert "nothing was done" in capsys.readouterr().out


def test_it_asks_for_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert reward_loop.main(["pairs.jsonl"]) == 2
    assert "--model" in capsys.readouterr().err
