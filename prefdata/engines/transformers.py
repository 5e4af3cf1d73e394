"""The default engine: `generate` of transformers, in this process, on the CPU or one GPU.

The draws are its own. Every token of a request takes one number from a counter-based generator seeded by the request
and picks the token at that point of the cumulative distribution, in float64. (`generate` with do_sample would draw
from one global generator for the whole batch.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefdata import draws
from prefdata.engines import Request, Sample, Sampling, check, until_end
from prefdata.errors import UserError
from prefdata.logprobs.batches import pack, run_halving
from prefdata.models import config_positions, describe, load_model

# tokens of one batch, padding included
BATCH_TOKENS_CPU = 8192
BATCH_TOKENS_GPU = 65536


class TransformersEngine:
    """Batches of similar length, padded on the left, with a key/value cache.

    Batches are made from the requests of one call alone. On the CPU in float32 the same call gives the same tokens bit
    for bit; in other company a token can differ where its draw falls within rounding of two tokens' border.
    """

    name = "transformers"

    def __init__(self, model: Any, description: dict[str, Any], *, batch_tokens: int | None = None) -> None:
        """`model` becomes the engine's own: it forgets the sampling defaults it was saved with."""
        self._model = model.eval()
        # generate() fills whatever a caller leaves open from here: penalties, filters, length limits
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._description = description
        on_cpu = model.device.type == "cpu"
        self._batch_tokens = batch_tokens or (BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU)
        self.batch_invariant = on_cpu and model.dtype == torch.float32

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str = "float32",
        device: str | None = None,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> "TransformersEngine":
        """Loads a folder or hub name; `batch_tokens` bounds one batch: prompts, answers and padding."""
        loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        return cls(loaded, describe(model, dtype), batch_tokens=batch_tokens)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Engine, model, precision."""
        return {"engine": self.name, "batch_invariant": self.batch_invariant, "model": self._description}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """Samples batch by batch, the longest answers first."""
        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        check(requests, positions=config_positions(self._model.config), vocabulary=vocabulary)
        return self._stream(requests, sampling)

    def _stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        rows = [_Row(single, index) for request in requests for index, single in enumerate(request.singles())]
        ordered = sorted(rows, key=_batch_order)
        widths = [len(row.request.prompt_ids) + row.request.max_new_tokens for row in ordered]
        packed = [[ordered[i] for i in batch] for batch in pack(widths, self._batch_tokens)]
        positions = config_positions(self._model.config)
        batches = packed if positions is None else [part for batch in packed for part in _within(batch, positions)]
        for samples in run_halving(batches, lambda batch: self._run(batch, sampling)):
            yield from samples

    @torch.no_grad()
    def _run(self, batch: Sequence["_Row"], sampling: Sampling) -> list[Sample]:
        device = self._model.device
        requests = [row.request for row in batch]
        width = max(len(request.prompt_ids) for request in requests)
        input_ids, attention_mask = _left_padded(requests, width)
        limits = torch.tensor([request.max_new_tokens for request in requests], device=device)
        choice = _Choice(requests, width, device, greedy=sampling.greedy)
        settings = {"do_sample": False, "use_cache": True, "max_new_tokens": int(limits.max())}
        config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]
        output = self._model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=config,
            logits_processor=_processors(sampling, choice),
            stopping_criteria=StoppingCriteriaList([_RowDone(limits, sampling.end_ids, width)]),
        )
        tokens = output[:, width:].tolist()
        if choice.failed():
            raise UserError(
                f"model {self._description['name']} gave logits that are not finite in {self._model.dtype}: "
                "try float32, or check the model."
            )
        logps = [None] * len(batch) if sampling.greedy else choice.logps()
        return [_sample(*answer, sampling.end_ids) for answer in zip(batch, tokens, logps, strict=True)]


@dataclass(frozen=True)
class _Row:
    """What batches are made of: a request for one answer, and the number of that answer in the request it is from."""

    request: Request
    index: int


def _batch_order(row: _Row) -> tuple[int, int, str, int]:
    """Long first, so that memory runs out early or never; answers within a factor of two stop together."""
    one = row.request
    return -one.max_new_tokens.bit_length(), -len(one.prompt_ids) - one.max_new_tokens, one.key, row.index


def _within(batch: Sequence[_Row], positions: int) -> Iterator[list[_Row]]:
    """A batch in parts whose longest prompt and longest answer fit into the model together.

    Every row runs until the last one of its batch is done, and past its positions a model with learned ones fails.
    """
    part: list[_Row] = []
    for row in batch:
        grown = [*part, row]
        longest = max(len(one.request.prompt_ids) for one in grown) + max(one.request.max_new_tokens for one in grown)
        if part and longest > positions:
            yield part
            grown = [row]
        part = grown
    if part:
        yield part


def _left_padded(batch: Sequence[Request], width: int) -> tuple[Tensor, Tensor]:
    input_ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, request in enumerate(batch):
        input_ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
        attention_mask[row, width - len(request.prompt_ids) :] = 1
    return input_ids, attention_mask


def _sample(row: _Row, tokens: Sequence[int], logps: Sequence[float] | None, end_ids: tuple[int, ...]) -> Sample:
    kept, finish = until_end(tokens, row.request.max_new_tokens, end_ids)
    return Sample(row.request.key, kept, finish, None if logps is None else tuple(logps[: len(kept)]), row.index)


def _processors(sampling: Sampling, choice: "_Choice") -> LogitsProcessorList:
    if sampling.greedy:
        return LogitsProcessorList([choice])
    processors = LogitsProcessorList()
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(choice)
    return processors


class _Choice(LogitsProcessor):
    """The last processor: chooses one token per row and leaves it as the only one possible."""

    def __init__(self, batch: Sequence[Request], width: int, device: torch.device, *, greedy: bool) -> None:
        steps = max(request.max_new_tokens for request in batch)
        uniforms = np.stack([draws.generator(request.seed).random(steps) for request in batch])
        self._uniforms = None if greedy else torch.from_numpy(uniforms).to(device)
        self._width = width
        self._failed = torch.zeros(len(batch), dtype=torch.bool, device=device)
        self._logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._width
        if self._uniforms is None:
            logps, chosen = scores.max(1)
        else:
            chosen, logps = inverse_cdf(scores, self._uniforms[:, step])
        self._failed |= ~logps.isfinite()
        self._logps.append(logps)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def failed(self) -> bool:
        return bool(self._failed.any())

    def logps(self) -> list[list[float]]:
        return torch.stack(self._logps, 1).tolist()


def inverse_cdf(scores: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The token of each row at point u in [0, 1) of its cumulative distribution, by id, and that token's log-prob.

    A token of probability 0 is never chosen.
    """
    logps = scores.double().log_softmax(1)
    cumulative = logps.exp().cumsum(1)
    # u is scaled by the sum as it came out, so that rounding leaves no gap past the last possible token
    points = (uniforms * cumulative[:, -1])[:, None]
    chosen = torch.searchsorted(cumulative, points, right=True).clamp_(max=scores.shape[1] - 1)
    return chosen.squeeze(1), logps.gather(1, chosen).squeeze(1)


class _RowDone(StoppingCriteria):
    """A row is done at an end id or at its own limit."""

    def __init__(self, limits: Tensor, end_ids: tuple[int, ...], width: int) -> None:
        self._limits, self._width = limits, width
        self._end_ids = torch.tensor(end_ids, dtype=torch.long, device=limits.device)

    def __call__(self, input_ids: Tensor, _scores: Any, **_kwargs: Any) -> Tensor:
        at_limit = self._limits <= input_ids.shape[1] - self._width
        return at_limit | torch.isin(input_ids[:, -1], self._end_ids)
