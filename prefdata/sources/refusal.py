"""How a format says no: a parser's helpers raise `Refused`, the parser returns a `SetAside`."""

from collections.abc import Callable, Mapping
from functools import wraps

from prefdata.records import Parsed, SetAside

Row = Mapping[str, object]
Parse = Callable[[Row], Parsed]

# A row refused for one of these is laid out in another way than the format reads; any other reason is about what
# the row says, so the format did fit it.
LAYOUT_REASONS = frozenset({"missing_field", "wrong_type", "other_format"})
# columns of lists, in which LLaMA-Factory, ms-swift and TRL keep what the texts of a row refer to
MEDIA = frozenset({"images", "videos", "audios"})


class Refused(Exception):
    """A row goes no further: a reason of `schemas.reasons` and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.aside = SetAside(reason, detail)


def refusable(parse: Callable[[Row], Parsed]) -> Parse:
    """Turn a parser that raises `Refused` into one that returns what was refused."""

    @wraps(parse)
    def parse_or_set_aside(row: Row) -> Parsed:
        try:
            parsed = parse(row)
        except Refused as refused:
            return refused.aside
        shown = [] if MEDIA.isdisjoint(row) else sorted(name for name in MEDIA if row.get(name))
        if shown and not isinstance(parsed, SetAside):
            return SetAside("not_text", f"the row comes with {' and '.join(shown)}")
        return parsed

    return parse_or_set_aside
