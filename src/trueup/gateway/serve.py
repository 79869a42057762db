"""Runs the gateway until it is told to stop; then what runs is answered, and capture drained."""

import contextlib
import errno
import socket

import uvicorn
from starlette.applications import Starlette

from trueup.errors import ConfigError
from trueup.gateway.config import ServeConfig

__all__ = ["listen", "make_server", "serve"]

GRACE_S = 30
"""How long running answers may go on after the signal to stop; what is cut off then is captured
as far as it got."""


def serve(app: Starlette, config: ServeConfig, *, listening: socket.socket | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        listening: what `listen` gave, for those who had to know the port beforehand.

    Raises:
        ConfigError: the address cannot be used: the port is taken, or not ours to take.
    """
    listening = listening or listen(config)
    with contextlib.suppress(KeyboardInterrupt):  # the ordinary way to stop it
        make_server(app).run(sockets=[listening])


def listen(config: ServeConfig) -> socket.socket:
    """A socket on the configured address, already listening, so that a taken port shows at once.

    Raises:
        ConfigError: as `serve`.
    """
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        # reuse_port stays off: two gateways on one port would share the traffic between them
        listening = socket.create_server((config.host, config.port), family=family, backlog=1024)
        # asyncio sets this only on sockets that say they are TCP, and create_server's do not;
        # without it an answer in two writes waits 40 ms for the client's acknowledgement
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        raise ConfigError(
            "The port is already in use"
            if is_taken
            else "The gateway cannot listen on this address",
            got=f"{config.host}:{config.port}: {error.strerror or error}",
            expected="a free port on an address of this machine",
            next="stop the other server, or choose another with --set serve.port=8401",
        ) from None


def make_server(app: Starlette) -> uvicorn.Server:
    """The server without its socket, for those who run it in a thread of their own."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_S,
            lifespan="on",
            ws="none",
        )
    )
