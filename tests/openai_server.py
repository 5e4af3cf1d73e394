"""A small OpenAI-compatible server for tests, in this process, that can be told to misbehave."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# the path and body of a request, and its number at this server -> what is done: an answer, or one of the below
Behaviour = Callable[[str, dict[str, Any], int], "Answer"]


@dataclass(frozen=True)
class Answer:
    """A status and a body (JSON, or text as it stands), after a while. No status: the connection is cut."""

    body: Any = None
    status: int | None = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0


CUT = Answer(status=None)


def echo(path: str, body: dict[str, Any], number: int) -> Answer:
    """Chat: the last message again. Completions: the prompt again, as text and as token ids."""
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": body["messages"][-1]["content"]}
        return Answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    return Answer({"choices": [{"index": 0, "text": str(body["prompt"]), "finish_reason": "length"}]})


class OpenAIServer:
    """Serves `models` (names, or what /models says of them) at `url`; `asked` holds path and body of each request that was no GET, `most` how many at once."""

    def __init__(self, behaviour: Behaviour = echo, models: tuple[Any, ...] = ("m",)) -> None:
        self.behaviour, self.models = behaviour, models
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        self.frozen = threading.Event()
        self._connections: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread: threading.Thread | None = None
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From now on connections are refused, and those there are cut."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread = None
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                owner._connections.add(self.connection)
                with suppress(OSError):
                    super().handle()
                owner._connections.discard(self.connection)

            def do_GET(self) -> None:
                owner._hold()
                entries = [entry if isinstance(entry, dict) else {"id": entry} for entry in owner.models]
                found = {"object": "list", "data": entries}
                self._send(Answer(found) if self.path.endswith("/models") else Answer({"error": "none"}, 404))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner._hold()
                with owner._lock:
                    number = len(owner.asked)
                    owner.asked.append((self.path, body))
                    owner.keys.append(self.headers.get("Authorization"))
                    owner._now += 1
                    owner.most = max(owner.most, owner._now)
                try:
                    answer = owner.behaviour(self.path, body, number)
                    time.sleep(answer.after_s)
                finally:
                    with owner._lock:
                        owner._now -= 1
                self._send(answer)

            def _send(self, answer: Answer) -> None:
                if answer.status is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                data = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _hold(self) -> None:
        """As one whose process is stopped: it accepts and says nothing."""
        while self.frozen.is_set():
            time.sleep(0.02)


@contextmanager
def openai_server(behaviour: Behaviour = echo, **options: Any) -> Iterator[OpenAIServer]:
    """One that runs for the block."""
    server = OpenAIServer(behaviour, **options)
    server.start()
    try:
        yield server
    finally:
        server.frozen.clear()
        server.stop()
