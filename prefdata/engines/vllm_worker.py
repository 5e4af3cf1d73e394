"""The process that holds vLLM: JSON lines in and out over one socket, since vLLM itself prints to stdout.

    python -m prefdata.engines.vllm_worker FD

In   settings of the model, then one call after the other: {"sampling": {...}, "requests": [[prompt ids, limit, seed, n]]}
Out  {"positions": n} once the model is loaded; then, for each of the n answers of every request as it finishes,
     {"sample": [number of the request in the call, number of the answer, token ids, finish, log-probs]};
     or {"refused": reason}, and the end

Whatever else goes wrong ends the process, and whoever started it sees that. It ends by itself when they are gone.
"""

import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

# what one call is made of: prompt ids, the most tokens to answer with, seed, how many answers
Request = tuple[list[int], int, int, int]

_FIRST_STEP = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "stop_token_ids": []}


def main(fd: int) -> int:
    """Load the model, then answer calls until the other end closes."""
    os.set_inheritable(fd, False)
    with socket.socket(fileno=fd) as pipe, pipe.makefile("rw", encoding="utf-8", newline="\n") as lines:
        return _serve(lines)


def _serve(lines: TextIO) -> int:
    try:
        engine = _load(json.loads(lines.readline()))
        # some models fail only when they are run, such as those with heads of a size that no kernel takes
        list(_answers(engine, [([0], 1, 0, 1)], _FIRST_STEP))
    except Exception as problem:
        return _refuse(lines, problem)
    try:
        _send(lines, {"positions": engine.model_config.max_model_len})
        for line in lines:
            call = json.loads(line)
            try:
                _add(engine, call["requests"], call["sampling"])
            except ValueError as problem:
                return _refuse(lines, problem)
            for sample in _finished(engine):
                _send(lines, {"sample": sample})
        return 0
    finally:
        engine.engine_core.shutdown()


def _load(settings: dict[str, Any]) -> Any:
    from vllm import EngineArgs, LLMEngine  # type: ignore[import-not-found]
    from vllm.usage.usage_lib import UsageContext  # type: ignore[import-not-found]

    arguments = EngineArgs(
        **settings,
        max_model_len=-1,  # the model's own, or what fits into memory
        load_format="safetensors",
        skip_tokenizer_init=True,
        generation_config="vllm",  # nothing but a call's own sampling counts
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )
    return LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)


def _answers(engine: Any, requests: list[Request], sampling: dict[str, Any]) -> Iterator[list[Any]]:
    _add(engine, requests, sampling)
    yield from _finished(engine)


def _add(engine: Any, requests: list[Request], sampling: dict[str, Any]) -> None:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

    for number, (prompt_ids, limit, seed, n) in enumerate(requests):
        params = SamplingParams(
            **sampling,
            n=n,  # vLLM adds the number of the answer to the seed
            max_tokens=limit,
            seed=seed,
            logprobs=0,  # of the token itself and no other
            ignore_eos=True,  # of the model's settings: what ends an answer is in stop_token_ids
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(str(number), TokensPrompt(prompt_token_ids=prompt_ids), params)


def _finished(engine: Any) -> Iterator[list[Any]]:
    parent = os.getppid()
    while engine.has_unfinished_requests():
        if os.getppid() != parent:
            raise BrokenPipeError("nobody waits for an answer any more")
        for result in engine.step():
            for answer in result.outputs:
                if answer.finish_reason not in ("stop", "length"):
                    raise RuntimeError(f"vLLM ended a request with {answer.finish_reason!r}")
                tokens = list(answer.token_ids)
                logps = [step[token].logprob for token, step in zip(tokens, answer.logprobs, strict=True)]
                yield [int(result.request_id), answer.index, tokens, answer.finish_reason, logps]


def _refuse(lines: TextIO, problem: Exception) -> int:
    traceback.print_exception(problem)  # into the log
    _send(lines, {"refused": _reason(problem)})
    return 1


def _reason(problem: Exception) -> str:
    """The first line of what vLLM has to say; pydantic, which checks its settings, hides it in a list."""
    errors = getattr(problem, "errors", None)
    text = str(errors()[0]["msg"]) if callable(errors) else str(problem)
    return (text.strip().splitlines() or [type(problem).__name__])[0].removeprefix("Value error, ")[:300]


def _send(lines: TextIO, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message) + "\n")
    lines.flush()


if __name__ == "__main__":
    status = 1
    try:
        status = main(int(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)  # taking the interpreter apart would take seconds, and memory comes back without it
