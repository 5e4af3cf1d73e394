"""Comparisons of one row or one turn that contradict each other, because two of its answers are the same text."""

from collections.abc import Sequence

from prefdata.records import Comparison, SetAside


def consistent(comparisons: Sequence[Comparison]) -> list[Comparison | SetAside]:
    """The comparisons; one whose opposite stands among them too is set aside, and so is the opposite."""
    stated = {(each.chosen, each.rejected) for each in comparisons}
    return [
        SetAside("contradicted", "the same two answers are also compared the other way round")
        if each.chosen != each.rejected and (each.rejected, each.chosen) in stated
        else each
        for each in comparisons
    ]
