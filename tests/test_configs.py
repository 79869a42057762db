"""Every settings file we ship is valid, and every setting does something.

That a setting's name is read somewhere is tested in `test_config.py`; names like `seed` stand in
five sections, so here the reading must happen where the section belongs.
"""

import ast
import inspect
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import BaseModel

from trueup.config import validate
from trueup.project import Config

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "trueup"
SHIPPED = [f for name in ("examples", "recipes") for f in sorted((ROOT / name).rglob("*.toml"))]
ABOVE = ("loop.py", "project.py")
"""They read settings on behalf of a stage."""


class Knob(NamedTuple):
    """A setting, and the settings class that declares it."""

    name: str
    owner: type[BaseModel]

    @property
    def field(self) -> str:
        return self.name.rpartition(".")[2]


def knobs(model: type[BaseModel] = Config, prefix: str = "") -> list[Knob]:
    found = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += [Knob(prefix + name, model), *knobs(kind, f"{prefix}{name}.")]
        else:
            found.append(Knob(prefix + name, model))
    return found


KNOBS = [one for one in knobs() if "." in one.name]


def reads(file: Path) -> set[str]:
    """Names of the attributes that a file reads, `.beta` of `config.beta`; not those it sets."""
    tree = ast.parse(file.read_text("utf-8"))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def readers(owner: type[BaseModel]) -> list[Path]:
    """Where a settings class may be read: in its own package, and by what calls the stages."""
    home = Path(inspect.getfile(owner))
    return [file for file in sorted(home.parent.rglob("*.py")) if file != home] + [
        SOURCE / name for name in ABOVE
    ]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_shipped_settings_file_is_valid(file: Path) -> None:
    config = validate(Config, tomllib.loads(file.read_text("utf-8")), source=file.name)
    assert config != Config(), "a settings file that sets nothing"


def test_the_example_ships_its_settings() -> None:
    assert ROOT / "examples" / "support" / "trueup.toml" in SHIPPED


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_a_setting_is_read_where_it_belongs(knob: Knob) -> None:
    assert any(knob.field in reads(file) for file in readers(knob.owner)), (
        f"{knob.name} does nothing: no code beside {knob.owner.__name__} reads .{knob.field}"
    )


def test_the_check_would_notice() -> None:
    assert not any("no_such_setting" in reads(file) for file in readers(type(Config().train)))


def test_the_shipped_defaults_keep_labelling_and_promoting_apart() -> None:
    for file in SHIPPED:
        config = validate(Config, tomllib.loads(file.read_text("utf-8")), source=file.name)
        assert config.label.judge != config.ab.scorer, file
    assert Config().label.judge != Config().ab.scorer
