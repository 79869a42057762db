"""What the documentation says is so: pages are fresh, snippets run, names exist, links lead on.

Snippets of Python run in a folder with one project, `my-assistant`, that has a tiny model, some
traffic, labels, pairs and a trained candidate; those of one page share their names. A snippet
whose first line is `# name.py` is also written to that file. Where a page talks to a server at
127.0.0.1:8400, a real one serves that project, on a free port.
"""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import click
import pytest

from trueup import errors
from trueup.capture.shapes import SHAPES
from trueup.cli.main import cli
from trueup.config import validate
from trueup.evaluate.checkers import CHECKERS, RULES
from trueup.project import Config, Project
from trueup.store.tables import KINDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = {"config.md", "cli.md"}
FRONT = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES = [ROOT / name for name in FRONT if (ROOT / name).is_file()] + sorted(DOCS.glob("*.md"))
WRITTEN = [page for page in PAGES if page.name not in GENERATED]
DOCUMENTED_PORT = "127.0.0.1:8400"


class Snippet(NamedTuple):
    """A fenced block; `line` is that of its first line of text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets_of(page: Path) -> Iterator[Snippet]:
    fence, language, start, lines = "", "", 0, []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
        marks = re.match(r" *(`{3,})(.*)", line)
        if not fence and marks:
            fence, language, start, lines = marks[1], marks[2].strip(), number + 1, []
        elif fence and line.strip() == fence:
            yield Snippet(page, start, language, "\n".join(lines))
            fence = ""
        elif fence:
            lines.append(line)
    assert not fence, f"{page.name}: the fence of line {start - 1} never closes"


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *(`{3,}).*?^ *\1$", "", page.read_text("utf-8"), flags=re.M | re.S)


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]


def written(language: str) -> list[Snippet]:
    return [one for one in SNIPPETS if one.language == language]


def page_text(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def code_spans() -> Iterator[tuple[Path, str]]:
    for page in WRITTEN:
        for span in re.findall(r"`([^`\n]+)`", prose_of(page)):
            yield page, span


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- generated pages --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_a_generated_page_says_what_the_code_says(generate: ModuleType, name: str) -> None:
    assert set(generate.PAGES) == GENERATED
    page = generate.PAGES[name]()
    assert page == generate.PAGES[name](), "not a function of the code alone"
    assert page_text(name) == page, "stale: run 'make docs'"


def test_every_setting_is_documented_with_what_it_means(generate: ModuleType) -> None:
    page = page_text("config.md")
    for setting in generate.settings():
        row = next((row for row in page.splitlines() if row.startswith(f"| `{setting.name}` ")), "")
        assert row, f"{setting.name} is not in config.md"
        if setting.name != "train.method":  # its one value is the section's own docstring
            assert not row.endswith("|  |"), f"{setting.name} has no docstring"


def test_every_command_is_documented_and_stands_on_a_written_page(generate: ModuleType) -> None:
    page = page_text("cli.md")
    leaves = [c.command_path for c in generate.commands() if not isinstance(c.command, click.Group)]
    assert len(leaves) >= 18
    used = {path_of(words) for _, words in typed_commands()}
    used |= {path_of(shlex.split(span)) for _, span in code_spans() if span.startswith("trueup ")}
    for path in leaves:
        assert f"`{path}`" in page
        assert path in used, f"no written page shows '{path}'"


# --- snippets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("snippet", written("toml"), ids=str)
def test_settings_in_the_docs_are_valid(snippet: Snippet) -> None:
    validate(Config, tomllib.loads(snippet.text), source=str(snippet))


@pytest.mark.parametrize("snippet", written("json"), ids=str)
def test_json_in_the_docs_parses(snippet: Snippet) -> None:
    json.loads(snippet.text)


def test_the_examples_of_gold_items_and_held_out_prompts_can_be_read(tmp_path: Path) -> None:
    from trueup.evaluate.gold import read_gold
    from trueup.suite import read_suite

    rows = [one.text for one in written("json") if one.page.parent == DOCS]
    gold = [row for row in rows if "checker" in json.loads(row)]
    held_out = [row for row in rows if set(json.loads(row)) & {"facts", "answerable"}]
    assert gold and held_out
    (tmp_path / "gold.jsonl").write_text("\n".join(dict.fromkeys(gold)))
    (tmp_path / "heldout.jsonl").write_text("\n".join(held_out))
    assert read_gold(tmp_path / "gold.jsonl") and read_suite(tmp_path / "heldout.jsonl")


@pytest.mark.parametrize(
    "page", sorted({one.page for one in written("python")}), ids=lambda p: p.name
)
def test_python_in_the_docs_runs(
    page: Path, assistant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shutil.copytree(assistant, tmp_path / "my-assistant")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    with ExitStack() as stack:
        stack.callback(forget_modules, set(sys.modules), tmp_path)
        port = DOCUMENTED_PORT
        if DOCUMENTED_PORT in page.read_text("utf-8"):
            port = stack.enter_context(serving(project))
        for snippet in written("python"):
            if snippet.page != page:
                continue
            text = snippet.text.replace(DOCUMENTED_PORT, port)
            if file := re.match(r"# (\w+\.py)\n", text):
                (tmp_path / file[1]).write_text(text)
            # blank lines in front, so that a traceback names the line of the page
            code = compile("\n" * (snippet.line - 1) + text, str(page), "exec")
            exec(code, names)


def forget_modules(before: set[str], folder: Path) -> None:
    """Unload the modules that a page's own files became."""
    for name, module in list(sys.modules.items()):
        if name not in before and str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`trueup serve` in a thread; gives its address."""
    from trueup.gateway.app import create_app
    from trueup.gateway.serve import listen, make_server
    from trueup.models.engine import Engine

    project = Project(folder, ("serve.port=0",))
    config = project.config.serve
    engine = Engine(project.backbone, project.store)
    server = make_server(create_app(project.store, config, project.config.capture, engine))
    with listen(config) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            engine.close()


@pytest.fixture(scope="session")
def assistant(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with traffic, flags, labels, pairs and a candidate that no gate has seen."""
    from trueup import flag, label, pair, train
    from trueup.capture.importer import import_file
    from trueup.loop import held_out

    folder = tmp_path_factory.mktemp("docs") / "my-assistant"
    folder.mkdir()
    (folder / "trueup.toml").write_text(
        f"[model]\nbase = {json.dumps(str(tiny_model))}\n"
        "[serve]\nmax_tokens = 24\n[label]\nmax_tokens = 24\n[guard]\nmax_tokens = 24\n"
        "[evaluate]\nmax_tokens = 24\n[train]\nmin_new_pairs = 1\npairs_per_step = 2\n"
    )
    known = {"snow": "white", "rose": "red", "sea": "blue", "moon": "white"}
    write_rows(
        folder / "heldout.jsonl",
        [{"messages": asking(thing), "facts": [[colour]]} for thing, colour in known.items()],
    )
    write_rows(
        folder / "gold.jsonl",
        [
            {"id": thing, "prompt": f"{thing}?", "checker": {"type": "contains", "any": [colour]}}
            for thing, colour in known.items()
        ],
    )
    seen = {"sky": "blue", "leaf": "green", "coal": "black"}
    write_rows(
        folder / "traffic.jsonl",
        [
            {"prompt": asking(thing), "completion": f"{colour}, the {thing} is {colour}. " * 3}
            for thing, colour in seen.items()
        ],
    )
    project = Project(folder)
    store, config = project.store, project.config
    import_file(store, folder / "traffic.jsonl")
    flag.run(store, config.flag)
    label.run(store, config.label, project.champion())
    pair.run(store, config.pair, held_out(project))
    dataset = pair.freeze(store, pair.new_pairs(store))
    assert dataset.pair_ids
    train.run(store, config.train, dataset, project.champion())
    store.close()
    return folder


def asking(thing: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{thing}?"}]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- commands in snippets ---------------------------------------------------------------------


def shell_lines() -> Iterator[tuple[Snippet, str]]:
    """What a reader would type: after `$ ` in a console block, every line of a shell block."""
    for snippet in SNIPPETS:
        for line in snippet.text.replace("\\\n", " ").splitlines():
            if snippet.language == "console" and line.startswith("$ "):
                yield snippet, line[2:]
            elif snippet.language in ("sh", "bash", "shell"):
                yield snippet, line


def typed_commands() -> Iterator[tuple[Snippet, list[str]]]:
    """The words of every `trueup …`, without assignments before it and pipes behind it."""
    for snippet, line in shell_lines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words[:1] == ["trueup"]:
            end = next((i for i, word in enumerate(words) if word in ("|", ">", "&", "&&")), None)
            yield snippet, words[:end]


def path_of(words: list[str]) -> str:
    """`trueup model pull` of a whole command line; what is no command ends it."""
    context = click.Context(cli, info_name="trueup", resilient_parsing=True)
    cli.parse_args(context, words[1:])
    rest = [*context._protected_args, *context.args]  # what is left once the options are taken
    command: click.Command | None = cli
    path = "trueup"
    while isinstance(command, click.Group) and rest:
        command = command.get_command(context, rest[0])
        path += f" {rest.pop(0)}" if command else ""
    return path


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{one}") for one, words in typed_commands()]
)
def test_commands_in_the_docs_parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # defaults that name a folder of the repository
    context = cli.make_context("trueup", words[1:])
    try:
        while isinstance(context.command, click.Group):
            rest = [*context._protected_args, *context.args]
            if not rest and context.command.invoke_without_command:
                break  # a group that does something by itself
            name, command, rest = context.command.resolve_command(context, rest)
            assert command is not None
            context = command.make_context(name, rest, parent=context)
    except click.exceptions.Exit as stop:  # --help and --version
        assert stop.exit_code == 0


def test_commands_in_running_text_exist() -> None:
    for page, span in code_spans():
        if span.startswith("trueup "):
            words = [word for word in shlex.split(span) if not word.startswith("-")]
            assert path_of(shlex.split(span)) != "trueup" or len(words) == 1, f"{page.name}: {span}"


def test_the_check_of_commands_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (["trueup", "promot"], ["trueup", "run", "--fast"], ["trueup", "model", "push"]):
        with pytest.raises(click.UsageError):
            test_commands_in_the_docs_parse(wrong, monkeypatch)


def test_make_commands_are_targets() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    typed = {word for _, line in shell_lines() for word in re.findall(r"\bmake (\w+)", line)}
    named = {span.split()[1] for _, span in code_spans() if re.fullmatch(r"make \w+", span)}
    assert typed | named <= targets
    assert {"quickstart", "test", "lint", "docs"} <= typed


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="there is no README yet")
def test_the_readmes_two_commands_are_what_ci_runs() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = set(re.findall(r"\bmake (\w+)", text))
    assert {"quickstart", "test"} <= shown


# --- names in running text --------------------------------------------------------------------


def test_settings_in_running_text_exist(generate: ModuleType) -> None:
    names = {setting.name for setting in generate.settings()}
    known = names | {name.rpartition(".")[0] for name in names}
    for page, span in code_spans():
        written_setting = re.fullmatch(r"([a-z]+\.[a-z_.]*[a-z])( = .*)?", span)
        if written_setting and written_setting[1].partition(".")[0] in Config.model_fields:
            name = written_setting[1]
            is_file = Path(name).suffix in {".md", ".py", ".toml", ".jsonl"}
            assert is_file or name in known or is_ours(f"trueup.{name}"), f"{page.name}: {span}"


def test_python_names_in_running_text_exist() -> None:
    found = 0
    for page, span in code_spans():
        if name := re.fullmatch(r"(trueup(?:\.\w+)+)(?:\(\))?", span):
            if name[1] == "trueup.toml":
                continue
            assert is_ours(name[1]), f"{page.name}: {span}"
            found += 1
    assert found >= 6


def is_ours(dotted: str) -> bool:
    """True if this is a module of the package, or something in one."""
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ImportError:
            continue
        for part in parts[size:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_files_in_running_text_exist() -> None:
    for page, span in code_spans():
        if re.fullmatch(r"(src|tests|docs|examples|recipes)/[\w./-]*", span) and "NAME" not in span:
            assert (ROOT / span).exists(), f"{page.name}: {span}"


def test_tests_in_running_text_exist() -> None:
    there = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = {span for _, span in code_spans() if re.fullmatch(r"test_\w+", span)}
    assert named and named <= there, named - there


def test_messages_in_running_text_are_in_the_code() -> None:
    """A quoted message, `…` standing for what varies, is one that the code can give."""
    known = templates()
    quoted = 0
    for page, span in code_spans():
        message = re.sub(r"^(PASSED|REFUSED|PENDING) (by|at) \w+: ", "", span).strip()
        if re.match(r"[A-Z]\w* \w+", message) or message != span:
            quoted += 1
            wanted = re.compile(as_pattern(message))
            assert message == "…" or any(
                wanted.search(one) or re.match(as_pattern(one), message) for one in known
            ), f"{page.name}: {span}"
    assert quoted >= 20


def templates() -> set[str]:
    """The texts in our code that can be a message, `…` standing for what is put in."""
    found = set()
    for file in (ROOT / "src" / "trueup").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return {one for one in found if len(re.sub("[^a-z]", "", one)) >= 10 and "\n" not in one}


def as_pattern(message: str) -> str:
    return ".+".join(re.escape(part) for part in message.split("…"))


# --- nothing is left out ----------------------------------------------------------------------


def test_every_checker_and_rule_is_documented() -> None:
    page = page_text("evaluate.md")
    for name in (*CHECKERS, *RULES):
        assert f"`{name}`" in page, name


def test_every_shape_of_import_is_documented_in_the_order_it_is_tried() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", page_text("capture.md"), re.M)
    assert [row for row in rows if row in {s.name for s in SHAPES}] == [s.name for s in SHAPES]


def test_every_flag_signal_is_documented() -> None:
    from trueup.flag.signals import SIGNALS

    told = re.findall(r"^\| `(\w+)` \|", page_text("flag.md"), re.M)
    assert told == [*(one.name for one in SIGNALS), "learned", "llm"]


def test_every_kind_of_record_is_documented() -> None:
    page = page_text("projects.md")
    for kind in KINDS:
        assert f"`{kind.__name__}`" in page and f"`{kind.tag}`" in page, kind


def test_the_tree_of_errors_is_the_one_in_the_code() -> None:
    tree = [line.strip() for line in (errors.__doc__ or "").splitlines() if "──" in line]
    assert len(tree) >= len(errors.__all__) - 1
    shown = [line.strip() for line in page_text("errors.md").splitlines() if "──" in line]
    assert shown == tree


def test_every_extra_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "".join(page.read_text("utf-8") for page in WRITTEN)
    for extra in project["optional-dependencies"]:
        assert re.search(rf"trueup\[[\w,]*\b{extra}\b", text), extra


def test_every_axis_in_the_code_is_in_the_notation() -> None:
    axes = set(re.findall(r"^\| ([A-Z]) \|", page_text("notation.md"), re.M))
    for file in (ROOT / "src").rglob("*.py"):
        for suffix in re.findall(r"\b[a-z]\w*_([A-Z]+1?[A-Z]+)\b", file.read_text("utf-8")):
            assert set(suffix) - {"1"} <= axes, f"{file.name}: {suffix}"


# --- links ------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file.name in FRONT and not file.exists():
            continue  # not written yet
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name}: {target}"


def test_the_index_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)", page_text("index.md")))
    assert {page.name for page in DOCS.glob("*.md")} - linked == {"index.md"}


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
