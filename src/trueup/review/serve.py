"""Runs the review page until it is told to stop."""

import contextlib
import ipaddress
import socket

import uvicorn

from trueup.errors import ConfigError
from trueup.label.config import LabelConfig
from trueup.privacy import Scrub
from trueup.review.app import create_app
from trueup.review.config import ReviewConfig
from trueup.review.people import People
from trueup.store import Store

__all__ = ["listen", "make_server", "serve"]

GRACE_S = 5


def serve(
    store: Store,
    config: ReviewConfig,
    listening: socket.socket,
    *,
    label: LabelConfig | None = None,
    scrub: Scrub | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM on what `listen` gave."""
    with contextlib.suppress(KeyboardInterrupt):  # the ordinary way to stop it
        make_server(store, config, label, scrub=scrub).run(sockets=[listening])


def listen(store: Store, config: ReviewConfig) -> socket.socket:
    """A socket on the configured address, already listening.

    Raises:
        ConfigError: the address cannot be used, or is beyond loopback while nobody could log in.
    """
    if not _is_loopback(config.host) and not any(one.is_active for one in People(store).all()):
        raise ConfigError(
            "The review page would be open to a network before anybody can log in",
            got=f"review.host = {config.host}",
            expected="at least one person",
            next="add one with 'trueup review user add NAME --role admin'",
        )
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ConfigError(
            "The review page cannot listen on this address",
            got=f"{config.host}:{config.port}: {error.strerror or error}",
            expected="a free port on an address of this machine",
            next="stop the other server, or choose another with --set review.port=8411",
        ) from None
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_server(
    store: Store,
    config: ReviewConfig,
    label: LabelConfig | None = None,
    *,
    scrub: Scrub | None = None,
) -> uvicorn.Server:
    """The server without its socket, for those who run it in a thread of their own."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(store, config, label, scrub=scrub),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=30,
            server_header=False,
            ws="none",
        )
    )
