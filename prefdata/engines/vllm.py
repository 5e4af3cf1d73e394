"""vLLM in a process of its own, kept from the first call until `close`.

Its memory comes back when that process ends, and its death is no more than the end of a call: `EngineDied`, and the
next call starts it anew, a few times. What runs in the process is in `vllm_worker`.
"""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import prefdata
from prefdata.engines import EngineDied, Request, Sample, Sampling, check
from prefdata.errors import UserError
from prefdata.models import config_positions, describe, load_config, resolve

MAX_RESTARTS = 3
# vLLM takes temperatures outside of these as an error, or silently as the nearest
TEMPERATURES = (0.01, 2.0)

_ALWAYS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",  # nothing about a build leaves the machine
}
# Compiling and a second process take longer on a CPU than they save; without one thread per process, OpenMP makes
# calls forty times slower. Left to itself vLLM takes nearly all memory for its cache.
_ON_CPU = {
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
# Compiling is as above. A prompt that is computed in parts discards a draw for each, which no generator on a CPU can.
_ARGUMENTS_ON_CPU = {"enforce_eager": True, "enable_chunked_prefill": False}

_WORKER = "prefdata.engines.vllm_worker"
_GRACE_S = 10.0
_POLL_S = 1.0


class VllmEngine:
    """Requests of a call run together, as many at a time as vLLM's cache holds; equal prompts share their part of it.

    The answers of a request come together, when the last of them is finished. Draws depend on its seed alone, but log-probs depend on the company in a batch, by rounding: where a draw
    falls that close to two tokens' border, the same request can give another token.
    """

    name = "vllm"
    batch_invariant = False

    def __init__(
        self,
        settings: Mapping[str, Any],
        description: dict[str, Any],
        *,
        environments: Sequence[Mapping[str, str]],
        positions: int | None,
        vocabulary: int,
        room: str = "vLLM's cache holds {}",
    ) -> None:
        """`settings` of vLLM's EngineArgs; one process is started for each of `environments`.

        `room` says what bounds vLLM's cache where it holds fewer positions than the model.
        """
        self._settings, self._description = dict(settings), description
        self._environments = environments
        self._positions, self._vocabulary, self._room = positions, vocabulary, room
        self._processes: list[_Process] = []
        self._deaths, self._last_death = 0, ""
        self._call: object = None  # the one whose samples are being read

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
    ) -> "VllmEngine":
        """Checks the folder or hub name. Each of `data_parallel_size` processes shares its copy of the model among
        `tensor_parallel_size` devices."""
        description = describe(model, dtype)
        folder = resolve(model, remote_code=trust_remote_code).folder
        config = load_config(model, trust_remote_code=trust_remote_code)
        devices = _visible_devices()
        environments = _environments(devices, tensor_parallel_size, data_parallel_size)
        settings = {
            "model": str(folder.resolve()),
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "tensor_parallel_size": tensor_parallel_size,
            **({} if devices else _ARGUMENTS_ON_CPU),
        }
        return cls(
            settings,
            description,
            environments=environments,
            positions=config_positions(config),
            vocabulary=config.get_text_config().vocab_size,
            room=_room(devices, environments[0]),
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Engine, model, precision."""
        return {"engine": self.name, "batch_invariant": self.batch_invariant, "model": self._description}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """Samples as they finish. EngineDied if the process dies; UserError if it has died too often."""
        low, high = TEMPERATURES
        if not (sampling.greedy or low <= sampling.temperature <= high):
            raise UserError(
                f"temperature is {sampling.temperature} and vLLM takes 0 (greedy) or {low} to {high}: choose such a "
                "temperature, or the engine transformers."
            )
        check(requests, positions=self._positions, vocabulary=self._vocabulary)
        if not requests:
            return iter(())
        self._start()
        fits = min(process.positions for process in self._processes)
        check(requests, positions=fits, vocabulary=self._vocabulary, whose=self._room)
        return self._stream(requests, sampling)

    def close(self) -> None:
        """End the process. A later call starts another."""
        for process in self._processes:
            process.socket.close()  # it ends when nobody can ask any more
        self._stop(_GRACE_S)

    def _start(self) -> None:
        if self._processes:
            return
        if self._deaths > MAX_RESTARTS:
            raise UserError(
                f"vLLM died {self._deaths} times with model {self._description['name']}: {self._last_death}. Finished "
                "work is kept; give it more memory, or choose the engine transformers."
            )
        try:
            for environment in self._environments:
                self._processes.append(_Process(environment))
            for process in self._processes:
                process.send(self._settings)
            for process in self._processes:
                process.wait_until_ready()
        except BaseException as problem:
            self._abandon(problem)
            raise

    def _stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        if self._call:  # never read to its end, and what is left of it must not reach this one
            self._stop()
        self._start()
        call = self._call = object()
        try:
            for sample in self._answers(requests, sampling):
                yield sample
                if self._call is not call:
                    raise RuntimeError("another call has begun before this one was read to its end")
        except BaseException as problem:
            if self._call is call:
                self._abandon(problem)
            raise
        finally:
            if self._call is call:
                self._call = None

    def _answers(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        count = len(self._processes)
        # by the number of the request in its share, and of the answer
        waiting: dict[_Process, dict[tuple[int, int], Request]] = {}
        for place, process in enumerate(self._processes):
            share = requests[place::count]
            if share:
                process.send(_call(share, sampling, self._vocabulary))
                waiting[process] = {
                    (number, index): request
                    for number, request in enumerate(share)
                    for index in range(_drawn(request, sampling))
                }
        while waiting:
            for process, message in _received(list(waiting)):
                number, index, tokens, finish, logps = message["sample"]
                request = waiting[process].pop((number, index))
                if not waiting[process]:
                    del waiting[process]
                self._check_finite(logps)
                answer = Sample(request.key, tuple(tokens), finish, None if sampling.greedy else tuple(logps), index)
                yield answer
                for equal in range(_drawn(request, sampling), request.n):
                    yield replace(answer, index=equal)

    def _check_finite(self, logps: Sequence[float]) -> None:
        if not all(map(math.isfinite, logps)):
            raise UserError(
                f"model {self._description['name']} gave logits that are not finite in {self._description['dtype']}: "
                "try float32, or check the model."
            )

    def _abandon(self, problem: BaseException) -> None:
        if isinstance(problem, EngineDied):
            self._deaths += 1
            self._last_death = str(problem)
        self._stop()
        if isinstance(problem, _Refused):
            raise UserError(f"vLLM cannot run model {self._description['name']}: {problem}") from None

    def _stop(self, grace_s: float = 0.0) -> None:
        for process in self._processes:
            process.stop(grace_s)
        self._processes = []


class _Refused(Exception):
    """The process has said why it cannot do what it is asked."""


class _Process:
    """One vLLM process and the socket to it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.positions = 0
        self._rest = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  open for as long as the process
        self.socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for whoever started it, who then ends it
            )

    def send(self, message: Mapping[str, Any]) -> None:
        """One message; the process is waiting for it."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as problem:
            raise self._death() from problem

    def wait_until_ready(self) -> None:
        """Until the model it was told of is loaded."""
        while not self.positions:
            for _, message in _received([self]):
                self.positions = message["positions"]

    def messages(self) -> Iterator[dict[str, Any]]:
        """Those that have arrived. For a socket that can be read."""
        try:
            arrived = self.socket.recv(1 << 16)
        except OSError as problem:
            raise self._death() from problem
        if not arrived:
            raise self._death()
        *lines, self._rest = (self._rest + arrived).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "refused" in message:
                raise _Refused(self._reason(message["refused"]))
            yield message

    def raise_if_dead(self) -> None:
        """A process of vLLM's own that outlives this one may keep the socket open."""
        if self._ending() and not wait([self.socket], 0):
            raise self._death()

    def stop(self, grace_s: float = 0.0) -> None:
        """End it and whatever it has started; `grace_s` is how long it may take to end by itself."""
        self.socket.close()
        self._wait(grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _ending(self) -> os.waitid_result | None:
        """How it ended, if it has. It is not reaped here, so that its number stays its own until its group is ended."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._ending() and time.monotonic() < until:
            time.sleep(0.02)

    def _death(self) -> EngineDied:
        self._wait(_GRACE_S)
        ended = self._ending()
        if ended is None:
            how = "closed its socket"
        elif ended.si_code == os.CLD_EXITED:
            how = f"ended with status {ended.si_status}"
        else:
            how = f"was killed by signal {ended.si_status}"
        words = self._last_words()
        return EngineDied(f"the vLLM process {how}" + (f"; the last in its log: {words}" if words else ""))

    def _reason(self, given: str) -> str:
        """Of a process of its own that failed, vLLM says only that the root cause stands above, in the log."""
        return (self._last_words() if "root cause" in given else "") or given

    def _last_words(self) -> str:
        """The last error in the log."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - (1 << 16)))
        text = self._log.read().decode(errors="replace")
        errors: list[str] = re.findall(r"(?:Fatal Python error|\w*(?:Error|Exception)): .*", text)
        return errors[-1].strip()[:300] if errors else ""


def _received(processes: Sequence[_Process]) -> Iterator[tuple[_Process, dict[str, Any]]]:
    """What comes from any of them; nothing if that takes longer than a moment."""
    readable = wait([process.socket for process in processes], _POLL_S)
    for process in processes:
        if process.socket in readable:
            for message in process.messages():
                yield process, message
        else:
            process.raise_if_dead()


def _call(requests: Sequence[Request], sampling: Sampling, vocabulary: int) -> dict[str, Any]:
    return {
        "sampling": {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "stop_token_ids": [token for token in sampling.end_ids if token < vocabulary],
        },
        # answer i gets the seed plus i; a seed is whatever fits 63 bits, and -1 would be none
        "requests": [
            [r.prompt_ids, r.max_new_tokens, r.seed % (2**63 + 1 - r.n), _drawn(r, sampling)] for r in requests
        ],
    }


def _drawn(request: Request, sampling: Sampling) -> int:
    """How many answers vLLM is asked for: when nothing is drawn they are all the same, and it refuses more than one."""
    return 1 if sampling.greedy else request.n


def _visible_devices() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _room(devices: Sequence[str], environment: Mapping[str, str]) -> str:
    """What bounds vLLM's cache, and what would raise that; `{}` stands for the positions that it holds."""
    if devices:
        bound = (
            "its share of the GPU's memory (gpu_memory_utilization) allows; a larger tensor_parallel_size gives more"
        )
        return f"vLLM's cache holds {{}}, as {bound}"
    return f"vLLM's cache holds {{}}, as VLLM_CPU_KVCACHE_SPACE={environment['VLLM_CPU_KVCACHE_SPACE']} (GiB) allows"


def _environments(devices: Sequence[str], per_copy: int, copies: int) -> list[dict[str, str]]:
    """What each process starts with: on a CPU the settings above, on several GPUs its own share of them."""
    defaults = _ALWAYS | ({} if devices else _ON_CPU)
    folder = str(Path(prefdata.__file__).parent.parent)
    path = os.pathsep.join(part for part in (folder, os.environ.get("PYTHONPATH")) if part)
    common = {**defaults, **os.environ, "PYTHONPATH": path}
    if not devices:
        return [common] * copies
    if per_copy * copies > len(devices):
        raise UserError(
            f"tensor_parallel_size {per_copy} times data_parallel_size {copies} needs {per_copy * copies} GPUs, and "
            f"{len(devices)} can be seen: choose smaller sizes."
        )
    shares = (devices[start * per_copy : (start + 1) * per_copy] for start in range(copies))
    return [{**common, "CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]
