"""`trueup embed`, `search`, `duplicates` and `topics`: captured traffic by meaning."""

import os
import sys
import unicodedata
from typing import NoReturn

import click

from trueup.cli.output import bars, emit, json_option, say, table
from trueup.cli.project import open_project
from trueup.errors import ConfigError, TrueupError
from trueup.project import Project
from trueup.records import Flag, Interaction
from trueup.store import Store
from trueup.vectors import Filter, Index

__all__ = ["duplicates", "embed", "search", "topics"]

SHOWN_CHARS = 160  # of a text in the terminal


@click.command()
@click.option("--rebuild", is_flag=True, help="Drop this embedder's index and make it again.")
@click.option("--watch", is_flag=True, help="Go on as interactions come in, until stopped.")
@click.option("--parent", type=int, hidden=True, help="Whose end is the end of --watch.")
@json_option
@click.pass_context
def embed(
    ctx: click.Context, rebuild: bool, watch: bool, parent: int | None, as_json: bool
) -> None:
    """Give every captured interaction its vector; killed anywhere, the next call goes on."""
    from trueup.vectors import embed as embed_all

    parent = parent or os.getppid()  # asked before the model loads: it may be gone by then
    project = open_project(ctx)
    index = project.vectors
    if rebuild:
        index.drop()
    if watch:
        _watch(project, parent)
    with bars(hidden=as_json):
        done = embed_all(project.store, index, project.embedder, project.config.vectors)
    if as_json:
        emit({"embedder": project.embedder.id, "index": index.name, **done._asdict()})
        return
    say(f"{done.total:,} interactions have vectors, {done.added:,} of them new")
    if done.removed:
        say(f"{done.removed:,} vectors removed: their interactions have left the store")
    say("Next: trueup search, or trueup topics")


def _watch(project: Project, parent: int) -> NoReturn:
    """Embed what comes in, at a low priority, until whoever started this process is gone."""
    from trueup.vectors import embed as embed_all
    from trueup.vectors.beside import wait

    os.nice(10)
    seen = None
    while os.getppid() == parent:
        store = project.store
        try:
            stands = _stand(store)
            if stands != seen:
                embed_all(store, project.vectors, project.embedder, project.config.vectors)
            seen = stands
        except TrueupError as error:  # a full disk or a server that is down may come back
            click.echo(f"embed: {error}", err=True)
        wait(project.config.vectors)
    sys.exit(0)


def _stand(store: Store) -> tuple[object, ...]:
    """Another one wherever there is something to do: as many may have come as were erased."""
    newest = [store.last(Interaction), store.last(Flag, raised=True)]
    counts = (store.count(Interaction), store.count(Flag, raised=True))
    return (*counts, *(one and one.id for one in newest))


def filters(command):  # type: ignore[no-untyped-def]
    """The options that choose interactions."""
    for option in reversed(
        [
            click.option("--user", help="Of this user: the id of requests, or a pseudonym."),
            click.option("--tenant", help="Of this tenant."),
            click.option("--model", help="Answered by this model."),
            click.option("--source", help="'gateway', or 'file:NAME' of an import."),
            click.option("--since", metavar="DATE", help="Not before, ISO 8601, UTC."),
            click.option("--until", metavar="DATE", help="Before, ISO 8601, UTC."),
            click.option("--flagged", is_flag=True, help="Raised by a flagger."),
        ]
    ):
        command = option(command)
    return command


def filter_of(project: Project, given: dict[str, str | bool | None]) -> Filter:
    """The filter of a command's options. Users are kept under pseudonyms, and asked for by id.

    Raises:
        ConfigError: a date that is none.
    """
    from trueup.privacy.pseudonyms import Pseudonyms
    from trueup.vectors.index import microseconds

    for name in ("since", "until"):
        try:
            if given[name]:
                microseconds(str(given[name]))
        except ValueError:
            raise ConfigError(
                f"--{name} is no date",
                got=given[name],
                expected="a date or time in ISO 8601",
                next="write it like 2026-03-01 or 2026-03-01T12:00",
            ) from None
    given = dict(given)
    given["raised"] = given.pop("flagged") or None
    user = given.pop("user")
    if user is not None:
        names = Pseudonyms(project.store).all_of(str(user))
        return Filter(**given, users=(str(user), *names))  # type: ignore[arg-type]
    return Filter(**given)  # type: ignore[arg-type]


@click.command()
@click.argument("text")
@filters
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--exact", is_flag=True, help="Compare with every vector, whatever it takes.")
@json_option
@click.pass_context
def search(
    ctx: click.Context,
    text: str,
    limit: int,
    exact: bool,
    as_json: bool,
    **given: str | bool | None,
) -> None:
    """Find the interactions whose prompts are nearest in meaning to TEXT."""
    from trueup.vectors import search as search_index
    from trueup.vectors import text_of

    project = open_project(ctx)
    where = filter_of(project, given)
    index = filled_index(project)
    found = search_index(
        project.store, index, project.embedder, text, limit=limit, where=where, exact=exact
    )
    if as_json:
        emit([{"similarity": m.similarity, "interaction": m.interaction} for m in found])
        return
    for similarity, one in ((m.similarity, m.interaction) for m in found):
        who = "  ".join(filter(None, (one.user, one.tenant, one.model)))
        say(f"{similarity:.3f}  {one.created_at[:16]}  {one.id}  {shown(who, 60)}")
        say(f"       {shown(text_of(one, project.config.vectors))}")
    say(f"{len(found)} of {index.count(where):,} interactions" if found else "Nothing found")
    _say_behind(project)


@click.command()
@filters
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Cosine from which two count as the same.",
)
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Groups shown."
)
@json_option
@click.pass_context
def duplicates(
    ctx: click.Context, threshold: float, limit: int, as_json: bool, **given: str | bool | None
) -> None:
    """Group the interactions that ask nearly the same, largest group first."""
    from trueup.vectors import duplicates as find
    from trueup.vectors import text_of

    project = open_project(ctx)
    where = filter_of(project, given)
    index = filled_index(project)
    with bars(hidden=as_json):
        found = find(index, threshold=threshold, where=where)
    if as_json:
        emit([group._asdict() for group in found])
        return
    first = project.store.get_all(Interaction, [group.ids[0] for group in found[:limit]])
    texts = {one.id: text_of(one, project.config.vectors) for one in first}
    for group in found[:limit]:
        say(f"{len(group.ids):>6,}  from {group.least:.3f}  {group.ids[0]}")
        say(f"        {shown(texts.get(group.ids[0], ''))}")
    copies = sum(len(group.ids) - 1 for group in found)
    say(f"{len(found):,} groups; {copies:,} of {index.count(where):,} say what another said before")
    _say_behind(project)
    say("Next: trueup topics")


@click.command()
@filters
@click.option(
    "--num", type=click.IntRange(2), help="How many. [default: by the best silhouette, 2 to 24]"
)
@click.option("--seed", default=0, show_default=True, help="Another start.")
@json_option
@click.pass_context
def topics(
    ctx: click.Context, num: int | None, seed: int, as_json: bool, **given: str | bool | None
) -> None:
    """What people ask about: topics with their names, flag rates and change from week to week."""
    from trueup.vectors import find_topics
    from trueup.web.topics_page import write_topics

    project = open_project(ctx)
    where = filter_of(project, given)
    index, config = filled_index(project), project.config.vectors
    found = find_topics(project.store, index, config, k=num or 0, where=where, seed=seed)
    page = write_topics(project.store, found, config, embedder=project.embedder.id)
    if as_json:
        every = [topic._asdict() for topic in found.topics]
        emit(found._asdict() | {"topics": every, "report": str(page)})
        return
    table(
        ["topic", "interactions", "share", "change", "flagged"],
        [
            [
                shown(one.name, 40),
                f"{one.num_interactions:,}",
                f"{one.share:.0%}",
                "unknown" if one.change is None else f"{100 * one.change:+.0f} points",
                f"{one.flag_rate:.0%}",
            ]
            for one in found.topics
        ],
    )
    say(f"Silhouette {found.silhouette:.2f}; change is of the share, from the last week to this")
    say(f"Report: {page}")
    _say_behind(project)
    say("Next: trueup suite, to draw held-out prompts topic by topic")


def _say_behind(project: Project) -> None:
    behind = project.store.count(Interaction) - project.vectors.count()
    if behind > 0:
        say(f"Next: trueup embed ({behind:,} interactions have no vector yet)")


def filled_index(project: Project) -> Index:
    """The project's index, with something in it.

    Raises:
        ConfigError: nothing was embedded.
    """
    if not project.vectors.count():
        raise ConfigError(
            "Nothing has a vector yet",
            got=f"an empty index for the embedder {project.embedder.id}",
            expected="captured interactions and their vectors",
            next="trueup embed",
        )
    return project.vectors


def shown(text: str, most: int = SHOWN_CHARS) -> str:
    """A text on one line, cut where it is long, without anything that a terminal would obey."""
    line = " ".join(text[: 4 * most].split())
    plain = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c
        for c in line
    )
    return plain if len(plain) <= most else plain[: most - 1] + "…"
