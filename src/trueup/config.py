"""Settings: read from `trueup.toml`, typed, frozen, and strict.

Each stage declares its own settings in its `config.py` as a `StageConfig`; `trueup.loop.Config`
puts them together. An unknown key is an error that names the nearest valid one, because a
setting that is silently ignored is worse than a program that does not start.
"""

import copy
import difflib
import re
import tomllib
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from trueup.errors import ConfigError

__all__ = ["OPERATIONAL", "StageConfig", "apply_overrides", "no_password", "read_toml", "validate"]

C = TypeVar("C", bound=BaseModel)

OPERATIONAL = object()
"""Marks a setting that says how work gets done, not what comes of it: patience, places, keys."""


class StageConfig(BaseModel):
    """Base of every settings class: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def outcome(self) -> dict[str, Any]:
        """The settings that decide what comes of the work, as JSON. A run is known by these: the
        others may change between a stop and the call that goes on."""
        found = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if any(mark is OPERATIONAL for mark in field.metadata):
                del found[name]
            elif isinstance(value, StageConfig):
                found[name] = value.outcome()
        return found


def no_password(url: str | None) -> str | None:
    """A URL without a user or password in it; settings are printed, stored and served.

    Raises:
        ValueError: it has one.
    """
    if url and "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("a URL must not hold a password: keys come from the environment")
    return url


def read_toml(path: Path) -> dict[str, Any]:
    """The raw contents of a TOML file.

    Raises:
        ConfigError: the file is missing, or is not TOML; the message names the line.
    """
    try:
        return tomllib.loads(path.read_text())
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise ConfigError(
            f"There is no {path.name} in {path.parent}",
            expected="a project folder",
            next="start one with 'trueup init', or name another with --project",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid TOML", got=str(error), expected="TOML", next="mend that line"
        ) from None


def apply_overrides(raw: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """`raw` with `section.key=value` assignments laid over it; values are TOML or text.

    Raises:
        ConfigError: an assignment without `=` or without a section.
    """
    result = copy.deepcopy(raw)
    for item in overrides:
        path, equals, text = item.partition("=")
        *sections, key = path.strip().split(".")
        if not equals or not key or not sections:
            raise ConfigError(
                "An override could not be read",
                got=item,
                expected="section.key=value",
                next="write it like --set train.beta=0.2",
            )
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(
                    "An override names a setting inside something that is no section",
                    got=item,
                    expected=f"'{section}' to be a section",
                    next="write it like --set train.beta=0.2",
                )
        target[key] = _toml_value(text)
    return result


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def validate(model: type[C], raw: dict[str, Any], *, source: str) -> C:
    """`raw` as a `model`.

    Args:
        source: where the settings came from, for the message.

    Raises:
        ConfigError: names the first wrong setting, what it got and, for an unknown key, the
            nearest valid one.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problem = error.errors()[0]
        # "function-after" and the like are pydantic's own steps, not keys of the file
        where = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
        name = ".".join(where) or source
        if problem["type"] == "value_error" and isinstance(problem.get("input"), dict):
            raise ConfigError(  # the message names them; the whole section would hide it
                f"{source}: settings of '{name}' do not go together",
                got=problem["msg"].removeprefix("Value error, "),
                expected="settings that do",
                next=f"change one of them in '{name}'",
            ) from None
        if problem["type"] == "extra_forbidden":
            raise _unknown_key(model, where, source) from None
        raise ConfigError(
            f"{source}: the setting '{name}' cannot be used",
            got=_hidden(problem.get("input")),
            expected=problem["msg"],
            next=f"mend '{name}'",
        ) from None


def _hidden(value: Any) -> Any:
    """A wrong setting as a message may repeat it: without the password of a URL."""
    if not isinstance(value, str) or "://" not in value:
        return value
    value = re.sub(r"(://[^/?#]*?:)[^/?#]*@", r"\1***@", value)
    return re.sub(r"(?i)(pass\w*=)[^&#]*", r"\1***", value)


def _unknown_key(model: type[BaseModel], where: list[str], source: str) -> ConfigError:
    fields = _fields_at(model, where[:-1])
    near = difflib.get_close_matches(where[-1], fields, n=1, cutoff=0.5)
    valid = f"'{near[0]}'" if near else "one of " + ", ".join(sorted(fields))
    return ConfigError(
        f"{source}: there is no setting '{'.'.join(where)}'",
        got=where[-1],
        expected=valid,
        next=f"rename it to '{near[0]}', or delete it" if near else "delete it",
    )


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The valid keys of the settings class that `path` leads to."""
    for part in path:
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    is_union = get_origin(annotation) in (Union, types.UnionType)
    options = get_args(annotation) if is_union else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
