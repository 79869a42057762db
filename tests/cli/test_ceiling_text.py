"""What `trueup ceiling` says where not everything could be checked."""

import pytest

from trueup.cli.ceiling import _show
from trueup.evaluate.ceiling import Ceiling, ItemCeiling

SOLVED = ItemCeiling("a", "all", "say cat", 2, 4)


@pytest.mark.parametrize(("items", "unchecked"), [([], 3), ([SOLVED], 1), ([], 0)])
def test_what_was_not_checked_is_unknown_and_not_within_reach(
    capsys: pytest.CaptureFixture, items: list, unchecked: int
) -> None:
    _show(Ceiling(4, {}, None, items, unchecked))
    said = capsys.readouterr().out
    assert "unknown" in said and "Every item is within reach" not in said


def test_with_every_item_solved_all_is_within_reach(capsys: pytest.CaptureFixture) -> None:
    _show(Ceiling(4, {1: 0.5}, None, [SOLVED], 0))
    assert "Every item is within reach" in capsys.readouterr().out
