"""build-paired: pairs from scored completions by a rule; pairs that are pairs already pass through, if they are clear enough.

Changing the rule runs no scorer again, and no model for pairs that were scored before.
"""

from dataclasses import dataclass

import polars as pl

from prefdata import versions
from prefdata.builds.clear_pairs import ClearPairs
from prefdata.builds.options import option
from prefdata.builds.pairing import PairsJob, PairsOfCompletions
from prefdata.builds.selecting import model_label
from prefdata.errors import UserError
from prefdata.models import DTYPES
from prefdata.select import paired
from prefdata.select.paired import Selected
from schemas import completions, pairs

NAME = "build-paired"


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option("latest", "version with scored completions, or pairs: vN, a tag, latest, a path or a URL")
    rule: str = option("max_min", "which of a prompt's completions make a pair", choices=tuple(paired.RULES))
    pairs_per_prompt: int = option(1, "most pairs of a prompt", least=1)
    min_margin: float = option(0.0, "least difference of the scores; ties never make a pair", least=0)
    min_preference: float = option(0.5, "least probability that chosen is better, of pairs that state one", least=0)
    on_policy: bool = option(False, "only completions that the reference itself wrote")
    bands: int = option(4, "bands of difficulty, by margins of score and of the reference", least=1)
    reference: str | None = option(
        None, "model whose log-probs are stored (default: the one the source's manifest names)"
    )
    seed: int = option(0, "seed of all draws")
    dtype: str = option("float32", "precision of the reference's weights", choices=DTYPES)
    unit_rows: int = option(1024, "pairs per unit of work", least=1)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


class BuildPaired(PairsOfCompletions):
    """The job on completions: select, score with the reference, publish."""

    name = NAME
    kinds = (completions.KIND,)

    @property
    def method(self) -> str:  # type: ignore[override]
        """The rule."""
        return str(self.options.rule)

    def select(self, split: str) -> Selected:
        """By the rule, among those that may be selected."""
        options, answers = self.options, self.answers(split)
        own = answers
        if options.on_policy:
            own = answers.filter(pl.col("generator") == model_label(self.reference))
        selected = paired.select(
            own,
            options.rule,
            pairs_per_prompt=options.pairs_per_prompt,
            min_margin=options.min_margin,
            seed=options.seed,
        )
        others = answers.join(own.select("row_id"), on="row_id", how="anti", maintain_order="left").select(
            "row_id",
            reason=pl.lit("off_policy"),
            detail=pl.format("{} wrote it", pl.col("generator").fill_null("another")),
        )
        return Selected(selected.pairs, pl.concat([selected.aside, others]))


def job(options: Options, root: str | None = None) -> PairsJob:
    """The job for the source's kind of rows."""
    source = versions.find(options.source, root=root, kinds=(completions.KIND, pairs.KIND))
    if options.on_policy and source.kind == pairs.KIND:
        raise UserError(f"on_policy chooses among completions, and {source.name} holds pairs: leave it out")
    return (ClearPairs if source.kind == pairs.KIND else BuildPaired)(options, root)
