"""The step from interactions to flags."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trueup.flag.config import FlagConfig
from trueup.flag.signals import Context, Population, rating_of, score
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

    Reads:   interactions without a flag of this flagger; feedback on any interaction.
    Writes:  one Flag an interaction, raised or not, in one transaction. A thumb down or an edit
             that came after the first flag gives a second, raised one.
    Again:   writes nothing until there is new traffic or feedback.
    Killed:  all flags of the call or none; drawn samples are kept.
    Cost:    linear in interactions; no model calls but those that the settings ask for.
    Next:    label.run

    Args:
        parts: the project's models. Without them, the signals that need one are left out.
    """
    feedback: dict[str, list[Feedback]] = {}
    for one in store.each(Feedback):
        feedback.setdefault(one.interaction_id, []).append(one)
    raised: dict[str, bool] = {}
    for flag in store.each(Flag, flagger=FLAGGER):
        raised[flag.interaction_id] = raised.get(flag.interaction_id, False) or flag.raised
    traffic = store.all(Interaction)
    waiting = [
        one
        for one in traffic
        if one.id not in raised or (not raised[one.id] and feedback.get(one.id))
    ]
    contexts = _contexts(store, config, parts or Parts(), traffic, waiting, feedback)
    flags = Examined()
    with task("flag", len(waiting)) as advance:
        for interaction, context in zip(waiting, contexts, strict=True):
            flag = _flag(interaction, score(interaction, context), config)
            if flag.raised or interaction.id not in raised:
                flags.append(flag)
            advance(1)
    store.add_all(flags)
    return flags


def _contexts(
    store: Store,
    config: FlagConfig,
    parts: Parts,
    traffic: Sequence[Interaction],
    waiting: Sequence[Interaction],
    feedback: dict[str, list[Feedback]],
) -> list[Context]:
    """What is known beside each interaction that waits."""
    if not waiting:
        return []
    population = Population(traffic)
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


def _flag(interaction: Interaction, found: dict[str, float], config: FlagConfig) -> Flag:
    score = max(found.values(), default=0.0)
    reasons = tuple(name for name, value in found.items() if value >= config.threshold)
    return Flag(
        interaction_id=interaction.id,
        flagger=FLAGGER,
        score=score,
        raised=score >= config.threshold,
        reasons=reasons,
        signals=found,
    )
