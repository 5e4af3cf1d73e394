"""Does this version hold what this objective reads? Asked before a model is loaded, answered in words.

What decides: the kind of version, its columns, the tokenizer and chat template its tokens were made with, and the
values themselves. The reference matters only to objectives that read it; the policy may be any model.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdata import versions
from prefdata.builds.winners import SIDE
from prefdata.errors import UserError
from prefdata.storage import Storage
from prefdata.versions import Version
from schemas.stats import POSITIVE_LOGP
from trainers.loss import Loss, Reading
from trainers.objectives import OBJECTIVES, Objective
from trainers.objectives.batch import Value


class MissingColumns(UserError):
    """The version lacks something that the objective reads."""


# how a version comes to hold a column: (what begins its name, the flow and its arguments after the version)
_ADDED_BY = (
    ("ref_", ("add_reference",)),
    ("prompt_embedding", ("add_reference", "--embeddings", "MODEL")),
    ("partner", ("build_unpaired",)),
    ("chosen_score", ("build_paired",)),
    ("rejected_score", ("build_paired",)),
    ("score", ("score_rewards",)),
    ("label", ("build_unpaired",)),
)
_MADE_BY = {"pairs": "build_sapo_negatives", "unpaired": "build_unpaired"}


def check(version: Version, loss: Loss) -> None:
    """MissingColumns if the version's kind or columns do not serve every term of the loss."""
    if "train" not in version.splits:
        raise UserError(
            f"data version {version.name} has no train rows; it holds: {', '.join(version.splits) or 'none'}."
        )
    for objective in loss.objectives:
        _check_term(version, objective)


def _check_term(version: Version, objective: Objective) -> None:
    if version.kind not in objective.batch.sides:
        raise MissingColumns(
            f"--loss {objective.name} reads {' or '.join(objective.batch.sides)}, and data version {version.name} holds"
            f" {version.kind}.\n{_makes_kind(version, objective)}{_as_it_is(version)}"
        )
    missing = missing_columns(version.columns(), objective)
    if missing:
        raise MissingColumns(
            f"--loss {objective.name} reads {' and '.join(missing)}, which data version {version.name} does not have.\n"
            f"{_adds(version, missing)}{_as_it_is(version)}"
        )
    if objective.batch.referenced and not version.manifest["reference"]:
        raise MissingColumns(
            f"data version {version.name} does not say which model its reference log-probs come from, and --loss"
            f" {objective.name} reads them.\n"
            f"Score them again:  {scores(version)}"
        )


def missing_columns(columns: Sequence[str], objective: Objective) -> list[str]:
    """What the objective reads and the version lacks."""
    needed = (value.column for value in objective.batch.values.values() if value.default is None)
    return [name for name in dict.fromkeys((*objective.batch.columns, *needed)) if name not in columns]


def usable_losses(kind: str, columns: Sequence[str]) -> list[str]:
    """The losses that a version can be trained with as it is."""
    return [
        name
        for name, one in sorted(OBJECTIVES.items())
        if kind in one.batch.sides and not missing_columns(columns, one)
    ]


def check_tokenizer(version: Version, differences: Sequence[str], model: str) -> None:
    """UserError if the model's tokenizer or template is not the one that the version's tokens were made with."""
    if differences:
        raise UserError(
            f"the tokens of data version {version.name} were not made with the tokenizer and chat template of {model}:"
            f" {'; '.join(differences)}.\n"
            f"Train a model that has them, say --chat-template version if the template alone differs and is to be learnt,"
            f" or make a version for this model:  {_flow(version, 'ingest', 'SOURCE', '--model', model)}"
        )


def check_lengths(version: Version, longest: int, room: int | None, model: str) -> None:
    """UserError if a row is longer than the model's positions."""
    if room is not None and longest > room:
        raise UserError(
            f"the longest row of data version {version.name} has {longest} tokens, and {model} has positions for {room}.\n"
            f"Train a model with more, or make a version of shorter rows:"
            f"  {_flow(version, 'ingest', 'SOURCE', '--model', model, '--max-length', str(room))}"
        )


def check_ids(version: Version, largest: int, known: int | None, model: str) -> None:
    """UserError if a row holds a token id that the model has no embedding for."""
    if known is not None and largest >= known:
        raise UserError(
            f"data version {version.name} holds token id {largest}, and {model} has embeddings for ids below {known}: its"
            " tokenizer has more tokens than it.\n"
            "Train a model that knows them all, or give this one as many embeddings as its tokenizer has tokens."
        )


def check_rows(rows: pa.Table, reading: Reading, version: Version) -> None:
    """UserError if a row can't be trained on: nothing scored, a count that is not the mask's, a bad log-prob or number."""
    _refuse(
        rows,
        pc.less(pc.list_value_length(rows["prompt_ids"]), 1),
        version.name,
        "prompt_ids is empty, so nothing predicts the answer",
    )
    for side in reading.sides:
        _check_counts(rows, side, version.name)
        for name in (f"ref_{side}_token_logps", f"ref_{side}_logps"):
            if name in rows.column_names:
                _check_logps(rows, name, version)
    for value in reading.values.values():
        if value.column in rows.column_names:
            _check_value(rows, value, version)
    for rule in reading.rules:
        helps = f":  {_flow(version, rule.flow, version.name)}" if rule.flow else ""
        _refuse(rows, rule.bad(rows), version.name, rule.what, f"{rule.then}{helps}")


def check_classes(labels: Any, loss: Loss, name: str) -> None:
    """UserError if a loss that tells two classes apart would see but one of them."""
    needing = [objective for objective in loss.objectives if objective.batch.both]
    found = pc.unique(labels).to_pylist() if needing and len(labels) else [True, False]
    if len(found) < 2:
        column, only = needing[0].batch.both, str(found[0]).lower()
        raise UserError(
            f"every train row of data version {name} has the {column} {only}, and --loss {needing[0].name} learns from how"
            " the two differ. Add rows of the other, or imitate the good ones with --loss sft."
        )


def _check_value(rows: pa.Table, value: Value, version: Version) -> None:
    """A number that is there is finite; one that must be there is; vectors are equally long and not 0."""
    column = rows[value.column]
    if value.default is None:
        _refuse(rows, pc.is_null(column), version.name, f"{value.column} is missing", _added_by(version, value.column))
    if pa.types.is_boolean(column.type):
        return
    if value.is_truth:
        raise UserError(
            f"column {value.column} of data version {version.name} is {column.type}, and what is read is true or false.\n"
            f"Make it from scores, pairs or votes:  {_added_by(version, value.column)}"
        )
    if pa.types.is_list(column.type):
        lengths = pc.list_value_length(column)
        _refuse(
            rows, pc.not_equal(lengths, lengths[0]), version.name, f"{value.column} has another length than in others"
        )
        column = column.combine_chunks()
        sizes = np.sqrt(np.bincount(pc.list_parent_indices(column), np.square(column.flatten()), minlength=len(column)))
        bad: Any = pa.array(~(np.isfinite(sizes) & (sizes > 0)))
        _refuse(rows, bad, version.name, f"{value.column} is 0 or not finite", _added_by(version, value.column))
        return
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise UserError(
            f"column {value.column} of data version {version.name} is {column.type}, and a number is needed; build the"
            " version again"
        )
    _refuse(rows, pc.invert(pc.is_finite(column)), version.name, f"{value.column} is not finite")


def _check_counts(rows: pa.Table, side: str, version: str) -> None:
    stated = rows[f"{side}_tokens"]
    lengths = pc.list_value_length(rows[f"{side}_ids"])
    scored = lengths
    if f"{side}_loss_mask" in rows.column_names:
        masks = rows[f"{side}_loss_mask"]
        _refuse(
            rows,
            pc.not_equal(pc.list_value_length(masks), lengths),
            version,
            f"{side}_loss_mask and {side}_ids differ in length",
        )
        scored = pc.if_else(pc.is_null(masks), lengths, _kept(masks))
    _refuse(rows, pc.less(scored, 1), version, f"{side} has no scored token")
    _refuse(
        rows, pc.not_equal(stated, scored), version, f"{side}_tokens is not the number of scored tokens in {side}_ids"
    )


def _kept(masks: pa.ChunkedArray) -> pa.Array:
    """How many tokens each mask keeps; 0 for an empty or absent one."""
    joined = masks.combine_chunks()
    owners = pc.list_parent_indices(joined)
    counted = (
        pa.table({"row": owners, "kept": pc.cast(joined.flatten(), pa.int64())})
        .group_by("row")
        .aggregate([("kept", "sum")])
    )
    found = dict(zip(counted["row"].to_pylist(), counted["kept_sum"].to_pylist(), strict=True))
    return pa.array([found.get(row, 0) for row in range(len(joined))], pa.int64())


def _check_logps(rows: pa.Table, name: str, version: Version) -> None:
    side = name.removeprefix("ref_").removesuffix("_logps").removesuffix("_token")
    flow = f"score them again:  {scores(version)}"
    column = rows[name]
    _refuse(rows, pc.is_null(column), version.name, f"{name} is missing", flow)
    if not pa.types.is_list(column.type):
        most = pc.multiply(pc.cast(rows[f"{side}_tokens"], pa.float64()), POSITIVE_LOGP)
        _refuse_logps(rows, name, column, pc.greater(column, most), range(len(column)), version.name, flow)
        return
    wrong = pc.not_equal(pc.list_value_length(column), pc.list_value_length(rows[f"{side}_ids"]))
    _refuse(rows, wrong, version.name, f"{name} has not one value per token", flow)
    joined = column.combine_chunks()
    values, owners = joined.flatten(), pc.list_parent_indices(joined).to_numpy()
    _refuse_logps(rows, name, values, pc.greater(values, POSITIVE_LOGP), owners, version.name, flow)


def _refuse_logps(rows: pa.Table, name: str, values: Any, positive: Any, owners: Any, version: str, flow: str) -> None:
    """UserError for the first value that is not finite or above 0 by more than rounding; `owners` says whose it is."""
    bad = pc.or_(pc.invert(pc.fill_null(pc.is_finite(values), False)), pc.fill_null(positive, True))
    places = pc.indices_nonzero(bad)
    if len(places):
        place = places[0].as_py()
        row = rows["row_id"][int(owners[place])].as_py()
        raise UserError(
            f"row {row} of data version {version}: {name} holds {values[place].as_py():.6g}, and a log-prob is finite and at"
            f" most 0; {flow}"
        )


def _refuse(rows: pa.Table, bad: Any, version: str, what: str, then: str = "build the version again") -> None:
    """UserError that names the first row for which `bad` holds (null: it does not)."""
    places = pc.indices_nonzero(pc.fill_null(bad, False))
    if len(places):
        row = rows["row_id"][places[0].as_py()].as_py()
        raise UserError(f"{len(places)} rows of data version {version}: {what} (the first is row {row}); {then}")


def scores(version: Version, model: str | None = None) -> str:
    """The command that adds a reference's log-probs to a version: those of `model`, or of the one the flow would take."""
    return _flow(version, "add_reference", version.name, *(() if model is None else ("--model", model)))


def _makes_kind(version: Version, objective: Objective) -> str:
    if version.kind not in SIDE:
        return f"No flow makes what it reads from {version.kind}: name a version that holds good answers.\n"
    for kind in objective.batch.sides:
        if kind in _MADE_BY:
            return f"Make {kind} from it:  {_flow(version, _MADE_BY[kind], version.name)}\n"
    return ""


def _adds(version: Version, missing: Sequence[str]) -> str:
    """The commands that add what is missing, each once."""
    commands = dict.fromkeys(_added_by(version, name) for name in missing)
    return f"Add them:  {'  and  '.join(commands)}\n"


def _added_by(version: Version, column: str) -> str:
    for begins, (flow, *arguments) in _ADDED_BY:
        if column.startswith(begins):
            return _flow(version, flow, version.name, *arguments)
    return "build the version again"


def _flow(version: Version, flow: str, *arguments: str) -> str:
    """The command of a flow, as a shell reads it; it works below the version's root, named where it is not the default."""
    default = Storage(versions.root()).url
    root = () if version.root == default else ("--root", version.root)
    return f"python -m flows.{flow} {shlex.join([*arguments, *root])}"


def _as_it_is(version: Version) -> str:
    usable = usable_losses(version.kind, _filled(version))
    return (
        f"Or train {version.name} as it is with one of: {', '.join(usable)}"
        if usable
        else f"No loss here reads {version.name} as it is."
    )


def _filled(version: Version) -> list[str]:
    """Its columns, but for those that a loss would refuse since a train row has no value there."""
    needed = {
        value.column for one in OBJECTIVES.values() for value in one.batch.values.values() if value.default is None
    }
    asked = [name for name in version.columns() if name in needed]
    if not asked:
        return version.columns()
    empty = {name for part in version.batches("train", columns=asked) for name in asked if part[name].null_count}
    return [name for name in version.columns() if name not in empty]


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of one model: its weights, and the settings that decide how they are used."""
    return all(one.get(key) == other.get(key) for key in ("digest", "config_digest"))


def reference_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the manifest says of the reference model; empty if the version has none."""
    return manifest.get("reference") or {}
