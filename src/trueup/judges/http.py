"""A scorer behind an address: a reward server, with whatever model and tokenizer it has.

    POST  {"prompt": [{"role": …, "content": …}], "completions": ["…", "…"]}
    200   {"scores": [0.3, -1.2]}

Texts go over, not tokens, so the server's model need not share ours. The key, where one is set in
the environment, goes as a bearer token and is in no message.
"""

import json
import math
import os
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from trueup.asking import PostFailed, post, without_key
from trueup.config import no_password
from trueup.errors import ConfigError, UpstreamError
from trueup.judges.base import Ranking
from trueup.judges.config import EndpointConfig
from trueup.records import AnnotatorKind, Completion, Messages

__all__ = ["HTTPJudge"]


MAX_ANSWER = 1_000_000  # bytes; a score takes twenty


class HTTPJudge:
    """Asks a server for the scores of several answers to one prompt."""

    kind: AnnotatorKind = "llm"
    is_symmetric = True
    needs_audit = False
    """A reward server: it scores, and is judged by what its scores teach."""

    def __init__(self, url: str, config: EndpointConfig) -> None:
        """`config` gives the key's variable, the time limit and the number of further tries.

        Raises:
            ConfigError: the address holds a password or a query.
        """
        try:
            self.url = _plain_address(no_password(url) or "")
        except ValueError as error:
            raise ConfigError(
                "A scorer's address holds a password",
                got="an address with '@' before its host",
                expected="an address without one",
                next=f"put the key into the environment variable {config.api_key_env}",
            ) from error
        if "?" in self.url:
            raise ConfigError(
                "A scorer's address holds a query, which names it in records and messages",
                got="an address with '?'",
                expected="an address without one",
                next=f"put the key into the environment variable {config.api_key_env}",
            )
        self._config = config
        self._key = os.environ.get(config.api_key_env, "").strip()
        self.id = f"http:{self.url}"

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """The server's scores.

        Raises:
            UpstreamError: it is down, refuses, or answers with something else than scores.
        """
        body = {
            "prompt": [m.model_dump() for m in prompt],
            "completions": [one.text for one in candidates],
        }
        scores = self._scores(self._post(json.dumps(body).encode()), len(candidates))
        return Ranking(scores, tuple(() for _ in scores))

    def _post(self, body: bytes) -> bytes:
        try:
            return post(
                self.url,
                body,
                key=self._key,
                timeout_s=self._config.timeout_s,
                max_retries=self._config.max_retries,
                max_bytes=MAX_ANSWER,
            )
        except PostFailed as error:
            raise self._failure(str(error)) from None

    def _scores(self, said: bytes, wanted: int) -> tuple[float, ...]:
        try:
            told = json.loads(said)["scores"]
            scores = tuple(float(score) for score in told)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise self._failure(said.decode(errors="replace")) from None
        if not isinstance(told, list) or not all(map(math.isfinite, scores)):
            raise self._failure(said.decode(errors="replace"))
        if len(scores) != wanted:
            raise self._failure(f"{len(scores)} scores for {wanted} answers")
        return scores

    def _failure(self, problem: str) -> UpstreamError:
        return UpstreamError(
            f"The scorer at {self.url} gave no scores",
            got=without_key(problem, self._key)[:80],
            expected='{"scores": [a number an answer]}',
            next="check that the server is up, and its address",
        )


def _plain_address(url: str) -> str:
    """One spelling of an address, since its text is the scorer's id: the host in small letters, no
    default port, no slash at the end."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    host = f"[{host}]" if ":" in host else host
    is_usual = parts.port in (None, {"http": 80, "https": 443}.get(parts.scheme))
    where = host if is_usual else f"{host}:{parts.port}"
    return urlunsplit((parts.scheme, where, parts.path.rstrip("/"), parts.query, ""))
