"""From messages to the exact tokens the model sees, and back.

One template serves and trains: its hash stands on every training run. A completion's tokens are
those that were drawn; text that never was tokens (imports, edits) is encoded on its own and
closed with the end-of-turn token, exactly where generation would have begun and ended.

Markers are the template's alone. A user who types `<|im_end|>` has typed ten characters, and they
reach the model as such: nobody ends a turn, or begins the system's, from inside a message.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from trueup.errors import ModelError
from trueup.records import Completion, Messages

Tokenizer = Any
"""A transformers tokenizer; its own annotations promise less than it delivers."""

__all__ = ["completion_ids", "decode", "digest", "end_id", "eos_ids", "prompt_ids", "template_hash"]


def template_hash(tokenizer: Tokenizer) -> str:
    """Identity of the chat template: `template_` and 12 hex digits."""
    return "template_" + hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:12]


def digest(token_ids: Sequence[int]) -> str:
    """Identity of a sequence of tokens: 20 hex digits."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()[:20]


def prompt_ids(tokenizer: Tokenizer, prompt: Messages) -> list[int]:
    """The conversation, rendered up to where the assistant begins to speak.

    Raises:
        ModelError: the template refuses this conversation.
    """
    markers = _markers(tokenizer)
    gap = _unused(prompt)
    messages = [
        {
            "role": markers.sub(rf"\g<0>{gap}", m.role),
            "content": markers.sub(rf"\g<0>{gap}", m.content),
        }
        for m in prompt
    ]
    try:
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return _joined(tokenizer, rendered.split(gap))
    except Exception as error:  # templates are programs; tokenizers refuse half characters
        raise ModelError(
            "The chat template refused a conversation",
            got=str(error),
            expected="roles the template knows",
            next="mend the messages, or skip this record",
        ) from error


def _markers(tokenizer: Tokenizer) -> re.Pattern[str]:
    """The first character of whatever this tokenizer would read as a special token. Behind each a
    text is broken, and its pieces hold no marker."""
    added = [str(one) for one in tokenizer.added_tokens_decoder.values() if one.special]
    known = sorted({*added, *map(str, tokenizer.all_special_tokens)})
    return re.compile(f"(?={'|'.join(map(re.escape, known))}).", re.DOTALL)


def _unused(prompt: Messages) -> str:
    """A private character that stands in no message: the gap in a typed marker while the template
    renders."""
    said = "".join(m.role + m.content for m in prompt)
    return next(char for char in map(chr, range(0xE000, 0xF900)) if char not in said)


def _joined(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[int]:
    """Tokens of a text in pieces, each encoded on its own. The tokenizer's switch for this,
    `split_special_tokens`, is shared by all threads."""
    encoded = (tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces)
    return [token for ids in encoded for token in ids]


def _plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text in which nothing is a marker."""
    ends = [match.end() for match in _markers(tokenizer).finditer(text)]
    return _joined(tokenizer, [text[at:to] for at, to in pairwise([0, *ends, len(text)])])


def eos_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end the assistant's turn."""
    return frozenset([int(tokenizer.eos_token_id), end_id(tokenizer)])


def end_id(tokenizer: Tokenizer) -> int:
    """The token with which the template ends an assistant's turn: the first special one behind
    what it said. Not every tokenizer calls that its end-of-sequence token; that one is taken where
    the template ends turns with none."""
    known = _turn_ends.setdefault(tokenizer, {})
    template = template_hash(tokenizer)
    if template not in known:
        known[template] = _rendered_end(tokenizer)
    return known[template]


_turn_ends: WeakKeyDictionary[Tokenizer, dict[str, int]] = WeakKeyDictionary()


def _rendered_end(tokenizer: Tokenizer) -> int:
    said = "\ue0f0"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template may refuse by any error
        text = ""
    behind = text.rpartition(said)[2]
    special = {
        str(one): token for token, one in tokenizer.added_tokens_decoder.items() if one.special
    }
    found = [(behind.index(name), token) for name, token in special.items() if name in behind]
    return int(min(found)[1] if found else tokenizer.eos_token_id)


def completion_ids(tokenizer: Tokenizer, completion: Completion) -> list[int]:
    """The completion's tokens, ending with the end-of-turn token unless it was cut off.

    Stored tokens are used as they are: decoding and encoding again need not give them back. One
    that a stop string ended is its text, closed like text from elsewhere: the string's own tokens
    are not part of what anybody read.
    Lengths, never token values, say what is padding: the pad token may be the end-of-turn token.
    """
    if completion.token_ids and not _is_cut_by_string(tokenizer, completion):
        return list(completion.token_ids)
    ended = [] if completion.finish_reason == "length" else [end_id(tokenizer)]
    return _plain_ids(tokenizer, completion.text) + ended


def _is_cut_by_string(tokenizer: Tokenizer, completion: Completion) -> bool:
    drawn, ids = completion.sampling, completion.token_ids
    if not ids or not drawn or not drawn.stop or completion.finish_reason != "stop":
        return False
    return ids[-1] not in eos_ids(tokenizer)


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of drawn tokens, special tokens left out."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))
