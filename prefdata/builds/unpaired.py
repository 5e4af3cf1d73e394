"""build-unpaired: desirable and undesirable answers from pairs, scored completions or judged rows, each with a frozen partner.

An answer's partner is drawn among all answers of the parent's split, whichever of them are selected, so that another
threshold or rule changes no partner, and runs no model on a row that an earlier build of the same parent scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import scoring
from prefdata.builds.by_id import RowsById
from prefdata.builds.inputs import same_reference
from prefdata.builds.making import MakingJob
from prefdata.builds.options import option
from prefdata.builds.selecting import chunks, unscored
from prefdata.errors import UserError
from prefdata.models import DTYPES
from prefdata.select import unpaired as rules
from prefdata.select import verdicts
from prefdata.select.judging import answers_of, judged, with_partners
from prefdata.select.kto_weights import LEAST, MOST, class_weights
from prefdata.select.partners import partners
from prefdata.select.same_answers import same_answers
from schemas import completions, pairs, unpaired

NAME = "build-unpaired"
LABELS, VOTES = "labels", "votes"
# what each kind of rows is judged by, its default first
RULES = {
    pairs.KIND: (LABELS, VOTES),
    unpaired.KIND: (LABELS, VOTES),
    completions.KIND: ("mean", "median", "threshold"),
}
_KNOWN = ("prompt_ids", "completion_ids", "ref_completion_token_logps", "partner_ids", "ref_partner_token_logps")


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option(
        "latest", "version with pairs, scored completions or judged rows: vN, a tag, latest, a path, a URL"
    )
    rule: str | None = option(
        None,
        "labels (what is judged both ways is set aside) or votes (most of them decide) of pairs and judged rows; mean or"
        " median of its prompt's scores, or threshold, of completions (default: labels, or mean)",
        choices=(LABELS, VOTES, *RULES[completions.KIND]),
    )
    threshold: float = option(0.0, "the score above which a completion is desirable, with --rule threshold")
    min_margin: float = option(0.0, "least distance of a score from the bar; on the bar there is no label", least=0)
    min_preference: float = option(0.5, "least probability that chosen is better, of pairs that state one", least=0)
    min_agreement: float = option(0.5, "least share of an answer's votes for its label, with --rule votes", least=0.5)
    ratio: float = option(
        1.0, "what desirable rows count together, over what undesirable ones do; KTO wants 1 to 1.5", least=0.01
    )
    partners: bool = option(True, "give each row a frozen answer to another prompt, which --loss kto reads")
    reference: str | None = option(
        None, "model whose log-probs are stored (default: the one the source's manifest names)"
    )
    seed: int = option(0, "seed of all draws")
    dtype: str = option("float32", "precision of the reference's weights", choices=DTYPES)
    unit_rows: int = option(1024, "rows per unit of work", least=1)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


@dataclass(frozen=True)
class Chosen:
    """rows: row_id, side, label, weight, partner_id, partner_side, in the parent's order; aside: row_id, reason, detail."""

    rows: pl.DataFrame
    aside: pl.DataFrame


class BuildUnpaired(MakingJob):
    """The job: judge, weigh, pair off with partners, score with the reference, publish."""

    name = NAME
    kinds = tuple(RULES)
    makes = unpaired.KIND
    called = "row"

    def __init__(self, options: Options, root: str | None = None) -> None:
        kind = versions.find(options.source, root=root, kinds=self.kinds).kind
        super().__init__(replace(options, rule=_rule(options, kind)), root)
        if kind == completions.KIND and "score" not in self.parent.columns():
            raise unscored(self.parent)
        if not LEAST <= options.ratio <= MOST:
            self.notices.append(f"ratio is {options.ratio:g}, and KTO's paper wants {LEAST:g} to {MOST:g}")

    @property
    def schema(self) -> pa.Schema:
        """With partner columns if there are partners."""
        groups = [unpaired.MADE, *([unpaired.PARTNER] if self.options.partners else [])]
        names = [name for group in groups for name in group.names]
        return logical.schema_of(unpaired.KIND, *groups, logical.reference_of(unpaired.KIND, names))

    # -- selection -------------------------------------------------------------------------------------------------

    @cached_property
    def judged(self) -> dict[str, Chosen]:
        """By split, weighed in the rows of train, or of the only split there is."""
        found = {split: self._judge(split) for split in self.parent.splits}
        counted = found.get("train") or next(iter(found.values()))
        sums = [counted.rows.filter(pl.col("label") == label)["weight"].to_numpy().sum() for label in (True, False)]
        desirable, undesirable = class_weights(float(sums[0]), float(sums[1]), self.options.ratio)
        weight = pl.col("weight") * pl.when("label").then(desirable).otherwise(undesirable)
        return {split: Chosen(each.rows.with_columns(weight=weight), each.aside) for split, each in found.items()}

    def _judge(self, split: str) -> Chosen:
        kind, options = self.parent.kind, self.options
        wanted = verdicts.columns(kind, self.parent.columns())
        tables = (self.parent.read(entry, wanted) for entry in self.parent.files(split))
        lines = verdicts.verdicts(kind, tables, self.parent.manifest["tokenizer"]["end_ids"])
        empty, unsure = pl.col("empty"), pl.col("sure") < options.min_preference
        aside = [
            lines.filter(empty).select("name", reason=pl.lit("completion_empty"), detail=pl.lit(None, pl.String)),
            lines.filter(~empty & unsure).select(
                "name",
                reason=pl.lit("preference_too_low"),
                detail=pl.format("chosen is better with probability {}", "sure"),
            ),
        ]
        whole = lines.filter(~empty)
        whole = whole.with_columns(answer=same_answers(whole["ids"], whole["text"]))
        labelled = self._labelled(whole.filter(~unsure))
        aside.append(labelled.aside.rename({"row_id": "name"}))
        rows = lines.join(labelled.rows.select(name="row_id", said="label"), on="name", maintain_order="left")
        weight = pl.lit(1.0) if options.rule == VOTES else pl.col("votes")
        rows = rows.select("name", "row_id", "side", "prompt_id", label="said", weight=weight)
        if options.partners:
            rows, without = self._paired_off(rows, whole)
            aside.append(without)
        known = lines.select("name", "row_id")
        told = pl.concat(aside).join(known, on="name", maintain_order="left").select("row_id", "reason", "detail")
        return Chosen(rows, told)

    def _labelled(self, lines: pl.DataFrame) -> rules.Labelled:
        options, named = self.options, lines.drop("row_id").rename({"name": "row_id"})
        if options.rule == LABELS:
            return rules.from_labels(named)
        if options.rule == VOTES:
            return rules.from_votes(named, min_agreement=options.min_agreement)
        return rules.from_scores(named, options.rule, threshold=options.threshold, min_margin=options.min_margin)

    def _paired_off(self, rows: pl.DataFrame, pool: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows with their partners' rows and sides; and name, reason, detail of those that have none."""
        drawn = partners(rows, pool.select("name", "prompt_id", "answer"), self.options.seed)
        where = pool.select(partner="name", partner_id="row_id", partner_side="side")
        found = rows.join(drawn, on="name", maintain_order="left").join(
            where, on="partner", how="left", maintain_order="left"
        )
        alone = pl.col("partner").is_null()
        detail = pl.lit("every answer to other prompts is one to its own prompt, too")
        return found.filter(~alone), found.filter(alone).select("name", reason=pl.lit("no_partner"), detail=detail)

    # -- rows ------------------------------------------------------------------------------------------------------

    def units(self) -> Iterator[tuple[str, pa.Table]]:
        """Runs of rows in the parent's order."""
        for split in self.parent.splits:
            for chunk in chunks(self.judged[split].rows, self.options.unit_rows):
                yield split, self._rows(chunk)

    def _rows(self, chunk: pl.DataFrame) -> pa.Table:
        rows = judged(
            self._answers(chunk["row_id"], chunk["side"]), chunk["label"].to_list(), chunk["weight"].to_list()
        )
        if not self.options.partners:
            return rows
        longest = self.parent.manifest["tokenizer"].get("max_length")
        return with_partners(rows, self._answers(chunk["partner_id"], chunk["partner_side"]), longest)

    def _answers(self, row_ids: pl.Series, sides: pl.Series) -> pa.Table:
        return answers_of(self.parent.kind, self.by_id.take(row_ids), sides.to_list())

    def parents_of(self, rows: pa.Table) -> pl.DataFrame:
        """The row that each was made from."""
        made = pl.Series("made", rows["row_id"])
        return pl.DataFrame({"row_id": rows["parent_row_id"], "made": made, "number": np.arange(len(made))})

    def aside(self, split: str, rows: pa.Table) -> pl.DataFrame:
        """What the selection says."""
        return self.judged[split].aside

    # -- log-probs that are there already --------------------------------------------------------------------------

    def _scoring_batches(self) -> Iterator[scoring.Batch]:
        for _, rows in self.units():
            yield scoring.Batch(rows=partial(_same, rows), known=partial(self.known, rows))

    def known(self, rows: pa.Table) -> pa.Table | None:
        """The answers, if the parent has their log-probs; answers and partners of earlier builds of the same parent."""
        found = [earlier.known(rows) for earlier in self._earlier]
        if self._same_reference and f"ref_{logical.SIDES[self.parent.kind][0]}_token_logps" in self.parent.columns():
            own = self._answers(pl.Series(rows["parent_row_id"]), pl.Series(rows["parent_side"]))
            found.append(own.select([name for name in _KNOWN if name in own.column_names]))
        return pa.concat_tables(found, promote_options="default") if found else None

    @cached_property
    def _earlier(self) -> list["Earlier"]:
        parents = [versions.parent_entry(self.parent, self.root)]
        return [
            Earlier(version)
            for version in versions.every(self.root)
            if version.manifest["build"] == NAME
            and version.manifest["parents"] == parents
            and same_reference(version.manifest["reference"], self.reference)
        ]


class Earlier:
    """The log-probs of a version that an earlier build made from the same parent."""

    def __init__(self, version: versions.Version) -> None:
        self._columns = [name for name in _KNOWN if name in version.columns()]
        self._by_id = RowsById(version)
        wanted = ("row_id", "parent_row_id", "parent_side")
        self._index = pl.concat([pl.DataFrame(version.table(split, wanted)) for split in version.splits])

    def known(self, rows: pa.Table) -> pa.Table:
        """Those of the same answers, whatever they were judged."""
        asked = pl.DataFrame(rows.select(["parent_row_id", "parent_side"]))
        return self._by_id.take(
            asked.join(self._index, on=["parent_row_id", "parent_side"], maintain_order="left")["row_id"]
        ).select(self._columns)


def _same(rows: pa.Table) -> pa.Table:
    return rows


def _rule(options: Options, kind: str) -> str:
    """The rule that is asked for, or the default of the source's kind of rows."""
    allowed: Any = RULES[kind]
    if options.rule is None:
        return str(allowed[0])
    if options.rule not in allowed and any(options.rule in names for names in RULES.values()):
        raise UserError(f"rule {options.rule} does not judge {kind}; their rules are {', '.join(allowed)}")
    return options.rule
