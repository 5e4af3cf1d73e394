"""What is known of a server while it is asked: its troubles, how long they last, and when it counts as gone. Pure."""

import random
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Literal

from prefdata.errors import UserError


class ServersGone(UserError):
    """No server is left that answers."""


@dataclass(frozen=True)
class Patience:
    """How long servers are waited for.

    gone_s    a server without a sign of life, or with nothing but errors, for so long is gone
    busy_s    the same for one that always says it is busy (429)
    answer_s  the longest that one answer may take
    tries     how often one request may fail at a server that lives
    first_s, longest_s   the first and the longest pause between two tries
    """

    gone_s: float = 30.0
    busy_s: float = 900.0
    answer_s: float = 600.0
    tries: int = 6
    first_s: float = 0.5
    longest_s: float = 15.0

    def pause(self, failures: int) -> float:
        """Seconds before the next try: twice as many after each failure, half of them at random, so that clients that
        failed together don't come back together."""
        whole = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return whole * random.uniform(0.5, 1.0)


# silent: no answer at all; failing: errors of the server; busy: asks to come back later
Kind = Literal["silent", "failing", "busy"]


@dataclass
class Health:
    """One server's. `now` is a clock in seconds that never goes back."""

    patience: Patience
    alive_at: float  # the last sign of life
    paused_until: float = 0.0
    _since: dict[Kind, float] = field(default_factory=dict)
    _why: dict[Kind, str] = field(default_factory=dict)
    _last: str = ""
    _failures: int = 0

    def lives(self, now: float) -> None:
        """It said something, whatever it was."""
        self.alive_at = now
        if self.silent:
            self._clear("silent")
            self.paused_until = now

    def works(self, now: float) -> None:
        """It gave an answer."""
        self.lives(now)
        self._clear("failing")
        self._clear("busy")
        self._failures = 0

    def troubled(self, kind: Kind, why: str, now: float, wait_s: float | None = None) -> None:
        """It did not answer. `wait_s`: how long it asks to be left alone."""
        if kind != "silent":
            self.lives(now)
        self._since.setdefault(kind, self.alive_at if kind == "silent" else now)
        self._why[kind] = self._last = why
        if now >= self.paused_until:  # of requests that fail together, the first one counts
            self._failures += 1
        # a server that asks for no time at all is still not asked again at once
        pause = self.patience.pause(self._failures) if wait_s is None else max(wait_s, self.patience.pause(1))
        self.paused_until = max(self.paused_until, now + pause)

    @property
    def silent(self) -> bool:
        """Whether nothing is heard of it."""
        return "silent" in self._since

    def gone(self, now: float) -> str | None:
        """Why it is to be given up, if it is."""
        for kind, since in self._since.items():
            limit = self.patience.busy_s if kind == "busy" else self.patience.gone_s
            if now - since >= limit:
                return f"{self._why[kind]}, for {now - since:.0f} s"
        if self.paused_until - now > self.patience.busy_s:
            return f"{self._last} and asks to wait for {self.paused_until - now:.0f} s"
        return None

    def _clear(self, kind: Kind) -> None:
        self._since.pop(kind, None)


def retry_after_s(header: str | None, clock_s: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, 10.2.3). `clock_s` is the time now."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - clock_s
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
