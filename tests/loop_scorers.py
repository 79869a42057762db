"""Scorers of the test project, named in its settings as `loop_scorers:NAME`."""

from trueup.records import Messages


def plain(_: Messages, answer: str) -> float:
    """Labels: no filler, few words."""
    return 1.0 - 0.3 * answer.count("um") - 0.2 * len(answer.split())


def swapped(prompt: Messages, answer: str) -> float:
    """Labels with every preference turned round."""
    return -plain(prompt, answer)


def padded(_: Messages, answer: str) -> float:
    """Labels by a judge that loves length."""
    return len(answer) / 10


def brief(_: Messages, answer: str) -> float:
    """Promotes: one word, then two, then nothing."""
    return {1: 1.0, 2: 0.5}.get(len(answer.split()), 0.0)


def broken(_: Messages, answer: str) -> float:
    """A judge that falls over."""
    raise RuntimeError("out of order")
