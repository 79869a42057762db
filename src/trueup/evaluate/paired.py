"""Two models on the same items: what changed, where, and whether chance explains it.

An item both models pass, or both fail, says nothing of the difference; those only one passes say
everything. The interval of the difference is Newcombe's (`trueup.stats`), the p-value McNemar's,
exact. A whole that holds can hide a slice that falls, so each slice is asked, and because many are
asked their p-values are corrected by Holm's rule.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats as scipy_stats

from trueup import stats
from trueup.stats import Interval

__all__ = ["Change", "Paired", "fall", "holm", "mcnemar", "paired", "slices_of"]

LEVEL = 0.05


class Change(NamedTuple):
    """What became of some items."""

    name: str
    items: int
    lost: int
    """Passed by the champion and not by the candidate."""
    won: int
    accuracy: Interval
    champion: Interval
    difference: Interval
    p_value: float
    """McNemar, exact and two-sided: that as many or more differ by chance, in either direction."""
    p_fall: float
    """One-sided, that it fell; for slices corrected by Holm over all of them."""

    def as_json(self) -> dict[str, Any]:
        """Names and numbers."""
        return {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in self._asdict().items()
        }


class Paired(NamedTuple):
    """The whole and its slices."""

    whole: Change
    slices: list[Change]
    """Worst first; empty where there is only one."""

    @property
    def falling(self) -> list[Change]:
        """Slices that fell by more than chance explains, at 5 % over all slices together."""
        return [one for one in self.slices if one.p_fall < LEVEL]

    @property
    def worst(self) -> Change | None:
        """The slice with the largest loss, if any slice lost."""
        first = self.slices[0] if self.slices else None
        return first if first and first.difference.estimate < 0 else None


def mcnemar(lost: int, won: int) -> float:
    """Chance of a split as uneven as this, or more, if losing and winning are equally likely.

    McNemar 1947; the exact form, a two-sided binomial test on the items that changed. 1 where none
    did. Worked example: 1 lost and 7 won give 18/256.
    """
    n = lost + won
    return float(scipy_stats.binomtest(lost, n, 0.5).pvalue) if n else 1.0


def fall(lost: int, won: int) -> float:
    """One-sided: chance of so many lost, or more, among the items that changed."""
    n = lost + won
    return float(scipy_stats.binomtest(lost, n, 0.5, alternative="greater").pvalue) if n else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values that bound the chance of any false alarm among them together (Holm 1979).

    The k-th smallest of m is multiplied by m - k + 1, and none is below one before it.
    """
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return corrected


def paired(slices: Sequence[str], ours: Sequence[bool], theirs: Sequence[bool]) -> Paired | None:
    """Candidate and champion item by item; None for no items.

    Args:
        slices: the slice of each item.
    """
    if not ours:
        return None
    changes = [
        _change(name, [ours[i] for i in at], [theirs[i] for i in at])
        for name, at in slices_of(slices).items()
    ]
    corrected = holm({one.name: one.p_fall for one in changes})
    changes = [one._replace(p_fall=corrected[one.name]) for one in changes]
    changes.sort(key=lambda one: (one.difference.estimate, one.name))
    return Paired(_change("all", ours, theirs), changes if len(changes) > 1 else [])


def slices_of(slices: Sequence[str]) -> dict[str, list[int]]:
    """The items of each slice, by their place, in order of first sight."""
    found: dict[str, list[int]] = {}
    for at, name in enumerate(slices):
        found.setdefault(name, []).append(at)
    return found


def _change(name: str, ours: Sequence[bool], theirs: Sequence[bool]) -> Change:
    n = len(ours)
    lost = sum(t and not o for o, t in zip(ours, theirs, strict=True))
    won = sum(o and not t for o, t in zip(ours, theirs, strict=True))
    accuracy, champion = stats.wilson(sum(ours), n), stats.wilson(sum(theirs), n)
    difference = stats.paired_difference(ours, theirs)
    assert accuracy and champion and difference, "a slice has items"
    return Change(
        name, n, lost, won, accuracy, champion, difference, mcnemar(lost, won), fall(lost, won)
    )
