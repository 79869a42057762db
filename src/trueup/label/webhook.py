"""Where Label Studio calls when an annotation is made, edited or deleted.

One address, `POST /label-studio`, for whoever brings the secret. It answers after the vote is in
the store. What is lost on the way, since nobody calls twice, the next `pull` finds.
"""

import asyncio
import hmac
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from aiohttp import web

from trueup.errors import ConfigError, TrueupError
from trueup.label.config import LabelStudioConfig
from trueup.label.label_studio import SECRET_HEADER, LabelStudio, take
from trueup.privacy import Scrub
from trueup.store import Store

__all__ = ["running", "secret_of", "serve"]

MAX_BODY = 1 << 22
MIN_SECRET = 16  # characters

Ready = Callable[[str], object]


def secret_of(config: LabelStudioConfig) -> str:
    """What webhooks must bring along, from the environment.

    Raises:
        ConfigError: there is none, or it is too short to be one.
    """
    secret = os.environ.get(config.webhook_secret_env, "").strip()
    if len(secret) < MIN_SECRET:
        raise ConfigError(
            "A webhook needs a secret, or anybody could vote",
            got=f"{len(secret)} characters in {config.webhook_secret_env}",
            expected=f"at least {MIN_SECRET}",
            next=f"export {config.webhook_secret_env}=$(openssl rand -hex 24)",
        )
    return secret


def serve(
    store: Store,
    server: LabelStudio,
    project: int,
    secret: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Ready = lambda _: None,
    scrub: Scrub | None = None,
) -> None:
    """Listen until Ctrl-C.

    Args:
        ready: is called with the address once it answers.
        scrub: what takes out of a vote what must not be written.
    """
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(_app(store, server, project, secret, scrub), host, port, ready))


@contextmanager
def running(
    store: Store, server: LabelStudio, project: int, secret: str, scrub: Scrub | None = None
) -> Iterator[str]:
    """The same on a free loopback port, in a thread, for as long as a `with` lasts."""
    started, addresses = threading.Event(), list[str]()
    loop = asyncio.new_event_loop()

    def ready(address: str) -> None:
        addresses.append(address)
        started.set()

    app = _app(store, server, project, secret, scrub)
    listening = loop.create_task(_serve(app, "127.0.0.1", 0, ready))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(listening)
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(listening.cancel)
        thread.join()


async def _serve(app: web.Application, host: str, port: int, ready: Ready) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                "The webhook cannot listen here",
                got=f"{host}:{port}: {error.strerror}",
                expected="a free port of this machine",
                next="name another with --port",
            ) from error
        taken = runner.addresses[0][1]
        name = f"[{host}]" if ":" in host else host
        # registering calls the other server, which may call back at once
        await asyncio.to_thread(ready, f"http://{name}:{taken}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _app(
    store: Store, server: LabelStudio, project: int, secret: str, scrub: Scrub | None
) -> web.Application:
    turn = asyncio.Lock()

    async def receive(request: web.Request) -> web.Response:
        brought = request.headers.get(SECRET_HEADER, "")
        # bytes that are no UTF-8 come as half surrogate pairs
        if not hmac.compare_digest(brought.encode("utf-8", "surrogateescape"), secret.encode()):
            return web.json_response({"error": "the secret is missing or wrong"}, status=401)
        try:
            payload = json.loads(await request.read())
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            return web.json_response({"error": "not a JSON object"}, status=400)
        try:
            async with turn:
                became = await asyncio.to_thread(take, store, server, project, payload, scrub=scrub)
        except TrueupError as error:
            return web.json_response({"error": error.what}, status=503)
        return web.json_response({"became": became})

    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/label-studio", receive)
    return app
