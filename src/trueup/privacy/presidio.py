"""Names and places, which have no form: found by Microsoft Presidio and a language model."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trueup.errors import ConfigError, MissingDependency
from trueup.privacy.scrub import Finder, Seen, placeholder

__all__ = ["presidio_finder"]

ENTITIES = ["PERSON", "LOCATION", "NRP", "MEDICAL_LICENSE", "US_PASSPORT", "US_DRIVER_LICENSE"]
MIN_SCORE = 0.4
"""What Presidio gives a number that fits, with a word such as 'passport' beside it."""
MAX_CHARS = 20_000
"""Read at once: a language model takes memory by the length, and refuses a million."""
PLACEHOLDER = re.compile(r"<[A-Z_]+_\d+>")


class _Span(NamedTuple):
    start: int
    end: int
    kind: str


def presidio_finder(model: str) -> Finder:
    """What hides the entities that Presidio finds with this spaCy model. Slow beside patterns:
    milliseconds a text.

    Args:
        model: a package, or the folder of a pipeline that was saved.

    Raises:
        MissingDependency: Presidio is not installed. ConfigError: the model is not.
    """
    try:
        import spacy.util  # pyright: ignore[reportMissingImports]
        from presidio_analyzer import AnalyzerEngine  # pyright: ignore[reportMissingImports]
        from presidio_analyzer.nlp_engine import NlpEngineProvider  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"'{error.name}' is not installed",
            expected="the extra 'presidio', or another privacy.scrubber",
            next="pip install 'trueup[presidio]'",
        ) from None
    if not (spacy.util.is_package(model) or Path(model).is_dir()):
        raise ConfigError(  # Presidio would try to download it
            "The language model of Presidio is not installed",
            got=model,
            expected="a spaCy model on this machine in privacy.presidio_model",
            next=f"python -m spacy download {model}",
        )
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    engine: Any = AnalyzerEngine(
        nlp_engine=NlpEngineProvider(nlp_configuration=settings).create_engine(),
        supported_languages=["en"],
    )
    lock = threading.Lock()

    def found_in(text: str) -> Iterator[_Span]:
        # what earlier finders have put there is no name, and would be taken for one
        text = PLACEHOLDER.sub(lambda match: " " * len(match.group()), text)
        for at in _starts(text):
            with lock:
                found = engine.analyze(
                    text=text[at : at + MAX_CHARS],
                    language="en",
                    entities=ENTITIES,
                    score_threshold=MIN_SCORE,
                )
            yield from (_Span(at + one.start, at + one.end, one.entity_type) for one in found)

    def find(text: str, seen: Seen) -> str:
        parts, end = list[str](), 0
        for one in _apart(found_in(text)):
            hidden = placeholder(one.kind, text[one.start : one.end], seen)
            parts += [text[end : one.start], hidden]
            end = one.end
        return "".join((*parts, text[end:]))

    return find


def _starts(text: str) -> Iterator[int]:
    """Where to read from, a piece at a time, so that a name that one piece cuts is whole in the
    next."""
    at = 0
    while True:
        yield at
        if at + MAX_CHARS >= len(text):
            return
        space = text.rfind(" ", at + MAX_CHARS - 1000, at + MAX_CHARS - 200)
        at = space if space > 0 else at + MAX_CHARS - 200


def _apart(found: Iterator[_Span]) -> list[_Span]:
    """In the order of the text, overlapping ones as one."""
    apart: list[_Span] = []
    for one in sorted(found, key=lambda span: (span.start, -span.end)):
        if apart and one.start < apart[-1].end:
            apart[-1] = apart[-1]._replace(end=max(apart[-1].end, one.end))
        else:
            apart.append(one)
    return apart
