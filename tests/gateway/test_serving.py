"""`serve` in a process of its own: what it needs, where it listens, how it ends."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from trueup.capture import CaptureConfig
from trueup.capture.beside import COMMAND, WriterProcess, WriterSetup
from trueup.config import validate
from trueup.errors import ConfigError
from trueup.gateway.app import create_app
from trueup.gateway.config import ServeConfig
from trueup.gateway.serve import listen
from trueup.privacy import PrivacyConfig
from trueup.records import Interaction
from trueup.store import Store

SERVE = """
import sys
from trueup.capture import CaptureConfig
from trueup.gateway.app import create_app
from trueup.gateway.config import ServeConfig
from trueup.gateway.serve import serve
from trueup.store import Store

store = Store(sys.argv[1])
config = ServeConfig.model_validate_json(sys.argv[2])
app = create_app(store, config, CaptureConfig(), None)
assert "torch" not in sys.modules
serve(app, config)
"""

CHAT = {"messages": [{"role": "user", "content": "Hello?"}]}


NUMBERS = itertools.count()


async def answer(request: Request) -> JSONResponse:
    return JSONResponse({"id": f"up-{next(NUMBERS)}", "choices": [{"message": {"content": "Hi."}}]})


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_stops_it_and_all_that_was_answered_is_kept(
    tmp_path: Path, run_app, stop, code
) -> None:
    with run_app(Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])) as up:
        config = ServeConfig(port=free_port(), upstream=up)
        command = [sys.executable, "-c", SERVE, str(tmp_path), config.model_dump_json()]
        process = subprocess.Popen(command)
        url = f"http://127.0.0.1:{config.port}"
        wait_for(url)
        with httpx.Client(base_url=url, timeout=60) as http:
            for _ in range(50):
                assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        process.send_signal(stop)
        assert process.wait(60) == code
    store = Store(tmp_path)
    assert store.count(Interaction) == 50
    store.close()


def test_a_port_in_use_is_said_in_four_parts() -> None:
    config = ServeConfig(port=0)
    with listen(config) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="already in use") as caught:
            listen(ServeConfig(port=port))
    assert str(port) in str(caught.value) and "serve.port" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot listen"):
        listen(ServeConfig(host="256.0.0.1"))


def test_a_gateway_needs_somebody_to_answer(store: Store) -> None:
    with pytest.raises(ConfigError, match="nobody to answer"):
        create_app(store, ServeConfig(), CaptureConfig(), None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("upstream", "localhost:8000"), ("port", 70_000), ("temperature", 3), ("max_tokens", 0)],
)
def test_settings_that_cannot_be_used_are_refused(name, value) -> None:
    with pytest.raises(ConfigError, match=name):
        validate(ServeConfig, {name: value}, source="serve")


def test_the_settings_load_no_web_framework_and_no_torch() -> None:
    program = (
        "import sys, json, trueup.gateway, trueup.capture;"
        "print(json.dumps([m for m in ('torch', 'starlette', 'uvicorn', 'aiohttp')"
        " if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert json.loads(done.stdout) == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not start")


def test_the_first_requests_find_the_writer_there(tmp_path: Path, run_app, monkeypatch) -> None:
    slow = f"import time; time.sleep(2); {COMMAND}"
    monkeypatch.setattr("trueup.capture.beside.COMMAND", slow)
    store, config = Store(tmp_path), CaptureConfig(queue_size=100)
    with run_app(Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])) as up:
        beside = WriterProcess(WriterSetup(store.folder, None, CaptureConfig(), PrivacyConfig()))
        app = create_app(store, ServeConfig(upstream=up), config, None, beside=beside)
        with run_app(app) as url, httpx.Client(base_url=url, timeout=60) as http:
            for _ in range(120):
                assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
                time.sleep(0.01)  # slower than any writer, and quicker than the start of this one
            assert app.state.recorder.flush()
            assert app.state.recorder.counters["captured"] == 120
    store.close()
