"""Between our client and a server: one that writes down what goes over, one that says it again.

    live    client ── Recorder ── vLLM          recorded/NAME.json
    tests   client ── Replayer                  recorded/NAME.json

A request finds its answer by what it says, but for what names a run's own files and weights. The
folder is not called `vllm`: libraries that look for the package would find it here.
"""

import json
import threading
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Answer", "recording", "replaying", "serving"]

RECORDED = Path(__file__).parent / "recorded"
OF_A_RUN = ("cache_salt", "lora_path")
"""Parts of a request that differ from run to run."""


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    body: bytes


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
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            with suppress(BrokenPipeError):  # of who has lost patience
                self.wfile.write(said.body)

        do_GET = do_POST = _do

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def recording(upstream: str, name: str, folder: Path) -> Iterator[str]:
    """Pass everything on to a real server, and keep it once all went well; where an answer names
    `folder`, the recording has `/live`."""
    kept: list[dict[str, Any]] = []
    lock = threading.Lock()

    def answer(method: str, path: str, body: bytes, _: dict[str, str]) -> Answer:
        url = upstream.removesuffix("/v1") + path
        headers = {"Content-Type": "application/json"} if body else {}
        request = urllib.request.Request(url, body or None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                said = Answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            said = Answer(error.code, error.read())
        with lock:
            kept.append(
                {
                    "method": method,
                    "path": path,
                    "request": _known(body),
                    "status": said.status,
                    "answer": said.body.decode().replace(str(folder), "/live"),
                }
            )
        return said

    with serving(answer) as url:
        yield url
    kept.sort(key=lambda one: json.dumps(one["request"], sort_keys=True))
    RECORDED.mkdir(exist_ok=True)
    text = "[\n" + ",\n".join(json.dumps(one, sort_keys=True) for one in kept) + "\n]\n"
    (RECORDED / f"{name}.json").write_text(text)


@contextmanager
def replaying(name: str) -> Iterator[str]:
    """Say what the real server said; requests that say the same get their answers in turn."""
    known: dict[str, deque[Answer]] = defaultdict(deque)
    for one in json.loads((RECORDED / f"{name}.json").read_text()):
        key = _key(one["method"], one["path"], one["request"])
        known[key].append(Answer(one["status"], one["answer"].encode()))

    def answer(method: str, path: str, body: bytes, _: dict[str, str]) -> Answer:
        said = known[_key(method, path, _known(body))]
        if not said:
            return Answer(418, b'{"error": {"message": "nothing was recorded for this request"}}')
        return said.popleft()

    with serving(answer) as url:
        yield url


def _known(body: bytes) -> Any:
    """A request's body without what differs from run to run."""
    if not body:
        return None
    return {name: value for name, value in json.loads(body).items() if name not in OF_A_RUN}


def _key(method: str, path: str, request: Any) -> str:
    return json.dumps([method, path, request], sort_keys=True)
