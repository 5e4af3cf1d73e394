"""What stands between the caller's model and transformers' own: DDP, FSDP, torch.compile, PEFT."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch


def layers(model: Any) -> Iterator[Any]:
    """The model as the caller has it and what is inside of it, down to the transformers model itself."""
    yield model
    for wrapper in ("module", "_orig_mod"):
        if isinstance(inner := getattr(model, wrapper, None), torch.nn.Module):
            yield from layers(inner)
            return
    if hasattr(model, "get_base_model"):
        yield from layers(model.get_base_model())


def unwrapped(model: Any) -> Any:
    """The transformers model itself."""
    *_, inner = layers(model)
    return inner


def arguments(model: Any) -> set[str]:
    """What the forward of the transformers model takes, by name: of its class, whatever is wrapped around it."""
    return set(inspect.signature(type(unwrapped(model)).forward).parameters)


def scalar_head(inner: Any) -> torch.nn.Linear | None:
    """The layer that gives a sequence classifier's scores, as it is in use; None where there is none.

    PEFT trains a copy of it beside the adapter.
    """
    head = getattr(inner, "score", None)
    copies = getattr(head, "modules_to_save", None)
    if copies is not None and head is not None:
        head = dict(copies.items()).get(head.active_adapter, head.original_module)
    return head if isinstance(head, torch.nn.Linear) else None
