"""Which forward a batch of trees takes: the shared one where it can, the padded one where it must, which is said once."""

from collections.abc import Sequence
from typing import Any

from prefdata.logprobs import padded, shared
from prefdata.logprobs.layout import Layout
from prefdata.logprobs.trees import Scores, Tree, nothing


def forward(
    model: Any,
    trees: Sequence[Tree],
    *,
    extras: bool = False,
    collisions: bool = False,
    layout: Layout | None = None,
) -> Scores:
    """Scores every branch of every tree in one call of the model; `extras` adds entropies, hits and levels, `collisions` those.

    `layout` is that of the trees, where it was made before.
    """
    if not trees:
        return nothing(extras=extras, collisions=collisions)
    sharing = shared.prepare(model)
    obstacle = sharing.obstacle(model, trees)
    if obstacle is None:
        return shared.forward(model, trees, extras=extras, collisions=collisions, layout=layout)
    sharing.say(model, obstacle)
    return padded.forward(model, trees, extras=extras, collisions=collisions)
