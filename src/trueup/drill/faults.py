"""What is planted: six faults, each at three strengths, and the honest candidate beside them.

A fault is planted where it would arise: in what the labeller feels, in what a candidate is
taught, in how the judge answers. Nothing is done to the gates.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from trueup.drill.arena import Answer, Arena
from trueup.judges.scripted import ScriptedJudge
from trueup.loop import Turn
from trueup.toy.language import FILLERS

__all__ = ["CONTROL", "FAULTS", "JUDGES", "WELL_TAUGHT", "Fault"]


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
    gates: tuple[str, ...]
    """Who should stop it. Another gate may as well, by chance or for want of merit; that counts as
    stopped and not as caught."""
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

EPOCHS = 20
"""Over what a candidate is taught; what is learned against all it knows takes as many."""


# --- candidates -----------------------------------------------------------------------------------


def _well_taught(arena: Arena, temperature: float = 1.0) -> Turn:
    """Learned the best of its own answers, as far as anybody can tell."""
    told = [*_good_answers(arena, temperature), *arena.right_answers()]
    return arena.taught(told, epochs=EPOCHS)


def _constant(arena: Arena, share: float) -> Turn:
    """Learned to say one thing to this share of the prompts, and good answers to the others."""
    rng = arena.random()
    told = [(p, CANNED if rng.random() < share else text) for p, text in _good_answers(arena)]
    return arena.taught([*told, *arena.right_answers()], epochs=EPOCHS)


def _forgetting(arena: Arena, share: float) -> Turn:
    """Learned good answers, and this share of what it could do before wrong: words backwards."""
    rng = arena.random()
    before = [
        (p, " ".join(reversed(text.split())) if rng.random() < share else text)
        for p, text in arena.right_answers()
    ]
    return arena.taught([*_good_answers(arena), *before], epochs=EPOCHS)


def _good_answers(arena: Arena, temperature: float = 1.0) -> list[Answer]:
    """Good ones, so that a fault is not caught for want of merit: the best of four of the
    champion's own, drawn at this temperature."""
    asked = arena.asked(1)
    said = arena.says(asked, temperature=temperature, num_samples=4)
    told = [(p, arena.best(p, texts)) for p, texts in zip(asked, said, strict=True)]
    return [one for one in told if one[1]]


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
        ("guard",),
        labeller="toy-labeller(length_bias={strength},seed={seed})",
    ),
    Fault(
        "flipped labels",
        "a share of the labels is the wrong way round",
        (0.5, 0.7, 0.9),
        "share",
        "labeller",
        ("guard", "ab"),
        labeller="toy-labeller(flips={strength},seed={seed})",
    ),
    Fault(
        "collapsed candidate",
        "learned good answers of its own that were drawn cold",
        (0.2, 0.1, 0.05),
        "temperature",
        "candidate",
        ("guard",),
        teach=_well_taught,
        is_universal=True,
    ),
    Fault(
        "constant answer",
        "learned good answers, and one thing to say to a share of all prompts",
        (0.5, 0.75, 1.0),
        "share",
        "candidate",
        ("guard",),
        teach=_constant,
        is_universal=True,
    ),
    Fault(
        "forgetting candidate",
        "learned good answers, and a share of what it could do before wrong",
        (0.3, 0.6, 1.0),
        "share",
        "candidate",
        ("evaluate", "guard"),
        teach=_forgetting,
    ),
    Fault(
        "judge that favours places",
        "a language model says A whatever stands there",
        (0.4, 0.6, 0.8),
        "share",
        "judge",
        ("audit",),
        judge=_places,
    ),
    Fault(
        "judge that favours length",
        "a language model names the longer answer whatever it says",
        (0.5, 0.7, 0.9),
        "share",
        "judge",
        ("audit",),
        judge=_lengths,
    ),
)

CONTROL = Fault(
    "honest candidate",
    "trained on fair labels; it must pass every gate",
    (0.0,),
    "",
    "labeller",
    (),
    labeller="toy-labeller(seed={seed})",
)

WELL_TAUGHT = Fault(
    "well-taught candidate",
    "learned good answers as the planted candidates do, and no fault; it must pass every gate",
    (1.0,),
    "temperature",
    "candidate",
    (),
    teach=_well_taught,
    is_universal=True,
)

JUDGES = Fault(
    "fair judge",
    "right 19 times in 20 and without a bias; it must pass its audit",
    (0.0,),
    "",
    "judge",
    (),
    judge=_fair,
)
