"""Reward models: sequence classifiers with one label, read at the last token of an answer."""

from typing import Any

import torch

from prefdata import models


def load(
    name: str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    fresh_head_seed: int | None = None,
) -> Any:
    """A model with a head that gives one score.

    fresh_head_seed: draws the head's weights where the folder has none, as a language model has not, which becomes a
    reward model by being trained as one. None: a folder without a head is refused.
    """
    with torch.random.fork_rng():  # nothing else that is drawn depends on it
        torch.manual_seed(fresh_head_seed or 0)
        return models.load_classifier(
            name,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            without_head=fresh_head_seed is not None,
        )
