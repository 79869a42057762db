"""Chat answered by the local model: request to engine, engine to response, and a record of it.

What is captured hangs on the engine's answer and not on the connection: a client that leaves in
the middle of a stream stops the drawing, and what had been drawn is kept all the same, with
finish reason "unknown".
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from trueup.capture import Recorder
from trueup.gateway import chat
from trueup.gateway.best_of import BestOf
from trueup.gateway.body import as_object, read_body
from trueup.gateway.chat import ChatRequest
from trueup.gateway.config import ServeConfig
from trueup.gateway.connection import ByteStream, or_gone
from trueup.gateway.errors import RequestError, error_event
from trueup.gateway.keys import tenant_of
from trueup.records import Completion, Interaction

if TYPE_CHECKING:
    from trueup.models.engine import Engine, Pending
    from trueup.models.pieces import Piece

__all__ = ["LocalChat", "choice_id"]

DONE = b"data: [DONE]\n\n"


class LocalChat:
    """The routes that the local model answers."""

    def __init__(
        self,
        engine: "Engine",
        serve: ServeConfig,
        recorder: Recorder,
        best_of: BestOf | None = None,
    ) -> None:
        self._engine, self._serve, self._recorder = engine, serve, recorder
        self._best_of = best_of

    async def complete(self, request: Request) -> Response:
        """`POST /v1/chat/completions`: one JSON object, or a stream of events."""
        asked = chat.parse_request(as_object(await read_body(request)), self._serve)
        answer = _Answer(
            self._engine,
            self._serve,
            self._recorder,
            asked,
            self._best_of,
            tenant_of(request.scope),
        )
        return await (answer.stream(request) if asked.stream else answer.whole(request))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`, and one of them by name: the champion, with the hash of its weights."""
        name = request.path_params.get("name", self._serve.model_name)
        if name != self._serve.model_name:
            raise RequestError(
                "This server has no such model",
                got=name,
                expected=self._serve.model_name,
                next="list what there is with GET /v1/models",
                status=404,
                code="model_not_found",
            )
        weights = await asyncio.to_thread(self._engine.champion_weights)
        model = {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "trueup",
            "weights": weights,
        }
        is_list = "name" not in request.path_params
        return JSONResponse({"object": "list", "data": [model]} if is_list else model)


class _Answer:
    """One request on its way through the engine."""

    def __init__(
        self,
        engine: "Engine",
        serve: ServeConfig,
        recorder: Recorder,
        asked: ChatRequest,
        best_of: BestOf | None,
        tenant: str | None,
    ) -> None:
        self._engine, self._serve, self._recorder, self._asked = engine, serve, recorder, asked
        self._best_of, self._tenant = best_of, tenant
        self._chosen: Future[list[Completion]] = Future()
        """What is answered with: what was drawn, or the best of it."""
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._started = time.perf_counter()

    async def whole(self, request: Request) -> Response:
        pending = await self._submit(None)
        try:
            completions = await or_gone(request, asyncio.wrap_future(self._chosen))
        except ClientDisconnect:
            pending.cancel()
            raise
        return JSONResponse(
            chat.completion_object(
                self._id,
                self._asked,
                completions,
                model=self._serve.model_name,
                input_tokens=len(pending.prompt_ids),
                token_text=self._engine.token_text,
            )
        )

    async def stream(self, request: Request) -> Response:
        """Headers are sent with the first token, so what fails before it still has its status."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Piece | None] = asyncio.Queue()  # None: there will be no more

        def tell(piece: "Piece | None") -> None:
            loop.call_soon_threadsafe(heard.put_nowait, piece)

        pending = await self._submit(tell)
        try:
            first = await or_gone(request, heard.get())
        except ClientDisconnect:
            pending.cancel()
            raise
        if first is None:
            self._chosen.result()  # nothing was said: it failed, and this raises why
        return ByteStream(self._events(pending, first, heard))

    async def _submit(self, tell: "Callable[[Piece | None], None] | None") -> "Pending":
        """Ask the engine; the capture is the first to hear how it ended."""

        def submit() -> "Pending":
            best_of, asked = self._best_of, self._asked
            draws = best_of.num_draws if best_of else 1
            pending = self._engine.submit(
                asked.prompt,
                asked.sampling,
                num_samples=asked.num_samples * draws,
                on_piece=None if best_of else tell,
            )
            chosen = best_of.picked(asked.prompt, pending.answer) if best_of else pending.answer
            self._chosen = chosen
            chosen.add_done_callback(lambda answer: self._capture(pending, answer))
            if (say := tell) is not None:
                if best_of:
                    chosen.add_done_callback(lambda answer: _tell_whole(say, answer))
                chosen.add_done_callback(lambda _: _end(say))
            return pending

        return await asyncio.to_thread(submit)  # a long prompt takes a while to become tokens

    def _capture(self, pending: "Pending", answer: Future[list[Completion]]) -> None:
        if answer.cancelled() or answer.exception():
            return  # no answer, no interaction
        latency_ms = (time.perf_counter() - self._started) * 1000
        self._recorder.record_from(
            lambda: [
                Interaction(
                    prompt=self._asked.prompt,
                    completion=completion,
                    source="gateway",
                    request_id=choice_id(self._id, i),
                    model=self._serve.model_name,
                    user=self._asked.user,
                    tenant=self._tenant,
                    error="client left" if completion.finish_reason == "unknown" else "",
                    input_tokens=len(pending.prompt_ids),
                    output_tokens=len(completion.token_ids or ()),
                    latency_ms=latency_ms,
                )
                for i, completion in enumerate(answer.result())
            ],
            route="/v1/chat/completions",
        )

    async def _events(
        self, pending: "Pending", piece: "Piece | None", heard: "asyncio.Queue[Piece | None]"
    ) -> AsyncGenerator[bytes]:
        head = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self._serve.model_name,
            "system_fingerprint": pending.weights,
        }
        if self._asked.include_usage:
            head["usage"] = None  # OpenAI has it null on all but the last
        output_tokens = 0
        try:
            for i in range(self._asked.num_samples):
                yield _event(chat.chunk(head, i, {"role": "assistant", "content": ""}))
            while piece is not None:
                output_tokens += len(piece.token_ids)
                for event in self._piece_events(head, piece):
                    yield event
                piece = await heard.get()
            if error := self._chosen.exception():
                yield error_event(
                    error if isinstance(error, Exception) else RuntimeError(str(error))
                )
                return
            if self._asked.include_usage:
                counts = chat.usage(len(pending.prompt_ids), output_tokens)
                yield _event({**head, "choices": [], "usage": counts})
            yield DONE
        finally:
            pending.cancel()  # without effect once it is complete

    def _piece_events(self, head: dict[str, Any], piece: "Piece") -> list[bytes]:
        events = []
        if piece.text or (piece.token_ids and self._asked.logprobs):
            more = {}
            if self._asked.logprobs:
                more["logprobs"] = chat.logprobs_content(
                    piece.token_ids, piece.logprobs, self._engine.token_text
                )
            events.append(
                _event(chat.chunk(head, piece.sample_idx, {"content": piece.text}, **more))
            )
        if piece.finish_reason:
            events.append(
                _event(chat.chunk(head, piece.sample_idx, {}, finish_reason=piece.finish_reason))
            )
        return events


def _tell_whole(tell: "Callable[[Piece | None], None]", answer: Future[list[Completion]]) -> None:
    """Answers that could not be shown while they were drawn, each as one piece."""
    from trueup.models.pieces import Piece

    if answer.cancelled() or answer.exception():
        return
    for at, one in enumerate(answer.result()):
        tokens, logprobs = one.token_ids or (), one.logprobs or ()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
            tell(Piece(at, one.text, tokens, logprobs, one.finish_reason))


def _end(tell: Callable[[None], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
        tell(None)


def choice_id(request_id: str, index: int) -> str:
    """The request id of one choice's interaction: the first has the request's own, the others
    `-1`, `-2`, … behind it. So feedback that names the request means its first choice."""
    return request_id if index == 0 else f"{request_id}-{index}"


def _event(content: dict[str, Any]) -> bytes:
    return (
        b"data: "
        + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        + b"\n\n"
    )
