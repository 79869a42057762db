"""An OpenAI-compatible `/embeddings` address as an embedder.

    POST  {"model": …, "input": ["…", "…"]}
    200   {"data": [{"index": 0, "embedding": [0.1, …]}, …]}

The key, where one is set in the environment, goes as a bearer token and is in no message. Tries,
patience and the size of an answer are bounded; a redirect is not followed.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueup.config import no_password
from trueup.errors import ConfigError, UpstreamError
from trueup.models.config import EmbedderConfig

__all__ = ["EmbeddingServer"]

BATCH = 64  # texts a request
MAX_ANSWER = 64_000_000  # bytes; 64 vectors of 4,096 numbers take 5 million


class EmbeddingServer:
    """Asks a server for vectors."""

    def __init__(self, config: EmbedderConfig) -> None:
        """
        Raises:
            ConfigError: the address holds a password.
        """
        try:
            self._url = (no_password(config.name) or "").rstrip("/") + "/embeddings"
        except ValueError as error:
            raise ConfigError(
                "The embedder's address holds a password",
                got="an address with '@' before its host",
                expected="an address without one",
                next=f"put the key into the environment variable {config.api_key_env}",
            ) from error
        self._config = config
        self._key = os.environ.get(config.api_key_env, "").strip()
        self.id = f"http:{self._url}:{config.model}"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of shape (N, D).

        Raises:
            UpstreamError: the server is down, refuses, or answers with something else.
        """
        batches = [self._batch(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        if len({one.shape[1] for one in batches}) > 1:
            raise self._failure("vectors of several lengths")
        return np.concatenate(batches)

    def _batch(self, texts: Sequence[str]) -> np.ndarray:
        body = {"model": self._config.model, "input": list(texts)}
        said = self._post(json.dumps(body).encode())
        try:
            rows = sorted(json.loads(said)["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float64)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._failure(said.decode(errors="replace")) from None
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise self._failure(f"an array of shape {vectors.shape} for {len(texts)} texts")
        return vectors

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        problem = ""
        for _ in range(self._config.max_retries + 1):
            try:
                deadline = time.monotonic() + self._config.timeout_s
                with opener.open(request, timeout=self._config.timeout_s) as response:
                    return _read(response, deadline)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}"
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
        raise self._failure(problem)

    def _failure(self, problem: str) -> UpstreamError:
        # servers echo keys; shortened first, half of one could stay
        shown = problem.replace(self._key, "[key]") if self._key else problem
        return UpstreamError(
            f"The embedder at {self._url} gave no vectors",
            got=shown[:80],
            expected='{"data": [{"index": 0, "embedding": [...]}]}',
            next="check that the server is up, or set embedder.name",
        )


def _read(response: Any, deadline: float) -> bytes:
    """The body, in bounded time and size: a socket's own time limit begins anew with every byte."""
    parts: list[bytes] = []
    while part := response.read1(65_536):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not end in time")
        if sum(map(len, parts)) > MAX_ANSWER:
            raise ValueError(f"an answer of more than {MAX_ANSWER:,} bytes")
    return b"".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST turns into a GET without its question."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
