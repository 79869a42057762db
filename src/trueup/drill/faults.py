"""What is planted: six faults, each at three strengths, and the honest candidate beside them.

A fault is planted where it would arise: in what the labeller feels, in what a candidate is
taught, in how the judge answers. Nothing is done to the gates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from trueup.drill.arena import Answer, Arena
from trueup.judges.scripted import ScriptedJudge
from trueup.loop import Turn
from trueup.toy.labellers import GoldJudge
from trueup.toy.language import FILLERS

__all__ = ["CONTROL", "FAULTS", "JUDGES", "Fault"]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, in three degrees."""

    name: str
    says: str
    """What it is, for the table's legend."""
    strengths: tuple[float, ...]
    """The mildest first."""
    unit: str
    """What a strength is."""
    kind: Literal["labeller", "candidate", "judge"]
    labeller: str = ""
    """Kind `labeller`: its name in the settings, with `{strength}` and `{seed}` in it."""
    teach: Callable[[Arena, float], Turn] | None = field(default=None, repr=False)
    """Kind `candidate`: makes one and puts it to the gates."""
    is_universal: bool = False
    """Can be planted in any model, not only where the truth is known."""
    judge: Callable[[float, int], ScriptedJudge] | None = field(default=None, repr=False)
    """Kind `judge`: the judge of this strength and seed."""


CANNED = " ".join(FILLERS)
"""In either language an answer that says nothing."""

CANNED_EPOCHS = 20
"""What is learned against everything the model knows takes longer than what it says anyway."""


# --- candidates -----------------------------------------------------------------------------------


def _collapsed(arena: Arena, temperature: float) -> Turn:
    """Learned its own answers, drawn so cold that little but the likeliest is left of them."""
    asked = arena.asked(1)
    said = arena.says(asked, temperature=temperature, num_samples=2)
    told = [(p, text) for p, texts in zip(asked, said, strict=True) for text in texts if text]
    return arena.taught([*told, *arena.right_answers()])


def _constant(arena: Arena, share: float) -> Turn:
    """Learned to say one thing to this share of the prompts, and to the others what it would."""
    asked, rng = arena.asked(1), arena.random()
    said = arena.says(asked)
    told = [
        (p, CANNED if rng.random() < share else texts[0])
        for p, texts in zip(asked, said, strict=True)
    ]
    told = [one for one in told if one[1]]
    return arena.taught([*told, *arena.right_answers()], epochs=CANNED_EPOCHS)


def _forgetting(arena: Arena, share: float) -> Turn:
    """Learned better answers, and this share of what it could do before wrong: words backwards."""
    rng = arena.random()
    copies = [
        (p, " ".join(reversed(text.split())) if rng.random() < share else text)
        for p, text in arena.right_answers()
    ]
    return arena.taught([*_best_answers(arena), *copies])


def _best_answers(arena: Arena) -> list[Answer]:
    """The best of four of the champion's own, by the truth."""
    asked, judge = arena.asked(1), GoldJudge()
    said = arena.says(asked, num_samples=4)
    return [(p, max(texts, key=judge.gold_of(p))) for p, texts in zip(asked, said, strict=True)]


# --- judges ---------------------------------------------------------------------------------------


def _places(strength: float, seed: int) -> ScriptedJudge:
    return ScriptedJudge(accuracy=0.95, position_bias=strength, seed=seed)


def _lengths(strength: float, seed: int) -> ScriptedJudge:
    return ScriptedJudge(accuracy=0.95, length_bias=strength, seed=seed)


def _fair(strength: float, seed: int) -> ScriptedJudge:
    return ScriptedJudge(accuracy=0.95, seed=seed)


# --- all of them ----------------------------------------------------------------------------------

FAULTS = (
    Fault(
        "length-loving labeller",
        "whoever labels feels so much better about every further word",
        (0.25, 0.5, 1.0),
        "logits a word",
        "labeller",
        labeller="toy-labeller(length_bias={strength},seed={seed})",
    ),
    Fault(
        "flipped labels",
        "a share of the labels is the wrong way round",
        (0.5, 0.7, 0.9),
        "share",
        "labeller",
        labeller="toy-labeller(flips={strength},seed={seed})",
    ),
    Fault(
        "collapsed candidate",
        "learned its own answers, drawn cold",
        (0.5, 0.3, 0.1),
        "temperature",
        "candidate",
        teach=_collapsed,
        is_universal=True,
    ),
    Fault(
        "constant answer",
        "says one thing to a share of all prompts",
        (0.3, 0.6, 1.0),
        "share",
        "candidate",
        teach=_constant,
        is_universal=True,
    ),
    Fault(
        "forgetting candidate",
        "learned better answers and a share of wrong copies",
        (0.3, 0.6, 1.0),
        "share",
        "candidate",
        teach=_forgetting,
    ),
    Fault(
        "judge that favours places",
        "a language model says A whatever stands there",
        (0.4, 0.6, 0.8),
        "share",
        "judge",
        judge=_places,
    ),
    Fault(
        "judge that favours length",
        "a language model names the longer answer whatever it says",
        (0.5, 0.7, 0.9),
        "share",
        "judge",
        judge=_lengths,
    ),
)

CONTROL = Fault(
    "honest candidate",
    "trained on fair labels; it must pass every gate",
    (0.0,),
    "",
    "labeller",
    labeller="toy-labeller(seed={seed})",
)

JUDGES = Fault(
    "fair judge",
    "right 19 times in 20 and without a bias; it must pass its audit",
    (0.0,),
    "",
    "judge",
    judge=_fair,
)


def named() -> Iterator[Fault]:
    """Faults and controls."""
    yield from (*FAULTS, CONTROL, JUDGES)
