"""build-greedy-baselines: samples against the greedy completion of their prompt, as ReMax has them (arXiv:2310.10505).

As completions, each sample with its advantage; or as pairs of sample and greedy completion in whichever order the scores
say.
"""

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
from prefdata.select import greedy
from prefdata.select.greedy import Compared
from prefdata.select.paired import Selected
from schemas import completions
from schemas.stats import TABLES

NAME = "build-greedy-baselines"
PAIRS, COMPLETIONS = "pairs", "completions"


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option(
        "latest", "version with scored completions, greedy ones among them: vN, a tag, latest, a path or a URL"
    )
    output: str = option(COMPLETIONS, "samples with advantages, or pairs", choices=(COMPLETIONS, PAIRS))
    pairs_per_prompt: int = option(1, "most pairs of a prompt, the widest margins first", least=1)
    min_margin: float = option(0.0, "least difference of the scores of a pair; ties never make one", least=0)
    bands: int = option(4, "bands of difficulty, by margins of score and of the reference", least=1)
    reference: str | None = option(
        None, "model whose log-probs are stored (default: the one the source's manifest names)"
    )
    dtype: str = option("float32", "precision of the reference's weights", choices=DTYPES)
    unit_rows: int = option(1024, "rows per unit of work", least=1)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


class _Baselines(Selecting):
    """The comparison, whatever becomes of it."""

    name = NAME
    kinds = (completions.KIND,)

    @cached_property
    def compared(self) -> dict[str, Compared]:
        """By split."""
        margin = self.options.min_margin
        return {split: greedy.compare(self.answers(split), min_margin=margin) for split in self.parent.splits}

    def told(self) -> dict[str, pa.Table]:
        """How the samples do against their baselines."""
        schema, value = TABLES["advantages"], pl.col("advantage")
        rows = [
            found.rows.select(
                split=pl.lit(split),
                rows=pl.len(),
                mean=value.mean(),
                p10=value.quantile(0.1, "linear"),
                p50=value.quantile(0.5, "linear"),
                p90=value.quantile(0.9, "linear"),
                share_above_zero=(value > 0).mean(),
                score=(value + pl.col("baseline_score")).mean(),
                baseline_score=pl.col("baseline_score").mean(),
            )
            for split, found in self.compared.items()
        ]
        return {"advantages": pl.concat(rows).select(schema.names).to_arrow().cast(schema)}


class Advantages(_Baselines, CompletionsJob):
    """Samples with their advantages."""

    def select(self, split: str) -> Kept:
        """Every sample whose prompt has a scored greedy completion; those stand in no row of their own."""
        compared = self.compared[split]
        baselines = compared.rows.select(row_id="baseline").unique(maintain_order=True)
        as_baseline = baselines.select(
            "row_id",
            reason=pl.lit("baseline"),
            detail=pl.lit("its score stands with the samples of its prompt"),
        )
        rows = compared.rows.select("row_id", "baseline_score", "advantage", baseline_row_id="baseline")
        return Kept(rows, pl.concat([compared.aside, as_baseline]))


class AgainstGreedy(_Baselines, PairsOfCompletions):
    """Pairs of a sample and the greedy completion."""

    method = "against_greedy"

    def select(self, split: str) -> Selected:
        """The widest margins of each prompt."""
        compared, answers = self.compared[split], self.answers(split)
        order = answers.select("prompt_id").unique(maintain_order=True).with_row_index("order")
        pairs = (
            compared.pairs.join(order, on="prompt_id")
            .sort("order", "margin", "chosen", "rejected", descending=[False, True, False, False])
            .filter(pl.int_range(pl.len()).over("prompt_id") < self.options.pairs_per_prompt)
            .drop("order")
        )
        used = pl.concat([pairs.select(row_id="chosen"), pairs.select(row_id="rejected")]).unique()
        told = compared.aside.select("row_id")
        left = answers.join(pl.concat([used, told]), on="row_id", how="anti", maintain_order="left").select(
            "row_id",
            reason=pl.lit("margin_too_small"),
            detail=pl.lit("sample and greedy completion are too near, the same, or wider apart elsewhere"),
        )
        return Selected(pairs, pl.concat([compared.aside, left]))


def job(options: Options, root: str | None = None) -> Job:
    """The job for the output that is asked for."""
    return (AgainstGreedy if options.output == PAIRS else Advantages)(options, root)
