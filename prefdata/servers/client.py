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
from prefdata.servers.call import Call, Refused, message, refusal
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
        model: str | Mapping[str, str] | None = None,
        api_key_env: str | None = None,
        concurrency: int = CONCURRENCY,
        patience: Patience | None = None,
    ) -> None:
        """`urls`: http://HOST:PORT, or with the path of the API. `model`: the name it is served by, or such names by URL (as
        `check` gives them); without one, the only one there. `api_key_env`: the environment variable that holds the key.
        `concurrency`: requests a server has at once.
        """
        self._urls = addresses(urls)
        self._headers = headers(api_key_env)
        if concurrency < 1:
            raise UserError(f"concurrency is {concurrency}: it must be at least 1.")
        self._concurrency, self._patience = concurrency, patience or Patience()
        self._names = dict(model) if isinstance(model, Mapping) else {shown(url): model for url in self._urls if model}
        self._gone: set[str] = set()  # servers that were given up and are not back
        self._checked: dict[str, list[dict[str, Any]]] | None = None

    @property
    def model(self) -> str:
        """The name that the model is served by; several servers may know it by several."""
        return ", ".join(dict.fromkeys(self._known_by().values()))

    def check(self) -> dict[str, list[dict[str, Any]]]:
        """What each server that answers serves: the entries of its /models, by its URL.

        UserError if none answers, or one does not serve the model.
        """
        if self._checked is None:
            found = self.models()
            for url, entries in found.items():
                self._serves(url, [str(entry["id"]) for entry in entries])
            self._checked = found
        return self._checked

    def models(self) -> dict[str, list[dict[str, Any]]]:
        """The same, whatever is wanted of them."""
        found: dict[str, list[dict[str, Any]]] = {}
        for url, answer in self.ask("GET", "/models").items():
            entries = answer.get("data") if isinstance(answer, dict) else None
            if not (isinstance(entries, list) and all(isinstance(one, dict) and "id" in one for one in entries)):
                why = f" ({answer.message})" if isinstance(answer, Refused) else ""
                raise UserError(f"server {url} has no list of models{why}: it is not an OpenAI-compatible server.")
            found[url] = entries
        return found

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, root: bool = False
    ) -> dict[str, Any]:
        """One thing asked of every server: the JSON of the answers, or Refused, by URL, of those that can be reached.

        root: the path stands at the server's root and not below the base of its API.
        UserError if no server can be reached, or the key is wrong.
        """
        urls = [url for url in self._urls if body is None or shown(url) in self._known_by()]
        with (
            httpx.Client(headers=self._headers, timeout=CHECK_S) as client,
            ThreadPoolExecutor(len(urls)) as together,
        ):

            def one(url: httpx.URL) -> Any:
                base = str(url).removesuffix("/v1") if root else str(url)
                named = None if body is None else {"model": self._names[shown(url)], **body}
                return self._asked(client, method, f"{base}{path}", named, shown(url))

            answers = dict(zip(map(shown, urls), together.map(one, urls), strict=True))
        silent = {url: answer.why for url, answer in answers.items() if isinstance(answer, _Silent)}
        if len(silent) == len(answers):
            told = "; ".join(f"{url} ({why})" for url, why in silent.items())
            raise ServersGone(f"no server answers: {told}. Start one, or give the right URL.")
        for url, why in silent.items():
            _log.warning("server %s does not answer (%s); going on without it", url, why)
        return {url: answer for url, answer in answers.items() if url not in silent}

    def _asked(self, client: httpx.Client, method: str, target: str, body: Mapping[str, Any] | None, name: str) -> Any:
        """The JSON, Refused, or after a few tries _Silent."""
        why = ""
        for failures in range(1, CHECK_TRIES + 1):
            try:
                response = client.request(method, target, json=body)
            except httpx.TransportError as problem:
                why = str(problem) or type(problem).__name__
            else:
                if response.status_code != 429 and response.status_code < 500:
                    return _read(response, name)
                why = f"status {response.status_code}"
            if failures < CHECK_TRIES:
                time.sleep(self._patience.pause(failures))
        return _Silent(why)

    def each(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Any]]:
        """Answers as they come: the number of the request, and the JSON of its answer, or Refused.

        Closing the iterator drops what is not answered. UserError if a server refuses everything; ServersGone.
        """
        if not bodies:
            return
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = Call(
            self._urls,
            self._known_by(),
            path,
            self._headers,
            concurrency=self._concurrency,
            patience=self._patience,
            give=lambda number, answer: answers.put((number, answer)),
            gone=self._gone,
        )
        with _in_background(call.run(bodies), failed=answers.put):
            for _ in bodies:
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

    def _known_by(self) -> dict[str, str]:
        """The name of the model at each server."""
        if not self._names:
            self.check()
        return self._names

    def _serves(self, url: str, names: list[str]) -> None:
        there = f"it serves: {', '.join(names) or 'none'}"
        wanted = self._names.get(url)
        if wanted is None:
            if len(names) != 1:
                raise UserError(f"server {url} serves {len(names)} models, so say which one is meant ({there}).")
            others = set(self._names.values()) - set(names)
            if others:
                raise UserError(f"server {url} does not serve the model {others.pop()!r}; {there}.")
            self._names[url] = names[0]
        elif wanted not in names:
            raise UserError(f"server {url} does not serve the model {wanted!r}; {there}.")


@dataclass(frozen=True)
class _Silent:
    """Nothing came, and why."""

    why: str


def _read(response: httpx.Response, name: str) -> Any:
    if response.status_code in (401, 403):
        raise UserError(refusal(name, response))
    if not response.is_success:
        return Refused(name, response.status_code, message(response))
    try:
        return response.json()
    except ValueError:
        return Refused(name, response.status_code, "the answer is no JSON")


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
