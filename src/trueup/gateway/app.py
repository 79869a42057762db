"""The gateway as one ASGI app: routes, and who answers them.

    POST /v1/chat/completions    the local model, or the upstream
    GET  /v1/models              likewise
    POST /v1/feedback            always here
    POST /v1/capture, /v1/traces always here: traffic that others answered
    GET  /health, /metrics       always here
    *    /v1/…                   the upstream, if there is one

Capture stands beside the answer and never in its way: see `trueup.capture.recorder`. In front of
an upstream no torch is loaded.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trueup.capture import CaptureConfig, Recorder
from trueup.errors import ConfigError, TrueupError
from trueup.gateway.best_of import BestOf
from trueup.gateway.config import ServeConfig
from trueup.gateway.errors import HANDLERS
from trueup.gateway.feedback import FeedbackRoute
from trueup.gateway.local import LocalChat
from trueup.gateway.metrics import MetricsRoute
from trueup.gateway.mirror import MirrorRoute
from trueup.gateway.otlp import TracesRoute
from trueup.gateway.proxy import Upstream
from trueup.judges import resolve
from trueup.judges.audit import check_audited
from trueup.store import Store

if TYPE_CHECKING:
    from trueup.models.engine import Engine

__all__ = ["create_app"]

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def create_app(
    store: Store, serve: ServeConfig, capture: CaptureConfig, engine: "Engine | None"
) -> Starlette:
    """The app. It owns its recorder (`app.state.recorder`) and drains it at shutdown; engine and
    store are the caller's to close.

    Raises:
        ConfigError: neither an engine nor an upstream, or a judge for best-of-N that failed its
            newest audit.
    """
    if not serve.upstream and engine is None:
        raise ConfigError(
            "There is nobody to answer requests",
            got="neither an engine nor serve.upstream",
            expected="one of them",
            next="set serve.upstream, or load a model",
        )
    recorder = Recorder(store, capture)
    upstream = Upstream(serve, recorder) if serve.upstream else None
    routes = [
        Route("/v1/feedback", FeedbackRoute(store, recorder).post, methods=["POST"]),
        Route("/health", _Health(serve, recorder, engine).get, methods=["GET"]),
        Route("/v1/capture", MirrorRoute(recorder).post, methods=["POST"]),
        Route("/v1/traces", TracesRoute(recorder).post, methods=["POST"]),
        Route("/metrics", MetricsRoute(recorder).get, methods=["GET"]),
    ]
    if upstream:
        routes.append(Route("/v1/chat/completions", upstream.chat, methods=["POST"]))
        routes.append(Route("/v1/{path:path}", upstream.forward, methods=METHODS))
    best_of = None
    if engine and not upstream:
        best_of = _best_of(store, serve)
        local = LocalChat(engine, serve, recorder, best_of)
        routes.append(Route("/v1/chat/completions", local.complete, methods=["POST"]))
        routes.append(Route("/v1/models", local.models, methods=["GET"]))
        routes.append(Route("/v1/models/{name}", local.models, methods=["GET"]))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if upstream:
            await upstream.open()
        try:
            yield
        finally:
            if upstream:
                await upstream.close()
            if best_of:  # what is still being picked is captured, so this comes first
                await asyncio.to_thread(best_of.close)
            await asyncio.to_thread(recorder.close)

    app = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)
    app.state.recorder = recorder
    return app


def _best_of(store: Store, serve: ServeConfig) -> BestOf | None:
    if serve.best_of == 1:
        return None
    judge = resolve(serve.best_of_judge, endpoint=serve.best_of_endpoint)
    check_audited(store, judge)
    return BestOf(judge, serve.best_of, timeout_s=serve.best_of_timeout_s)


class _Health:
    """`GET /health`: 200 while requests can be answered, 503 with the reason when not."""

    def __init__(self, serve: ServeConfig, recorder: Recorder, engine: "Engine | None") -> None:
        self._serve, self._recorder, self._engine = serve, recorder, engine

    async def get(self, _: Request) -> Response:
        body: dict[str, object] = {"status": "ok", "capture": self._recorder.counters}
        if self._serve.upstream:
            body["upstream"] = self._serve.upstream
        elif self._engine:
            body["model"] = self._serve.model_name
            try:
                body["weights"] = await asyncio.to_thread(self._engine.champion_weights)
            except TrueupError as error:
                body |= {"status": "refusing", "weights": None, "reason": str(error)}
        return JSONResponse(body, status_code=200 if body["status"] == "ok" else 503)
