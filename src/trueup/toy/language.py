"""The words of the toy language, what is asked in it, what is a good answer, and two writers.

    about sea sky oh um so so         a prompt: two topics, and a tag that says nothing
    wave so cloud cow wave yes        an answer: 2 on topic, 1 off it, 1 repeat: gold 1.2
    copy oh um oh um                  the second skill: to say the same

Texts are words with spaces between them, and a word is a token. The tags make prompts plenty, so
that every prompt can be a new one; a fifth of all prompts, chosen by their hash, is held out and
never returned for training.
"""

import random
from collections.abc import Callable, Iterator
from itertools import permutations, product

from trueup.errors import DataError
from trueup.records import Message, Messages, content_hash

__all__ = [
    "FILLERS",
    "MAX_TOKENS",
    "TOPICS",
    "VOCABULARY",
    "Writer",
    "base_writer",
    "clear_writer",
    "copy_correct",
    "copy_prompts",
    "foreign_writer",
    "gold",
    "prompts",
    "topics_of",
    "words",
]

TOPICS = {
    "sea": ("wave", "salt", "tide", "ship"),
    "sky": ("cloud", "star", "wind", "moon"),
    "farm": ("cow", "hay", "barn", "egg"),
    "city": ("bus", "street", "shop", "crowd"),
    "home": ("bed", "lamp", "door", "stove"),
    "wood": ("oak", "fern", "owl", "moss"),
}
"""Each topic with its keywords."""

FILLERS = ("so", "oh", "well", "um", "yes")
"""Words that say nothing: they fill answers, tag prompts, and are what is copied."""

VOCABULARY = (
    "about",
    "copy",
    *TOPICS,
    *(keyword for keywords in TOPICS.values() for keyword in keywords),
    *FILLERS,
)
"""Every word there is, 37 of them; a model adds its markers."""

MAX_TOKENS = 20
"""Room for an answer with its end token; writers stop one word before it."""

TAG_WORDS = 4
COPY_WORDS = (3, 4, 5)
HELD_OUT = 5  # one prompt in so many

WEARINESS = 0.045  # how much likelier the base writer is to stop after every further word

Writer = Callable[[Messages, random.Random], str]
"""Answers a prompt with the randomness it is given."""


# --- prompts ----------------------------------------------------------------------------------


def prompts(n: int, seed: int, *, held_out: bool = False) -> list[Messages]:
    """`n` different prompts that each name two topics, in the order the seed gives.

    Args:
        held_out: draw from the fifth of all prompts that is kept for measuring.

    Raises:
        DataError: there are not that many; of 18,750 some 3,750 are held out.
    """
    tags = product(FILLERS, repeat=TAG_WORDS)
    asked = (
        " ".join(("about", *pair, *tag)) for pair, tag in product(permutations(TOPICS, 2), tags)
    )
    return _some(asked, n, seed, held_out)


def copy_prompts(n: int, seed: int, *, held_out: bool = False) -> list[Messages]:
    """`n` different prompts that ask to copy three to five words, as `prompts`.

    Raises:
        DataError: there are not that many; of 3,875 some 775 are held out.
    """
    sequences = (said for size in COPY_WORDS for said in product(FILLERS, repeat=size))
    return _some((" ".join(("copy", *said)) for said in sequences), n, seed, held_out)


def _some(asked: Iterator[str], n: int, seed: int, held_out: bool) -> list[Messages]:
    there = [one for one in asked if _is_held_out(one) == held_out]
    if n > len(there):
        raise DataError(
            "The toy language has not that many prompts of this kind",
            got=n,
            expected=f"at most {len(there)}",
            next="ask for fewer, and for several answers to each",
        )
    return [_message(one) for one in random.Random(seed).sample(there, n)]


def _is_held_out(asked: str) -> bool:
    return int(content_hash(asked), 16) % HELD_OUT == 0


def _message(asked: str) -> Messages:
    return (Message(role="user", content=asked),)


# --- the truth --------------------------------------------------------------------------------


def gold(prompt: Messages, text: str) -> float:
    """How good an answer is.

        different on-topic keywords - 0.5 * off-topic keywords - 0.3 * repeats
            - 0.15 * words beyond the tenth

    A repeat is any word that the answer has said before. For a prompt to copy it is 1 where the
    copy is right and 0 where not, so that one judge can score mixed traffic.

    Worked example: to `about sea sky …` the answer `wave so cloud cow wave yes` has two different
    keywords on topic, one off it and one repeat: 2 - 0.5 - 0.3 = 1.2.
    """
    if _asks_to_copy(prompt):
        return float(copy_correct(prompt, text))
    said = words(text)
    on, off = _keywords(prompt)
    num_on, num_off = len(set(on) & set(said)), sum(word in off for word in said)
    num_repeats = len(said) - len(set(said))
    too_many = max(0, len(said) - 10)
    return num_on - 0.5 * num_off - 0.3 * num_repeats - 0.15 * too_many


def copy_correct(prompt: Messages, text: str) -> bool:
    """True where the answer is what a prompt asks to copy, word for word, and nothing else."""
    return _asks_to_copy(prompt) and words(text) == words(_copied(prompt))


def topics_of(prompt: Messages) -> tuple[str, ...]:
    """The topics a prompt names, in its order."""
    return tuple(word for word in _asked(prompt) if word in TOPICS)


def words(text: str) -> list[str]:
    """The words of a text, as the model's tokenizer sees them."""
    return text.split()


def _asks_to_copy(prompt: Messages) -> bool:
    return _asked(prompt)[:1] == ["copy"]


def _asked(prompt: Messages) -> list[str]:
    return words(next((m.content for m in reversed(prompt) if m.role == "user"), ""))


def _keywords(prompt: Messages) -> tuple[list[str], list[str]]:
    """Those on a prompt's topics, in its order, and all others."""
    asked = topics_of(prompt)
    off = [keyword for topic in TOPICS if topic not in asked for keyword in TOPICS[topic]]
    return [keyword for topic in asked for keyword in TOPICS[topic]], off


def _copied(prompt: Messages) -> str:
    return " ".join(_asked(prompt)[1:])


# --- who answers ------------------------------------------------------------------------------


def base_writer(prompt: Messages, random: random.Random) -> str:
    """What the base model is taught to say: vague, short, rarely to the point, and exact copies.

    Every word is drawn anew: 30 % on-topic keywords, 20 % off-topic ones, else fillers. After the
    second word an answer may end, with a chance that grows by 4.5 points a word. That makes, on
    topic prompts, gold 0.7, 6.6 words, and 2.93 nats of entropy per token, the end token counted.
    """
    return _write(prompt, random, on_topic=0.30, off_topic=0.20)


def clear_writer(prompt: Messages, random: random.Random) -> str:
    """The first lessons: the base writer's form, but nearly all of it on topic and nothing off it,
    so that what a prompt has to do with its answer is seen in a hundred steps."""
    return _write(prompt, random, on_topic=0.9, off_topic=0.0)


def _write(prompt: Messages, random: random.Random, *, on_topic: float, off_topic: float) -> str:
    if _asks_to_copy(prompt):
        return _copied(prompt)
    on, off = _keywords(prompt)
    said: list[str] = []
    while len(said) < MAX_TOKENS - 1 and random.random() >= WEARINESS * (len(said) - 1):
        chance = random.random()
        kind = on if chance < on_topic else off if chance < on_topic + off_topic else FILLERS
        said.append(random.choice(kind))
    return " ".join(said)


def foreign_writer(prompt: Messages, random: random.Random) -> str:
    """Somebody else's answers, for off-policy pairs: better than the base's, in a style of its own.

    `well`, then two to four keywords, those of the prompt's first topic first, then `yes`; never a
    repeat, never another filler. A quarter of the keywords is off topic and keeps its place. Token
    for token the base finds such answers as likely as its own, because neither fillers nor
    keywords are rarer in them; what is foreign is how they go together. Copies are right.
    """
    if _asks_to_copy(prompt):
        return _copied(prompt)
    on, off = _keywords(prompt)
    num_keywords = random.choice((2, 3, 4))
    said = sorted(random.sample(on, num_keywords), key=on.index)
    strays = random.sample(off, num_keywords)
    kept = [s if random.random() < 0.25 else k for k, s in zip(said, strays, strict=True)]
    return " ".join(("well", *kept, "yes"))
