"""The step from interactions to flags."""

from trueup.flag.config import FlagConfig
from trueup.flag.signals import Population, signals
from trueup.progress import task
from trueup.records import Feedback, Flag, Interaction
from trueup.store import Store

__all__ = ["FLAGGER", "run"]

FLAGGER = "signals/1"


def run(store: Store, config: FlagConfig) -> list[Flag]:
    """Score new interactions by cheap signals and raise a flag on the weak ones.

    Reads:   interactions without a flag of this flagger; feedback on any interaction.
    Writes:  one Flag an interaction, raised or not, in one transaction. A thumb down or an edit
             that came after the first flag gives a second, raised one.
    Again:   writes nothing until there is new traffic or feedback.
    Killed:  all flags of the call or none.
    Cost:    no model calls; linear in interactions.
    Next:    label.run
    """
    feedback: dict[str, list[Feedback]] = {}
    for one in store.each(Feedback):
        feedback.setdefault(one.interaction_id, []).append(one)
    raised: dict[str, bool] = {}
    for flag in store.each(Flag, flagger=FLAGGER):
        raised[flag.interaction_id] = raised.get(flag.interaction_id, False) or flag.raised
    traffic = store.all(Interaction)
    population = Population(traffic)
    flags = []
    with task("flag", len(traffic)) as advance:
        for interaction in traffic:
            advance(1)
            is_known, said = interaction.id in raised, feedback.get(interaction.id, [])
            if is_known and (raised[interaction.id] or not said):
                continue
            flag = _flag(interaction, signals(interaction, said, population, config), config)
            if flag.raised or not is_known:
                flags.append(flag)
    store.add_all(flags)
    return flags


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
