"""The shared forward: every token of a tree runs through the model once, and the head reads scored positions only.

A model is prepared at its first forward: its attention is set to ours, once, and tried on a small tree against the
padded forward, on a GPU with one kernel after the other. A model that cannot share, or gives other numbers, keeps the
attention it had.
"""

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from prefdata.errors import UserError
from prefdata.logprobs import padded
from prefdata.logprobs.attention import KERNELS, NAME, TreePlan
from prefdata.logprobs.head import target_logps
from prefdata.logprobs.last_layer import LastLayer, decoder, watching
from prefdata.logprobs.layout import Layout, lay_out
from prefdata.logprobs.trees import Scores, Tree
from prefdata.logprobs.wrappers import arguments, layers, scalar_head, unwrapped

_log = logging.getLogger(__name__)

# kernels in the order in which they are tried, by kind of device; PREFDATA_TREE_KERNEL names one to be the only one
_KERNELS = {"cuda": ("flex", "split")}
_ANYWHERE = ("split",)
KERNEL_SETTING = "PREFDATA_TREE_KERNEL"
# What the forward of a model has to take. Its other keywords reach the attention.
_ARGUMENTS = {"position_ids", "logits_to_keep"}
# Implementations that ours stands in for; another was asked for by name and stays.
_REPLACED = ("sdpa", "eager", NAME)
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Rotary embeddings that change for the whole batch once a sequence is longer than this many trained positions.
_STRETCHING = ("dynamic", "longrope")
# Nats per token by which the trial may differ: rounding, and in bfloat16 a lot of it.
_ALLOWED = 1e-3
_ALLOWED_ROUGH = 0.3
# Where a module keeps a dropout that is no module itself.
_DROPOUTS = ("attention_dropout", "dropout", "activation_dropout")


@dataclass(eq=False)
class Sharing:
    """What is known of a model: why it cannot share at all, or the longest path that it can."""

    reason: str | None = None
    longest: int | None = None  # tokens; None: any
    kernel: str = "split"
    layers: torch.nn.ModuleList | None = None  # of which the last runs only where it is read; None: everywhere
    said: set[str] = field(default_factory=set)

    def obstacle(self, model: Any, trees: Sequence[Tree]) -> str | None:
        """Why these trees cannot be shared now; None if they can."""
        if self.reason is not None:
            return self.reason
        if not self.fits(trees):
            return f"a row is longer than the {self.longest} tokens of its window or its trained positions"
        if unwrapped(model).config._attn_implementation != NAME:
            return f"its attention was since set to {unwrapped(model).config._attn_implementation}"
        if model.training and _drops(unwrapped(model)):
            return "its dropout is on"  # every branch draws its own, in the trunk too
        return _wrapped(model)

    @property
    def last(self) -> int | None:
        """The number of the layer that runs only where it is read, as long as it is the last one."""
        watched = None if self.layers is None else watching(self.layers)
        return None if watched is None else watched.number

    def fits(self, trees: Sequence[Tree]) -> bool:
        """Whether every path is short enough."""
        return self.longest is None or max(tree.depth for tree in trees) <= self.longest

    def say(self, model: Any, why: str) -> None:
        """Once for each reason."""
        if why not in self.said:
            self.said.add(why)
            _log.warning(
                "%s: prompts run once per completion, not shared, since %s", type(unwrapped(model)).__name__, why
            )


_Run = Callable[[Any, Sequence[Tree]], Tensor]

_prepared: "WeakKeyDictionary[Any, Sharing]" = WeakKeyDictionary()


def prepare(model: Any) -> Sharing:
    """Sets the attention of a model that can share, the first time it is seen; remembered as long as the model lives."""
    inner = unwrapped(model)
    if inner not in _prepared:
        sharing = Sharing(_unable(inner) or _wrapped(model), _longest(inner))
        if sharing.reason is None:
            _set(inner, sharing)
        _prepared[inner] = sharing
    return _prepared[inner]


def kernels(device: str) -> tuple[str, ...]:
    """What is tried on a kind of device. UserError if PREFDATA_TREE_KERNEL names no kernel."""
    asked = os.environ.get(KERNEL_SETTING)
    if not asked:
        return _KERNELS.get(device, _ANYWHERE)
    if asked not in KERNELS:
        raise UserError(f"{KERNEL_SETTING} is {asked!r}; it can be: {', '.join(KERNELS)}.")
    return (asked,)


def forward(
    model: Any,
    trees: Sequence[Tree],
    *,
    extras: bool = False,
    collisions: bool = False,
    layout: Layout | None = None,
) -> Scores:
    """Scores every branch of every tree in one call of a prepared model; `extras` adds entropies, hits and levels, `collisions` those.

    `layout` is that of the trees, where it was made before.
    """
    head = unwrapped(model).get_output_embeddings()
    device = head.weight.device
    sharing, layout = prepare(model), layout or lay_out(trees)
    plan = TreePlan(layout, device, sharing.kernel, last=sharing.last)
    read, targets, branches = (
        torch.as_tensor(array, device=device)
        for array in (layout.read, layout.targets, np.concatenate(layout.branches))
    )
    found = target_logps(
        _hidden(model, head, plan, device),
        head.weight,
        head.bias,
        read,
        targets,
        cap=_final_cap(unwrapped(model)),
        extras=extras,
        collisions=collisions,
    )
    lengths = [len(branch) for branch in layout.branches]
    logps, *others = (None if flat is None else torch.split(flat[branches], lengths) for flat in found)
    assert logps is not None
    return Scores(logps, *others)


def _hidden(model: Any, head: torch.nn.Module, plan: TreePlan, device: torch.device) -> Tensor:
    """(P, size): what the head would be given at each predictor.

    The model's own forward runs, through whatever is wrapped around it; the head is handed one position in place of all.
    """
    caught: list[Tensor] = []

    def catch(_: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        caught.append(inputs[0])
        return (inputs[0][:, :1],)

    layout = plan.layout
    hook = head.register_forward_pre_hook(catch)
    try:
        model(
            input_ids=torch.as_tensor(layout.tokens, device=device)[None],
            position_ids=torch.as_tensor(layout.positions, device=device)[None],
            # transformers hands a mask of four dimensions on as it is, and makes none of its own
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            logits_to_keep=plan.predictors,
            tree=plan,
        )
    finally:
        hook.remove()
    (hidden,) = caught
    return hidden.squeeze(0)


def _unable(inner: Any) -> str | None:
    """What in a model's make stands against sharing."""
    if not isinstance(inner, PreTrainedModel):
        return "it is not one of transformers' models"
    config, implementation = inner.config.get_text_config(), inner.config._attn_implementation
    parameters = inspect.signature(type(inner).forward).parameters.values()
    needed = {"position_ids"} if _gives_scores(inner) else _ARGUMENTS
    obstacles = {
        "its attention is its own": not inner._can_set_attn_implementation(),
        f"its attention is {implementation}": implementation not in _REPLACED,
        "its attention has sinks": any(hasattr(module, "sinks") for module in inner.modules()),
        "it has layers other than attention": not set(getattr(config, "layer_types", None) or ()) <= _KNOWN_LAYERS,
        "its forward takes too little": not arguments(inner) >= needed
        or all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters),
        "it is spread over devices": len(set((getattr(inner, "hf_device_map", None) or {}).values())) > 1,
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)


def _wrapped(model: Any) -> str | None:
    """What stands against sharing in what is put around a model or on its head, at any time."""
    *wrappers, inner = layers(model)
    head: Any = scalar_head(inner) if _gives_scores(inner) else inner.get_output_embeddings()
    if any(hasattr(wrapper, "_orig_mod") for wrapper in wrappers):
        return "it is compiled"
    if any(isinstance(wrapper, FullyShardedDataParallel) for wrapper in wrappers) or isinstance(head.weight, DTensor):
        return "its weights are in shards"
    if any(adapter.is_prompt_learning for wrapper in wrappers for adapter in _adapters(wrapper)):
        return "it has a prompt of its own"
    return None if type(head) is torch.nn.Linear else "its head is not a plain linear layer"


def _gives_scores(inner: Any) -> bool:
    """Whether it is a sequence classifier, whose head stands where a language model has its vocabulary's."""
    return inner.get_output_embeddings() is None and scalar_head(inner) is not None


def _adapters(wrapper: Any) -> Iterable[Any]:
    return getattr(wrapper, "peft_config", {}).values()


def _set(inner: Any, sharing: Sharing) -> None:
    """Sets our attention with the first kernel that passes the trial; if none does, the old one comes back."""
    before = inner.config._attn_implementation
    if before == "sdpa" and getattr(inner.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        before = "eager"  # SDPA leaves the soft-cap out without a word
    _prepared[inner] = sharing  # the trial is a forward, too
    for kernel in kernels(inner.get_input_embeddings().weight.device.type):
        layers = None if _gives_scores(inner) else decoder(inner)
        last = None if layers is None else LastLayer.of(layers)
        sharing.kernel, sharing.layers = kernel, layers
        sharing.reason = _differs(inner)
        if sharing.reason is not None and last is not None:
            _log.info("%s: its last layer runs everywhere, since %s", type(inner).__name__, sharing.reason)
            last.leave()
            sharing.layers = None
            sharing.reason = _differs(inner)
        if sharing.reason is None:
            return
        _log.info("%s: kernel %s is not used, since %s", type(inner).__name__, kernel, sharing.reason)
    inner.set_attn_implementation(before)


def _differs(inner: Any) -> str | None:
    """What the trial finds wrong with the kernel that is set; None if nothing."""
    plain, ours = _runs(inner)
    try:
        inner.set_attn_implementation("eager")
        expected = _trial(inner, plain)
        inner.set_attn_implementation(NAME)
        found = _trial(inner, ours)
    except Exception as error:  # whatever a model does with a keyword or mask that it does not know
        return f"it then fails on a small tree ({type(error).__name__}: {error})"
    allowed = _ALLOWED if inner.dtype in (torch.float32, torch.float64) else _ALLOWED_ROUGH
    gap = float((found.numbers - expected.numbers).abs().max())
    if not gap <= allowed:
        return f"it then differs by {gap:.2g} on a small tree"
    gap = float((found.slope - expected.slope).norm() / expected.slope.norm().clamp(min=1e-30))
    return None if gap <= allowed else f"its gradient then differs by {gap:.2g} of its size on a small tree"


def _runs(inner: Any) -> tuple[_Run, _Run]:
    """The padded and the shared forward of a model of its kind."""
    if _gives_scores(inner):
        from prefdata.logprobs import scalar

        return scalar.padded_forward, scalar.shared_forward
    return (lambda *given: torch.cat(padded.forward(*given).logps)), (lambda *given: torch.cat(forward(*given).logps))


class _Trial(NamedTuple):
    """What a model makes of a small tree, and the gradient of its weighted sum by what the embeddings give, by token."""

    numbers: Tensor
    slope: Tensor


def _trial(inner: Any, run: _Run) -> _Trial:
    """Of a tree with forks within and at the end of its branches."""
    embeddings = inner.get_input_embeddings()
    known: Tensor = embeddings.weight
    trunk, branches = [1, 2], ([3, 4, 5], [3, 6, 7], [3, 4], [8])
    ids = [[token % len(known) for token in part] for part in (trunk, *branches)]
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(_: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        shown = output.detach().requires_grad_()
        seen.append((inputs[0], shown))
        return shown

    hook = embeddings.register_forward_hook(watched)
    try:
        with _evaluating(inner), torch.enable_grad(), torch.autocast(known.device.type, enabled=False):
            numbers = run(inner, [Tree(ids[0], ids[1:])])
            weights = torch.linspace(-1, 2, len(numbers), device=numbers.device)
            (slope,) = torch.autograd.grad((numbers * weights).sum(), seen[-1][1])
    finally:
        hook.remove()
    # by token: the padded forward runs one in several rows, and some that predict nothing, as 0 does where it pads
    tokens = torch.tensor(sorted({0, *(token for part in ids for token in part)}), device=slope.device)
    by_token = torch.zeros(len(tokens), slope.shape[-1], dtype=torch.float32, device=slope.device)
    by_token.index_add_(0, torch.searchsorted(tokens, seen[-1][0].flatten()), slope.flatten(0, 1).float())
    return _Trial(numbers.detach(), by_token)


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode; every module is then left in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _longest(inner: Any) -> int | None:
    """The longest path, in tokens, on which every layer sees all that comes before, at the positions it always has."""
    if not isinstance(inner, PreTrainedModel):
        return None
    config = inner.config.get_text_config()
    limits = list(_stretched(getattr(config, "rope_parameters", None) or {}, config))
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if isinstance(window, int) and (not kinds or "sliding_attention" in kinds):
        limits.append(window)
    return min(limits, default=None)


def _stretched(rope: Mapping[str, Any], config: Any) -> Iterator[int]:
    if rope.get("rope_type") in _STRETCHING:
        yield rope.get("original_max_position_embeddings") or config.max_position_embeddings
    for nested in rope.values():  # one for each kind of layer
        if isinstance(nested, Mapping):
            yield from _stretched(nested, config)


def _drops(model: torch.nn.Module) -> bool:
    """Whether any dropout is above 0, wherever it is kept."""
    kept = (
        module.p if isinstance(module, torch.nn.Dropout) else getattr(module, name, None)
        for module in model.modules()
        for name in _DROPOUTS
    )
    return any(isinstance(probability, int | float) and probability > 0 for probability in kept)


def _final_cap(inner: Any) -> float | None:
    return getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
