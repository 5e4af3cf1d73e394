"""Versions for tests of the report: rows of any text, tokenised, with log-probs and segments; text that attacks a page."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from prefdata.report.pieces import Decoder
from prefdata.tokens import Renderer
from prefdata.versions import Version
from tests.published import completion, message, pair, publish
from tests.tokenizers_small import build

# each would do something, were it not text; the marker lets a test find it again
HOSTILE = {
    "script": "</script><script>document.title='owned';window.canary=1</script>",
    "script in capitals": "</SCRIPT ><SCRIPT>window.canary=2</SCRIPT>",
    "image": '<img src=x onerror="window.canary=3">',
    "svg": "<svg/onload=window.canary=4><foreignObject><body onload=window.canary=5>",
    "attribute": '" onmouseover="window.canary=6" x=\'',
    "attribute, single": "' autofocus onfocus='window.canary=7' y=\"",
    "section end": "]]><script>window.canary=8</script>",
    "comment": "--><script>window.canary=9</script><!--",
    "textarea": "</textarea></title></style></details></template><h1>owned</h1>",
    "style": "<style>*{display:none}</style><link rel=stylesheet href=//evil.example/x.css>",
    "frame": "<iframe srcdoc='<script>parent.canary=10</script>'></iframe><base href=//evil.example/>",
    "link": "<a href=javascript:window.canary=11>owned</a><meta http-equiv=refresh content='0;url=//evil.example'>",
    "template": "{{ 7*7 }}{% for x in y %}${7*7}<% 49 %>",
    "entities": "&lt;b&gt;&amp;&#60;script&#62;&quot;",
    "line separators": "a\u2028b\u2029c\u0085d",
    "bidi": "\u202eesrever\u2066isolate\u2069 \u200f\u061c tail",
    "invisible": "a\u200bb\ufeffc\u2060d\U000e0041\U000e007f",
    "shapeless": "a\u00adb\u180ec\u3164d\u115fe\u1160f\u034fg\uffa0h\U000e0100i\U000e01efj",
    "controls": "bell\x07 escape\x1b[31m delete\x7f null\x00 return\rx",
    "long word": "w" * 1500,
    "right to left": "שלום עולם مرحبا بالعالم",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 ✈️ e\u0301 𝒳",
    "combining": "Z" + "\u0351" * 60 + "algo",
}


class World:
    """A byte-level tokenizer, so that any text has ids, and versions tokenised by it."""

    def __init__(self, folder: Path) -> None:
        self.model = str(build(folder / "model", "plain"))
        renderer = Renderer.load(self.model)
        self.decoder = Decoder(renderer.tokenizer)
        self._backend = renderer.tokenizer.backend_tokenizer
        self._end = renderer.end_ids[0]
        self.root = folder / "data"
        self.fields = {"tokenizer": {**renderer.fingerprint, "name": self.model}}

    def ids(self, text: str) -> list[int]:
        return [*self._backend.encode(text, add_special_tokens=False).ids, self._end]

    def pair(self, prompt: str, chosen: str, rejected: str, **columns: Any) -> dict[str, Any]:
        """A row whose log-probs are drawn by its text."""
        one, other = self.ids(chosen), self.ids(rejected)
        row_id = hashlib.sha256(f"{prompt}\0{chosen}\0{rejected}".encode()).hexdigest()
        logps = tuple((-np.random.default_rng(len(ids)).exponential(1.5, len(ids))).tolist() for ids in (one, other))
        row = pair(one, other, prompt=prompt, text=(chosen, rejected), logps=logps)  # type: ignore[arg-type]
        return row | {"row_id": row_id} | columns

    def regenerated(self, prompt: str, before: str, original: str, written: str, after: str) -> dict[str, Any]:
        """A pair that differs in a segment: chosen = before + original + after, rejected = before + written + after."""
        head, one, other, tail = (self.ids(text)[:-1] for text in (before, original, written, after))
        tail = [*tail, self._end]
        row = self.pair(prompt, before + original + after, before + written + after)
        chosen, rejected = head + one + tail, head + other + tail
        row |= pair(chosen, rejected, prompt=prompt, text=(before + original + after, before + written + after))
        row |= {"segment_start": len(head), "segment_end": len(head) + len(other), "ended_early": False}
        return row | {"segment_source_end": len(head) + len(one), "row_id": f"{prompt}-{original}-{written}"}

    def publish(self, rows: list[dict[str, Any]], test: list[dict[str, Any]] | None = None, **fields: Any) -> Version:
        return publish(self.root, train=rows, test=test, **{**self.fields, **fields})

    def completion(self, prompt: str, text: str, **columns: Any) -> dict[str, Any]:
        row = completion(self.ids(text), prompt=prompt) | {"completion": [message("assistant", text)]}
        return row | {"row_id": hashlib.sha256(f"{prompt}\0{text}".encode()).hexdigest()} | columns
