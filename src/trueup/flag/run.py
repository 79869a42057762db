"""The step from interactions to flags."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trueup.errors import ConfigError
from trueup.flag.config import FlagConfig
from trueup.flag.keeping import current, known_of
from trueup.flag.learn import Learned
from trueup.flag.llm import ask
from trueup.flag.select import select
from trueup.flag.signals import Context, Population, rating_of, score
from trueup.flag.signals.conduct import is_dislike
from trueup.flag.signals.grounding import claims, context_of
from trueup.judges import text
from trueup.models.embedder import Embedder
from trueup.models.entailment import Entailment
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import Feedback, Flag, Interaction, Messages, Sampling
from trueup.store import Store

__all__ = ["FLAGGER", "Examined", "Parts", "run"]

FLAGGER = "signals/2"

CERTAIN = ("empty", "feedback", "error", "bad_call")
"""Signals that call for a look whatever a learned flagger makes of them."""

TOLD = ("unlikely_token", "unlikely_share", "uncertain")
"""Signals that are kept with a flag for a learned flagger and raise none by themselves: they say
again what `unlikely` says, and on labelled answers less well."""

BATCH = 256  # interactions whose sentences are embedded together


@dataclass(frozen=True)
class Parts:
    """Models that some signals need, each made when it is first asked for."""

    embedder: Callable[[], Embedder] | None = None
    champion: Callable[[], StoredModel] | None = None
    folder: Path = Path()
    """Where relative names of the settings start: the project's."""


class Examined(list[Flag]):
    """The flags of a call, and what a person should know of it, counted."""

    def __init__(self, flags: Sequence[Flag] = ()) -> None:
        super().__init__(flags)
        self.notes: Counter[str] = Counter()


def run(store: Store, config: FlagConfig, parts: Parts | None = None) -> Examined:
    """Score new interactions and raise a flag on the weak ones.

    Reads:   interactions without a flag of this version of the signals or of a learned flagger;
             feedback on any interaction.
    Writes:  one Flag an interaction, raised or not, in one transaction. A thumb down or an edit
             that came after the first flag gives a second, raised one.
    Skips:   the texts of answers that an error broke off.
    Again:   writes nothing until there is new traffic or feedback.
    Killed:  all flags of the call or none; drawn samples and a language model's grades are kept.
    Stops:   ConfigError, ModelError, DataError: a word list, a model or the learned flagger cannot
             be read. A language model that is down stops nothing and is counted in `notes`.
    Cost:    linear in interactions, of which those that wait are in memory; no model calls but
             those that the settings ask for.
    Next:    label.run

    Args:
        parts: the project's models. Without them, the signals that need one are left out.
    """
    parts = parts or Parts()
    feedback: dict[str, list[Feedback]] = {}
    for one in filter(is_dislike, store.each(Feedback)):
        feedback.setdefault(one.interaction_id, []).append(one)
    raised: dict[str, bool] = {}
    for flag in store.each(Flag):
        if flag.flagger == FLAGGER or flag.flagger.startswith("learned/"):
            raised[flag.interaction_id] = raised.get(flag.interaction_id, False) or flag.raised
    ids = [
        one
        for (one,) in store.values(Interaction, "id")
        if one not in raised or (not raised[one] and feedback.get(one))
    ]
    waiting = store.get_all(Interaction, ids)
    population = Population(store.each(Interaction) if waiting else ())
    contexts = _contexts(store, config, parts, population, waiting, feedback)
    flags = Examined()
    with task("flag", len(waiting)) as advance:
        found = []
        for interaction, context in zip(waiting, contexts, strict=True):
            found.append(score(interaction, context))
            advance(1)
    learned = current(store) if config.learned and waiting else None
    if learned:
        _add_learned(learned, found, waiting, population, config, parts)
    if config.llm_budget and waiting:
        _add_grades(flags, found, waiting, config, store)
    name = learned.id if learned else FLAGGER
    made = [_flag(one, told, name, config) for one, told in zip(waiting, found, strict=True)]
    fresh = [n for n, one in enumerate(waiting) if one.id not in raised]
    late = [made[n] for n, one in enumerate(waiting) if one.id in raised and made[n].raised]
    new = [waiting[n] for n in fresh]
    picked = select([made[n] for n in fresh], new, config.select, _prompt_vectors(parts))
    order = {one.id: place for place, one in enumerate(waiting)}
    flags.extend(sorted([*picked, *late], key=lambda flag: order[flag.interaction_id]))
    store.add_all(flags)
    return flags


def _add_learned(
    learned: Learned,
    found: Sequence[dict[str, float]],
    waiting: Sequence[Interaction],
    population: Population,
    config: FlagConfig,
    parts: Parts,
) -> None:
    """Put the learned flagger's score beside the signals, 0.5 where its chance is
    `flag.worth_a_label`. An answer that broke off has none."""
    whole = [n for n, one in enumerate(waiting) if not one.error]
    embedder = parts.embedder() if parts.embedder and learned.embedder else None
    if learned.embedder and (embedder is None or embedder.id != learned.embedder):
        raise ConfigError(
            "The learned flagger needs the embedder it was trained with",
            got=embedder.id if embedder else None,
            expected=learned.embedder,
            next="set embedder.name back, train again, or set flag.learned = false",
        )
    known = known_of([waiting[n] for n in whole], population, config, embedder)
    line = config.worth_a_label
    for n, chance in zip(whole, learned.chances(known).tolist(), strict=True):
        over = 0.5 + 0.5 * (chance - line) / (1 - line)
        found[n]["chance"] = round(chance, 4)
        found[n]["learned"] = round(min(1.0, 0.5 * chance / line if chance < line else over), 4)


def _add_grades(
    flags: Examined,
    found: Sequence[dict[str, float]],
    waiting: Sequence[Interaction],
    config: FlagConfig,
    store: Store,
) -> None:
    """Ask a language model about those next under the threshold."""
    scores = {n: _score_of(found[n]) for n, one in enumerate(waiting) if not one.error}
    under = [n for n, value in scores.items() if value < config.threshold]
    under.sort(key=lambda n: -scores[n])
    asked = {waiting[n].id: n for n in under[: config.llm_budget]}
    grades, missed = ask([waiting[n] for n in asked.values()], config.endpoint, store)
    for name, value in grades.items():
        found[asked[name]]["llm"] = value
    if missed:
        flags.notes["answers that the language model gave no grade"] += missed


def _prompt_vectors(parts: Parts) -> Callable[[Sequence[Interaction]], np.ndarray] | None:
    embedder = parts.embedder
    if embedder is None:
        return None
    return lambda new: embedder()([i.prompt[-1].content if i.prompt else "" for i in new])


def _contexts(
    store: Store,
    config: FlagConfig,
    parts: Parts,
    population: Population,
    waiting: Sequence[Interaction],
    feedback: dict[str, list[Feedback]],
) -> list[Context]:
    """What is known beside each interaction that waits."""
    if not waiting:
        return []
    samples = _samples(store, config, parts, waiting)
    grounded = [one for one in waiting if context_of(one)]
    entailment = Entailment(parts.folder / config.nli_model) if config.nli_model else None
    needs = (config.min_similarity and grounded) or samples
    embedder = parts.embedder() if parts.embedder and needs else None
    if embedder and config.min_similarity:
        _embed(embedder, grounded)
    return [
        Context(
            population,
            config,
            feedback.get(one.id, ()),
            rating_of(one),
            embedder,
            entailment,
            samples.get(one.prompt, ()),
        )
        for one in waiting
    ]


def _embed(embedder: Embedder, grounded: Sequence[Interaction]) -> None:
    """Many sentences in one call, which the signal then finds known."""
    with task("embed", len(grounded)) as advance:
        for at in range(0, len(grounded), BATCH):
            part = grounded[at : at + BATCH]
            embedder([s for i in part for s in (*claims(i), *text.sentences(context_of(i)))])
            advance(len(part))


def _samples(
    store: Store, config: FlagConfig, parts: Parts, waiting: Sequence[Interaction]
) -> dict[Messages, tuple[str, ...]]:
    """Further answers to the prompts, where the settings ask for them."""
    k, most = config.consistency_samples, config.consistency_tokens
    if not k or parts.champion is None:
        return {}
    champion = parts.champion()
    prompts = [
        p
        for p in dict.fromkeys(i.prompt for i in waiting if not i.error and not i.tools)
        if champion.fits(p, most)
    ]
    sampling = Sampling(max_tokens=most, seed=0)  # every prompt derives its own from it
    drawn = champion.samples(store, prompts, sampling, num_samples=k, name="ask again")
    return {p: tuple(c.text for c in own) for p, own in zip(prompts, drawn, strict=True)}


def _flag(
    interaction: Interaction, found: dict[str, float], flagger: str, config: FlagConfig
) -> Flag:
    reasons = tuple(n for n in _deciding(found) if found[n] >= config.threshold)
    score = _score_of(found)
    return Flag(
        interaction_id=interaction.id,
        flagger=flagger,
        score=score,
        raised=score >= config.threshold,
        reasons=reasons,
        signals=found,
    )


def _score_of(found: dict[str, float]) -> float:
    return max((found[name] for name in _deciding(found)), default=0.0)


def _deciding(found: dict[str, float]) -> list[str]:
    """The signals whose worst is the score. Where a learned flagger has weighed them, it stands for
    all but those that are no guess."""
    if "learned" in found:
        return [name for name in found if name in (*CERTAIN, "learned", "llm")]
    return [name for name in found if name not in TOLD]
