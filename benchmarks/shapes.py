"""What is measured: rows of random tokens of one shape, or real pairs with the lengths they have."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefdata.logprobs import Tree

# a first token of its own for every branch: nothing but the prompt is shared
_FIRST = 64


@dataclass(frozen=True)
class Shape:
    """`rows` prompts of `prompt` tokens, each with `branches` completions of `completion` tokens."""

    prompt: int
    completion: int
    rows: int = 1
    branches: int = 2

    def __str__(self) -> str:
        many = "" if self.rows == 1 else "s"
        what = f"pair{many}" if self.branches == 2 else f"prompt{many} with {self.branches} completions"
        return f"{self.prompt}/{self.completion}, {self.rows} {what}"

    def trees(self, vocabulary: int, seed: int = 0) -> list[Tree]:
        """Random ids from 1 up: 0 is what pads."""
        rng = np.random.default_rng(seed)
        return [self._tree(rng, vocabulary) for _ in range(self.rows)]

    def _tree(self, rng: np.random.Generator, vocabulary: int) -> Tree:
        trunk = rng.integers(1, vocabulary, self.prompt)
        firsts = 1 + rng.permutation(min(_FIRST, vocabulary - 1))[: self.branches]
        branches = [np.concatenate([[first], rng.integers(1, vocabulary, self.completion - 1)]) for first in firsts]
        return Tree(trunk.tolist(), [branch.tolist() for branch in branches])


def real_pairs(source: Path, tokenizer: Path, rows: int, longest: int) -> list[Tree]:
    """The pairs among the first rows of a file, as ingest makes them: chosen first. None is longer than `longest`."""
    from prefdata.builds.ingest import Ingest, Options
    from prefdata.builds.job import run

    with tempfile.TemporaryDirectory(prefix="prefdata-benchmark-") as folder:
        excerpt = Path(folder) / source.name
        with source.open() as lines:
            excerpt.write_text("".join(line for line, _ in zip(lines, range(rows), strict=False)))
        options = Options(
            source=(str(excerpt),), model=str(tokenizer), split="train", max_length=longest, overflow="set_aside"
        )
        version = run(Ingest(options, str(Path(folder) / "data"))).version
        columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
        found = [row for table in version.batches("train", columns=columns) for row in table.to_pylist()]
    return [Tree(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in found]


def lengths(trees: Sequence[Tree]) -> str:
    """Median lengths, in words."""
    prompts = np.median([len(tree.trunk) for tree in trees])
    completions = np.median([len(branch) for tree in trees for branch in tree.branches])
    return f"{len(trees)} rows, prompts of {prompts:.0f} tokens in the middle, completions of {completions:.0f}"
