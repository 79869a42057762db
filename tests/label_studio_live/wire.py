"""Between our client and a Label Studio: one that writes down what goes over, one that says it
again.

    live    client ── recording ── Label Studio      recorded/NAME.json
    tests   client ── replaying                      recorded/NAME.json

A request finds its answer by method, path and what it says, but for tokens and ports of a run.
"""

import json
import threading
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["Answer", "Answering", "recording", "replaying", "serving"]

RECORDED = Path(__file__).parent / "recorded"
OF_A_RUN = ("refresh", "url", "headers")
"""Parts of a request that differ from run to run."""


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})


Answering = Callable[[str, str, bytes, dict[str, str]], Answer]
"""Given method, path, body and headers."""


@contextmanager
def serving(answer: Answering) -> Iterator[str]:
    """A server on loopback; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            said = answer(self.command, self.path, body, dict(self.headers))
            self.send_response(said.status)
            for name, value in {"Content-Type": "application/json", **said.headers}.items():
                self.send_header(name, value)
            if said.status != 204:
                self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        do_GET = do_POST = do_PATCH = do_DELETE = _do

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def recording(upstream: str, name: str) -> Iterator[str]:
    """Pass everything on, and keep it once all went well."""
    kept: list[dict[str, Any]] = []

    def answer(method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        passed = {k: v for k, v in headers.items() if k.lower() not in ("host", "content-length")}
        request = urllib.request.Request(upstream + path, body or None, passed, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                said = Answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            said = Answer(error.code, error.read())
        kept.append(
            {
                "method": method,
                "path": path,
                "request": _known(body),
                "status": said.status,
                "answer": _public(said.body),
            }
        )
        return said

    with serving(answer) as url:
        yield url
    RECORDED.mkdir(exist_ok=True)
    text = "[\n" + ",\n".join(json.dumps(one, sort_keys=True) for one in kept) + "\n]\n"
    (RECORDED / f"{name}.json").write_text(text)


@contextmanager
def replaying(name: str) -> Iterator[str]:
    """Say what the real server said; requests that say the same get their answers in turn."""
    known: dict[str, deque[Answer]] = defaultdict(deque)
    for one in json.loads((RECORDED / f"{name}.json").read_text()):
        key = json.dumps([one["method"], one["path"], one["request"]], sort_keys=True)
        said = one["answer"]
        known[key].append(Answer(one["status"], json.dumps(said).encode() if said else b""))

    def answer(method: str, path: str, body: bytes, _: dict[str, str]) -> Answer:
        said = known[json.dumps([method, path, _known(body)], sort_keys=True)]
        return said.popleft() if said else Answer(418, b'{"detail": "nothing was recorded"}')

    with serving(answer) as url:
        yield url


def _known(body: bytes) -> Any:
    """A request's body without what differs from run to run."""
    said = json.loads(body) if body else None
    if not isinstance(said, dict):
        return said
    return {name: value for name, value in said.items() if name not in OF_A_RUN}


def _public(body: bytes) -> Any:
    """An answer without tokens."""
    said = json.loads(body) if body else None
    return {"access": "an.access.token"} if isinstance(said, dict) and "access" in said else said
