"""Weeks of contests without a model: answers that are known beforehand, real records, real gates.

A candidate has a skill; its answer to a prompt is `good` or `poor` by a draw of its own, with as
many words after it as it is wordy. The scorer below prefers good answers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trueup import ab, promote
from trueup.models.backbone import adapter_weights
from trueup.records import (
    ABReport,
    Checkpoint,
    Completion,
    Message,
    Messages,
    Release,
    Sampling,
    Verdict,
)
from trueup.store import Store
from trueup.suite import SuitePrompt

BASE = "weights_base"
SAMPLING = Sampling(max_tokens=8, seed=0)


def good(_: Messages, answer: str) -> float:
    """The scorer: named in settings as `weeks:good`."""
    return float(answer.startswith("good"))


def suite(prompts: int, strata: Sequence[str] = ("",)) -> list[SuitePrompt]:
    return [
        SuitePrompt(
            messages=(Message(role="user", content=f"question {i}"),),
            stratum=strata[i % len(strata)],
        )
        for i in range(prompts)
    ]


@dataclass
class Answers:
    """Weights that answer as they were told to; what the A/B test asks of a stored model."""

    weights: str
    checkpoint: Checkpoint | None
    skill: float
    words: int = 3

    def samples(
        self, store: Store, prompts: Sequence[Messages], sampling: Sampling, *, num_samples: int,
        name: str,
    ) -> list[tuple[Completion, ...]]:  # fmt: skip
        return [tuple(self._answer(p, n) for n in range(num_samples)) for p in prompts]

    def _answer(self, prompt: Messages, sample: int) -> Completion:
        draw = random.Random(f"{self.weights} {prompt[-1].content} {sample}")
        word = "good" if draw.random() < self.skill else "poor"
        return Completion(text=word + " word" * (self.words + draw.randrange(3)))


def first(store: Store, skill: float = 0.5) -> Answers:
    """The base model, released."""
    store.release(Release(action="first", weights=BASE))
    return Answers(BASE, None, skill)


def candidate(store: Store, name: str, skill: float, words: int = 3) -> Answers:
    """A checkpoint whose files are the weights on record."""
    folder = store.folder / name
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(name)
    weights = adapter_weights(BASE, folder)
    checkpoint = Checkpoint(run_id=f"run_{name}", path=name, weights=weights, base_weights=BASE)
    store.add(checkpoint)
    return Answers(weights, checkpoint, skill, words)


def contest(
    store: Store, ours: Answers, theirs: Answers, *, prompts: int = 60, samples: int = 2,
    config: ab.ABConfig | None = None, **options,
) -> ABReport:  # fmt: skip
    config = config or ab.ABConfig(scorer="weeks:good")
    return ab.run(store, config, ours, theirs, suite(prompts), SAMPLING, samples, **options)  # type: ignore[arg-type]


def promoted(store: Store, ours: Answers, **reports: ABReport) -> Verdict:
    assert ours.checkpoint
    config = promote.PromoteConfig(gates=("ab",))
    return promote.run(store, config, ours.checkpoint, reports)


def opened(folder: Path) -> Store:
    return Store(folder / "store")
