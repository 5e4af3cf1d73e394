"""What a vLLM server answers, from a model that transformers runs: token ids in, token ids out, and its tokenizer's text."""

import threading
from typing import Any

from prefdata import engines, vocabulary
from prefdata.engines import Request, Sampling
from prefdata.models import resolve
from tests.openai_server import Answer


class FakeVllm:
    """A behaviour of `openai_server`. raw: log-probs are the model's own, before temperature and filters."""

    def __init__(self, model: str, *, raw: bool = False) -> None:
        self._engine = engines.load("transformers", model, device="cpu")
        self._tokenizer = vocabulary.load(model, resolve(model, weights=False).folder, False)
        self._raw = raw
        self._lock = threading.Lock()

    def __call__(self, path: str, body: dict[str, Any], number: int) -> Answer:
        if path == "/detokenize":
            return Answer({"prompt": self._tokenizer.decode(body["tokens"], skip_special_tokens=False)})
        if path != "/v1/completions":
            return Answer({"error": {"message": f"no {path}"}}, 404)
        assert body["ignore_eos"]
        assert body["return_token_ids"]
        assert (body["repetition_penalty"], body["min_p"]) == (1.0, 0.0)
        sampling = Sampling(body["temperature"], body["top_k"], body["top_p"], tuple(body["stop_token_ids"]))
        request = Request("one", tuple(body["prompt"]), body["max_tokens"], body["seed"], body["n"])
        with self._lock:  # one model, many threads
            samples = sorted(self._engine.generate([request], sampling), key=lambda sample: sample.index)
        choices = [
            {
                "index": sample.index,
                "token_ids": list(sample.token_ids),
                "prompt_token_ids": body["prompt"],
                "finish_reason": sample.finish,
                "logprobs": {
                    "token_logprobs": [-1.0] * len(sample.token_ids)
                    if self._raw
                    else list(sample.token_logps or [0.0] * len(sample.token_ids))
                },
            }
            for sample in samples
        ]
        return Answer({"choices": choices[::-1]})
