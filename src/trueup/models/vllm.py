"""A vLLM server that answers as one of our models: tokens over, tokens and log-probs back.

    prompt's token ids ──> POST /v1/completions ──> sampled token ids, a log-prob each
    a folder's name    ──> POST /v1/load_lora_adapter

Nothing of the server's own has a say in what is drawn. Prompts go as the tokens of our template;
which tokens end an answer is ours to name; every sampling setting is in the request, because a
server fills what is missing from the model folder's `generation_config.json`. The server's stop
token is in its token ids, with its log-prob, as in `sampler.Drawn`.

Log-probs are those of the model at temperature 1, nothing cut off: the server's default,
`--logprobs-mode raw_logprobs`. With `processed_logprobs` they are of what remained after top-k,
top-p and temperature, and training on them would be wrong without a sign of it.

Adapters are folders that the *server* opens, so they must lie on a file system both see, under
the same path. It must run with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`. Whoever
reaches the loading address decides what is served: keep it off public ports.

Tested against the recorded answers of vLLM 0.32.0 (`make test-vllm` records them).
"""

import asyncio
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from trueup.asking import run_coroutine
from trueup.config import no_password
from trueup.errors import ConfigError, UpstreamError
from trueup.models.sampler import Drawn, SampleRequest

__all__ = ["VLLMServer"]

T = TypeVar("T")

MAX_WAIT_S = 30.0  # the longest pause between two tries
AGAIN = frozenset((408, 409, 425, 429))
"""Refusals that another try may mend."""


class VLLMServer:
    """A client of one server. Requests in flight, tries and patience are bounded."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key_env: str = "TRUEUP_ENGINE_API_KEY",
        timeout_s: float = 600.0,
        concurrency: int = 8,
        max_retries: int = 2,
    ) -> None:
        """
        Args:
            base_url: everything before `/completions`, as in `http://127.0.0.1:8000/v1`.
            api_key_env: the environment variable with the key; unset means no key.
            timeout_s: patience with all samples of one prompt.

        Raises:
            ConfigError: the address holds a password.
        """
        try:
            self.base_url = (no_password(base_url) or "").rstrip("/")
        except ValueError as error:
            raise ConfigError(
                "The engine's address holds a password",
                got="an address with '@' before its host",
                expected="an address without one",
                next=f"put the key into the environment variable {api_key_env}",
            ) from error
        self.api_key_env, self._key = api_key_env, os.environ.get(api_key_env, "").strip()
        self._timeout_s, self._concurrency = timeout_s, concurrency
        self._max_retries = max_retries

    # --- what it serves -----------------------------------------------------------------------

    def models(self) -> list[str]:
        """Names that can be asked: the base and the adapters.

        Raises:
            UpstreamError: it is down, refuses, or answers something else.
        """
        (said,) = self._send([_Call("GET", "/models")])
        try:
            return [str(one["id"]) for one in json.loads(said)["data"]]
        except (ValueError, KeyError, TypeError):
            raise self._failure("listed no models", said, expected='{"data": [...]}') from None

    def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a PEFT folder under this name, in place of what the name meant before.

        The server opens the folder again whenever it likes, as long as it serves the name: what is
        written there shows, loaded again or not. Write only while no answers are under way.

        Raises:
            UpstreamError: the server cannot open the folder, or does not load adapters.
        """
        body = {"lora_name": name, "lora_path": str(folder.resolve()), "load_inplace": True}
        self._send([_Call("POST", "/load_lora_adapter", body)])

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            UpstreamError: the server has none of this name.
        """
        self._send([_Call("POST", "/unload_lora_adapter", {"lora_name": name})])

    # --- drawing ------------------------------------------------------------------------------

    def sample(
        self, model: str, requests: Sequence[SampleRequest], *, eos_ids: frozenset[int], salt: str
    ) -> list[list[Drawn]]:
        """Continue every prompt `num_samples` times, as `sampler.sample` does on our own network.

        A seed is the server's own: the same one gives the same answers there, other ones than
        here, and in other company they may differ by rounding. At most 4 stop strings.

        Args:
            model: name of the base or of an adapter.
            eos_ids: tokens that end a completion; the one drawn is kept, with its log-prob.
            salt: name of the weights. The server keeps the keys and values of prompts under the
                adapter's name and path, loaded again or not; under another salt it computes them
                anew.

        Returns:
            For each request its samples, in order.

        Raises:
            UpstreamError: it is down, refuses, or answers without tokens and log-probs.
        """
        bodies = [_body(model, one, eos_ids, salt) for one in requests]
        said = self._send([_Call("POST", "/completions", body) for body in bodies])
        return [
            self._drawn(one, request, eos_ids) for one, request in zip(said, requests, strict=True)
        ]

    def _drawn(self, said: bytes, request: SampleRequest, eos_ids: frozenset[int]) -> list[Drawn]:
        try:
            choices = sorted(json.loads(said)["choices"], key=lambda one: int(one["index"]))
            drawn = [_read(one, request, eos_ids) for one in choices]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._failure(
                "gave no tokens with their log-probs",
                said,
                problem=str(error) if isinstance(error, _Unusable) else "",
                expected="token_ids and logprobs.token_logprobs in every choice",
                hint="the server must be vLLM 0.32 or later",
            ) from None
        if request.sampling.temperature == 0:  # asked for once: greedy samples are alike
            drawn = [Drawn(**vars(one)) for one in drawn for _ in range(request.num_samples)]
        if len(drawn) != request.num_samples:
            raise self._failure(
                "gave another number of answers",
                said,
                problem=f"{len(drawn)} choices",
                expected=f"{request.num_samples} choices",
            )
        return drawn

    # --- the wire -----------------------------------------------------------------------------

    def _send(self, calls: Sequence["_Call"]) -> list[bytes]:
        """The bodies of the answers, in order. The first failure stops them all."""
        return run_coroutine(self._send_all(calls))

    async def _send_all(self, calls: Sequence["_Call"]) -> list[bytes]:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        room = asyncio.Semaphore(self._concurrency)

        async def send(call: _Call) -> bytes:
            async with room:
                return await self._tried(session, call)

        async with aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            connector=aiohttp.TCPConnector(limit=self._concurrency),
        ) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    sent = [group.create_task(send(call)) for call in calls]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None  # one is enough: they share a cause
        return [task.result() for task in sent]

    async def _tried(self, session: Any, call: "_Call") -> bytes:
        problem, status = "", 0
        for attempt in range(self._max_retries + 1):
            if attempt:
                await asyncio.sleep(min(0.4 * 2 ** min(attempt - 1, 10), MAX_WAIT_S))
            problem, status, said = await self._post(session, call)
            if not problem:
                return said
            if 300 <= status < 500 and status not in AGAIN:
                break
        raise self._gave_up(call, problem, status)

    async def _post(self, session: Any, call: "_Call") -> tuple[str, int, bytes]:
        """One try: what went wrong, if something did, the HTTP status, and the answer's body."""
        import aiohttp

        url = self.base_url + call.path
        try:
            # a redirected POST turns into a GET without its question
            async with session.request(
                call.method, url, json=call.body, allow_redirects=False
            ) as response:
                said = await response.read()
                if response.status == 200:
                    return "", 200, said
                return f"HTTP {response.status}: {_message(said)}", response.status, said
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            return "this is not a URL", 400, b""  # no retry mends it
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s", 0, b""
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}", 0, b""

    def _gave_up(self, call: "_Call", problem: str, status: int) -> UpstreamError:
        hint = "check that the server is up, and train.online.engine.base_url"
        if status in (401, 403):
            hint = f"check the key in the environment variable {self.api_key_env}"
        elif call.path.endswith("_lora_adapter") and problem == "HTTP 404: Not Found":  # no route
            hint = (
                "start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in "
                "its environment"
            )
        elif call.path == "/load_lora_adapter" and 400 <= status < 500:
            hint = (
                "check that the server sees this folder under the same path, and that its "
                "--max-lora-rank is at least train.lora_rank"
            )
        elif 300 <= status < 500:
            hint = (
                "check that the server runs this base model, and that its --max-model-len holds a "
                "prompt and train.online.max_tokens"
            )
        return UpstreamError(
            f"The engine at {self.base_url} did not do {call.path}",
            got=self._redacted(problem),
            expected="HTTP 200",
            next=hint,
        )

    def _failure(
        self, what: str, said: bytes, *, expected: str, problem: str = "", hint: str = ""
    ) -> UpstreamError:
        return UpstreamError(
            f"The engine at {self.base_url} {what}",
            got=self._redacted(problem or said.decode(errors="replace"))[:200],
            expected=expected,
            next=hint or "check train.online.engine.base_url",
        )

    def _redacted(self, text: str) -> str:
        """Servers echo keys. This comes before any shortening, which could leave half of one."""
        return text.replace(self._key, "[key]") if self._key else text


class _Call:
    """One request."""

    def __init__(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        self.method, self.path, self.body = method, path, body


class _Unusable(ValueError):
    """A choice that cannot be trained on; says why."""


def _body(model: str, request: SampleRequest, eos_ids: frozenset[int], salt: str) -> dict[str, Any]:
    sampling = request.sampling
    body = {
        "model": model,
        "prompt": list(request.prompt_ids),
        "n": request.num_samples if sampling.temperature > 0 else 1,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "watermarking": False,
        "stop": list(sampling.stop),
        # our end tokens and no others
        "ignore_eos": True,
        "stop_token_ids": sorted(eos_ids),
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
        "cache_salt": salt,
    }
    if sampling.seed is not None:
        body["seed"] = (sampling.seed + request.first_sample) % 2**63
    return body


def _read(choice: Any, request: SampleRequest, eos_ids: frozenset[int]) -> Drawn:
    """One choice as our own sampler would have drawn it."""
    token_ids = [int(token) for token in choice["token_ids"]]
    logprobs = [float(one) for one in choice["logprobs"]["token_logprobs"]]
    asked = choice.get("prompt_token_ids")
    if asked is not None and list(asked) != list(request.prompt_ids):
        raise _Unusable("another prompt than was asked")
    if not token_ids or len(token_ids) != len(logprobs):
        raise _Unusable(f"{len(token_ids)} tokens with {len(logprobs)} log-probs")
    if not all(math.isfinite(one) for one in logprobs):
        raise _Unusable("a log-prob that is not finite")
    reason = choice["finish_reason"]
    is_ended = token_ids[-1] in eos_ids
    is_stopped = reason == "stop" and bool(request.sampling.stop)
    is_full = len(token_ids) == request.sampling.max_tokens
    if reason not in ("stop", "length") or not (is_ended or is_stopped or is_full):
        raise _Unusable(
            f"finish_reason {reason!r} after {len(token_ids)} tokens, the last being "
            f"{token_ids[-1]}, which is no end token"
        )
    return Drawn(token_ids, logprobs, "stop" if is_ended or is_stopped else "length")


def _message(said: bytes) -> str:
    """What the server says of an error."""
    text = said.decode(errors="replace")
    try:
        body = json.loads(text)
        return str(body["error"]["message"] if "error" in body else body["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return text
