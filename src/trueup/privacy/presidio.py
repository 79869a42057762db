"""Names and places, which have no form: found by Microsoft Presidio and a language model."""

import threading
from typing import Any

from trueup.errors import ConfigError, MissingDependency
from trueup.privacy.scrub import Finder, Seen, placeholder

__all__ = ["presidio_finder"]

ENTITIES = ["PERSON", "LOCATION", "NRP", "MEDICAL_LICENSE", "US_PASSPORT", "US_DRIVER_LICENSE"]
MIN_SCORE = 0.5


def presidio_finder(model: str) -> Finder:
    """What hides the entities that Presidio finds with this spaCy model. Slow beside patterns:
    milliseconds a text.

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
    if not spacy.util.is_package(model):
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

    def find(text: str, seen: Seen) -> str:
        with lock:
            found = engine.analyze(
                text=text, language="en", entities=ENTITIES, score_threshold=MIN_SCORE
            )
        end = len(text) + 1
        for one in sorted(found, key=lambda f: (-f.end, f.start)):
            if one.end <= end and "<" not in text[one.start : one.end]:
                hidden = placeholder(one.entity_type, text[one.start : one.end], seen)
                text = text[: one.start] + hidden + text[one.end :]
                end = one.start
        return text

    return find
