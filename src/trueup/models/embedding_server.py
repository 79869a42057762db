"""An OpenAI-compatible `/embeddings` address as an embedder.

    POST  {"model": …, "input": ["…", "…"]}
    200   {"data": [{"index": 0, "embedding": [0.1, …]}, …]}

A server may refuse a whole batch for one text that is too long for it: then the batch is halved,
and a lone text cut in half, until it is taken. Without that a single prompt would hold up all
others for ever. Nor is an empty text sent, which some refuse: a space stands for it.

The key, where one is set in the environment, goes as a bearer token and is in no message. Tries,
patience and the size of an answer are bounded; a redirect is not followed.
"""

import json
import os
from collections.abc import Sequence

import numpy as np

from trueup.asking import PostFailed, post, without_key
from trueup.config import no_password
from trueup.errors import ConfigError, UpstreamError
from trueup.models.config import EmbedderConfig

__all__ = ["EmbeddingServer"]

BATCH = 64  # texts a request
REFUSALS = ("HTTP 400", "HTTP 413", "HTTP 422")
LEAST_CHARS = 64  # a text that is refused at this length is not refused for its length
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
        body = {"model": self._config.model, "input": [text or " " for text in texts]}
        try:
            said = self._post(json.dumps(body).encode())
        except PostFailed as error:
            if str(error) not in REFUSALS or max(map(len, texts)) <= LEAST_CHARS:
                raise self._failure(str(error)) from None
            return self._in_halves(texts)
        try:
            rows = sorted(json.loads(said)["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float64)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._failure(said.decode(errors="replace")) from None
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise self._failure(f"an array of shape {vectors.shape} for {len(texts)} texts")
        return vectors

    def _in_halves(self, texts: Sequence[str]) -> np.ndarray:
        if len(texts) == 1:
            return self._batch([texts[0][: len(texts[0]) // 2]])
        middle = len(texts) // 2
        halves = [self._batch(texts[:middle]), self._batch(texts[middle:])]
        if halves[0].shape[1] != halves[1].shape[1]:
            raise self._failure("vectors of several lengths")
        return np.concatenate(halves)

    def _post(self, body: bytes) -> bytes:
        return post(
            self._url,
            body,
            key=self._key,
            timeout_s=self._config.timeout_s,
            max_retries=self._config.max_retries,
            max_bytes=MAX_ANSWER,
        )

    def _failure(self, problem: str) -> UpstreamError:
        return UpstreamError(
            f"The embedder at {self._url} gave no vectors",
            got=without_key(problem, self._key)[:80],
            expected='{"data": [{"index": 0, "embedding": [...]}]}',
            next="check that the server is up, or set embedder.name",
        )
