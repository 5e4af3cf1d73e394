"""A version of scored completions for tests of what selects among them: tiny model, several answers a prompt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefdata.records import Message
from prefdata.versions import Version
from schemas import completions
from tests.tiny_world import WORDS, publish, save_model, table, with_reference


@dataclass(frozen=True)
class ScoredWorld:
    """A model, and a version of completions scored 0 to 4, some of them ties, some unscored, one greedy a prompt."""

    model: str
    version: Version
    root: str


def scored_rows(prompts: int, *, seed: int = 0, answers: int = 5) -> list[dict[str, Any]]:
    """Rows of several prompts, mixed; a prompt's first answer is its greedy one."""
    generator = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        ids = generator.integers(3, WORDS + 3, 4).tolist()
        text = " ".join(f"w{i - 3}" for i in ids)
        for number in range(answers):
            own = [*generator.integers(3, WORDS + 3, generator.integers(2, 9)).tolist(), 2]
            rows.append(
                {
                    "row_id": f"{seed}-{prompt}-{number}",
                    "prompt_id": f"{seed}-{prompt}",
                    "prompt": [Message("user", text).as_dict()],
                    "prompt_ids": ids,
                    "prompt_tokens": len(ids),
                    "completion": [Message("assistant", " ".join(f"w{i - 3}" for i in own[:-1])).as_dict()],
                    "completion_ids": own,
                    "completion_tokens": len(own),
                    "completion_content_start": 0,
                    "completion_finish": "stop",
                    "score": None if (prompt, number) == (1, 2) else float(generator.integers(0, 5)),
                    "method": "greedy" if number == 0 else "sampled",
                    "source": "test",
                }
            )
    order = np.random.default_rng(9).permutation(len(rows))
    return [rows[place] for place in order]


def make_world(folder: Path, *, prompts: int = 8, held_out: int = 3, reference: bool = False) -> ScoredWorld:
    """Published through the store."""
    model = save_model(folder / "model")
    splits = {
        split: table(scored_rows(count, seed=seed), completions.KIND)
        for split, count, seed in (("train", prompts, 1), ("test", held_out, 2))
    }
    if reference:
        splits = {split: with_reference(rows, model) for split, rows in splits.items()}
    version = publish(
        folder / "data", splits, model, kind=completions.KIND, reference_model=model if reference else None
    )
    return ScoredWorld(model, version, str(folder / "data"))
