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


class LastLayer:
    """The last of a model's decoder layers, watched: a forward with a plan has its feed-forward part run at predictors.

    It is hooked once and for all, and acts in forwards with `tree=` alone, also in those that backward computes again.
    """

    @classmethod
    def of(cls, inner: Any) -> "LastLayer | None":
        """None where the layers are no one list, or the last has no one part of that name and no one number."""
        depth = getattr(inner.config.get_text_config(), "num_hidden_layers", None)
        lists = [each for each in inner.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == depth]
        if len(lists) != 1:
            return None
        layer = lists[0][-1]
        for hook in layer._forward_pre_hooks.values():
            if isinstance(owner := getattr(hook, "__self__", None), cls):
                return owner  # a copy of a model has those of the model
        parts = [part for name, part in layer.named_children() if name in _FEED_FORWARD]
        numbers = {index for part in layer.modules() if isinstance(index := getattr(part, "layer_idx", None), int)}
        return cls(layer, parts[0], numbers.pop()) if len(parts) == len(numbers) == 1 else None

    def __init__(self, layer: torch.nn.Module, part: torch.nn.Module, number: int) -> None:
        self.number = number  # by which its attention knows it
        self._places: Tensor | None = None
        self._tokens = 0
        self._hooks = (
            layer.register_forward_pre_hook(self._begin, with_kwargs=True),
            part.register_forward_pre_hook(self._take),
            part.register_forward_hook(self._put),
        )

    def leave(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, _: torch.nn.Module, _inputs: Any, given: Mapping[str, Any]) -> None:
        plan: TreePlan | None = given.get("tree")
        self._places = plan.predictors if plan is not None and plan.last == self.number else None

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
