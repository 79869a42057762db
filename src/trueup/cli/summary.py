"""The closing table of a turn: before and after, and what it cost."""

from collections.abc import Mapping
from typing import Any

from trueup.cli.output import say, table
from trueup.loop import Turn

__all__ = ["show_online", "show_reward", "show_summary"]


def show_summary(turn: Turn) -> None:
    """Print what moved between champion and candidate, then seconds and memory a stage."""
    if turn.counts:
        say("  ".join(f"{name} {count:,}" for name, count in turn.counts.items()))
    figures = {k: v for report in turn.reports for k, v in report.verdict.figures.items()}
    if figures:
        say("")
        table(["held-out prompts", "champion", "candidate", "change"], _rows(figures))
    for warning in turn.warnings:
        say(f"Warning: {warning}")
    if turn.costs:
        say("")
        table(
            ["stage", "seconds", "peak MB"],
            [[c.stage, f"{c.seconds:.1f}", f"{c.peak_mb:,.0f}"] for c in turn.costs],
        )


def _rows(figures: Mapping[str, float | None]) -> list[list[str]]:
    def number(name: str, form: str = ".2f") -> str:
        value = figures.get(name)
        return "unknown" if value is None else format(value, form)

    rows = []
    if "score" in figures:
        rows.append(
            ["score of the promoting scorer", number("champion_score"), number("score"), ""]
        )
        rows.append(
            [
                "win rate",
                "",
                number("win_rate", ".1%"),
                f"[{number('win_rate_low', '.1%')}, {number('win_rate_high', '.1%')}]",
            ]
        )
        rows.append(["evidence (e-value)", "", number("evidence", ".3g"), ""])
    rows.append(
        [
            "answer length, tokens",
            number("champion_length", ".1f"),
            number("length", ".1f"),
            f"x {number('length_ratio')}",
        ]
    )
    rows.append(
        [
            "entropy, nats a token",
            number("champion_entropy"),
            number("entropy"),
            f"x {number('entropy_ratio')}",
        ]
    )
    rows.append(
        ["KL to the champion, nats", "", number("kl"), f"[{number('kl_low')}, {number('kl_high')}]"]
    )
    rows.append(
        [
            "same answer to other prompts",
            number("champion_same_answer_rate", ".1%"),
            number("same_answer_rate", ".1%"),
            "",
        ]
    )
    if "accuracy" in figures:
        rows.append(
            [
                "gold accuracy",
                number("champion_accuracy", ".1%"),
                number("accuracy", ".1%"),
                f"[{number('difference_low', '+.1%')}, {number('difference_high', '+.1%')}]",
            ]
        )
    return rows


def show_reward(metrics: Mapping[str, Any]) -> None:
    """Print what a reward model is worth on pairs it did not train on."""

    def share(name: str) -> str:
        value = metrics.get(name)
        return "unknown" if value is None else f"{value:.1%}"

    interval = f"[{share('accuracy_low')}, {share('accuracy_high')}]"
    rows = [
        ["accuracy", f"{share('accuracy')} {interval}"],
        ["accuracy of 'the longer answer wins'", share("longer_wins_rate")],
        ["picks the longer answer", share("picks_longer_rate")],
        ["calibration error (ECE)", share("ece")],
    ]
    names = {"": "length_correlation", " within a prompt": "length_correlation_within"}
    for what, name in names.items():
        value = metrics.get(name)
        shown = "unknown" if value is None else f"{value:+.2f}"
        rows.append([f"correlation with length{what}", shown])
    table(["held-out pairs", "reward model"], rows)


def show_online(metrics: Mapping[str, Any]) -> None:
    """Print how the policy's own answers changed from the first batch to the last."""
    first, last, history = metrics["first"], metrics["last"], metrics["history"]
    shown = (
        ("score", "score", ".3g"),
        ("KL to the reference, nats", "kl", ".2f"),
        ("entropy, nats a token", "entropy", ".2f"),
        ("length, tokens", "tokens", ".1f"),
        ("ended by themselves", "ended_rate", ".0%"),
    )
    rows = [
        [what, format(first[name], form), format(last[name], form)]
        for what, name, form in shown
        if name in first and name in last
    ]
    table([f"{len(history)} batches of own answers", "first", "last"], rows)
    for reason, count in metrics["skipped"].items():
        say(f"{count} prompts skipped: {reason}")
    if metrics["stopped"]:
        say(f"Stopped early: {metrics['stopped']}")
