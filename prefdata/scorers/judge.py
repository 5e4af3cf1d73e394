"""A pairwise judge: a model behind an OpenAI-compatible server that is shown both answers, in both orders.

As in MT-Bench (Zheng et al. 2023, arXiv:2306.05685) it reasons first and ends with [[A]], [[B]] or, for a tie, [[C]]. An
answer without exactly one of these verdicts is none: the pair is set aside.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from prefdata.errors import UserError
from prefdata.scorers.texts import answer, content
from prefdata.servers import Reply, Servers
from schemas import pairs

SYSTEM = (
    "You compare two answers to the same conversation. Judge how well each does what the user asks: correctness, "
    "completeness, relevance, clarity. Neither the order in which the answers stand nor their length is a reason. Give your "
    "reasons in a few sentences, then end with your verdict in double square brackets: [[A]] if answer A is better, [[B]] if "
    "answer B is better, [[C]] if neither is."
)
USER = "[Conversation]\n{conversation}\n\n[Answer A]\n{first}\n[End of answer A]\n\n[Answer B]\n{second}\n[End of answer B]"
VERDICTS = pa.schema([*pairs.JUDGED, ("reason", pa.string()), ("detail", pa.string())])
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_SHOWN = 120


class Judge:
    """Asks `servers` for the verdicts of one model, by the name that they serve it by."""

    def __init__(self, servers: Servers, *, most_tokens: int = 1024) -> None:
        self._servers = servers
        self._parameters = {"temperature": 0, "max_tokens": most_tokens}
        asked = hashlib.sha256(f"{SYSTEM}\0{USER}".encode()).hexdigest()
        self.fingerprint: dict[str, Any] = {
            "scorer": "judge",
            "model": servers.model,
            "instructions": asked,
            **self._parameters,
        }

    @classmethod
    def at(
        cls, urls: Sequence[str], *, model: str | None, api_key_env: str | None, concurrency: int, most_tokens: int
    ) -> "Judge":
        """One at these URLs. UserError if there are none, or none of them answers."""
        if not urls:
            raise UserError("scorer judge: say where it is asked, with --server http://HOST:PORT, once for each.")
        servers = Servers(urls, model=model, api_key_env=api_key_env, concurrency=concurrency)
        return cls(servers, most_tokens=most_tokens)

    def compare(self, rows: pa.Table, tell: Callable[[float], None], spend: Callable[[int], None]) -> pa.Table:
        """A line of `VERDICTS` for each pair. `spend` hears what both orders read, in the rows' own tokens."""
        told = rows.select(["prompt", "chosen", "rejected"]).to_pylist()
        asked = [
            _conversation(row, *sides) for row in told for sides in (("chosen", "rejected"), ("rejected", "chosen"))
        ]
        replies = self._servers.chat(asked, tell=tell, **self._parameters)
        spend(2 * sum(sum(rows[f"{part}_tokens"].to_pylist()) for part in ("prompt", "chosen", "rejected")))
        lines = [_line(*replies[place : place + 2]) for place in range(0, len(replies), 2)]
        return pa.Table.from_pylist(lines, schema=VERDICTS)


def verdict(text: str) -> str | None:
    """A, B or C (a tie); None unless the text gives exactly one of them, any number of times."""
    found = set(_VERDICT.findall(text))
    return found.pop() if len(found) == 1 else None


def _conversation(row: Mapping[str, Any], first: str, second: str) -> list[dict[str, str]]:
    said = "\n\n".join(f"{turn['role']}: {content(turn)}" for turn in row["prompt"])
    asked = USER.format(conversation=said, first=answer(row[first]), second=answer(row[second]))
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def _line(chosen_first: Reply, rejected_first: Reply) -> dict[str, Any]:
    found: dict[str, Any] = {}
    orders = (
        ("judged_chosen_first", chosen_first, {"A": "chosen", "B": "rejected", "C": "tie"}),
        ("judged_rejected_first", rejected_first, {"A": "rejected", "B": "chosen", "C": "tie"}),
    )
    for name, reply, sides in orders:
        given = verdict(reply.text)
        if reply.refused is not None:
            return {"reason": "judge_refused", "detail": reply.refused}
        if given is None:
            return {"reason": "judge_unclear", "detail": f"it said: ...{reply.text[-_SHOWN:]!r} ({reply.finish})"}
        found[name] = sides[given]
    return found
