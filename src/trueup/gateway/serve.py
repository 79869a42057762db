"""Runs the gateway until it is told to stop; then what runs is answered, and capture drained."""

import contextlib
import errno
import gc
import ipaddress
import os
import resource
import socket
import sys

import uvicorn
from starlette.applications import Starlette

from trueup.errors import ConfigError
from trueup.gateway.config import ServeConfig
from trueup.gateway.protocol import protocol

__all__ = ["listen", "make_server", "serve"]

GRACE_S = 30
"""How long running answers may go on after the signal to stop; what is cut off then is captured
as far as it got."""
KEEP_ALIVE_S = 75
"""How long a client may keep a connection for its next request; nginx's figure."""


def serve(app: Starlette, config: ServeConfig, *, listening: socket.socket | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        listening: what `listen` gave, for those who had to know the port beforehand.

    Raises:
        ConfigError: the address cannot be used: the port is taken, or not ours to take.
    """
    listening = listening or listen(config)
    with contextlib.suppress(KeyboardInterrupt):  # the ordinary way to stop it
        make_server(app, config).run(sockets=[listening])


def listen(config: ServeConfig) -> socket.socket:
    """A socket on the configured address, already listening, so that a taken port shows at once.

    Raises:
        ConfigError: as `serve`; or others than this machine could reach it, and it has no keys.
    """
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        family = found[0]
        _refuse_strangers(config, str(found[4][0]))
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


def make_server(app: Starlette, config: ServeConfig | None = None) -> uvicorn.Server:
    """The server without its socket, for those who run it in a thread of their own."""
    config = config or ServeConfig()
    _allow_many_connections()
    _favour_requests()
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol(config.client_timeout_s),
            loop="uvloop" if os.name == "posix" else "auto",
            log_level=config.log_level,
            access_log=False,  # ours is written away from the requests
            proxy_headers=False,  # nothing here asks where a request came from
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=KEEP_ALIVE_S,
            lifespan="on",
            ws="none",
        )
    )


def _refuse_strangers(config: ServeConfig, address: str) -> None:
    is_loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    if is_loopback or config.keys or config.allow_open:
        return
    raise ConfigError(
        "The gateway would answer everybody who can reach this machine",
        got=f"serve.host = {config.host!r} and no serve.keys",
        expected="an address of this machine alone, or keys",
        next="make a key with 'trueup key NAME', or set serve.allow_open behind a proxy that asks",
    )


def _favour_requests() -> None:
    """Two habits of Python that a request would wait for. The writer of captures may hold the
    interpreter for 5 ms before it must let go: here 0.1 ms. And what was imported is never garbage,
    so it is not looked through again and again."""
    sys.setswitchinterval(1e-4)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _allow_many_connections() -> None:
    """A stream takes two connections, the client's and the upstream's; the usual limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
