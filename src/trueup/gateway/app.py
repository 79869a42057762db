"""The gateway as one ASGI app: routes, and who answers them.

    POST /v1/chat/completions    the local model, or an upstream
    GET  /v1/models              likewise
    POST /v1/feedback            always here
    POST /v1/capture             always here: traffic that others answered
    POST /v1/traces, /v1/logs    likewise
    GET  /health, /metrics       always here
    GET  /openapi.json           always here
    *    /v1/…                   an upstream, if there is one

Capture stands beside the answer and never in its way: see `trueup.capture.recorder`. In front of
an upstream no torch is loaded.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trueup.capture import CaptureConfig, Recorder
from trueup.capture.beside import WriterProcess
from trueup.errors import ConfigError, TrueupError
from trueup.gateway.access import AccessLog
from trueup.gateway.best_of import BestOf
from trueup.gateway.config import ServeConfig
from trueup.gateway.errors import HANDLERS
from trueup.gateway.feedback import FeedbackRoute
from trueup.gateway.front import Front
from trueup.gateway.keys import Keys
from trueup.gateway.local import LocalChat
from trueup.gateway.metrics import MetricsRoute
from trueup.gateway.mirror import MirrorRoute
from trueup.gateway.openapi import describe
from trueup.gateway.otlp import LOGS, TRACES, OtlpRoute
from trueup.gateway.proxy import Proxy
from trueup.judges import resolve
from trueup.judges.audit import check_audited
from trueup.privacy import Scrub
from trueup.store import Store

if TYPE_CHECKING:
    from trueup.models.engine import Engine

__all__ = ["create_app"]


def create_app(
    store: Store,
    serve: ServeConfig,
    capture: CaptureConfig,
    engine: "Engine | None",
    *,
    scrub: Scrub | None = None,
    beside: WriterProcess | None = None,
) -> Starlette:
    """The app. It owns its recorder (`app.state.recorder`) and drains it at shutdown; engine and
    store are the caller's to close.

    Args:
        scrub: what takes out of a record what must not be written, see `trueup.privacy.Scrubber`.
        beside: a process that writes what is captured; it is the app's to close.

    Raises:
        ConfigError: neither an engine nor an upstream, a key whose variable is not set, or a judge
            for best-of-N that failed its newest audit.
    """
    if not serve.has_upstream and engine is None:
        raise ConfigError(
            "There is nobody to answer requests",
            got="neither an engine nor serve.upstream",
            expected="one of them",
            next="set serve.upstream, or load a model",
        )
    keys = Keys(serve.keys)
    recorder = Recorder(store, capture, scrub=scrub, beside=beside)
    proxy = Proxy(serve, recorder) if serve.has_upstream else None
    log = AccessLog() if serve.access_log else None
    routes = [
        Route("/v1/feedback", FeedbackRoute(store, recorder).post, methods=["POST"]),
        Route("/health", _Health(serve, recorder, engine, proxy).get, methods=["GET"]),
        Route("/v1/capture", MirrorRoute(recorder).post, methods=["POST"]),
        *(
            Route(signal.route, OtlpRoute(signal, recorder).post, methods=["POST"])
            for signal in (TRACES, LOGS)
        ),
        Route("/metrics", MetricsRoute(recorder).get, methods=["GET"]),
        Route("/openapi.json", _description, methods=["GET"]),
    ]
    if proxy:
        routes.append(Route("/v1/{path:path}", proxy))
    best_of = None
    if engine and not proxy:
        best_of = _best_of(store, serve)
        local = LocalChat(engine, serve, recorder, best_of)
        routes.append(Route("/v1/chat/completions", local.complete, methods=["POST"]))
        routes.append(Route("/v1/models", local.models, methods=["GET"]))
        routes.append(Route("/v1/models/{name}", local.models, methods=["GET"]))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if proxy:
            await proxy.upstreams.open()
        if beside:  # it takes seconds to be there, in which much traffic would fill the queue
            await asyncio.to_thread(recorder.flush)
        try:
            yield
        finally:
            if proxy:
                await proxy.upstreams.close()
            if best_of:  # what is still being picked is captured, so this comes first
                await asyncio.to_thread(best_of.close)
            await asyncio.to_thread(recorder.close)
            if log:
                await asyncio.to_thread(log.flush)

    front = Middleware(Front, serve, keys, proxy=proxy, log=log)
    app = Starlette(
        routes=routes, middleware=[front], exception_handlers=HANDLERS, lifespan=lifespan
    )
    app.state.recorder = recorder
    return app


def _best_of(store: Store, serve: ServeConfig) -> BestOf | None:
    if serve.best_of == 1:
        return None
    judge = resolve(serve.best_of_judge, endpoint=serve.best_of_endpoint)
    check_audited(store, judge)
    return BestOf(judge, serve.best_of, timeout_s=serve.best_of_timeout_s)


async def _description(_: Request) -> Response:
    return JSONResponse(describe())


class _Health:
    """`GET /health`: 200 while requests can be answered, 503 with the reason when not. Where there
    are keys, the details are for those with the scope `read`."""

    def __init__(
        self, serve: ServeConfig, recorder: Recorder, engine: "Engine | None", proxy: Proxy | None
    ) -> None:
        self._serve, self._recorder, self._engine = serve, recorder, engine
        self._proxy = proxy

    async def get(self, request: Request) -> Response:
        counters = await asyncio.to_thread(lambda: self._recorder.counters)
        body: dict[str, object] = {"status": "ok", "capture": counters}
        if self._proxy:
            servers = self._proxy.upstreams.servers
            body["upstream"] = self._serve.upstream or servers[0].base
            body["upstreams"] = [one.told() for one in servers]
        elif self._engine:
            body["model"] = self._serve.model_name
            try:
                body["weights"] = await asyncio.to_thread(self._engine.champion_weights)
            except TrueupError as error:
                body |= {"status": "refusing", "weights": None, "reason": str(error)}
        status = 200 if body["status"] == "ok" else 503
        caller = request.scope.get("trueup.caller")
        if self._serve.keys and not (caller and caller.may("read")):
            body = {"status": body["status"]}
        return JSONResponse(body, status_code=status)
