"""What a version's rows look like, in small tables: lengths, similarity, reference margins, duplicates, the ledger.

`prefdata.facts` reduces rows to a few numbers each, a batch at a time, so that lists of tokens are never spread out for
more than one batch; what is left is summed up here, per split. The tables' columns are defined in `schemas.stats`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from prefdata import parquet
from prefdata.facts import facts
from prefdata.logical import BASE, SIDES
from prefdata.storage import Storage
from schemas.manifest import FileEntry
from schemas.stats import HUGE_SUM, TABLES, UNLIKELY_ANSWER

BATCH_ROWS = 4096
LEDGER_FOLDER = "ledger"


def tables(kind: str, storage: Storage, files: Iterable[FileEntry]) -> dict[str, pa.Table]:
    """Every stats table of a version's Parquet files, which are read one at a time."""
    stats = Stats(kind)
    for path in [entry["path"] for entry in files if entry["path"].endswith(".parquet")]:
        folder = path.split("/", 1)[0]
        table = parquet.read(storage.read(path))
        if folder == LEDGER_FOLDER:
            stats.add_ledger(table)
        else:
            stats.add(folder, table)
    return stats.tables()


class Stats:
    """Adds up rows and ledger lines, then gives the tables. Pure; it keeps a few hundred bytes for each row."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._facts: list[pl.DataFrame] = []
        self._reasons: Counter[tuple[str, str, str | None]] = Counter()
        self._shortfall: Counter[str] = Counter()

    def add(self, split: str, rows: pa.Table) -> None:
        """Add rows of a split."""
        for batch in rows.to_batches(max_chunksize=BATCH_ROWS):
            self._facts.append(facts(self._kind, batch).with_columns(split=pl.lit(split)))

    def add_ledger(self, lines: pa.Table) -> None:
        """Add lines of the ledger."""
        self._reasons.update(zip(*(lines[name].to_pylist() for name in ("stage", "status", "reason")), strict=True))
        self._shortfall.update(pc.list_flatten(lines["shortfall"]).to_pylist())

    def tables(self) -> dict[str, pa.Table]:
        """Every stats table that applies to what was added, by name."""
        rows = pl.concat(self._facts) if self._facts else _no_facts(self._kind)
        found = _summaries(SIDES[self._kind], rows)
        found["ledger_reasons"] = _ledger_reasons(self._reasons)
        found["ledger_shortfall"] = _ledger_shortfall(self._shortfall)
        return {name: _as_declared(name, found[name]) for name in TABLES if name in found}


def _no_facts(kind: str) -> pl.DataFrame:
    nothing = pa.RecordBatch.from_pylist([], schema=BASE[kind])
    return facts(kind, nothing).with_columns(split=pl.lit(""))


def _summaries(sides: tuple[str, ...], rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    are_pairs, referenced = len(sides) == 2, any(f"ref_{side}_logps" in rows.columns for side in sides)
    found = {
        "counts": _by_split(rows, prompts=pl.col("prompt").n_unique()),
        "sources": rows.group_by("split", "source", "license", "method", maintain_order=True).agg(rows=pl.len()),
        "lengths": _lengths(rows, ("prompt", *sides)),
        "duplicates": _pair_duplicates(rows) if are_pairs else _duplicates(rows, sides),
    }
    if scored := [name for name in _SCORES if _SCORES[name] in rows.columns]:
        found["scores"] = _scores(rows, scored)
    if "label" in rows.columns:
        found["labels"] = _labels(rows)
    if are_pairs:
        found |= {"length_bias": _length_bias(rows), "similarity": _similarity(rows)}
    if referenced:
        found["reference"] = _reference(rows, sides)
    if are_pairs and referenced:
        found["reference_margin"] = _reference_margin(rows)
    return found


def _lengths(rows: pl.DataFrame, sides: tuple[str, ...]) -> pl.DataFrame:
    def one(side: str) -> pl.DataFrame:
        tokens = pl.col(f"{side}_tokens")
        cut = pl.lit(None, pl.Float64) if side == "prompt" else (pl.col(f"{side}_finish") == "length").mean()
        return _by_split(rows, **_spread(tokens), max=tokens.max(), cut_share=cut, empty=(tokens < 1).sum())

    return _stacked("side", {side: one(side) for side in sides})


def _length_bias(rows: pl.DataFrame) -> pl.DataFrame:
    difference = pl.col("chosen_tokens") - pl.col("rejected_tokens")
    return _by_split(
        rows,
        mean_difference=difference.mean(),
        share_chosen_longer=(difference > 0).mean(),
        share_rejected_longer=(difference < 0).mean(),
        share_ties=(difference == 0).mean(),
        auc=(difference > 0).mean() + (difference == 0).mean() / 2,
    )


def _similarity(rows: pl.DataFrame) -> pl.DataFrame:
    measures = ("edit_distance", "shared_prefix", "shared_suffix")
    return _stacked("measure", {name: _by_split(rows, **_spread(pl.col(name))) for name in measures})


def _duplicates(rows: pl.DataFrame, sides: tuple[str, ...]) -> pl.DataFrame:
    return _by_split(
        rows,
        **_repeats(*(f"{side}_answer" for side in sides)),
        chosen_rejected_elsewhere=pl.lit(None),
        identical_pairs=pl.lit(None),
        same_text_other_tokens=pl.lit(None),
    )


def _pair_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    bad = rows.select("prompt", chosen_answer="rejected_answer").unique()
    known_bad = rows.select("prompt", "chosen_answer").join(
        bad.with_columns(bad=pl.lit(True)), on=["prompt", "chosen_answer"], how="left", maintain_order="left"
    )["bad"]
    return _by_split(
        rows.with_columns(chosen_bad=known_bad.fill_null(False)),
        **_repeats("chosen_answer"),
        chosen_rejected_elsewhere=pl.col("chosen_bad").sum(),
        identical_pairs=pl.col("identical").sum(),
        same_text_other_tokens=(pl.col("same_text") & ~pl.col("identical")).sum(),
    )


def _repeats(*answer: str) -> dict[str, pl.Expr]:
    return {
        "prompts": pl.col("prompt").n_unique(),
        "rows_sharing_prompt": pl.col("prompt").is_duplicated().sum(),
        "rows_sharing_good_answer": pl.struct("prompt", *answer).is_duplicated().sum() if answer else pl.lit(0),
    }


_SCORES = {"chosen": "chosen_score", "rejected": "rejected_score", "margin": "margin", "completion": "score"}


def _scores(rows: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    def one(column: str) -> pl.DataFrame:
        score = pl.col(column)
        given = rows.filter(score.is_not_null())
        return _by_split(given, **_spread(score), zero=(score == 0).sum(), negative=(score < 0).sum())

    found = _stacked("score", {name: one(_SCORES[name]) for name in names})
    return pl.concat([found, _scores_by_name(rows).select(found.columns)]) if "scores" in rows.columns else found


def _scores_by_name(rows: pl.DataFrame) -> pl.DataFrame:
    """Of answers that several scorers scored."""
    score = pl.col("score")
    given = rows.select("split", "scores").explode("scores").drop_nulls("scores").unnest("scores")
    found = given.group_by("split", "scorer", maintain_order=True).agg(
        rows=pl.len(), **_spread(score), zero=(score == 0).sum(), negative=(score < 0).sum()
    )
    return found.rename({"scorer": "score"})


def _labels(rows: pl.DataFrame) -> pl.DataFrame:
    labels = pl.col("label").n_unique()
    both, contradictory = labels.over("split", "prompt") == 2, labels.over("split", "prompt", "completion_answer") == 2
    return (
        rows.with_columns(both=both, contradictory=contradictory)
        .group_by("split", "label", maintain_order=True)
        .agg(
            rows=pl.len(),
            weight=pl.col("weight").fill_null(1.0).sum(),
            mean_tokens=pl.col("completion_tokens").mean(),
            sharing_prompt_with_other_label=pl.col("both").sum(),
            contradictory=pl.col("contradictory").sum(),
        )
        .sort("split", "label", descending=True)
    )


def _reference(rows: pl.DataFrame, sides: tuple[str, ...]) -> pl.DataFrame:
    def one(side: str) -> pl.DataFrame:
        total, tokens = pl.col(f"ref_{side}_logps"), pl.col(f"{side}_tokens")
        return _by_split(
            rows.filter(total.is_not_null()),
            tokens=tokens.sum(),
            sum_mean=total.mean(),
            **_spread(total / tokens),
            share_unlikely_tokens=pl.col(f"ref_{side}_unlikely").sum() / tokens.sum(),
            share_unlikely_answers=(total / tokens < UNLIKELY_ANSWER).mean(),
            not_finite=pl.col(f"ref_{side}_not_finite").sum(),
            positive=pl.col(f"ref_{side}_positive").sum(),
            huge_sums=(total < HUGE_SUM).sum(),
        )

    return _stacked("side", {side: one(side) for side in sides})


def _reference_margin(rows: pl.DataFrame) -> pl.DataFrame:
    chosen, rejected = pl.col("ref_chosen_logps"), pl.col("ref_rejected_logps")
    per_token = chosen / pl.col("chosen_tokens") - rejected / pl.col("rejected_tokens")
    given = rows.filter(chosen.is_not_null() & rejected.is_not_null())

    def one(margin: pl.Expr) -> pl.DataFrame:
        return _by_split(given, **_spread(margin), share_below_zero=(margin < 0).mean())

    return _stacked("unit", {"sum": one(chosen - rejected), "per_token": one(per_token)})


def _ledger_reasons(reasons: Counter[tuple[str, str, str | None]]) -> pl.DataFrame:
    """Kept rows first, then reasons by how many rows they took."""
    lines = [
        {"stage": stage, "status": status, "reason": reason, "rows": n}
        for (stage, status, reason), n in reasons.items()
    ]
    schema = {"stage": pl.String, "status": pl.String, "reason": pl.String, "rows": pl.Int64}
    return pl.DataFrame(lines, schema=schema).sort("status", -pl.col("rows"), "stage", "reason")


def _ledger_shortfall(shortfall: Counter[str]) -> pl.DataFrame:
    lines = [{"reason": reason, "rows": n} for reason, n in shortfall.items()]
    return pl.DataFrame(lines, schema={"reason": pl.String, "rows": pl.Int64}).sort(-pl.col("rows"), "reason")


def _by_split(rows: pl.DataFrame, **measures: pl.Expr) -> pl.DataFrame:
    return rows.group_by("split", maintain_order=True).agg(rows=pl.len(), **measures)


def _spread(value: pl.Expr) -> dict[str, pl.Expr]:
    quantiles = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
    return {"mean": value.mean()} | {name: value.quantile(at, "linear") for name, at in quantiles.items()}


def _stacked(label: str, frames: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Frames with one line per split, on top of each other; a column says which is which."""
    return pl.concat([frame.with_columns(pl.lit(name).alias(label)) for name, frame in frames.items()])


def _as_declared(name: str, frame: pl.DataFrame) -> pa.Table:
    schema = TABLES[name]
    return pa.Table.from_arrays([frame[field.name].to_arrow().cast(field.type) for field in schema], schema=schema)
