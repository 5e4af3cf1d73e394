"""In which precision things are computed: sums as wide as the device has, matrix products as asked for."""

import contextlib
from typing import Any

import torch


def widest(device: torch.device | str) -> torch.dtype:
    """float64 for sums of many log-probs, float32 on the one kind of device that lacks it."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def autocast(device: torch.device, bfloat16: bool) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bfloat16, or nothing. Weights stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bfloat16 else contextlib.nullcontext()
