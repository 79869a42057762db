"""Questions to an OpenAI-compatible endpoint, a few at a time, each until it is answered readably.

Where the server takes a JSON schema, a reply is held to it; one that refuses the field is asked
without it from then on. The promise: retries are bounded, waits too, and the key is in no message.
"""

import asyncio
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from trueup.asking import run_coroutine
from trueup.errors import UnreadableVerdict, UpstreamError
from trueup.judges.config import EndpointConfig
from trueup.judges.questions import Form
from trueup.judges.usage import note

__all__ = ["MAX_WAIT_S", "Endpoint"]

T = TypeVar("T")

MAX_WAIT_S = 30.0  # the longest pause between two tries, whatever Retry-After asks for
_REFUSES_FIELD = (400, 422, 501)
"""What servers answer to a `response_format` they do not know."""


class Endpoint:
    """Asks one server."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        # the key is read once and kept out of everything that is stored or shown
        self._key = os.environ.get(config.api_key_env, "").strip()
        self._constrains = config.constrain

    def ask(
        self, form: Form, questions: Sequence[str], *, skip_unreadable: bool = False
    ) -> list[str | None]:
        """What each question was answered with. Works inside a running event loop too (a notebook,
        a server), which stands still meanwhile.

        Args:
            skip_unreadable: None where an answer stays unreadable, in place of an error.

        Raises:
            UpstreamError: the endpoint is down or refuses. The first failure stops them all.
            UnreadableVerdict: an answer stays unreadable after the retries.
        """
        return run_coroutine(self._ask_all(form, questions, skip_unreadable)) if questions else []

    async def _ask_all(
        self, form: Form, questions: Sequence[str], skip_unreadable: bool
    ) -> list[str | None]:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        room = asyncio.Semaphore(self.config.concurrency)

        async def ask(question: str) -> str | None:
            async with room:
                try:
                    return await self._answer(session, form, question)
                except UnreadableVerdict:
                    if skip_unreadable:
                        return None
                    raise

        async with aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self.config.timeout_s),
            connector=aiohttp.TCPConnector(limit=self.config.concurrency),
        ) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    asked = [group.create_task(ask(question)) for question in questions]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None  # one is enough: they share a cause
        return [task.result() for task in asked]

    async def _answer(self, session: Any, form: Form, question: str) -> str:
        opening = {"role": "user", "content": question}
        messages, problem, kind = [opening], "", UpstreamError
        for attempt in range(self.config.max_retries + 1):
            wait_s = 0.0
            try:
                reply = await self._post_held(session, messages, form)
                said = form.parse(reply.text)
                if said:
                    return said
                problem = f"an unreadable verdict{reply.cut}: {reply.text[:80]!r}"
                kind = UnreadableVerdict
                if reply.text.strip():
                    # at temperature 0 the same question would get the same reply
                    bad = {"role": "assistant", "content": reply.text[:500]}
                    messages = [opening, bad, {"role": "user", "content": form.again}]
            except _Failed as failure:
                problem, wait_s = failure.problem, _wait_s(attempt, failure.retry_after)
                kind = UpstreamError
                if failure.is_final:
                    raise self._gave_up(form, problem, failure.status) from None
            if attempt < self.config.max_retries:
                await asyncio.sleep(wait_s)
        raise self._gave_up(form, problem, kind=kind)

    async def _post_held(
        self, session: Any, messages: list[dict[str, str]], form: Form
    ) -> "_Reply":
        """One request, held to the form's schema where the server takes one; where it refuses, the
        same without it, and so from then on."""
        if not self._constrains:
            return await self._post(session, messages)
        try:
            return await self._post(session, messages, _response_format(form))
        except _Failed as failure:
            if failure.status not in _REFUSES_FIELD:
                raise
        reply = await self._post(session, messages)
        self._constrains = False
        return reply

    async def _post(
        self, session: Any, messages: list[dict[str, str]], fields: dict[str, Any] | None = None
    ) -> "_Reply":
        """One request.

        Raises:
            _Failed: no usable reply; says whether another try makes sense.
        """
        import aiohttp

        url = f"{self.config.base_url.rstrip('/')}/chat/completions"
        body = {
            "model": self.config.model,
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
            "messages": messages,
            **(fields or {}),
        }
        try:
            # a redirected POST turns into a GET without its question
            async with session.post(url, json=body, allow_redirects=False) as response:
                said = self._redacted(await response.text(errors="replace"))
                if response.status != 200:
                    raise _Failed(
                        f"HTTP {response.status}: {said[:200]}",
                        status=response.status,
                        retry_after=response.headers.get("Retry-After"),
                    )
                return self._reply(json.loads(said))
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise _Failed("this is not a URL", status=400) from None  # no retry mends it
        except TimeoutError:
            raise _Failed(f"no answer within {self.config.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            raise _Failed(self._redacted(f"{type(error).__name__}: {error}")) from None

    def _reply(self, body: Any) -> "_Reply":
        reply = _read_reply(body, self.config.max_tokens)
        prices = (self.config.input_price_usd, self.config.output_price_usd)
        note(requests=1, tokens=reply.tokens, prices=prices)
        return reply

    def _redacted(self, text: str) -> str:
        """Servers echo keys. This comes before any shortening, which could leave half of one."""
        return text.replace(self._key, "[key]") if self._key else text

    def _gave_up(
        self,
        form: Form,
        problem: str,
        status: int = 0,
        *,
        kind: type[UpstreamError] = UpstreamError,
    ) -> UpstreamError:
        hint = "check that the server is up, and base_url"
        if status in (401, 403):
            hint = f"check the key in the environment variable {self.config.api_key_env}"
        elif 300 <= status < 500:
            hint = "check base_url and model"
        return kind(
            f"The judge at {_without_password(self.config.base_url)} gave no verdict",
            got=problem,
            expected=form.wanted,
            next=f"{hint} (label.endpoint or ab.endpoint in trueup.toml); labels so far are kept",
        )


class _Reply(NamedTuple):
    text: str
    cut: str
    """` (cut off after … tokens)` where it was, for the message."""
    tokens: tuple[int, int] | None
    """Input and output, where the server says."""


class _Failed(Exception):
    """A try that brought no reply; `status` is 0 where there was no HTTP answer."""

    def __init__(self, problem: str, *, status: int = 0, retry_after: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.status, self.retry_after = problem, status, retry_after

    @property
    def is_final(self) -> bool:
        """True where the same request would fail again: a wrong key, model, path or length."""
        return 300 <= self.status < 500 and self.status not in (408, 409, 425, 429)


def _response_format(form: Form) -> dict[str, Any]:
    schema = {"name": form.name, "strict": True, "schema": form.schema}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _read_reply(body: Any, max_tokens: int) -> _Reply:
    try:
        choice = body["choices"][0]
        content, reason = choice["message"].get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Failed(f"a reply that is no chat completion: {str(body)[:80]}") from None
    cut = f" (cut off after {max_tokens} tokens)" if reason == "length" else ""
    return _Reply(content if isinstance(content, str) else "", cut, _tokens(body.get("usage")))


def _tokens(usage: Any) -> tuple[int, int] | None:
    found = [usage.get(f"{side}_tokens") for side in ("prompt", "completion")] if usage else []
    return (found[0], found[1]) if found and all(isinstance(n, int) for n in found) else None


def _wait_s(attempt: int, retry_after: str | None) -> float:
    """Seconds before the next try: what the server asks for, in seconds or as a date, else
    0.4, 0.8, 1.6 …; never more than `MAX_WAIT_S`."""
    wait = 0.4 * 2 ** min(attempt, 10)
    if retry_after:
        try:
            if re.fullmatch(r"\s*\d+(\.\d+)?\s*", retry_after):
                wait = float(retry_after)
            else:
                until = parsedate_to_datetime(retry_after)
                wait = (until - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # not a date, or one without a zone
            pass
    return min(max(wait, 0.0), MAX_WAIT_S)


def _without_password(url: str) -> str:
    """The URL as it may be shown."""
    host = urlsplit(url).netloc
    return url.replace(host, host.rpartition("@")[2], 1) if "@" in host else url
