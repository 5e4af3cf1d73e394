"""How many tokens a second the stages of builds came to on this root, so that the next plan can tell how long one takes."""

import json
import time
from typing import TYPE_CHECKING, Any

from prefdata.storage import Storage
from prefdata.work import FOLDER

if TYPE_CHECKING:
    from prefdata.builds.job import Unit, Watcher

_FILE = "speeds.json"
_LEAST_S, _LEAST_TOKENS = 1.0, 1000  # what is shorter measures the start


class Speeds:
    """Tokens per second by stage and model, kept beside the work units. Lost, it is measured anew."""

    def __init__(self, root: str) -> None:
        self._storage = Storage(root).at(FOLDER)
        self._known = self._read()

    def of(self, stage: str, model: str) -> float | None:
        """Tokens per second when this stage last ran this model; None if it never did."""
        found = self._known.get(_key(stage, model))
        return float(found) if isinstance(found, int | float) and found > 0 else None

    def keep(self, stage: str, model: str, rate: float) -> None:
        """Remember a rate in place of the last."""
        self._known = {**self._read(), _key(stage, model): round(rate, 1)}
        self._storage.write(_FILE, json.dumps(self._known, sort_keys=True).encode())

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._storage.read(_FILE))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class Timed:
    """A watcher that measures each stage and tells another watcher everything."""

    def __init__(self, watcher: "Watcher", speeds: Speeds) -> None:
        self._watcher, self._speeds = watcher, speeds
        self._tokens, self._last, self._seconds = 0, 0.0, 0.0

    def stage(self, name: str, rows: int | None) -> None:
        """A stage begins."""
        self._tokens, self._seconds, self._last = 0, 0.0, time.monotonic()
        self._watcher.stage(name, rows)

    def begins(self, unit: "Unit") -> None:
        """A unit begins."""
        self._watcher.begins(unit)

    def part(self, unit: "Unit", share: float) -> None:
        """A unit goes on."""
        self._watcher.part(unit, share)

    def spent(self, unit: "Unit", tokens: int) -> None:
        """So many tokens were computed for a unit."""
        self._tokens += tokens
        self._watcher.spent(unit, tokens)

    def unit(self, unit: "Unit", reused: bool) -> None:
        """A unit is done; the time of those that were done before is not counted."""
        now = time.monotonic()
        self._seconds += 0.0 if reused else now - self._last
        self._last = now
        self._watcher.unit(unit, reused)

    def ended(self, stage: Any) -> None:
        """The stage is over. One that says which model it runs has its rate kept, if it ran long enough to tell."""
        model = getattr(stage, "runs", None)
        if model and self._seconds >= _LEAST_S and self._tokens >= _LEAST_TOKENS:
            self._speeds.keep(stage.name, model, self._tokens / self._seconds)


def named(model: str, engine: str | None = None) -> str:
    """What a stage says it runs; without an engine the model is run by the project's own forward."""
    return model if engine is None else f"{model} in {engine}"


def _key(stage: str, model: str) -> str:
    return f"{stage}|{model}"
