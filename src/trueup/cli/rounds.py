"""`trueup rounds`, `trueup best-of-n`: the model is its own traffic."""

import dataclasses
from collections.abc import Mapping

import click

from trueup.cli.output import bars, emit, exit_code, json_option, say, table, verdict_text
from trueup.cli.project import open_project
from trueup.config import validate
from trueup.project import Project
from trueup.records import Verdict
from trueup.rounds.best_of_n import Arm, BestOfN
from trueup.rounds.config import RoundsConfig
from trueup.rounds.run import Round, Rounds

__all__ = ["best_of_n", "rounds"]

_reward_option = click.option(
    "--reward", help="What ranks the answers. [default: rounds.reward in trueup.toml]"
)
_samples_option = click.option(
    "--num-samples", type=click.IntRange(min=2), help="Answers a prompt. [default: the setting's]"
)


def _settings(project: Project, **given: object) -> RoundsConfig:
    """The project's settings under what the command line gives."""
    said = {name: value for name, value in given.items() if value is not None}
    raw = project.config.rounds.model_dump() | said
    return validate(RoundsConfig, raw, source="command line")


@click.command()
@click.option(
    "--rounds", "num_rounds", type=click.IntRange(min=1), help="[default: rounds.rounds, 3]"
)
@_samples_option
@_reward_option
@json_option
@click.pass_context
def rounds(
    ctx: click.Context,
    num_rounds: int | None,
    num_samples: int | None,
    reward: str | None,
    as_json: bool,
) -> None:
    """Iterative DPO: sample, rank, pair, train, gate; and again from what came out.

    Exits with 3 where a gate stopped it. Killed, it goes on with the same command.
    """
    from trueup.rounds.run import run

    project = open_project(ctx)
    config = _settings(project, rounds=num_rounds, num_samples=num_samples, reward=reward)
    with bars(hidden=as_json):
        done = run(project, config)
    if as_json:
        emit(_rounds_data(done))
    else:
        _show_rounds(done)
    ctx.exit(exit_code(done.verdict) if not done.best or done.rounds[-1].refused else 0)


def _rounds_data(done: Rounds) -> dict[str, object]:
    return {
        "verdict": done.verdict,
        "champion": done.champion,
        "best": done.best.checkpoint.id if done.best else None,
        "rounds": [
            {
                "number": one.number,
                "start": one.start,
                "dataset": one.dataset.id,
                "pairs": len(one.dataset.pair_ids),
                "checkpoint": one.checkpoint.id,
                "weights": one.checkpoint.weights,
                "mean_score": one.mean_score,
                "best_score": one.best_score,
                "skipped": one.skipped,
                "reports": [{"id": r.id, "verdict": r.verdict} for r in one.reports],
            }
            for one in done.rounds
        ],
    }


def _show_rounds(done: Rounds) -> None:
    if done.rounds:
        columns = ["round", "pairs", "score", "best", "win rate", "gold", "KL", "length"]
        table(columns, [_row(one) for one in done.rounds])
        say("score, best: of the round's own answers; the rest against the champion.")
    for one in done.rounds:
        _show_skipped(one.skipped, f"Round {one.number}: ")
        for report in one.reports:
            if not report.verdict.passed:
                say(f"Round {one.number}: {verdict_text(report.verdict)}")
    if not done.rounds:
        say(verdict_text(done.verdict))
    elif done.best:
        say(f"Candidate: {done.best.checkpoint.id}")
        say(f"Next: trueup promote --checkpoint {done.best.checkpoint.id}")
    else:
        say("Next: trueup report; the champion serves on")


def _show_skipped(skipped: Mapping[str, int], where: str = "") -> None:
    if skipped:
        told = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
        say(f"{where}prompts without a pair or a score: {told}")


def _row(one: Round) -> list[str]:
    figures = {k: v for report in one.reports for k, v in report.verdict.figures.items()}

    def number(name: str, form: str) -> str:
        value = figures.get(name)
        return "-" if value is None else format(value, form)

    won = number("win_rate", ".1%")
    if won != "-":
        won += f" [{number('win_rate_low', '.0%')}, {number('win_rate_high', '.0%')}]"
    return [
        str(one.number),
        f"{len(one.dataset.pair_ids):,}",
        f"{one.mean_score:.3g}",
        f"{one.best_score:.3g}",
        won,
        number("difference", "+.1%"),
        number("kl", ".2f"),
        "x " + number("length_ratio", ".2f"),
    ]


@click.command("best-of-n")
@_samples_option
@_reward_option
@json_option
@click.pass_context
def best_of_n(
    ctx: click.Context, num_samples: int | None, reward: str | None, as_json: bool
) -> None:
    """Train on the best of N answers, and on a random one as the control."""
    from trueup.rounds.best_of_n import best_of_n as run

    project = open_project(ctx)
    config = _settings(project, num_samples=num_samples, reward=reward)
    with bars(hidden=as_json):
        found = run(project, config)
    emit(_best_data(found)) if as_json else _show_best(found)
    refused = _refused(found.arms[0])
    ctx.exit(exit_code(refused[0]) if refused else 0)


def _best_data(found: BestOfN) -> dict[str, object]:
    return {
        **{f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "arms"},
        "arms": [
            {
                "name": arm.name,
                "checkpoint": arm.checkpoint,
                "picked_score": arm.picked_score,
                "reports": {
                    name: {"id": r.id, "verdict": r.verdict} for name, r in arm.reports.items()
                },
            }
            for arm in found.arms
        ],
    }


def _show_best(found: BestOfN) -> None:
    say(
        f"{found.prompts:,} prompts, {found.num_samples} answers each; always answering with the "
        f"best is {found.kl_seen:.2f} nats away, at most {found.kl_bound:.2f}"
    )
    _show_skipped(found.skipped)
    table(
        ["best of", *(str(n + 1) for n in range(len(found.expected_scores)))],
        [["mean score", *(f"{score:.3g}" for score in found.expected_scores)]],
    )
    say("")
    rows = [_arm_row(arm) for arm in found.arms]
    table(["learned from", "score learned", "win rate", "KL", "length", "guard"], rows)
    say("Win rate, KL and length of the trained model on held-out prompts, against the champion.")
    best = found.arms[0]
    refused = _refused(best)
    for verdict in refused:
        say(f"Best answer: {verdict_text(verdict)}")
    checkpoint = best.checkpoint.id
    say(
        "Next: the champion serves on; more prompts, or a lower rounds.learning_rate"
        if refused
        else f"Next: trueup evaluate --checkpoint {checkpoint}, then trueup promote "
        f"--checkpoint {checkpoint}"
    )


def _refused(arm: Arm) -> list[Verdict]:
    return [r.verdict for r in arm.reports.values() if r.verdict.status == "refused"]


def _arm_row(arm: Arm) -> list[str]:
    guard, test = (arm.reports[name].verdict for name in ("guard", "ab"))

    def number(verdict: Verdict, name: str, form: str) -> str:
        value = verdict.figures.get(name)
        return "unknown" if value is None else format(value, form)

    low, high = number(test, "win_rate_low", ".1%"), number(test, "win_rate_high", ".1%")
    return [
        f"{arm.name} answer",
        f"{arm.picked_score:.3g}",
        f"{number(test, 'win_rate', '.1%')} [{low}, {high}]",
        number(guard, "kl", ".2f"),
        "x " + number(guard, "length_ratio", ".2f"),
        guard.status,
    ]
