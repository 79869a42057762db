"""All drills: every fault at every strength over several seeds, and honest candidates beside them.

Each drill is a process's work for some twenty seconds and its outcome is written as soon as it is
known, so a drill that was stopped goes on where it was. Outcomes are kept under the hash of this
package's code: other gates are drilled anew.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from scipy import stats as scipy_stats

import trueup
from trueup import stats
from trueup.drill.arena import OwnArena
from trueup.drill.faults import CONTROL, FAULTS, JUDGES, WELL_TAUGHT, Fault
from trueup.drill.trial import Outcome, attempt, attempt_on
from trueup.progress import task
from trueup.project import Project
from trueup.stats import Interval

__all__ = ["FIRST_SEED", "Drill", "Row", "run", "run_on"]

FIRST_SEED = 2000
"""Seeds below were used to choose strengths, settings and what counts as honest; a drill never uses
them."""

CONTROLS = (CONTROL, WELL_TAUGHT, JUDGES)

LEAST_RATE = 0.8
"""Share of its drills in which a fault of some strength must be caught, or it counts as missed."""


class Trial(NamedTuple):
    """One drill to be done."""

    fault: Fault
    strength: float
    seed: int

    @property
    def key(self) -> tuple[str, float, int]:
        return self.fault.name, self.strength, self.seed


class Row(NamedTuple):
    """What became of one fault at one strength, over its seeds."""

    fault: str
    strength: float
    unit: str
    num_trials: int
    num_stopped: int
    num_caught: int
    """Stopped by a gate that should."""
    rate: Interval | None
    """Share that was caught, with its 95 % interval (Wilson)."""
    stopped_by: dict[str, int]
    delay: float | None
    """Mean over those that were caught."""
    gold: float | None
    """Mean true gain of the candidates."""
    copy: float | None


@dataclass(frozen=True)
class Drill:
    """All outcomes, and what they come to."""

    outcomes: tuple[Outcome, ...]

    def rows(self, faults: Iterable[Fault] = FAULTS) -> list[Row]:
        """One row a fault and strength, in the order of the faults."""
        return [
            _row(fault, strength, self._of(fault, strength))
            for fault in faults
            for strength in fault.strengths
            if self._of(fault, strength)
        ]

    def controls(self) -> list[Row]:
        """Honest candidates that are truly better, and fair judges; what is stopped of these is a
        false alarm."""
        return [
            _row(one, one.strengths[0], found)
            for one in CONTROLS
            if (found := self._honest(self._of(one, one.strengths[0])))
        ]

    @property
    def bound(self) -> float | None:
        """Upper end of the one-sided 95 % interval of the rate of false alarms among honest
        candidates (Clopper and Pearson); None where none counts."""
        honest = self._honest(self._of(CONTROL, 0.0))
        stopped = sum(one.was_stopped for one in honest)
        if not honest:
            return None
        if stopped == len(honest):
            return 1.0
        return float(scipy_stats.beta.ppf(0.95, stopped + 1, len(honest) - stopped))

    @property
    def left_out(self) -> int:
        """Honest candidates that did not come out truly better, and so are no controls."""
        every = [o for one in CONTROLS for o in self._of(one, one.strengths[0])]
        return len(every) - len(self._honest(every))

    @property
    def missed(self) -> list[Row]:
        """Faults that were caught in less than four drills of five."""
        return [row for row in self.rows() if row.num_caught < LEAST_RATE * row.num_trials]

    @property
    def false_alarms(self) -> list[Outcome]:
        """Honest candidates and fair judges that were stopped. Where nobody knows whether one is
        better, the A/B test may say that it is not shown to be."""
        return [
            one
            for kind in CONTROLS
            for one in self._honest(self._of(kind, kind.strengths[0]))
            if one.was_stopped and (one.gold is not None or one.stopped_by != "ab")
        ]

    def _of(self, fault: Fault, strength: float) -> list[Outcome]:
        return [o for o in self.outcomes if (o.fault, o.strength) == (fault.name, strength)]

    def _honest(self, found: Sequence[Outcome]) -> list[Outcome]:
        """What counts: judges, candidates that are truly better, and in a team's own project, where
        nobody knows, the well-taught one."""
        return [one for one in found if one.is_better or one.gold is None]


def run(
    folder: Path,
    *,
    faults: Sequence[Fault] = FAULTS,
    num_seeds: int = 5,
    num_controls: int = 64,
    jobs: int | None = None,
    first_seed: int = FIRST_SEED,
) -> Drill:
    """Plant every fault at every strength, and let honest candidates try to pass.

    Reads:   outcomes kept in `folder` by the same code.
    Writes:  one line an outcome; taught toy models.
    Again:   nothing is done twice.
    Killed:  outcomes so far are kept.
    Cost:    some 20 seconds a drill and process, of one thread each.

    Args:
        num_seeds: of each fault and strength.
        num_controls: honest candidates; a quarter as many well-taught ones and fair judges.
        jobs: processes; by default one a core.

    Raises:
        TrueupError: a drill could not be held.
    """
    folder = folder.resolve()  # a model's folder is named in the settings of projects elsewhere
    trials = list(_trials(faults, num_seeds, num_controls, first_seed))
    kept = folder / f"outcomes-{_code()}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    known = {(o.fault, o.strength, o.seed): o for o in _read(kept)}
    missing = [one for one in trials if one.key not in known]
    with (
        task("drill", len(trials)) as advance,
        kept.open("a") as lines,
        _processes(jobs or os.cpu_count() or 1) as pool,
    ):
        advance(len(trials) - len(missing))
        asked: list[Future[Outcome]] = [
            pool.submit(attempt, *one, models=folder / "models") for one in missing
        ]
        for done in as_completed(asked):
            found = done.result()
            lines.write(json.dumps(dataclasses.asdict(found)) + "\n")
            lines.flush()
            known[found.fault, found.strength, found.seed] = found
            advance(1)
    return Drill(tuple(known[one.key] for one in trials))


def run_on(project: Project) -> Drill:
    """Plant the faults that any model can have in a team's own, each at its worst.

    Reads:   the project's settings, prompts, gold set and base model.
    Writes:  nothing there; a scratch store that is gone afterwards.
    Cost:    a short training run and a guard's answers for each of two faults.

    Raises:
        DataError: the project has no prompts to teach on.
    """
    planted = [(one, one.strengths[-1]) for one in FAULTS if one.is_universal]
    planted.append((WELL_TAUGHT, 1.0))
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch:
        arena = OwnArena(project, Path(scratch), seed=0)
        try:
            found = [attempt_on(arena, *one) for one in planted]
        finally:
            arena.close()
    return Drill(tuple(found))


def _trials(
    faults: Sequence[Fault], num_seeds: int, num_controls: int, first: int
) -> Iterator[Trial]:
    for at in range(num_seeds):
        for fault in faults:
            yield from (Trial(fault, strength, first + at) for strength in fault.strengths)
    yield from (Trial(CONTROL, 0.0, first + at) for at in range(num_controls))
    some = max(1, num_controls // 4) if num_controls else 0
    for kind in (WELL_TAUGHT, JUDGES):
        yield from (Trial(kind, kind.strengths[0], first + at) for at in range(some))


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Workers of one thread each, ended at once where the block fails."""
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        os.environ.clear()
        os.environ.update(before)


def _read(path: Path) -> Iterator[Outcome]:
    """Outcomes of a file; a line that was cut short by a kill is taken away."""
    text = path.read_text() if path.is_file() else ""
    whole, newline, cut = text.rpartition("\n")
    if cut:
        path.write_text(whole + newline)
    for line in whole.splitlines():
        raw = json.loads(line)
        yield Outcome(**raw | {"warnings": tuple(raw["warnings"])})


def _code() -> str:
    """A hash of this package's source."""
    home = Path(trueup.__file__).parent
    read = sha256()
    for file in sorted(home.rglob("*.py")):
        read.update(file.read_bytes())
    return read.hexdigest()[:12]


def _row(fault: Fault, strength: float, found: Sequence[Outcome]) -> Row:
    stopped = [one for one in found if one.was_stopped]
    caught = [one for one in stopped if one.stopped_by in fault.gates]
    return Row(
        fault=fault.name,
        strength=strength,
        unit=fault.unit,
        num_trials=len(found),
        num_stopped=len(stopped),
        num_caught=len(caught),
        rate=stats.wilson(len(caught), len(found)),
        stopped_by={
            gate: sum(o.stopped_by == gate for o in stopped)
            for gate in ("audit", "guard", "evaluate", "ab", "promote")
            if any(o.stopped_by == gate for o in stopped)
        },
        delay=_mean([float(o.delay) for o in caught]),
        gold=_mean([o.gold for o in found if o.gold is not None]),
        copy=_mean([o.copy for o in found if o.copy is not None]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
