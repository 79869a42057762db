"""`trueup judge`: a judge of known accuracy and bias, to try a loop with before paying for one."""

import json

import click

from trueup.cli.output import say

__all__ = ["judge"]

RATE = click.FloatRange(0, 1)


@click.group()
def judge() -> None:
    """Judges to try the loop with."""


@judge.command()
@click.option(
    "--accuracy", type=RATE, default=0.9, show_default=True, help="How often a verdict is true."
)
@click.option(
    "--position-bias",
    type=RATE,
    default=0.0,
    show_default=True,
    help="How often it says A whatever stands there.",
)
@click.option(
    "--key", default="house-style", show_default=True, help="The judge that knows the truth."
)
@click.option("--seed", default=0, show_default=True, help="Other verdicts at the same rates.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8500,
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the base URL as one line of JSON.")
def serve(
    accuracy: float, position_bias: float, key: str, seed: int, host: str, port: int, as_json: bool
) -> None:
    """Serve a scripted judge, OpenAI-compatible, until Ctrl-C."""
    from trueup.judges import scripted

    def announce(base_url: str) -> None:
        if as_json:  # one line, so that a program can wait for it
            click.echo(json.dumps({"base_url": base_url}))
            return
        say(
            f"A scripted judge at {base_url}: accuracy {accuracy:g}, position bias "
            f"{position_bias:g}, truth by {key} (Ctrl-C stops)"
        )
        say(f"Next: trueup --set label.judge=llm --set label.endpoint.base_url={base_url} label")

    config = scripted.ScriptedJudge(accuracy, position_bias, key, seed=seed)
    scripted.serve(config, host, port, on_start=announce)
