"""A judge of known accuracy and known position bias, on a real socket.

It stands in for a language model that judges: an OpenAI-compatible server that reads the question
`judges.llm` asks, knows by another judge (`key`) which answer is truly better, and then errs and
favours exactly as often as it is told to. What a pipeline makes of a noisy, biased, slow or
failing judge can so be measured against what must come out; `expected_rates` says what must.

The promise: every draw is a hash of the seed and the question (the conversation and both answers
in their order), so a repeated question gets the same verdict, in any order and in any process.
Failures are drawn anew each time a question comes back, so that a retry can succeed.

    with running(ScriptedJudge(accuracy=0.9, position_bias=0.2)) as base_url:
        judge = LLMJudge(EndpointConfig(base_url=base_url))
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from trueup.errors import ConfigError, DataError, MissingDependency, UpstreamError
from trueup.judges.questions import (
    MAX_GRADE,
    GradeQuestion,
    Question,
    read_grade_question,
    read_question,
)
from trueup.judges.resolve import resolve
from trueup.records import Completion, content_hash
from trueup.suite import SuitePrompt

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

__all__ = ["Rates", "ScriptedJudge", "create_app", "expected_rates", "running", "serve"]

START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 2
_PROSE = "Both answers have their merits, and much depends on what the user had in mind."


@dataclass(frozen=True)
class ScriptedJudge:
    """What the judge is like. Rates are probabilities in [0, 1]."""

    accuracy: float = 0.9
    """How often a verdict that is not biased is true."""
    position_bias: float = 0.0
    """How often it says "A" whatever stands there."""
    key: str = "house-style"
    """The judge that knows the truth, by its name in the settings."""
    suite: tuple[SuitePrompt, ...] = ()
    """For a key that needs one (`facts`)."""
    seed: int = 0
    model: str = "judge"
    """Its name on the wire."""
    api_key: str | None = None
    """Where set, requests without this bearer token get a 401 that echoes theirs, as some do."""
    malformed_rate: float = 0.0
    """How often it answers in prose, without a verdict."""
    speechless_about: str = ""
    """It always answers in prose where this stands in the conversation, however often it is
    asked."""
    error_rate: float = 0.0
    """How often it answers `error_status`."""
    error_status: int = 500
    refuses_schema: bool = False
    """It answers a request with a `response_format` with a 400, as servers do that have none."""
    retry_after_s: float | None = None
    """Sent as `Retry-After` with an error."""
    delay_s: float = 0.0
    """How long it thinks about every answer."""
    length_bias: float = 0.0
    """How often, where it does not say "A" blindly, it names the longer answer whatever it says; a
    grade then goes by length alone."""

    def __post_init__(self) -> None:
        rates = ("accuracy", "position_bias", "length_bias", "malformed_rate", "error_rate")
        for name in rates:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"The scripted judge's {name} is no probability",
                    got=getattr(self, name),
                    expected="a number from 0 to 1",
                    next=f"mend {name}",
                )
        if self.key == "llm":
            raise ConfigError(
                "The scripted judge cannot take its truth from a language model",
                got=self.key,
                expected="a judge that knows: 'house-style', 'facts' or 'package.module:function'",
                next="choose another key",
            )


class Rates(NamedTuple):
    """What becomes of comparisons asked in both orders, as shares that sum to 1."""

    right: float
    wrong: float
    tied: float
    """Verdicts that changed with the order."""


def expected_rates(config: ScriptedJudge) -> Rates:
    """What asking in both orders makes of this judge, where one answer is truly better.

    With accuracy a and position bias b, and no liking for length, the better answer wins from the
    first place with probability b + (1 - b) a and from the second with (1 - b) a. The two draws are
    independent.
    """
    from_first = config.position_bias + (1 - config.position_bias) * config.accuracy
    from_second = (1 - config.position_bias) * config.accuracy
    right, wrong = from_first * from_second, (1 - from_first) * (1 - from_second)
    return Rates(right, wrong, 1 - right - wrong)


# --- what it answers ------------------------------------------------------------------------------


@dataclass
class _Mind:
    """The judge behind the door: its verdicts, and what it counts."""

    config: ScriptedJudge
    num_requests: int = 0
    num_verdicts: int = 0
    num_errors: int = 0
    num_malformed: int = 0
    num_in_flight: int = 0
    max_in_flight: int = 0
    times_asked: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.key = resolve(self.config.key, suite=self.config.suite)

    def answer(self, question: Question | GradeQuestion) -> dict[str, str | int]:
        """What it says, as the question wants it said; the same for the same question."""
        if isinstance(question, GradeQuestion):
            return {"grade": self.grade(question)}
        return {"winner": self.verdict(question)}

    def verdict(self, question: Question) -> str:
        """`A`, `B` or `tie`."""
        if self._draw("bias", question) < self.config.position_bias:
            return "A"
        longer = len(question.first) - len(question.second)
        if longer and self._draw("length", question) < self.config.length_bias:
            return "A" if longer > 0 else "B"
        answers = [Completion(text=question.first), Completion(text=question.second)]
        first, second = self.key.rank(question.prompt, answers).scores
        if first == second:
            return "tie"
        is_true = self._draw("accuracy", question) < self.config.accuracy
        return "A" if (first > second) == is_true else "B"

    def grade(self, question: GradeQuestion) -> int:
        """1 to 10: the key's score, which must lie in [0, 1]; turned round where it errs."""
        if self._draw("length", question) < self.config.length_bias:
            return min(MAX_GRADE, 1 + len(question.answer) // 40)
        (score,) = self.key.rank(question.prompt, [Completion(text=question.answer)]).scores
        grade = 1 + round((MAX_GRADE - 1) * min(max(score, 0.0), 1.0))
        is_true = self._draw("accuracy", question) < self.config.accuracy
        return grade if is_true else MAX_GRADE + 1 - grade

    def misbehaves(self, question: Question | GradeQuestion) -> str:
        """`error`, `malformed`, or nothing; drawn anew each time the question comes back."""
        topic = self.config.speechless_about
        if topic and any(topic in m.content for m in question.prompt):
            return "malformed"
        name = content_hash(_plain(question))
        self.times_asked[name] += 1
        if self._draw("error", question, self.times_asked[name]) < self.config.error_rate:
            return "error"
        is_malformed = self._draw("malformed", question, self.times_asked[name])
        return "malformed" if is_malformed < self.config.malformed_rate else ""

    def _draw(self, what: str, question: Question | GradeQuestion, times: int = 0) -> float:
        """A number in [0, 1) that the seed and the question decide."""
        text = json.dumps([self.config.seed, what, times, _plain(question)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56

    @contextmanager
    def counted(self) -> Iterator[None]:
        self.num_requests += 1
        self.num_in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.num_in_flight)
        try:
            yield
        finally:
            self.num_in_flight -= 1

    def counts(self) -> dict[str, int]:
        names = ("num_requests", "num_verdicts", "num_errors", "num_malformed", "max_in_flight")
        return {name: getattr(self, name) for name in names}


def _plain(question: Question | GradeQuestion) -> list[Any]:
    return [[m.model_dump() for m in question.prompt], *question[1:]]


# --- the door -------------------------------------------------------------------------------------


def create_app(config: ScriptedJudge) -> "Starlette":
    """The judge as an ASGI app.

    `POST /v1/chat/completions`, `GET /v1/models`, and `GET /v1/counts`: requests, verdicts,
    failures, and the most requests that were ever in flight at once.

    Raises:
        ConfigError: there is no key judge of that name.
        MissingDependency: Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    except ImportError:
        raise _missing() from None

    mind = _Mind(config)

    async def chat(request: Request) -> JSONResponse:
        with mind.counted():
            await asyncio.sleep(config.delay_s)
            return await _chat(mind, request)

    async def models(_: Request) -> JSONResponse:
        about = {"id": config.model, "object": "model", "created": 0, "owned_by": "trueup"}
        return JSONResponse({"object": "list", "data": [about]})

    async def counts(_: Request) -> JSONResponse:
        return JSONResponse(mind.counts())

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/counts", counts),
        ]
    )


async def _chat(mind: _Mind, request: "Request") -> "JSONResponse":
    sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if mind.config.api_key is not None and sent != mind.config.api_key:
        return _error(401, f"Incorrect API key provided: {sent}")
    body = await request.body()
    try:
        question = _asked(body)
        if mind.config.refuses_schema and b'"response_format"' in body:
            return _error(400, "Unrecognized request argument supplied: response_format")
        mishap = mind.misbehaves(question)
        content = _PROSE if mishap else json.dumps(mind.answer(question))
    except DataError as error:  # no question, or one the key judge knows nothing about
        return _error(400, str(error))
    mind.num_errors += mishap == "error"
    mind.num_malformed += mishap == "malformed"
    mind.num_verdicts += not mishap
    if mishap == "error":
        wait_s = mind.config.retry_after_s
        headers = {} if wait_s is None else {"Retry-After": f"{wait_s:g}"}
        return _error(mind.config.error_status, "scripted failure", headers)
    return _completion(mind.config.model, content, len(body))


def _asked(body: bytes) -> Question | GradeQuestion:
    """The question is the first message of the user; what follows it are pleas for a verdict.

    Raises:
        DataError: it is no request for a comparison.
    """
    try:
        messages = json.loads(body)["messages"]
        content = next(m["content"] for m in messages if m["role"] == "user")
    except (ValueError, KeyError, TypeError, StopIteration):
        content = None
    content = content if isinstance(content, str) else ""
    with contextlib.suppress(DataError):
        return read_grade_question(content)
    return read_question(content)


def _completion(model: str, content: str, num_bytes: int) -> "JSONResponse":
    """A reply that counts four bytes as a token."""
    from starlette.responses import JSONResponse

    spent = {"prompt_tokens": num_bytes // 4, "completion_tokens": len(content) // 4}
    message = {"role": "assistant", "content": content}
    return JSONResponse(
        {
            "id": f"chatcmpl-{time.time_ns():x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": spent | {"total_tokens": sum(spent.values())},
        }
    )


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> "JSONResponse":
    from starlette.responses import JSONResponse

    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


# --- running it -----------------------------------------------------------------------------------


def serve(
    config: ScriptedJudge,
    host: str = "127.0.0.1",
    port: int = 8500,
    *,
    on_start: Callable[[str], None] = lambda base_url: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        port: 0 takes a free one.
        on_start: called with the base URL once connections are accepted.

    Raises:
        ConfigError: the address cannot be used, or the key judge does not exist.
        MissingDependency: uvicorn or Starlette is not installed.
    """
    server = _server(config)
    with _listen(host, port) as listening:
        on_start(_base_url(listening))
        with contextlib.suppress(KeyboardInterrupt):  # the ordinary way to stop it
            server.run(sockets=[listening])


@contextmanager
def running(config: ScriptedJudge) -> Iterator[str]:
    """The judge on a free loopback port, in a thread; gives its base URL, stops it at the end.

    Raises:
        ConfigError, MissingDependency: as `serve`.
    """
    server = _server(config)
    with _listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="scripted-judge", daemon=True
        )
        thread.start()
        try:
            _await_start(server, thread)
            yield _base_url(listening)
        finally:
            server.should_exit = True
            thread.join(STOP_TIMEOUT_S + START_TIMEOUT_S)


def _server(config: ScriptedJudge) -> "uvicorn.Server":
    try:
        import uvicorn
    except ImportError:
        raise _missing() from None
    return uvicorn.Server(
        uvicorn.Config(
            create_app(config),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
    )


def _await_start(server: "uvicorn.Server", thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise UpstreamError(
                "The scripted judge did not start", next="see the log lines above this one"
            )
        time.sleep(0.005)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that already listens, so that a taken port shows at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
        # asyncio sets this only on sockets that name their protocol, which these do not; without
        # it every answer on a kept connection waits 40 ms for the client's acknowledgement
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        raise ConfigError(
            "The port is already in use" if is_taken else "The judge cannot listen on this address",
            got=f"{host}:{port}: {error.strerror or error}",
            expected="a free port on an address of this machine",
            next="stop the other server, or choose another with --port",
        ) from None


def _base_url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _missing() -> MissingDependency:
    return MissingDependency(
        "The scripted judge needs starlette and uvicorn",
        expected="the extra 'gateway'",
        next="pip install 'trueup[gateway]'",
    )
