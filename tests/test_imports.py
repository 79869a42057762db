"""Who may import whom, and what an import may load.

    base ← parts ← stages ← above ← doors

A module imports from its own layer's folder and from layers below. A stage never imports a stage:
what passes between two of them is records.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import trueup

SOURCE = Path(trueup.__file__).parent
LAYERS = [
    {"asking", "errors", "config", "records", "stats", "progress", "measure", "suite"},
    {"store", "models", "judges", "sandbox", "shift", "toy", "launch", "privacy", "vectors"},
    {"capture", "flag", "label", "pair", "train", "guard", "evaluate", "ab", "promote"},
    {"project", "loop", "rounds", "drill", "compare", "quickstart"},
    {"cli", "web", "gateway", "review", "__main__"},
]
STAGES = LAYERS[2]
MODELS = {"torch", "transformers", "peft", "huggingface_hub"}
HEAVY = MODELS | {"starlette", "uvicorn", "aiohttp", "scipy"}


class Import(NamedTuple):
    """`importer` names `imported`, both as dotted modules without the leading `trueup.`."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def head(module: str) -> str:
    return module.partition(".")[0]


def layer(name: str) -> int:
    return next(place for place, names in enumerate(LAYERS) if name in names)


def imports() -> Iterator[Import]:
    """Every import of our own modules, wherever in a file it stands; the package's lazy front
    door, `trueup/__init__.py`, is above everything and left out."""
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        package = parts[:-1]
        importer = ".".join(package if parts[-1] == "__init__" else parts)
        if importer:
            for node in ast.walk(ast.parse(file.read_text())):
                for name in named(node, package):
                    yield Import(importer, name, node.lineno)  # type: ignore[attr-defined]


def named(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Our modules that an import statement names."""
    if isinstance(node, ast.Import):
        found = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level:
        above = ".".join(("trueup", *package[: len(package) - node.level + 1]))
        found = [f"{above}.{node.module}"] if node.module else [above]
    elif isinstance(node, ast.ImportFrom) and node.module == "trueup":
        names = [alias.name for alias in node.names if alias.name != "__version__"]
        found = [trueup._HOMES.get(name, f"trueup.{name}") for name in names]
    elif isinstance(node, ast.ImportFrom):
        found = [node.module or ""]
    else:
        found = []
    return [one.removeprefix("trueup.") for one in found if one.startswith("trueup.")]


def is_allowed(one: Import) -> bool:
    ours, theirs = head(one.importer), head(one.imported)
    if ours == theirs:
        return True
    if one.importer == "project" and one.imported.endswith(".config"):
        return True  # the project's settings are those of every part, doors included
    if layer(ours) != layer(theirs):
        return layer(theirs) < layer(ours)
    return ours not in STAGES


def loaded_by(code: str) -> set[str]:
    """The top-level packages in memory after a fresh interpreter ran this code."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code + "\nimport sys; print(*{m.split('.')[0] for m in sys.modules})",
        ],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


IMPORTS = list(imports())


def test_the_walk_sees_imports_at_the_top_and_inside_functions() -> None:
    seen = {(one.importer, one.imported) for one in IMPORTS}
    assert ("loop", "train") in seen  # `from trueup import ab, evaluate, …`
    assert ("loop", "records") in seen
    assert ("train.run", "train.identity") in seen  # inside a function
    assert len(seen) > 100


def test_every_module_has_its_layer() -> None:
    known = set.union(*LAYERS)
    there = {p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))}
    assert there - known - {"__init__"} == set(), "say in LAYERS where it belongs"


def test_nothing_imports_from_above_itself_and_no_stage_imports_a_stage() -> None:
    assert [str(one) for one in IMPORTS if not is_allowed(one)] == []


def test_the_rule_would_notice() -> None:
    """The three ways to break it, and the exception."""
    assert not is_allowed(Import("records", "store.store", 1))
    assert not is_allowed(Import("pair.run", "label.run", 1))
    assert not is_allowed(Import("loop", "cli.main", 1))
    assert is_allowed(Import("project", "gateway.config", 1))
    assert not is_allowed(Import("project", "gateway.app", 1))
    assert is_allowed(Import("guard.run", "guard.drift", 1))


def test_settings_load_nothing_but_settings() -> None:
    """So that the terminal can print its help without a model library."""
    allowed = {"config", "errors", "judges.config", "train.online.choices", "train.online.config"}
    strays = [
        str(one)
        for one in IMPORTS
        if one.importer.endswith(".config") and one.imported not in allowed
    ]
    assert strays == []


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import trueup", HEAVY),
        ("import trueup.records, trueup.store, trueup.config, trueup.errors", HEAVY),
        ("import trueup.loop", HEAVY - {"scipy"}),
        ("import trueup.models, trueup.judges", HEAVY),
        ("import trueup.capture.importer", HEAVY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_importing_loads_nothing_heavy(code: str, absent: set[str]) -> None:
    assert loaded_by(code) & absent == set()


def test_opening_a_project_loads_no_model_library(tmp_path: Path) -> None:
    (tmp_path / "trueup.toml").write_text("")
    code = f"from trueup import Project\nassert Project({str(tmp_path)!r}).config.train.beta > 0"
    assert loaded_by(code) & (MODELS | {"starlette", "aiohttp"}) == set()


def test_the_front_door_opens_on_every_name_it_lists() -> None:
    code = "import trueup\nfor name in trueup.__all__: getattr(trueup, name)"
    assert "torch" not in loaded_by(code)
    assert trueup.__all__ == sorted(trueup.__all__)
    with pytest.raises(AttributeError, match="'nonsense'"):
        trueup.nonsense  # type: ignore[attr-defined]  # noqa: B018
