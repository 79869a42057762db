"""From messages to the exact tokens the model sees, and back.

One template serves and trains: its hash stands on every training run. A completion's tokens are
those that were drawn; text that never was tokens (imports, edits) is encoded on its own and
closed with the end-of-turn token, exactly where generation would have begun and ended.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from trueup.errors import ModelError
from trueup.records import Completion, Messages

Tokenizer = Any
"""A transformers tokenizer; its own annotations promise less than it delivers."""

__all__ = ["completion_ids", "decode", "eos_ids", "prompt_ids", "template_hash"]


def template_hash(tokenizer: Tokenizer) -> str:
    """Identity of the chat template: `template_` and 12 hex digits."""
    return "template_" + hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:12]


def prompt_ids(tokenizer: Tokenizer, prompt: Messages) -> list[int]:
    """The conversation, rendered up to where the assistant begins to speak.

    Raises:
        ModelError: the template refuses this conversation.
    """
    messages = [{"role": m.role, "content": m.content} for m in prompt]
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except Exception as error:  # templates are programs and raise what they like
        raise ModelError(
            "The chat template refused a conversation",
            got=str(error),
            expected="roles the template knows",
            next="mend the messages, or skip this record",
        ) from error
    return list(ids)


def eos_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end the assistant's turn."""
    return frozenset([int(tokenizer.eos_token_id)])


def completion_ids(tokenizer: Tokenizer, completion: Completion) -> list[int]:
    """The completion's tokens, ending with the end-of-turn token unless it was cut off.

    Stored tokens are used as they are: decoding and encoding again need not give them back.
    Lengths, never token values, say what is padding: the pad token may be the end-of-turn token.
    """
    if completion.token_ids:
        return list(completion.token_ids)
    ids = tokenizer(completion.text, add_special_tokens=False)["input_ids"]
    ended = [] if completion.finish_reason == "length" else [int(tokenizer.eos_token_id)]
    return list(ids) + ended


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of drawn tokens, special tokens left out."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))
