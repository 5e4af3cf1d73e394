"""Servers that speak OpenAI's protocol and know token ids: vLLM's, at one or several URLs.

Stored rows are token ids, so ids go there and ids come back, by two options of vLLM's that the protocol itself does not
have (`return_token_ids`, `stop_token_ids`). That they mean the same there as here is checked before anything is drawn.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from prefdata.engines import EngineDied, Request, Sample, Sampling, check
from prefdata.errors import UserError
from prefdata.models import config_positions, describe, load_config, resolve
from prefdata.servers import Patience, Refused, Servers
from prefdata.servers.client import CONCURRENCY

CHECKED_IDS = 4096  # of a vocabulary, spread over it
BEYOND = 1024
_NO_LOGP = -9999.0  # what vLLM writes for minus infinity
_NEEDED = "stored rows are token ids, and this engine needs a server that takes and returns them: start one with  vllm serve MODEL"

_log = logging.getLogger(__name__)

# all that would otherwise come from the model's own generation settings
_PLAIN = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class OpenAIEngine:
    """Requests go to whichever server is free; the answers of a request come together.

    As with vLLM in a process of its own, draws depend on a request's seed alone but for rounding. ServersGone, which is
    not worth another try, once no server is left.
    """

    name = "openai"
    batch_invariant = False

    def __init__(
        self,
        servers: Servers,
        description: dict[str, Any],
        *,
        positions: int | None,
        vocabulary: int,
        tells_logps: bool,
    ) -> None:
        """`positions`: how many every server takes. `tells_logps`: whether log-probs are those after temperature and
        filters, rather than the model's own."""
        self._servers, self._description = servers, description
        self._positions, self._vocabulary, self._tells_logps = positions, vocabulary, tells_logps
        self._said = False

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        server: Sequence[str] = (),
        served_model: str | None = None,
        api_key_env: str | None = None,
        concurrency: int = CONCURRENCY,
        patience: Patience | None = None,
    ) -> "OpenAIEngine":
        """Finds the servers of this model and checks them.

        `model`, a folder or hub name, is what the servers were started with: its tokenizer and settings are read here, and
        its weights are what the build says has written. `served_model`: the name they serve it by, if it is another.
        """
        from prefdata import vocabulary

        description = describe(model, dtype)
        config = load_config(model, trust_remote_code=trust_remote_code)
        tokenizer = vocabulary.load(
            model, resolve(model, weights=False, remote_code=trust_remote_code).folder, trust_remote_code
        )
        entries = _of_model(Servers(server, api_key_env=api_key_env, patience=patience), model, served_model)
        servers = Servers(
            list(entries),
            model={url: str(entry["id"]) for url, entry in entries.items()},
            api_key_env=api_key_env,
            concurrency=concurrency,
            patience=patience,
        )
        _check_tokens(servers, tokenizer, model)
        limits = [entry["max_model_len"] for entry in entries.values() if entry.get("max_model_len")]
        own = config_positions(config)
        return cls(
            servers,
            description,
            positions=min([*limits, *([own] if own else [])], default=None),
            vocabulary=config.get_text_config().vocab_size,
            tells_logps=_tells_logps(servers),
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Engine, model, precision."""
        return {"engine": self.name, "batch_invariant": self.batch_invariant, "model": self._description}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """Samples as they come."""
        check(requests, positions=self._positions, vocabulary=self._vocabulary, whose="the servers take {}")
        return self._stream(requests, sampling)

    def _stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        bodies = [_body(request, sampling, self._vocabulary) for request in requests]
        plain = (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 0, 1.0)
        logps_told = not sampling.greedy and (self._tells_logps or plain)
        if not (logps_told or sampling.greedy or self._said):
            self._said = True
            _log.warning(
                "the servers' log-probs are those before temperature and filters, so none are stored; start vllm serve with "
                "--logprobs-mode processed_logprobs to have them"
            )
        for number, answer in self._servers.each("/completions", bodies):
            request = requests[number]
            choices = _choices(answer, bodies[number]["n"])
            for index in range(request.n):
                # when nothing is drawn there is one answer for all of them
                sample = self._sample(request, choices[min(index, len(choices) - 1)], sampling)
                yield replace(sample, index=index, token_logps=sample.token_logps if logps_told else None)

    def _sample(self, request: Request, choice: Mapping[str, Any], sampling: Sampling) -> Sample:
        tokens, finish = tuple(choice["token_ids"]), choice.get("finish_reason")
        if choice.get("prompt_token_ids", list(request.prompt_ids)) != list(request.prompt_ids):
            raise UserError(f"a server changed the prompt of request {request.key}: {_NEEDED}.")
        ended = bool(tokens) and tokens[-1] in sampling.end_ids
        if finish == "stop" and not ended:
            raise UserError(
                f"a server ends answers where this version's do not end (finish_reason stop at token "
                f"{tokens[-1] if tokens else 'none'}): start it with --generation-config vllm."
            )
        if finish == "length" and len(tokens) != request.max_new_tokens:
            raise UserError(
                f"a server cuts answers at {len(tokens)} tokens where {request.max_new_tokens} were asked for: start it with "
                "--generation-config vllm."
            )
        if finish not in ("stop", "length"):
            raise EngineDied(f"a server ended an answer with {finish!r}")
        logps = tuple((choice.get("logprobs") or {}).get("token_logprobs") or ())
        if not all(isinstance(logp, int | float) and math.isfinite(logp) and logp > _NO_LOGP for logp in logps):
            raise UserError(
                f"the servers' model {self._description['name']} gave logits that are not finite: check it."
            )
        return Sample(request.key, tokens, finish, logps if len(logps) == len(tokens) else None)


def _body(request: Request, sampling: Sampling, vocabulary: int) -> dict[str, Any]:
    n = 1 if sampling.greedy else request.n  # all the same, and more than one are refused
    return {
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_new_tokens,
        "n": n,
        "seed": request.seed % (2**63 + 1 - n),  # answer i gets the seed plus i, which has to fit into 63 bits
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        **_PLAIN,
        "stop_token_ids": [token for token in sampling.end_ids if token < vocabulary],
        "ignore_eos": True,  # of the model's settings: what ends an answer is in stop_token_ids
        "logprobs": 0,  # of the token itself and no other
        "return_token_ids": True,
    }


def _choices(answer: Any, count: int) -> list[Mapping[str, Any]]:
    """Those of an answer, by their index."""
    if isinstance(answer, Refused):
        raise UserError(f"{answer.sentence()}. If it knows no such option: {_NEEDED}.")
    found = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(found, list) or len(found) != count or not all(isinstance(one, dict) for one in found):
        raise UserError(f"a server's answer does not hold {count} choices: {_NEEDED}.")
    if not all(isinstance(one.get("token_ids"), list) for one in found):
        raise UserError(f"a server's answer has no token_ids: {_NEEDED}.")
    return sorted(found, key=lambda one: one.get("index", 0))


# -- what is checked before anything is drawn ----------------------------------------------------------------------


def _of_model(servers: Servers, model: str, served_model: str | None) -> dict[str, dict[str, Any]]:
    """Of each server that has the model, its entry, by URL. UserError if none has."""
    found: dict[str, dict[str, Any]] = {}
    serve: list[str] = []
    for url, entries in servers.models().items():
        for entry in entries:
            if _same(entry, model, served_model):
                found.setdefault(url, entry)
            serve.append(f"{entry['id']} at {url}")
    if not found:
        asked = f"by the name {served_model}" if served_model else f"the model {model}"
        raise UserError(
            f"no server serves {asked}; there are: {', '.join(serve) or 'none'}. Start one with this model, or, if one of "
            "these is it, give its name with --served-model."
        )
    return found


def _same(entry: Mapping[str, Any], model: str, served_model: str | None) -> bool:
    """Whether an entry of /models is this model: by the name given, or by the last part of its name or folder."""
    if served_model is not None:
        return bool(entry["id"] == served_model)
    return _last(model) in (_last(str(entry["id"])), _last(str(entry.get("root") or "")))


def _last(name: str) -> str:
    return PurePosixPath(name.partition("@")[0]).name


def _check_tokens(servers: Servers, tokenizer: Any, model: str) -> None:
    """UserError unless the ids mean the same to the servers: what they make of ids from all over the vocabulary."""
    size = len(tokenizer)
    step = max(1, size // CHECKED_IDS)
    # past the end there is nothing here, and should be nothing there
    ids = sorted({*range(0, size, step), *range(size - 1, size + BEYOND), *tokenizer.added_tokens_decoder})
    here = _bare(tokenizer.decode(ids, skip_special_tokens=False))
    for url, answer in servers.ask("POST", "/detokenize", {"tokens": ids}, root=True).items():
        if isinstance(answer, Refused) and answer.status == 404:
            raise UserError(f"server {url} has no /detokenize, by which its tokenizer could be checked: {_NEEDED}.")
        if isinstance(answer, Refused) or not isinstance(answer.get("prompt"), str):
            why = f" ({answer.message})" if isinstance(answer, Refused) else ""
            raise UserError(f"server {url} does not know the token ids of {model}{why}: start it with that model.")
        if _bare(answer["prompt"]) != here:
            raise UserError(
                f"server {url} has another tokenizer than {model}: the same token ids are other text there. Start it with "
                "that model."
            )


def _bare(text: str) -> str:
    """Without white space, which versions of one tokenizer clean up in different ways."""
    return "".join(text.split())


def _tells_logps(servers: Servers) -> bool:
    """Whether log-probs come after the filters: the one token that top_k 1 leaves then has probability 1."""
    request = Request("probe", (0,), 4, seed=0)
    body = _body(request, Sampling(top_k=1), vocabulary=0)
    answers = servers.ask("POST", "/completions", body)
    found = [_choices(answer, 1)[0] for answer in answers.values()]
    return all((choice.get("logprobs") or {}).get("token_logprobs") == [0.0] * 4 for choice in found)
