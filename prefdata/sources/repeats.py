"""Answers that stand in one row several times: one completion if their scores agree, and none if they don't."""

from collections import defaultdict
from collections.abc import Sequence

from prefdata.records import Completion, Messages, Score, SetAside

_Scores = tuple[float, tuple[Score, ...]]


def told_once(parts: Sequence[Completion | SetAside]) -> list[Completion | SetAside]:
    """The scored completions of a prompt, each once; nobody can say which scores an answer with several has."""
    told: dict[Messages, set[_Scores]] = defaultdict(set)
    for part in parts:
        if isinstance(part, Completion):
            told[part.completion].add(_scores(part))
    seen: set[Messages] = set()
    return [_once(part, told, seen) if isinstance(part, Completion) else part for part in parts]


def _once(part: Completion, told: dict[Messages, set[_Scores]], seen: set[Messages]) -> Completion | SetAside:
    scores = sorted(told[part.completion])
    if len(scores) > 1:
        listed = ", ".join(dict.fromkeys(f"{score:g}" for score, _ in scores))
        return SetAside("conflicting_labels", f"the same answer has the scores {listed}")
    if part.completion in seen:
        return SetAside("repeated_answer", f"the same answer, with the same score {scores[0][0]:g}")
    seen.add(part.completion)
    return part


def _scores(part: Completion) -> _Scores:
    assert part.score is not None
    return part.score, part.scores
