"""One call: many requests to several servers at once, until each has its answer or no server is left.

Every server has workers that take requests from one queue, so a quick server takes more of them. A request that fails goes
back into the queue, for any server. A server that is silent is left alone but for a probe now and then; when it has been
silent for too long it is gone, and what it was asked goes to the others.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from prefdata.errors import UserError
from prefdata.servers.address import shown
from prefdata.servers.health import Health, Patience, ServersGone, retry_after_s

CONNECT_S = 10.0
PROBE_S = 10.0  # how long a probe may take
QUIET_S = 5.0  # a server that is asked something and says nothing for so long is probed
GONE_PROBES_S = 30.0  # between probes of a server that is gone: it may come back
_TICK_S = 0.25

_AGAIN = {408, 409, 425}  # may go better at once
_NOT_NOW = {502, 503, 504}  # the server, or what stands before it, does not work at the moment
_OF_THE_REQUEST = {400, 413, 422}  # this request is refused; others may not be
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """What a server says of a request that it will never answer."""

    server: str
    status: int
    message: str

    def sentence(self) -> str:
        """For a person."""
        return f"server {self.server} refused a request ({self.status}): {self.message}"


@dataclass
class Job:
    """A request on its way."""

    number: int
    body: Mapping[str, Any]
    failures: int = 0


class Link:
    """A server during a call."""

    def __init__(self, url: httpx.URL, model: str, patience: Patience) -> None:
        self.url, self.name, self.model = url, shown(url), model
        self.health = Health(patience, time.monotonic())
        self.probed_at = 0.0
        self.asked: set[asyncio.Task[Any]] = set()  # what it is answering


class Call:
    """`run` answers all jobs; each answer goes to `give` as it comes: its number, and the parsed body or Refused.

    `models` holds the name of the model at each server; `path` stands below the base of the API, whose client sends `headers`.
    `gone` names the servers that were gone before, and is kept up to date: they are probed, and asked once they are back.
    """

    def __init__(
        self,
        urls: Sequence[httpx.URL],
        models: Mapping[str, str],
        path: str,
        headers: dict[str, str],
        *,
        concurrency: int,
        patience: Patience,
        give: Callable[[int, Any], None],
        gone: set[str],
    ) -> None:
        self._gone = gone
        self._links = [Link(url, models[shown(url)], patience) for url in urls if shown(url) in models]
        self._path, self._headers = path, headers
        self._concurrency, self._patience, self._give = concurrency, patience, give

    async def run(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        """UserError if a server refuses them all, or no server is left."""
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        for number, body in enumerate(bodies):
            self._queue.put_nowait(Job(number, body))
        timeout = httpx.Timeout(self._patience.answer_s, connect=CONNECT_S)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits) as self._client:
            tasks = [asyncio.create_task(self._watch())]
            for link in self._links:
                workers = min(self._concurrency, len(bodies))
                tasks += [asyncio.create_task(self._work(link)) for _ in range(workers)]
            done = asyncio.create_task(self._all_done(len(bodies)))
            try:
                await asyncio.wait([done, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in [done, *tasks]:
                    if task.done():
                        task.result()  # raises what went wrong
            finally:
                for task in [done, *tasks]:
                    task.cancel()
                await asyncio.gather(done, *tasks, return_exceptions=True)

    async def _all_done(self, count: int) -> None:
        self._left = count
        self._finished = asyncio.Event()
        if count:
            await self._finished.wait()

    async def _work(self, link: Link) -> None:
        while True:
            await self._until_usable(link)
            job = await self._queue.get()
            if self._usable(link):
                await self._answer(link, job)
            else:
                self._queue.put_nowait(job)

    def _usable(self, link: Link) -> bool:
        return not self._out(link) and time.monotonic() >= link.health.paused_until

    def _out(self, link: Link) -> bool:
        return link.name in self._gone or link.health.silent

    async def _until_usable(self, link: Link) -> None:
        while not self._usable(link):
            pause = link.health.paused_until - time.monotonic()
            await asyncio.sleep(_TICK_S if self._out(link) else max(0.01, min(pause, _TICK_S)))

    async def _answer(self, link: Link, job: Job) -> None:
        asking = asyncio.create_task(
            self._client.post(f"{link.url}{self._path}", json={"model": link.model, **job.body})
        )
        link.asked.add(asking)
        try:
            response = await asking
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if this is None or this.cancelling():  # the call ends
                raise
            self._queue.put_nowait(job)  # the server is gone
        except httpx.ReadTimeout:
            self._failed(link, job, f"gave no answer in {self._patience.answer_s:.0f} s")
        except httpx.TransportError as problem:
            self._queue.put_nowait(job)
            link.health.troubled("silent", _in_words(problem), time.monotonic())
        else:
            self._judge(link, job, response)
        finally:
            link.asked.discard(asking)

    def _judge(self, link: Link, job: Job, response: httpx.Response) -> None:
        now, status, health = time.monotonic(), response.status_code, link.health
        if status == 200:
            try:
                answer = response.json()
            except ValueError:
                health.lives(now)
                self._failed(link, job, "answers with something that is not JSON")
                return
            health.works(now)
            self._finish(job, answer)
        elif status == 429:
            wait_s = retry_after_s(response.headers.get("retry-after"), time.time())
            health.troubled("busy", f"says it is busy (429: {message(response)})", now, wait_s)
            self._queue.put_nowait(job)
        elif status >= 500:
            wait_s = retry_after_s(response.headers.get("retry-after"), time.time())
            why = f"answers with status {status}: {message(response)}"
            health.troubled("failing", why, now, wait_s)
            if status in _NOT_NOW:
                self._queue.put_nowait(job)
            else:
                self._failed(link, job, why)
        elif status in _AGAIN:
            health.lives(now)
            self._failed(link, job, f"answers with status {status}: {message(response)}")
        elif status in _OF_THE_REQUEST:
            health.works(now)
            self._finish(job, Refused(link.name, status, message(response)))
        else:
            raise UserError(refusal(link.name, response))

    def _failed(self, link: Link, job: Job, why: str) -> None:
        """A request failed at a server that lives: once more after a pause, or never again."""
        job.failures += 1
        if job.failures >= self._patience.tries:
            raise ServersGone(
                f"server {link.name} {why} ({job.failures} tries of one request). What is finished is kept; mend the "
                "server and give the same command again."
            )
        pause = self._patience.pause(job.failures)
        asyncio.get_running_loop().call_later(pause, self._queue.put_nowait, job)

    def _finish(self, job: Job, answer: Any) -> None:
        self._give(job.number, answer)
        self._left -= 1
        if not self._left:
            self._finished.set()

    # -- signs of life ---------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        probes: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                now = time.monotonic()
                for link in self._links:
                    under_way = link.name in probes and not probes[link.name].done()
                    if not under_way and self._worth_a_probe(link, now):
                        link.probed_at = now
                        probes[link.name] = asyncio.create_task(self._probe(link))
                    self._give_up(link, now)
                if all(link.name in self._gone for link in self._links):
                    raise ServersGone(self._farewell(now))
                await asyncio.sleep(_TICK_S)
        finally:
            for probe in probes.values():
                probe.cancel()

    def _worth_a_probe(self, link: Link, now: float) -> bool:
        if link.name in self._gone:
            return now - link.probed_at > GONE_PROBES_S
        if link.health.silent:
            return now >= link.health.paused_until
        return bool(link.asked) and now - max(link.health.alive_at, link.probed_at) > QUIET_S

    async def _probe(self, link: Link) -> None:
        try:
            await self._client.get(f"{link.url}/models", timeout=PROBE_S)
        except httpx.TransportError as problem:
            link.health.troubled("silent", _in_words(problem), time.monotonic())
        else:
            link.health.lives(time.monotonic())
            if link.name in self._gone:
                _log.warning("server %s is back", link.name)
                link.health = Health(self._patience, time.monotonic())
                self._gone.discard(link.name)

    def _give_up(self, link: Link, now: float) -> None:
        why = link.health.gone(now)
        if why is None or link.name in self._gone:
            return
        self._gone.add(link.name)
        for asking in list(link.asked):
            asking.cancel()
        left = len(self._links) - len(self._gone)
        if left:
            _log.warning("server %s is gone: it %s; going on with %d of %d", link.name, why, left, len(self._links))

    def _farewell(self, now: float) -> str:
        told = "; ".join(f"{link.name} {link.health.gone(now) or 'was gone before'}" for link in self._links)
        return (
            f"no server is left that answers: {told}. What is finished is kept; start the server again and give the same "
            "command again."
        )


def _in_words(problem: httpx.TransportError) -> str:
    """What an exception of the network means."""
    if isinstance(problem, httpx.TimeoutException):
        return "does not answer in time"
    if isinstance(problem, httpx.ConnectError):
        return f"can't be reached ({str(problem) or type(problem).__name__})"
    return f"broke off ({str(problem) or type(problem).__name__})"


def message(response: httpx.Response) -> str:
    """The server's own words, cut short."""
    try:
        found = response.json()
    except ValueError:
        found = response.text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    words = found if isinstance(found, str) else json.dumps(found)
    return " ".join(words.split())[:300] or response.reason_phrase


def refusal(name: str, response: httpx.Response) -> str:
    status, words = response.status_code, message(response)
    if status in (401, 403):
        return (
            f"server {name} wants another key ({status}: {words}): name the environment variable that holds it "
            "(--api-key-env)."
        )
    if response.is_redirect:
        return f"server {name} sends its clients to {response.headers.get('location')}: give that URL."
    return f"server {name} refuses {response.request.url.path} ({status}: {words})."
