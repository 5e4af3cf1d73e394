"""How a format says no: a parser's helpers raise `Refused`, the parser returns a `SetAside`."""

from collections.abc import Callable, Mapping
from functools import wraps

from prefdata.records import Parsed, SetAside

Row = Mapping[str, object]
Parse = Callable[[Row], Parsed]

# A row refused for one of these is laid out in another way than the format reads; any other reason is about what
# the row says, so the format did fit it.
LAYOUT_REASONS = frozenset({"missing_field", "wrong_type", "other_format"})


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
            return parse(row)
        except Refused as refused:
            return refused.aside

    return parse_or_set_aside
