"""An app on a real socket."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from trueup.gateway.config import ServeConfig
from trueup.gateway.serve import listen, make_server


@contextmanager
def running(app: Starlette, config: ServeConfig | None = None) -> Iterator[str]:
    """The app on a free port, in a thread; its address."""
    listening = listen(ServeConfig(port=0))
    server = make_server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield "http://{}:{}".format(*listening.getsockname())
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
