"""One drill: plant one fault at one strength, and see who stops it, how late, and what it did."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueup import promote
from trueup.drill.arena import Arena, OwnArena, ToyArena, Truth
from trueup.drill.faults import Fault
from trueup.errors import ConfigError, TrueupError
from trueup.judges.scripted import running
from trueup.loop import Turn
from trueup.records import JudgeAudit, Label

__all__ = ["WEEKS", "Outcome", "attempt", "attempt_on"]

FORGIVEN = 0.03
"""Share of the second skill that an honest candidate may truly lose; the gold set's margin is 0.1,
and refusing one that lost more is no false alarm."""

WEEKS = 3
"""Turns of a labeller's fault before it counts as missed."""


@dataclass(frozen=True)
class Outcome:
    """What became of one planted fault, or of one honest candidate."""

    fault: str
    strength: float
    seed: int
    stopped_by: str
    """`guard`, `evaluate`, `ab` or `audit`; empty where nothing stopped it."""
    reason: str
    delay: int
    """Candidates of it that were promoted before one was stopped; for a judge, labels written."""
    warnings: tuple[str, ...] = ()
    """Amber alarms of the candidate that was stopped, or of the last one."""
    gold: float | None = None
    """True gain over the champion, in gold; None for judges."""
    gold_low: float | None = None
    """Lower end of its 95 % interval."""
    copy: float | None = None
    """True change of the second skill."""
    seconds: float = 0.0

    @property
    def was_stopped(self) -> bool:
        return bool(self.stopped_by)

    @property
    def is_better(self) -> bool:
        """True for one that is truly better beyond doubt and has hardly forgotten anything, which
        gates should let through."""
        if self.gold_low is None or self.copy is None:
            return False
        return self.gold_low > 0 and self.copy > -FORGIVEN


def attempt(fault: Fault, strength: float, seed: int, models: Path) -> Outcome:
    """Plant a fault in a project of its own.

    Args:
        models: where taught toy models are kept.

    Raises:
        TrueupError: something other than the fault stopped it.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        if fault.kind == "judge":
            found = _judge(fault, strength, seed, Path(folder), models)
        else:
            found = _candidate(fault, strength, seed, Path(folder), models)
    return Outcome(fault.name, strength, seed, **found, seconds=time.perf_counter() - started)


def attempt_on(arena: OwnArena, fault: Fault, strength: float) -> Outcome:
    """Plant a candidate on a team's own model, before its own gates and settings; one that was
    promoted is rolled back, so that the next meets the same champion.

    Raises:
        TrueupError: as training and gates do.
    """
    assert fault.teach is not None, "the fault is a candidate's"
    started = time.perf_counter()
    turn = fault.teach(arena, strength)
    if turn.verdict.passed:
        promote.rollback(arena.project.store, reason="a drill")
    seconds = time.perf_counter() - started
    return Outcome(fault.name, strength, arena.seed, **_told(turn, 0, None), seconds=seconds)


def _candidate(
    fault: Fault, strength: float, seed: int, folder: Path, models: Path
) -> dict[str, Any]:
    judge = fault.labeller.format(strength=strength, seed=seed)
    arena = ToyArena(folder, models, seed, judge=judge)
    try:
        if fault.teach:
            turn, delay = fault.teach(arena, strength), 0
        else:
            turn, delay = _weeks(arena, 1 if not strength else WEEKS)
        return _told(turn, delay, arena.truth(turn))
    finally:
        arena.close()


def _weeks(arena: ToyArena, most: int) -> tuple[Turn, int]:
    """Turn after turn until one is stopped."""
    number, turn = 0, _week(arena, 0)
    while turn.verdict.passed and number + 1 < most:
        number += 1
        turn = _week(arena, number)
    return turn, number + turn.verdict.passed


def _week(arena: ToyArena, number: int) -> Turn:
    turn = arena.week(number)
    if turn.verdict.status == "pending":
        raise TrueupError(
            "A drill had nothing to train on",
            got=turn.verdict.reason,
            expected="enough new pairs",
            next="this is a fault of the drill itself; please report it",
        )
    return turn


def _told(turn: Turn, delay: int, truth: Truth | None) -> dict[str, Any]:
    is_stopped = not turn.verdict.passed
    return {
        "stopped_by": turn.verdict.gate if is_stopped else "",
        "reason": turn.verdict.reason,
        "delay": delay,
        "warnings": tuple(turn.warnings),
        **(truth._asdict() if truth else {}),
    }


def _judge(fault: Fault, strength: float, seed: int, folder: Path, models: Path) -> dict[str, Any]:
    """A judge on a real socket, asked to label; its audit stands before the first label."""
    assert fault.judge is not None, "a judge's fault makes a judge"
    with running(fault.judge(strength, seed)) as base_url:
        arena = ToyArena(folder, models, seed, judge="llm")
        try:
            return _audited(arena, base_url)
        finally:
            arena.close()


def _audited(arena: Arena, base_url: str) -> dict[str, Any]:
    from trueup.judges import audit, resolve

    project = arena.project
    config = project.config.label
    endpoint = config.endpoint.model_copy(update={"base_url": base_url})
    judge = resolve("llm", endpoint=endpoint)
    try:
        audit.require(project.store, judge, config.audit)
    except ConfigError as error:
        found = project.store.last(JudgeAudit, judge=judge.id)
        if found is None or found.verdict.passed:
            raise  # something else was wrong
        stopped, reason = "audit", str(error)
    else:
        stopped, reason = "", "passed its audit"
    num_labels = sum(1 for _ in project.store.each(Label))
    return {"stopped_by": stopped, "reason": reason, "delay": num_labels}
