"""What steps cost: seconds and peak memory."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback
from typing_extensions import override

GIB = 2**30


class Usage(TrainerCallback):
    """Of the steps since it was last asked; evaluations and saving are not counted."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = 0.0
        self._seconds = 0.0
        self._steps = 0
        self._peak = 0

    @override
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._began = self._clock()

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        self._seconds += self._clock() - self._began
        self._steps += 1
        self._peak = max(self._peak, peak_bytes())

    def since(self) -> tuple[float, int]:
        """Mean seconds of the steps since the last call, and the highest memory in bytes; 0 without a step."""
        found = self._seconds / max(self._steps, 1), self._peak
        self._seconds, self._steps, self._peak = 0.0, 0, 0
        return found


def peak_bytes() -> int:
    """On a GPU what torch had allocated at most since the step began, else the process's largest resident size so far."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
