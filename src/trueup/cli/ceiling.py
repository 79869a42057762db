"""`trueup ceiling`: what preference training could reach, before it is paid for."""

import click

from trueup.cli.output import bars, emit, json_option, say, table
from trueup.cli.project import open_project
from trueup.evaluate import Ceiling, read_gold

__all__ = ["ceiling"]

SHOWN = 5


@click.command()
@click.option(
    "--num-samples",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Draws an item.",
)
@json_option
@click.pass_context
def ceiling(ctx: click.Context, num_samples: int, as_json: bool) -> None:
    """pass@N of the champion on the gold set: what no draw solves, no preference teaches."""
    from trueup.evaluate import ceiling as run

    project = open_project(ctx)
    config = project.config.evaluate
    gold = read_gold(project.folder / config.gold)
    with project.store.exclusive(), bars(hidden=as_json):
        found = run(
            project.store,
            project.champion(),
            gold,
            num_samples=num_samples,
            max_tokens=config.max_tokens,
        )
    emit(_data(found)) if as_json else _show(found)


def _data(found: Ceiling) -> dict[str, object]:
    return {
        "num_samples": found.num_samples,
        "pass_at": found.pass_at,
        "pass_at_n": found.pass_at_n and found.pass_at_n._asdict(),
        "miss_rate": found.miss_rate(),
        "items": [one._asdict() for one in found.items],
        "out_of_reach": [one.id for one in found.out_of_reach],
        "already_known": [one.id for one in found.already_known],
        "unchecked": found.unchecked,
    }


def _show(found: Ceiling) -> None:
    table(
        ["gold set", *(f"pass@{k}" for k in found.pass_at)],
        [["share of items", *(f"{share:.1%}" for share in found.pass_at.values())]],
    )
    lost = found.out_of_reach
    say(
        f"{len(lost)} of {len(found.items)} items are solved by none of {found.num_samples} draws, "
        f"{len(found.already_known)} by all."
    )
    if found.unchecked:
        say(f"{found.unchecked} items hold code that cannot be run in a sandbox here.")
    for one in lost[:SHOWN]:
        say(f"  {one.slice}: {one.prompt.splitlines()[0][:64]}")
    if lost:
        least = 1 / found.miss_rate()
        say("Preference training moves probability between answers the model gives. What it")
        say(
            f"gives less than once in {least:.0f} draws (all that can be said of these, at 95 %) it"
        )
        say("cannot learn that way: SFT first.")
        say("Next: trueup train --method sft with demonstrations of these, or trueup rounds")
    elif found.items and not found.unchecked:
        say("Every item is within reach. Next: trueup rounds")
    else:
        say("Whether the rest is within reach is unknown. Next: run it where a sandbox is")
