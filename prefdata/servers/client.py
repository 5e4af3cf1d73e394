"""The client: what it asks of OpenAI-compatible servers, whichever of them answers."""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from prefdata.errors import UserError
from prefdata.servers.address import addresses, headers, shown
from prefdata.servers.call import Call, Refused
from prefdata.servers.health import Patience, ServersGone

CONCURRENCY = 32  # requests that a server has at once
CHECK_S = 10.0  # how long a server may take to say what it serves
CHECK_TRIES = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What came of a conversation: the text of the next turn, and how it ended.

    `refused`: the server's words where it will not answer this conversation (too long for it, say); then text is empty.
    `logprobs`: as the server gives them, if they were asked for.
    """

    text: str
    finish: str | None
    refused: str | None = None
    logprobs: Any = None


def _to_nobody(share: float) -> None:
    """Where nobody watches."""


class Servers:
    """OpenAI-compatible servers of one model, at one or several URLs, all asked the same way.

    A request goes to whichever server is free. It is tried again when a connection breaks, when an answer takes too long
    or is no JSON, and at 429 and 5xx, after a pause that doubles, or for as long as the server says (Retry-After).
    `Patience` says when a server counts as gone: the others go on then, and ServersGone names them once none is left.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        model: str | None = None,
        api_key_env: str | None = None,
        concurrency: int = CONCURRENCY,
        patience: Patience | None = None,
    ) -> None:
        """`urls`: http://HOST:PORT, or with the path of the API. `model`: the name it is served by; without one, the only
        one there. `api_key_env`: the environment variable that holds the key. `concurrency`: requests a server has at once.
        """
        self._urls = addresses(urls)
        self._headers = headers(api_key_env)
        if concurrency < 1:
            raise UserError(f"concurrency is {concurrency}: it must be at least 1.")
        self._concurrency, self._patience = concurrency, patience or Patience()
        self._model = model
        self._gone: set[str] = set()  # servers that were given up and are not back
        self._checked: dict[str, list[dict[str, Any]]] | None = None

    @property
    def model(self) -> str:
        """The name that the model is served by."""
        if self._model is None:
            self.check()
        assert self._model is not None
        return self._model

    def check(self) -> dict[str, list[dict[str, Any]]]:
        """What each server that answers serves: the entries of its /models, by its URL.

        UserError if none answers, or one does not serve the model.
        """
        if self._checked is None:
            found: dict[str, list[dict[str, Any]]] = {}
            for url, answer in self.ask("GET", "/models").items():
                entries = answer.get("data") if isinstance(answer, dict) else None
                if not (isinstance(entries, list) and all(isinstance(one, dict) and "id" in one for one in entries)):
                    raise UserError(f"server {url} has no list of models: it is not an OpenAI-compatible server.")
                self._serves(url, [str(entry["id"]) for entry in entries])
                found[url] = entries
            self._checked = found
        return self._checked

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, below: bool = True
    ) -> dict[str, Any]:
        """One thing asked of every server: the answers by URL, of those servers that can be reached.

        below: whether the path stands below the base of the API, or at the root of the server.
        None stands for an answer that is an error or no JSON; UserError if no server can be reached, or the key is wrong.
        """
        found: dict[str, Any] = {}
        silent: dict[str, str] = {}
        with (
            httpx.Client(headers=self._headers, timeout=CHECK_S) as client,
            ThreadPoolExecutor(len(self._urls)) as together,
        ):

            def one(url: httpx.URL) -> httpx.Response | str:
                return self._asked(client, method, f"{url}{path}" if below else str(url.copy_with(path=path)), body)

            for url, response in zip(self._urls, together.map(one, self._urls), strict=True):
                if isinstance(response, str):
                    silent[shown(url)] = response
                elif response.status_code in (401, 403):
                    raise UserError(f"server {shown(url)} wants a key: name its environment variable (--api-key-env).")
                else:
                    found[shown(url)] = _json(response)
        if not found:
            told = "; ".join(f"{url} ({why})" for url, why in silent.items())
            raise ServersGone(f"no server answers: {told}. Start one, or give the right URL.")
        for url_, why in silent.items():
            _log.warning("server %s does not answer (%s); going on without it", url_, why)
        return found

    def _asked(
        self, client: httpx.Client, method: str, target: str, body: Mapping[str, Any] | None
    ) -> httpx.Response | str:
        """The response, or why there is none after a few tries."""
        why = ""
        for failures in range(1, CHECK_TRIES + 1):
            try:
                response = client.request(method, target, json=body)
            except httpx.TransportError as problem:
                why = str(problem) or type(problem).__name__
            else:
                if response.status_code != 429 and response.status_code < 500:
                    return response
                why = f"status {response.status_code}"
            if failures < CHECK_TRIES:
                time.sleep(self._patience.pause(failures))
        return why

    def each(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Any]]:
        """Answers as they come: the number of the request, and the JSON of its answer, or Refused.

        Closing the iterator drops what is not answered. UserError if a server refuses everything; ServersGone.
        """
        if not bodies:
            return
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = Call(
            self._urls,
            path,
            self._headers,
            concurrency=self._concurrency,
            patience=self._patience,
            give=lambda number, answer: answers.put((number, answer)),
            gone=self._gone,
        )
        wanted = [{"model": self.model, **body} for body in bodies]
        with _in_background(call.run(wanted), failed=answers.put):
            for _ in wanted:
                answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield answer

    def complete(
        self, requests: Sequence[Mapping[str, Any]], *, tell: Callable[[float], None] = _to_nobody
    ) -> list[Any]:
        """Answers of /completions in the order asked, as JSON, or Refused. `tell` hears the share that is done."""
        return self._in_order("/completions", requests, tell)

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        *,
        tell: Callable[[float], None] = _to_nobody,
        **parameters: Any,
    ) -> list[Reply]:
        """The next turn of each conversation (a list of messages), in the order asked; `parameters` go into each request."""
        bodies = [{"messages": [dict(turn) for turn in messages], **parameters} for messages in conversations]
        return [_reply(answer) for answer in self._in_order("/chat/completions", bodies, tell)]

    def _in_order(self, path: str, bodies: Sequence[Mapping[str, Any]], tell: Callable[[float], None]) -> list[Any]:
        found: list[Any] = [None] * len(bodies)
        for done, (number, answer) in enumerate(self.each(path, bodies), start=1):
            found[number] = answer
            tell(done / len(bodies))
        return found

    def _serves(self, url: str, names: list[str]) -> None:
        there = f"it serves: {', '.join(names) or 'none'}"
        if self._model is None:
            if len(names) != 1:
                raise UserError(f"server {url} serves {len(names)} models, so say which one is meant ({there}).")
            self._model = names[0]
        elif self._model not in names:
            raise UserError(f"server {url} does not serve the model {self._model!r}; {there}.")


def _json(response: httpx.Response) -> Any:
    try:
        return response.json() if response.is_success else None
    except ValueError:
        return None


def _reply(answer: Any) -> Reply:
    if isinstance(answer, Refused):
        return Reply("", None, refused=answer.sentence())
    try:
        (choice,) = answer["choices"]
        return Reply(choice["message"].get("content") or "", choice.get("finish_reason"), None, choice.get("logprobs"))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("a server's answer holds no message: it is not an OpenAI-compatible server.") from None


@contextlib.contextmanager
def _in_background(work: Any, failed: Callable[[BaseException], None]) -> Iterator[None]:
    """A coroutine in a loop and thread of its own, cancelled at the end of the block. `failed` gets what it raises."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        except BaseException as problem:
            failed(problem)
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="servers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
