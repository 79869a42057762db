"""`trueup serve`: the OpenAI-compatible door. `trueup import`: records from files."""

import contextlib
from pathlib import Path

import click

from trueup.cli.output import bars, emit, json_option, say, table
from trueup.cli.project import open_project
from trueup.errors import MissingDependency
from trueup.records import AnnotatorKind
from trueup.vectors.beside import embedding_beside

__all__ = ["import_", "serve"]


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one. [default: serve.port]"
)
@json_option
@click.pass_context
def serve(ctx: click.Context, port: int | None, as_json: bool) -> None:
    """Answer /v1/chat/completions with the champion (or proxy serve.upstream) and capture."""
    project = open_project(ctx)
    try:
        from trueup.gateway.app import create_app
        from trueup.gateway.serve import listen, make_server
        from trueup.gateway.upstreams import upstreams_of
    except ImportError as error:
        raise MissingDependency(
            "Serving needs a web server",
            got=str(error),
            expected="the extra 'gateway'",
            next="pip install 'trueup[gateway,train]'",
        ) from error
    config = project.config.serve
    if port is not None:
        config = config.model_copy(update={"port": port})
    listening = listen(config)  # a taken port shows before a model is loaded
    engine = None
    if not config.has_upstream:
        from trueup.models.engine import Engine

        engine = Engine(project.backbone, project.store)
    behind = ", ".join(one.url for one in upstreams_of(config))
    base_url = f"http://{config.host}:{listening.getsockname()[1]}/v1"
    if as_json:
        emit({"base_url": base_url, "model": config.model_name, "upstream": behind or None})
    else:
        say(f"Serving {behind or config.model_name} at {base_url} (Ctrl-C stops)")
        say("Next: point an OpenAI client at it, then 'trueup run'")
    app = create_app(
        project.store,
        config,
        project.config.capture,
        engine,
        scrub=project.scrub,
        beside=project.writer(),
    )
    # KeyboardInterrupt is the ordinary way to stop it
    beside = embedding_beside(project.config.vectors, project.folder, ctx.obj["overrides"])
    with beside, contextlib.suppress(KeyboardInterrupt):
        make_server(app, config).run(sockets=[listening])
    if engine:
        engine.close()


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--annotator-kind",
    type=click.Choice(["human", "llm", "code"]),
    default="human",
    show_default=True,
    help="Who made the preferences in the file.",
)
@click.option(
    "--max-skip-rate",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of unusable rows above which the command fails (usable rows are kept).",
)
@json_option
@click.pass_context
def import_(
    ctx: click.Context,
    file: Path,
    annotator_kind: AnnotatorKind,
    max_skip_rate: float,
    as_json: bool,
) -> None:
    """Read FILE (JSONL, JSON, .gz) of interactions, preferences or unpaired labels.

    Shapes are recognised by themselves: OpenAI messages, prompt/completion, ShareGPT, hh-rlhf
    dialogues, prompt/chosen/rejected, and any answer with a boolean label.
    """
    from trueup.capture.importer import import_file

    project = open_project(ctx)
    with bars(hidden=as_json):
        result = import_file(
            project.store,
            file,
            annotator_kind=annotator_kind,
            max_skip_rate=max_skip_rate,
            scrub=project.scrub,
        )
    if as_json:
        emit(result._asdict())
        return
    table(
        ["imported", "rows"],
        [
            ["interactions", f"{result.interactions:,}"],
            ["labels", f"{result.labels:,}"],
            ["  of them without a pair", f"{result.unpaired:,}"],
            *([f"skipped: {why}", f"{count:,}"] for why, count in result.skipped.items()),
            ["rows in all", f"{result.rows:,}"],
            ["new records", f"{result.new:,}"],
        ],
    )
    for problem in result.problems:
        click.echo(problem, err=True)
    say("Next: trueup flag (interactions) or trueup pair (labels)")
