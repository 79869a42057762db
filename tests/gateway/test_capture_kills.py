"""Real gateways under load: killed, and two on one store."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from trueup.capture import CaptureConfig
from trueup.capture.ledger import crashes
from trueup.cli.project import status
from trueup.gateway.config import ServeConfig
from trueup.records import Interaction
from trueup.store import Store

SERVE = """
import sys
from trueup.capture import CaptureConfig
from trueup.gateway.app import create_app
from trueup.gateway.config import ServeConfig
from trueup.gateway.serve import serve
from trueup.store import Store

config = ServeConfig.model_validate_json(sys.argv[2])
capture = CaptureConfig.model_validate_json(sys.argv[3])
serve(create_app(Store(sys.argv[1]), config, capture, None), config)
"""
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}]}
WINDOW_MS = 300.0


async def answer(request: Request) -> JSONResponse:
    body = await request.json()
    said = {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}
    return JSONResponse({"id": body["user"], "choices": [said]})


UPSTREAM = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


@contextmanager
def gateway(folder: Path, upstream: str, capture: CaptureConfig) -> Iterator[tuple]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = ServeConfig(port=port, upstream=upstream)
    settings = [serve.model_dump_json(), capture.model_dump_json()]
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder), *settings])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/health", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.wait()


class Load:
    """Clients that ask, one request after the other, until the server is gone or they are told."""

    def __init__(self, url: str, name: str, clients: int = 3) -> None:
        self.answered: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(url, f"{name}-{i}")) for i in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, url: str, name: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as http:
            number = 0
            while not self._stop.is_set():
                user = f"{name}-{number}"
                try:
                    done = http.post("/v1/chat/completions", json=CHAT | {"user": user})
                except httpx.TransportError:
                    return
                assert done.status_code == 200
                self.answered.append((time.monotonic(), user))
                number += 1

    def join(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_a_killed_gateway_loses_at_most_the_window_and_says_how_much(tmp_path, run_app) -> None:
    folder = tmp_path / ".trueup"
    with run_app(UPSTREAM) as upstream:
        config = CaptureConfig(commit_ms=WINDOW_MS)
        with gateway(folder, upstream, config) as (process, url):
            load = Load(url, "k")
            time.sleep(1.5)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_at = time.monotonic()
            load.join()
        answered = {user: at for at, user in load.answered}
        store = Store(folder)
        stored = {one.request_id for one in store.all(Interaction)}
        assert len(answered) > 20 and stored
        [crash] = crashes(store)
        # three clients: as many requests may have been taken in and not yet answered
        assert len(answered) <= crash.accepted <= len(answered) + 3
        assert crash.lost == crash.accepted - len(stored) > 0
        lost_at = [at for user, at in answered.items() if user not in stored]
        # the window, and the commit under way; a busy machine may make both of them wait
        assert killed_at - min(lost_at, default=killed_at) < WINDOW_MS / 1000 + 2
        assert crash.lost <= config.queue_size + config.commit_size

        with gateway(folder, upstream, config) as (_, url):
            health = httpx.get(f"{url}/health", timeout=60).json()["capture"]
            assert health["lost_in_crashes"] == crash.lost
            page = httpx.get(f"{url}/metrics", timeout=60)
            assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert f"trueup_capture_lost_in_crashes {crash.lost}" in page.text
    store.close()
    (tmp_path / "trueup.toml").write_text("")
    done = CliRunner().invoke(status, ["--json"], obj={"folder": tmp_path, "overrides": ()})
    assert json.loads(done.stdout)["lost_in_crashes"] == crash.lost
    done = CliRunner().invoke(status, obj={"folder": tmp_path, "overrides": ()})
    assert f"{crash.lost:,} interactions were lost" in done.stdout


def test_two_gateways_on_one_store_keep_all_they_answered(tmp_path, run_app) -> None:
    config = CaptureConfig(commit_ms=5)
    with (
        run_app(UPSTREAM) as upstream,
        gateway(tmp_path, upstream, config) as (first, url_1),
        gateway(tmp_path, upstream, config) as (second, url_2),
    ):
        loads = [Load(url_1, "a", 2), Load(url_2, "b", 2)]
        time.sleep(1.5)
        for load in loads:
            load.join()
        for url in (url_1, url_2):
            counts = httpx.get(f"{url}/health", timeout=60).json()["capture"]
            assert counts["failed"] == counts["dropped"] == 0
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        for process in (first, second):
            process.wait(60)
    store = Store(tmp_path)
    stored = [one.request_id for one in store.all(Interaction)]
    assert sorted(stored) == sorted(user for load in loads for _, user in load.answered)
    assert crashes(store) == []
    store.close()
