"""What a run is, decided from its options before anything is written: data, objective, model, and every number."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from prefdata import models
from prefdata.errors import UserError
from prefdata.tokens import Renderer, differences
from prefdata.versions import Version
from trainers import contract, lora, sources
from trainers.loss import Loss, parse
from trainers.options import Options, check
from trainers.processes import Processes, Say
from trainers.schedule import SCHEDULE
from trainers.sources import Sources

# options that stand in a run's configuration in a decided form, or not at all
_DECIDED = (
    *("data", "loss", "weights", "set", "model", "chat_template", "root", "out", "fresh", "epochs", "lr", "dtype"),
    *("lora_rank", "lora_alpha", "lora_targets"),
)


@dataclass(frozen=True)
class Plan:
    """What a run is, decided from its options before anything is written."""

    options: Options
    sources: Sources
    loss: Loss
    model: str
    renderer: Renderer
    config: Mapping[str, Any]


def versions(options: Options) -> tuple[str, ...]:
    """What the options name, by URL."""
    check(options)
    return sources.find(options.data, _loss(options), options.root).urls


def _loss(options: Options) -> Loss:
    return parse(options.loss, options.weights, options.set)


def make(options: Options, urls: Sequence[str], processes: Processes, say: Say) -> Plan:
    """Everything that the options leave open, decided; `say` hears what is worth a notice. UserError if it can't be run."""
    loss = _loss(options)
    data = sources.opened(urls)
    sources.check(data, loss)
    if options.early_stop and not data.holding("test"):
        raise UserError(f"--early-stop watches the held-out loss, and data version {data.name} holds out no rows.")
    _say_scores(data, loss, say)
    _say_compared(data, loss, options, say)
    model = options.model or _model_name(data, say)
    description = _describe(data, model, loss, asked=options.model is not None, say=say)
    renderer = _renderer(data, model, options)
    config = _config(options, data, loss, description, renderer, processes)
    return Plan(options, data, loss, model, renderer, config)


def _say_scores(data: Sources, loss: Loss, say: Say) -> None:
    """Scored answers are good and bad ones, and a loss that imitates answers has no place for a score."""
    if data.kind != "completions" or "score" in loss.reading(data.kind).values:
        return
    scored = [version for version in data.holding("train") if "score" in version.columns()]
    if not scored:
        return
    scores = pa.concat_tables([version.table("train", columns=["score"]) for version in scored])["score"]
    found = pc.min_max(scores).as_py()
    if found["min"] != found["max"]:
        say(
            f"notice: the train rows of {data.name} carry scores from {found['min']:g} to {found['max']:g}, and --loss"
            f" {loss.name} imitates all of them alike, the worst included; ingest only the answers worth imitating"
        )


def _say_compared(data: Sources, loss: Loss, options: Options, say: Say) -> None:
    """Losses that compare the rows of a forward with each other are other losses at another size of it."""
    comparing = [objective.name for objective in loss.objectives if objective.across_rows]
    if not comparing:
        return
    names, several = " and ".join(comparing), len(comparing) > 1
    if data.kind == "unpaired" and options.batch_size < 2:
        raise UserError(
            f"--loss {names} compares desirable rows of a forward with undesirable ones, and --batch-size 1 never has both;"
            " give 8 or more."
        )
    size = f"--batch-tokens {options.batch_tokens}" if options.batch_tokens else f"--batch-size {options.batch_size}"
    say(
        f"notice: {names} compare{'' if several else 's'} the rows of a forward with each other, so {size} is part of the loss"
    )


def _model_name(data: Sources, say: Say) -> str:
    """The model whose log-probs the versions store, that wrote their answers, or that they were tokenised for."""
    for role in ("reference", "generator", "tokenizer"):
        entries = [(version, _entry(version, role)) for version in data.versions]
        named = [(version, entry) for version, entry in entries if entry.get("name")]
        if not named:
            continue
        version, first = named[0]
        if any(not _same(first, entry, role) for _, entry in named):
            each = ", ".join(f"{entry['name']} in {data.label(version)}" for version, entry in named)
            say(
                f"notice: the versions name several models as their {role} ({each}); that of {data.label(version)} is"
                " trained: say which with --model"
            )
        return str(first["name"])
    raise UserError(f"data version {data.name} names no model: say which to train with --model.")


def _entry(version: Version, role: str) -> Mapping[str, Any]:
    """What a manifest says of a model; empty if nothing."""
    found: Mapping[str, Any] = version.manifest.get(role) or {}  # type: ignore[assignment]
    return found


def _same(one: Mapping[str, Any], other: Mapping[str, Any], role: str) -> bool:
    """Whether two manifest entries are of one model. A tokenizer's says no more of the model than its name."""
    return one["name"] == other["name"] if role == "tokenizer" else contract.same_model(one, other)


def _describe(data: Sources, model: str, loss: Loss, *, asked: bool, say: Say) -> dict[str, Any]:
    try:
        found: dict[str, Any] = models.describe(model)
    except UserError as problem:
        if asked:
            raise
        raise UserError(
            f"data version {data.name} was made with a model that is not there now: {problem}\nSay which to train with --model."
        ) from problem
    if not asked:
        for version in data.versions:
            _check_weights(version, model, found, loss, say)
    return found


def _check_weights(version: Version, model: str, now: Mapping[str, Any], loss: Loss, say: Say) -> None:
    """Another model than the manifest's is refused where the loss compares with it, and said where it does not."""
    for role in ("reference", "generator"):
        entry = _entry(version, role)
        if entry.get("name") != model or contract.same_model(entry, now):
            continue
        key, what = ("digest", "") if entry.get("digest") != now["digest"] else ("config_digest", "settings of ")
        found = (
            f"the {role} of data version {version.name} was {model} with {what}digest {str(entry.get(key))[:12]}, and the"
            f" model there now has {str(now[key])[:12]}"
        )
        if role == "reference" and loss.referenced:
            raise UserError(f"{found}.\nIf that is the one to train, say so with --model {model}")
        say(f"notice: {found}; --loss {loss.name} does not read that {role}, so the model there now is trained")


def _renderer(data: Sources, model: str, options: Options) -> Renderer:
    """The model's tokenizer and template, checked against those of the versions' tokens."""
    stored = data.versions[0].manifest["tokenizer"]
    trust = options.trust_remote_code
    if options.chat_template == "version":
        renderer = Renderer.like(stored, model, trust_remote_code=trust)
    else:
        renderer = Renderer.load(model, chat_template=options.chat_template, trust_remote_code=trust)
        args = stored["template_args"]
        if args and not renderer.plain:
            renderer = Renderer.load(
                model, chat_template=options.chat_template, template_args=args, trust_remote_code=trust
            )
    for version in data.versions:
        contract.check_tokenizer(version, differences(version.manifest["tokenizer"], renderer.fingerprint), model)
    return renderer


def _config(
    options: Options,
    data: Sources,
    loss: Loss,
    description: Mapping[str, Any],
    renderer: Renderer,
    processes: Processes,
) -> dict[str, Any]:
    """What makes two runs the same run; everything undecided is decided here."""
    plain = {name: value for name, value in asdict(options).items() if name not in _DECIDED}
    adapter = lora.settings(options.lora_rank, options.lora_alpha, options.lora_targets) if options.lora_rank else None
    return {
        **plain,
        "data": data.describe(),
        "loss": loss.name,
        "weights": loss.weights(),
        "knobs": loss.knobs(),
        "policy": {name: description.get(name) for name in ("name", "digest", "config_digest", "commit")},
        "chat_template": renderer.fingerprint["template_digest"],  # a file's name would not say that it was edited
        "epochs": None if options.steps else options.epochs or 1.0,
        "lr": options.lr or loss.lr * (lora.LR if adapter else 1),
        "lora": adapter,
        "dtype": options.dtype or _default_dtype(),
        "schedule": SCHEDULE,
        "processes": processes.size,
    }


def _default_dtype() -> str:
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
