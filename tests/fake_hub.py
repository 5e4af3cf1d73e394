"""A hub of data sets over HTTP: as much of its API as the client needs to make one, look into it and commit files."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"


@dataclass
class Repo:
    """A data set at its newest commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        return sha1(repr(self.commits).encode()).hexdigest()


class FakeHub:
    """What it holds, and the requests it saw."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.url = ""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status, content, headers."""
        if token != f"Bearer {TOKEN}":
            return 401, b'{"error": "Invalid username or password."}', {}
        parts = [part for part in unquote(urlsplit(path).path).split("/") if part]
        if parts[:1] == ["api"]:
            status, told = self._api(parts[1:], body)
            return status, json.dumps(told).encode(), {}
        _, owner, name, _, revision, *inside = parts  # datasets/OWNER/NAME/resolve/REVISION/...
        data = self.repos[f"{owner}/{name}"].files["/".join(inside)]
        return 200, data, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": revision}

    def _api(self, parts: list[str], body: bytes) -> tuple[int, Any]:
        if parts == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repos:
                return 409, {"error": "You already created this dataset repo", "url": f"{self.url}/datasets/{name}"}
            self.repos[name] = Repo(private=asked.get("visibility") == "private")
            return 200, {"url": f"{self.url}/datasets/{name}", "name": name}
        if parts == ["validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        name, what = "/".join(parts[1:3]), parts[3:4]
        repo = self.repos[name]
        if what == ["preupload"]:
            files = json.loads(body)["files"]
            return 200, {"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if what == ["commit"]:
            return self._commit(repo, name, body)
        if what == ["tree"]:
            return 200, [{"type": "file", "path": path, "oid": "0", "size": 0} for path in repo.files]
        siblings = [{"rfilename": path} for path in repo.files]
        return 200, {"id": name, "sha": repo.sha, "private": repo.private, "siblings": siblings}

    def _commit(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any]:
        header, *changes = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit") not in (None, repo.sha):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        for change in changes:
            path = change["value"]["path"]
            if change["key"] == "deletedFile":
                del repo.files[path]
            else:
                repo.files[path] = base64.b64decode(change["value"]["content"])
        repo.commits.append(header["value"]["summary"])
        return 200, {"commitUrl": f"{self.url}/datasets/{name}/commit/{repo.sha}", "commitOid": repo.sha}


@contextmanager
def running() -> Iterator[FakeHub]:
    """A hub that answers at `url`."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self._body()
            hub.requests.append(f"{self.command} {self.path}")
            status, content, headers = hub.answer(self.command, self.path, self.headers.get("Authorization"), body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = _handle

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
