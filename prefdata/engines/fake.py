"""An engine without a model, for tests: what it answers is a plain function of the request."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefdata import draws
from prefdata.engines import Request, Sample, Sampling, check, until_end
from prefdata.errors import UserError

# request for one answer, sampling -> tokens; what lies past an end id or the request's limit is cut off
Script = Callable[[Request, Sampling], Sequence[int]]


class FakeEngine:
    """Answers by script and remembers every request it was given, in `asked`."""

    name = "fake"
    batch_invariant = True

    def __init__(
        self, script: Script, *, model: str = "fake", vocabulary: int = 2**31, positions: int | None = None
    ) -> None:
        self._script, self._model = script, model
        self._vocabulary, self._positions = vocabulary, positions
        self.asked: list[Request] = []

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        behaviour: str = "draw",
        vocabulary: int = 64,
        positions: int | None = None,
        sequences: Sequence[Sequence[int]] = (),
        after: int = 1,
    ) -> "FakeEngine":
        """`behaviour` names a script: draw, copy (of `sequences`), end (`after` tokens), never_end.

        `dtype` and `trust_remote_code` are what every engine is given; there is no model here that they could mean.
        """
        del dtype, trust_remote_code
        scripts: dict[str, Script] = {
            "draw": draw(vocabulary),
            "copy": copy(sequences),
            "end": end(vocabulary, after),
            "never_end": never_end(vocabulary),
        }
        if behaviour not in scripts:
            raise UserError(f"the fake engine has no behaviour {behaviour!r}; it has: {', '.join(scripts)}.")
        return cls(scripts[behaviour], model=model, positions=positions)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Names the engine and the model it stands in for."""
        return {
            "engine": self.name,
            "batch_invariant": True,
            "model": {"name": self._model, "digest": "0" * 64, "commit": None, "dtype": "float32"},
        }

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """Samples in the order asked."""
        check(requests, positions=self._positions, vocabulary=self._vocabulary)
        return self._stream(requests, sampling)

    def _stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        for request in requests:
            self.asked.append(request)
            for index, single in enumerate(request.singles()):
                tokens, finish = until_end(self._script(single, sampling), single.max_new_tokens, sampling.end_ids)
                yield Sample(single.key, tokens, finish, index=index)


def draw(vocabulary: int) -> Script:
    """Uniform tokens that depend on prompt and seed (greedy: on the prompt alone)."""

    def script(request: Request, sampling: Sampling) -> list[int]:
        seed = 0 if sampling.greedy else request.seed
        prompt = ",".join(map(str, request.prompt_ids))
        random = draws.generator(draws.row_seed(seed, prompt, "fake engine"))
        return [int(token) for token in random.integers(vocabulary, size=request.max_new_tokens)]

    return script


def copy(sequences: Sequence[Sequence[int]]) -> Script:
    """The continuation found in `sequences` (whole token sequences, prompt and answer)."""
    known = [tuple(sequence) for sequence in sequences]

    def script(request: Request, _: Sampling) -> tuple[int, ...]:
        start = len(request.prompt_ids)
        for sequence in known:
            if len(sequence) > start and sequence[:start] == request.prompt_ids:
                return sequence[start:]
        raise ValueError(f"request {request.key!r}: no sequence begins with its prompt")

    return script


def end(vocabulary: int, after: int) -> Script:
    """`after` drawn tokens that are no end id, then the first end id."""
    body = never_end(vocabulary)

    def script(request: Request, sampling: Sampling) -> list[int]:
        return [*body(request, sampling)[:after], sampling.end_ids[0]]

    return script


def never_end(vocabulary: int) -> Script:
    """Drawn tokens that are never an end id."""
    inner = draw(vocabulary)

    def script(request: Request, sampling: Sampling) -> list[int]:
        allowed = [token for token in range(vocabulary) if token not in sampling.end_ids]
        return [allowed[token % len(allowed)] for token in inner(request, sampling)]

    return script
