"""The learning rate: numbers worked by hand, and what its docstring says."""

import math

import pytest

from trueup.train.schedule import learning_rate


def rates(total: int, warmup: float, schedule: str, peak: float = 1.0) -> list[float]:
    return [
        learning_rate(step, total, peak=peak, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
        for step in range(total)
    ]


def test_linear_rises_over_the_warm_up_and_falls_in_equal_steps() -> None:
    """Ten steps, two of them rising: a half, the whole, then ninths."""
    expected = [1 / 2, 1, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9]
    assert rates(10, 0.2, "linear") == pytest.approx(expected)


def test_linear_without_a_warm_up_begins_at_the_peak() -> None:
    assert rates(4, 0.0, "linear") == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4])


def test_cosine_is_half_a_wave_behind_the_warm_up() -> None:
    """Five steps, one of them rising: then (1 - cos(pi x)) / 2 at x = 4/5 … 1/5."""
    falling = [(1 + math.cos(math.pi * k / 5)) / 2 for k in (1, 2, 3, 4)]
    assert rates(5, 0.2, "cosine") == pytest.approx([1, *falling])
    assert falling == pytest.approx([0.904508, 0.654508, 0.345492, 0.095492], abs=5e-7)


def test_constant_stays_at_the_peak_behind_the_warm_up() -> None:
    assert rates(8, 0.5, "constant", peak=2e-4) == pytest.approx(
        [0.5e-4, 1e-4, 1.5e-4, 2e-4, 2e-4, 2e-4, 2e-4, 2e-4]
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_every_step_learns_and_none_faster_than_the_peak(
    schedule: str, warmup: float, total: int
) -> None:
    found = rates(total, warmup, schedule)
    assert all(0 < rate <= 1 for rate in found)
    rising = max(1, round(warmup * total))
    assert found[rising - 1] == 1.0
    assert found[:rising] == sorted(found[:rising])
    assert found[rising - 1 :] == sorted(found[rising - 1 :], reverse=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_fall_would_reach_zero_one_step_after_the_last(schedule: str) -> None:
    after = learning_rate(20, 20, peak=1.0, warmup=0.1, schedule=schedule)  # type: ignore[arg-type]
    assert after == pytest.approx(0.0, abs=1e-12)
    assert rates(20, 0.1, schedule)[-1] > 0
