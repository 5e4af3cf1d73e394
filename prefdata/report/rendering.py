"""Templates to one page that stands alone: no other file, no network, nothing of the data as markup or script.

Three things keep text from data text: Jinja escapes every value, characters that could reorder, hide or break text are
spelled out, and the page's own policy lets only the style and the script run that were written here.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefdata.report.charts import MINUS

# what a reader could not see, or what would move other text: controls (not tab and line feed), bidirectional overrides
# and isolates, line separators, soft hyphens, joiners and fillers without a shape, tag characters, selectors of variants
# (not those of emoji), halves of surrogate pairs, non-characters
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\u3164\ufeff\uffa0\ufff9-\ufffb\ufdd0-\ufdef"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)


def visible(text: str) -> str:
    """The text with hidden and reordering characters spelled as <U+202E>."""
    if text.isascii() and text.isprintable():  # none of them is both; most texts are
        return text
    return _HIDDEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", text.replace("\r\n", "\n"))


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    page = _environment().get_template(template)
    return page.render(context, style=Markup(style), script=Markup(script), policy=policy)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {"count": "{:,}".format, "metric": _metric, "breakable": _breakable}
    environment.filters |= filters
    return environment


def _metric(value: float, *, sign: bool = False) -> str:
    """Four digits, with a minus as wide as a plus. What is rounding is 0."""
    kept = 0.0 if abs(value) < 1e-6 else value
    return (f"{kept:+.4g}" if sign and kept else f"{kept:.4g}").replace("-", MINUS)


def _breakable(name: str) -> Markup:
    """A name that may be broken after each / and _."""
    return Markup("<wbr>").join(re.split("(?<=[/_])", visible(name)))


@cache
def _asset(name: str) -> str:
    text = resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would end its own element"
    return text


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
