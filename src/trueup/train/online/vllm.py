"""A vLLM server as the engine that draws rollouts.

    policy ── save_adapter ──> folder ── load in place ──> server ── answers, log-probs ──> rollouts

Before every batch the policy's adapter is written to the run's folder and swapped in on the server
under one name, so the server must open that folder under the same path. It runs the base that the
policy stands on; whole-model policies would need their weights sent over, which is not done.

The server's log-probs are not the trainer's to rounding: another kernel, often another dtype. How
far they are apart is measured before the first step and at every batch (`gap.py`), and what is left
is corrected by importance weights (`rollouts.importance_weights`).
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trueup.errors import ConfigError, UpstreamError
from trueup.models import chat
from trueup.models.backbone import own_seeds
from trueup.models.sampler import SampleRequest
from trueup.models.vllm import VLLMServer
from trueup.records import Completion, Messages, Sampling
from trueup.train.policy import Policy

__all__ = ["VLLMEngine"]


class VLLMEngine:
    """Draws from an adapter on a server that follows the policy."""

    def __init__(
        self,
        policy: Policy,
        start_weights: str,
        server: VLLMServer,
        folder: Path,
        *,
        adapter: str = "policy",
    ) -> None:
        """
        Args:
            folder: where the adapter is written; the server reads it.
            adapter: the name it is served under, this run's alone.

        Raises:
            ConfigError: the policy has no adapter that a server could load.
        """
        if policy.is_whole:
            raise ConfigError(
                "A vLLM engine follows an adapter, and this policy is a whole model",
                got='train.adapter = "full"',
                expected='"lora", or the local engine',
                next='set train.adapter to "lora", or train.online.engine.kind to "local"',
            )
        self._policy, self._server, self._folder = policy, server, folder
        self._adapter = adapter
        self.weights = f"vllm:{start_weights}"
        """Name that completions carry. Never the champion's own: what another engine drew is no
        record of what served, and its log-probs are no reference's."""

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, num_samples: int
    ) -> list[list[Completion]]:
        """The policy as it is now answers.

        Raises:
            UpstreamError: the server is down, or did not do what it was asked.
        """
        backbone = self._policy.backbone
        encoded = [chat.prompt_ids(backbone.tokenizer, prompt) for prompt in prompts]
        seeded = own_seeds(sampling, prompts)
        self._folder.mkdir(parents=True, exist_ok=True)
        written = self._policy.save(self._folder, card={})
        self._server.load_adapter(self._adapter, self._folder)
        drawn = self._server.sample(
            self._adapter,
            [
                SampleRequest(ids, one, num_samples)
                for ids, one in zip(encoded, seeded, strict=True)
            ],
            eos_ids=chat.eos_ids(backbone.tokenizer),
            salt=written,
        )
        return [
            [backbone.completion(one, ids, self.weights, sampling) for one in group]
            for ids, group in zip(encoded, drawn, strict=True)
        ]

    def end(self) -> None:
        """Have the server forget the adapter, if it is still there to do so."""
        with suppress(UpstreamError):
            self._server.unload_adapter(self._adapter)
