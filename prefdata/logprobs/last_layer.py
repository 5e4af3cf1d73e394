"""The last layer at the places that are read, and no others.

What a layer makes of a token matters to other tokens only in the layers above it. Above the last there is the head, which
reads scored places: everywhere else the last layer's feed-forward part and its attention's queries are left out.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from prefdata.logprobs.attention import TreePlan

# what transformers calls the feed-forward part of a decoder layer
_FEED_FORWARD = ("mlp", "feed_forward")


def decoder(inner: Any) -> torch.nn.ModuleList | None:
    """The layers of a model; None where they are no one list."""
    depth = getattr(inner.config.get_text_config(), "num_hidden_layers", None)
    lists = [each for each in inner.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == depth]
    return lists[0] if len(lists) == 1 else None


def watching(layers: torch.nn.ModuleList) -> "LastLayer | None":
    """Who watches the last of them."""
    owners = (getattr(hook, "__self__", None) for hook in layers[-1]._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, LastLayer)), None)


class LastLayer:
    """The last of a model's decoder layers, watched: a forward with a plan has its feed-forward part run at predictors.

    It is hooked once and for all, and acts in forwards with `tree=` alone, also in those that backward computes again.
    """

    @classmethod
    def of(cls, layers: torch.nn.ModuleList) -> "LastLayer | None":
        """None where the last layer has no one part of that name or no one number."""
        if (known := watching(layers)) is not None:
            return known  # a copy of a model has that of the model
        parts = [part for name, part in layers[-1].named_children() if name in _FEED_FORWARD]
        numbers = {index for part in layers[-1].modules() if isinstance(index := getattr(part, "layer_idx", None), int)}
        return cls(layers[-1], parts[0], numbers.pop()) if len(parts) == len(numbers) == 1 else None

    def __init__(self, layer: torch.nn.Module, part: torch.nn.Module, number: int) -> None:
        self.number = number  # by which its attention knows it
        self._places: Tensor | None = None
        self._tokens = 0
        self._hooks = (
            layer.register_forward_pre_hook(self._begin, with_kwargs=True),
            part.register_forward_pre_hook(self._take),
            part.register_forward_hook(self._put),
            layer.register_forward_hook(self._end, always_call=True),
        )

    def leave(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, _: torch.nn.Module, _inputs: Any, given: Mapping[str, Any]) -> None:
        plan: TreePlan | None = given.get("tree")
        self._places = plan.predictors if plan is not None and plan.last == self.number else None

    def _end(self, *_: Any) -> None:
        self._places = None  # a part that is called by itself, or a copy of it, is left alone

    def _take(self, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._places is None:
            return None
        self._tokens = inputs[0].shape[1]
        return (inputs[0].index_select(1, self._places), *inputs[1:])

    def _put(self, _: torch.nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        """(1, P, size) to (1, L, size), 0 at all other places."""
        if self._places is None:
            return None
        whole = output.new_zeros(output.shape[0], self._tokens, output.shape[2])
        return whole.index_copy(1, self._places, output)
