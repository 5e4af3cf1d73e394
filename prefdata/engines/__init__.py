"""Generation engines: token ids in, token ids out, one protocol for all.

An engine is one file in this folder and one line in `ENGINES`. It draws from `Request.seed` and the number of the
answer alone, so that neither the order of requests nor the batch a request falls into changes its draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from prefdata.errors import UserError


@dataclass(frozen=True)
class Request:
    """`n` answers to one prompt. `key` comes back on its samples and is unique in a call.

    Answer i is the one that a request for one with the seed `seed + i` gets. Seeds of requests with the same prompt
    must therefore lie at least `n` apart to give different answers; those that are hashes do.
    """

    key: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    n: int = 1

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(f"request {self.key!r} has an empty prompt: nothing predicts its first token")
        if self.max_new_tokens < 1:
            raise ValueError(f"request {self.key!r} asks for {self.max_new_tokens} tokens")
        if self.n < 1:
            raise ValueError(f"request {self.key!r} asks for {self.n} answers: n must be at least 1")

    def singles(self) -> list["Request"]:
        """Its answers one by one, in their order: requests for one answer each, which all have its key."""
        return [replace(self, seed=self.seed + index, n=1) for index in range(self.n)]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature first, then the `top_k` likeliest, then the likeliest that hold `top_p`.

    temperature 0 takes the likeliest token; top_k 0 and top_p 1 switch the filters off.
    `end_ids` end an answer; without them it runs to its `max_new_tokens`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    end_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf")):
            raise UserError(f"temperature is {self.temperature}: it must be 0 (greedy) or a positive number.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: it must be 0 (off) or a positive whole number.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: it must be above 0 and at most 1 (off).")

    @property
    def greedy(self) -> bool:
        """Nothing is drawn."""
        return self.temperature == 0


@dataclass(frozen=True)
class Sample:
    """One answer, the one with the number `index` of its request. `token_ids` includes the end id when `finish` is stop.

    `token_logps`: nats, the log-prob of each token under the distribution it was drawn from, after temperature and
    filters; None when nothing was drawn (greedy) or the engine cannot tell.
    """

    key: str
    token_ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    token_logps: tuple[float, ...] | None = None
    index: int = 0


class Engine(Protocol):
    """What every engine offers.

    batch_invariant  the same requests in the same call give the same tokens, bit for bit
    fingerprint      what decides the distribution of its samples: goes into manifests and the keys of finished work
    """

    name: str
    batch_invariant: bool

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """`n` samples per request, as they finish, in any order. Bad requests are refused before the first one."""
        ...


class EngineDied(RuntimeError):
    """An engine's process ended in the middle of a call. The same call may work with the next process."""


# name on the command line -> "file of this package:class"
ENGINES = {
    "transformers": "transformers:TransformersEngine",
    "vllm": "vllm:VllmEngine",
    "openai": "openai:OpenAIEngine",
    "fake": "fake:FakeEngine",
}

# engine -> the package that it runs on and that not every installation has, and how to get it
_NEEDS = {
    "vllm": ("vllm", "on a CPU run  make env-vllm  in the project; with a GPU, pip install 'prefdata[vllm]'"),
}

# engines that can share one model among several devices, and run several copies of it
_PARALLEL = ("vllm",)


# engines that ask servers
_REMOTE = ("openai",)

# what a user may choose; the fake is for tests
OFFERED = tuple(name for name in ENGINES if name != "fake")


def load(name: str, model: str, **options: Any) -> Engine:
    """The engine `name` with `model` (a folder or hub name) in it.

    Every engine takes the options `dtype` and `trust_remote_code`; others are an engine's own.
    """
    require(name)
    file, _, class_name = ENGINES[name].partition(":")
    engine_class = getattr(import_module(f"{__name__}.{file}"), class_name)
    engine: Engine = engine_class.load(model, **options)
    return engine


def require(name: str) -> None:
    """Refuses an engine that is not there or lacks its package. Cheap: nothing is imported."""
    if name not in ENGINES:
        raise UserError(f"there is no engine {name!r}; there are: {', '.join(ENGINES)}.")
    if name in _NEEDS:
        package, remedy = _NEEDS[name]
        if find_spec(package) is None:
            raise UserError(f"the engine {name} needs the package {package}, which is not installed here: {remedy}.")


def parallel(name: str, *, tensor_parallel_size: int, data_parallel_size: int) -> dict[str, int]:
    """The two sizes as options of `load`; none for an engine that works on one device, which refuses any but 1."""
    sizes = {"tensor_parallel_size": tensor_parallel_size, "data_parallel_size": data_parallel_size}
    if name in _PARALLEL:
        return sizes
    for size, value in sizes.items():
        if value != 1:
            raise UserError(
                f"{size} is {value} and the engine {name} works on one device: choose another engine "
                f"({', '.join(_PARALLEL)}), or leave {size} out."
            )
    return {}


def remote(name: str, *, server: Sequence[str], **how: Any) -> dict[str, Any]:
    """Where servers are and how they are asked, as options of `load`; none for an engine that asks none."""
    if name in _REMOTE:
        if not server:
            raise UserError(
                f"the engine {name} needs to know where servers are: say it with --server http://HOST:PORT, once for each."
            )
        return {"server": tuple(server), **how}
    if server:
        raise UserError(
            f"--server is given and the engine {name} asks none: say --engine {_REMOTE[0]}, or leave it out."
        )
    return {}


def check(
    requests: Sequence[Request], *, positions: int | None, vocabulary: int, whose: str = "the model has {}"
) -> None:
    """What every engine refuses before it starts: requests that cannot be told apart, or that the model cannot take.

    `whose` says who has so many `positions` and no more.
    """
    if len({request.key for request in requests}) != len(requests):
        raise ValueError("two requests have the same key")
    for request in requests:
        total = len(request.prompt_ids) + request.max_new_tokens
        if positions is not None and total > positions:
            raise UserError(
                f"a prompt of {len(request.prompt_ids)} tokens and an answer of up to {request.max_new_tokens} need "
                f"{total} positions and {whose.format(positions)}: build from a version with a smaller "
                "maximum length, ask for fewer new tokens, or take another model."
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocabulary:
            raise UserError(
                f"a prompt holds token ids up to {max(request.prompt_ids)} and the model knows 0 to {vocabulary - 1}: "
                "it was tokenised for another model."
            )


def until_end(
    tokens: Sequence[int], limit: int, end_ids: Sequence[int]
) -> tuple[tuple[int, ...], Literal["stop", "length"]]:
    """The first `limit` tokens up to and with the first end id, and how they finish."""
    for index, token in enumerate(tokens[:limit]):
        if token in end_ids:
            return tuple(tokens[: index + 1]), "stop"
    return tuple(tokens[:limit]), "length"
