"""What a local model thinks of answers that came without log-probs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trueup.flag.remembered import Remembered
from trueup.flag.signals import Rating
from trueup.models import chat
from trueup.records import Interaction

if TYPE_CHECKING:
    from trueup.models.backbone import Backbone

__all__ = ["ANSWER_TOKENS", "rate"]

ANSWER_TOKENS = 64
"""Of an answer; what lies beyond is not looked at, which makes a small model a third cheaper."""
PROMPT_TOKENS = 256
"""Of a prompt, its last."""
BATCH = 8


def rate(
    interactions: Sequence[Interaction],
    backbone: "Backbone",
    remembered: Remembered,
    *,
    max_tokens: int = ANSWER_TOKENS,
) -> list[Rating | None]:
    """Log-prob and entropy of each of an answer's first `max_tokens` tokens given its prompt; None
    for an answer without tokens.

    Raises:
        ModelError: the chat template refuses a conversation.
    """
    by = f"{backbone.base_weights} {backbone.template} {backbone.dtype_name} {max_tokens}"

    def make(places: Sequence[int]) -> list[np.ndarray]:
        return _rated([interactions[place] for place in places], backbone, max_tokens)

    texts = [i.model_dump_json(include={"prompt", "completion"}) for i in interactions]
    found = remembered.get("log-probs", by, texts, make, batch=BATCH)
    pairs = [one.reshape(2, -1) for one in found]
    return [Rating(a.tolist(), b.tolist()) if len(a) else None for a, b in pairs]


def _rated(batch: Sequence[Interaction], backbone: "Backbone", max_tokens: int) -> list[np.ndarray]:
    """Of each answer an array of log-probs, then as many entropies."""
    import torch

    from trueup.models.logprobs import Branches, rate_completions

    rows = [
        Branches(
            chat.prompt_ids(backbone.tokenizer, one.prompt)[-PROMPT_TOKENS:],
            [chat.completion_ids(backbone.tokenizer, one.completion)[:max_tokens]],
        )
        for one in batch
    ]
    with torch.inference_mode():
        rated = rate_completions(backbone.model, rows, with_entropies=True)
    assert rated.entropies is not None
    return [
        torch.cat([logprobs[0], entropies[0]]).float().cpu().numpy()
        for logprobs, entropies in zip(rated.logprobs, rated.entropies, strict=True)
    ]
