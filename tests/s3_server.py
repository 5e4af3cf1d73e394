"""A server that speaks S3 over HTTP: moto's, in threads of the test process, with what moto lacks.

Conditional puts are atomic here by a lock around moto (which looks first and writes later, so of two that race both
could win). So these tests show that each create asks for If-None-Match and what is made of the answers, the refused,
conflicting and lost ones included; that of two callers one wins is a promise of the store, which nothing here shows.
Requests are recorded, and answers can be replaced by errors that moto never gives.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


@dataclass
class Fault:
    """An error given instead of an answer."""

    method: str
    ending: str  # of the request's path
    status: int
    code: str
    times: int
    done: bool  # what was asked for happens all the same, as when an answer is lost

    def meets(self, environ: Environ) -> bool:
        return (
            self.times > 0 and environ["REQUEST_METHOD"] == self.method and environ["PATH_INFO"].endswith(self.ending)
        )


class S3Server:
    """A running server. `environment` is what a user would set to reach it."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        self.requests: list[tuple[str, str]] = []  # method, path with its query
        self.keeps_conditions = True  # False: like a server that knows no If-None-Match and overwrites
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._faults: list[Fault] = []
        self._writes = threading.Lock()
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_quiet(MotoRequestHandler)
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self) -> str:
        """The URL of a new, empty bucket."""
        name = f"bucket-{uuid4().hex}"
        urlopen(Request(f"{self.endpoint}/{name}", method="PUT")).close()  # moto asks for no signature
        return f"s3://{name}"

    def fail(self, method: str, ending: str, status: int, code: str, *, times: int = 1, done: bool = False) -> Fault:
        """Answer the next requests of a kind with an error."""
        self._faults.append(Fault(method, ending, status, code, times, done))
        return self._faults[-1]

    def mend(self) -> None:
        """No more errors."""
        self._faults.clear()
        self.keeps_conditions = True

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self.requests.append((environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"))
        if not self.keeps_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        fault = next((fault for fault in self._faults if fault.meets(environ)), None)
        if fault is None:
            return self._served(environ, start_response)
        fault.times -= 1
        if fault.done:
            list(self._served(environ, lambda *answer: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{fault.status} {fault.code}", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{fault.code}</Code><Message>{fault.code}, as asked</Message></Error>".encode()]

    def _served(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._moto(environ, start_response)  # type: ignore[no-any-return]
        with self._writes:
            return list(self._moto(environ, start_response))


def _quiet(handler: type[Any]) -> type[Any]:
    """The handler without a line on stderr for every request."""
    return type("Quiet", (handler,), {"log_request": lambda self, *given: None})


@contextmanager
def serving() -> Iterator[S3Server]:
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One for the whole session; tests take buckets of their own."""
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, reached by the environment as a user would set it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.mend()
