"""A tiny taught model behind a real server on a real socket, and the real OpenAI client."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from openai import OpenAI
from running_app import running
from starlette.applications import Starlette

from trueup.capture import CaptureConfig, Recorder
from trueup.gateway.app import create_app
from trueup.gateway.config import ServeConfig
from trueup.models.backbone import Backbone
from trueup.models.engine import Engine
from trueup.models.tiny import save_tiny
from trueup.records import Interaction
from trueup.store import Store

EXAMPLES = [
    ("How do I reset it?", "Hold the button for ten seconds."),
    ("Wie geht es?", "Schön, grüß dich! 🙂 Ça va?"),
    ("Is it open?", "No."),
]


class Gateway(NamedTuple):
    """A running gateway and what stands behind it."""

    url: str
    client: OpenAI
    http: httpx.Client
    store: Store
    recorder: Recorder
    engine: Engine | None

    def interactions(self) -> list[Interaction]:
        assert self.recorder.flush(60)
        return self.store.all(Interaction)


@contextmanager
def raw_upstream(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server below HTTP: reads each request whole, then does with the socket what `answer` says;
    its address."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)

    def serve(caller: socket.socket) -> None:
        with caller, suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += caller.recv(65536)
            head, _, body = request.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            while length and len(body) < int(length[1]):
                body += caller.recv(65536)
            answer(caller, head + b"\r\n\r\n" + body)

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


@pytest.fixture(scope="session")
def raw_server() -> Callable[..., object]:
    return raw_upstream


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), seed=0, examples=EXAMPLES, steps=60)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def engine(tiny_folder: Path, store: Store) -> Iterator[Engine]:
    engine = Engine(Backbone.load(tiny_folder), store)
    yield engine
    engine.close()


@pytest.fixture
def run_app() -> Callable[[Starlette], object]:
    return running


@pytest.fixture
def open_gateway(store: Store) -> Callable[..., object]:
    """Makes a gateway of settings: `with open_gateway(engine, rate=0.5) as gateway`."""

    @contextmanager
    def gateway(
        engine: Engine | None, *, rate: float = 1.0, api_key: str = "none", **serve: object
    ) -> Iterator[Gateway]:
        config = ServeConfig(**serve)
        app = create_app(store, config, CaptureConfig(rate=rate, retry_s=0.2), engine)
        with (
            running(app, config) as url,
            OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=60) as client,
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            yield Gateway(url, client, http, store, app.state.recorder, engine)

    return gateway


@pytest.fixture
def gateway(open_gateway: Callable[..., object], engine: Engine) -> Iterator[Gateway]:
    with open_gateway(engine) as gateway:
        yield gateway
