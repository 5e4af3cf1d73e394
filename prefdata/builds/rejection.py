"""build-rejection-samples: of many draws of a prompt those that a rule accepts, as completions, or as pairs of them.

RSO (arXiv:2309.06657) samples 64 candidates, accepts 8 at beta 0.5 and ranks those in a first round; the defaults are its.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import polars as pl
import pyarrow as pa

from prefdata.builds.job import Job
from prefdata.builds.keeping import CompletionsJob, Kept
from prefdata.builds.options import option
from prefdata.builds.pairing import PairsOfCompletions
from prefdata.builds.selecting import Selecting
from prefdata.models import DTYPES
from prefdata.select import paired, rejection
from prefdata.select.paired import Selected
from prefdata.select.rejection import Accepted
from schemas import completions
from schemas.stats import TABLES

NAME = "build-rejection-samples"
PAIRS, COMPLETIONS = "pairs", "completions"


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option("latest", "version with scored completions: vN, a tag, latest, a path or a URL")
    rule: str = option(
        "statistical",
        "which candidates are accepted; statistical_merged is the published routine, which merges equal ones",
        choices=tuple(rejection.RULES),
    )
    accept: int = option(8, "candidates to accept of each prompt", least=1)
    beta: float = option(0.5, "of the statistical rules, in the unit of the scores: the smaller, the pickier", least=0)
    output: str = option(PAIRS, "what is published of the accepted ones", choices=(PAIRS, COMPLETIONS))
    ranking: str = option("first_round", "which accepted candidates make a pair", choices=tuple(paired.RULES))
    pairs_per_prompt: int = option(4, "most pairs of a prompt", least=1)
    min_margin: float = option(0.0, "least difference of the scores of a pair; ties never make one", least=0)
    bands: int = option(4, "bands of difficulty, by margins of score and of the reference", least=1)
    reference: str | None = option(
        None, "model whose log-probs are stored (default: the one the source's manifest names)"
    )
    seed: int = option(0, "seed of all draws")
    dtype: str = option("float32", "precision of the reference's weights", choices=DTYPES)
    unit_rows: int = option(1024, "rows per unit of work", least=1)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


class _Rejection(Selecting):
    """What is accepted, whatever becomes of it."""

    name = NAME
    kinds = (completions.KIND,)

    @cached_property
    def accepted(self) -> dict[str, Accepted]:
        """By split."""
        options = self.options
        return {
            split: rejection.select(
                self.answers(split), options.rule, accept=options.accept, beta=options.beta, seed=options.seed
            )
            for split in self.parent.splits
        }

    def told(self) -> dict[str, pa.Table]:
        """How much was accepted."""
        return {"acceptance": acceptance({split: found.prompts for split, found in self.accepted.items()})}


class AcceptedPairs(_Rejection, PairsOfCompletions):
    """Pairs of accepted candidates."""

    @property
    def method(self) -> str:  # type: ignore[override]
        """Both rules."""
        return f"{self.options.rule}+{self.options.ranking}"

    def select(self, split: str) -> Selected:
        """Accept, then rank."""
        options, answers, accepted = self.options, self.answers(split), self.accepted[split]
        own = answers.join(accepted.rows.select("row_id"), on="row_id", how="semi", maintain_order="left")
        ranked = paired.select(
            own,
            options.ranking,
            pairs_per_prompt=options.pairs_per_prompt,
            min_margin=options.min_margin,
            seed=options.seed,
        )
        return Selected(ranked.pairs, pl.concat([accepted.aside, ranked.aside]))


class AcceptedCompletions(_Rejection, CompletionsJob):
    """The accepted candidates themselves."""

    def select(self, split: str) -> Kept:
        """In the order of acceptance."""
        accepted = self.accepted[split]
        return Kept(accepted.rows.select("row_id", accepted_place="place"), accepted.aside)


def job(options: Options, root: str | None = None) -> Job:
    """The job for the output that is asked for."""
    return (AcceptedPairs if options.output == PAIRS else AcceptedCompletions)(options, root)


def acceptance(prompts: Mapping[str, pl.DataFrame]) -> pa.Table:
    """The table of statistics, by split."""
    rows = [
        found.select(
            split=pl.lit(split),
            prompts=pl.len(),
            **{name: pl.col(name).sum() for name in ("candidates", "distinct", "accepted", "shortfall", "tried")},
            # of no prompts there is none
            observed_rate=(pl.col("accepted").sum() / pl.col("tried").sum()).fill_nan(None),
            **{name: pl.col(name).mean() for name in ("expected_rate", "score_before", "score_after")},
        )
        for split, found in prompts.items()
    ]
    schema = TABLES["acceptance"]
    return pl.concat(rows).select(schema.names).to_arrow().cast(schema)
