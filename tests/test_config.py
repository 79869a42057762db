"""Settings: strict, typed, documented, and every mistake is answered with what to write instead."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import trueup
from trueup.capture.config import CaptureConfig
from trueup.config import apply_overrides, read_toml, validate
from trueup.errors import ConfigError
from trueup.project import Config
from trueup.train.online.config import OnlineConfig

SOURCE = Path(trueup.__file__).parent


def sections(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of the project by its dotted name, with its pydantic field."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from sections(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", field


SETTINGS = dict(sections())


def complaint(raw: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        validate(Config, raw, source="trueup.toml")
    return caught.value


# --- unknown keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "where", "nearest"),
    [
        ({"trian": {"beta": 0.2}}, "trian", "train"),
        ({"evalute": {}}, "evalute", "evaluate"),
        ({"train": {"betta": 0.2}}, "train.betta", "beta"),
        ({"train": {"learningrate": 0.2}}, "train.learningrate", "learning_rate"),
        ({"guard": {"max_length": 2}}, "guard.max_length", "max_length_ratio"),
        ({"label": {"endpoint": {"modle": "x"}}}, "label.endpoint.modle", "model"),
        ({"ab": {"endpoint": {"timeout": 3}}}, "ab.endpoint.timeout", "timeout_s"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_valid_one_is_named(
    raw: dict, where: str, nearest: str
) -> None:
    error = complaint(raw)
    assert str(error) == (
        f"trueup.toml: there is no setting '{where}'. Got '{where.split('.')[-1]}'. "
        f"Expected '{nearest}'. Next: rename it to '{nearest}', or delete it."
    )


def test_a_key_like_no_other_is_answered_with_all_valid_ones() -> None:
    error = complaint({"capture": {"zzzz": 1}})
    assert error.expected == "one of " + ", ".join(sorted(CaptureConfig.model_fields))
    assert error.next == "delete it"


def test_a_right_name_in_the_wrong_section_is_refused() -> None:
    assert complaint({"beta": 0.2}).got == "beta"
    assert "'pair.beta'" in str(complaint({"pair": {"beta": 0.2}}))


# --- wrong values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "where", "got", "expected"),
    [
        ({"train": {"beta": "high"}}, "train.beta", "high", "valid number"),
        ({"train": {"beta": 0}}, "train.beta", 0, "greater than 0"),
        ({"train": {"epochs": 1.5}}, "train.epochs", 1.5, "valid integer"),
        ({"train": {"method": "dppo"}}, "train.method", "dppo", "'dpo'"),
        ({"capture": {"rate": 1.01}}, "capture.rate", 1.01, "less than or equal to 1"),
        ({"label": {"endpoint": {"timeout_s": -1}}}, "label.endpoint.timeout_s", -1, "greater"),
        ({"promote": {"gates": ["guard", "luck"]}}, "promote.gates.1", "luck", "'evaluate'"),
        ({"promote": {"gates": []}}, "promote.gates", (), "at least 1"),
        ({"train": 3}, "train", 3, "dictionary"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_got_and_what_was_expected(
    raw: dict, where: str, got: object, expected: str
) -> None:
    error = complaint(raw)
    assert f"the setting '{where}' cannot be used" in str(error)
    assert error.got == got or list(error.got) == list(got)  # type: ignore[call-overload]
    assert expected in error.expected
    assert where in error.next


def test_settings_that_do_not_go_together_are_named_and_nothing_else_is_shown() -> None:
    raw = {"kl_target": 1.0, "kl_coef": 0.0}
    error = complaint({"train": {"online": raw}})
    with pytest.raises(ConfigError) as alone:
        validate(OnlineConfig, raw, source="command line")
    for one, name in ((error, "train.online"), (alone.value, "command line")):
        assert one.got == "kl_target adapts kl_coef, which starts above 0"
        assert f"settings of '{name}' do not go together" in str(one)


def test_a_setting_cannot_be_changed_after_it_was_read() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.beta = 0.5  # type: ignore[misc]


# --- files and overrides --------------------------------------------------------------------------


def test_a_missing_file_and_a_broken_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no trueup\.toml .*trueup init"):
        read_toml(tmp_path / "trueup.toml")
    (tmp_path / "trueup.toml").write_text('[train]\nbeta = 0.1\nmethod = "dpo\n')
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 3"):
        read_toml(tmp_path / "trueup.toml")


def test_an_empty_file_is_a_valid_one_and_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "trueup.toml").write_text("")
    raw = read_toml(tmp_path / "trueup.toml")
    assert validate(Config, raw, source="trueup.toml") == Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.2", 0.2),
        ("3", 3),
        ("true", True),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("house-style", "house-style"),
        ("my.module:judge", "my.module:judge"),
        ("http://127.0.0.1:1/v1?a=b", "http://127.0.0.1:1/v1?a=b"),
        ("", ""),
    ],
)
def test_an_override_is_a_toml_value_and_bare_words_are_text(text: str, value: object) -> None:
    assert apply_overrides({}, (f"a.b={text}",)) == {"a": {"b": value}}


def test_overrides_are_laid_over_the_file_and_the_last_one_wins() -> None:
    raw = {"train": {"beta": 0.1, "epochs": 2}, "label": {"endpoint": {"model": "a"}}}
    changed = apply_overrides(
        raw, ("train.beta=0.2", "train.beta=0.3", "label.endpoint.timeout_s=5", "pair.min_margin=1")
    )
    assert changed == {
        "train": {"beta": 0.3, "epochs": 2},
        "label": {"endpoint": {"model": "a", "timeout_s": 5}},
        "pair": {"min_margin": 1},
    }
    config = validate(Config, changed, source="--set")
    assert (config.train.beta, config.train.epochs, config.pair.min_margin) == (0.3, 2, 1.0)
    assert (config.label.endpoint.model, config.label.endpoint.timeout_s) == ("a", 5.0)


def test_overrides_leave_what_they_are_laid_over_as_it_was() -> None:
    raw = {"train": {"beta": 0.1}, "label": {"endpoint": {"model": "a"}}}
    apply_overrides(raw, ("train.beta=0.2", "label.endpoint.model=b"))
    assert raw == {"train": {"beta": 0.1}, "label": {"endpoint": {"model": "a"}}}


@pytest.mark.parametrize("item", ["train.beta", "beta=0.2", "=0.2", "train.=0.2", ""])
def test_an_override_that_cannot_be_read_shows_the_right_form(item: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value.*--set train\.beta=0\.2") as caught:
        apply_overrides({}, (item,))
    assert caught.value.got == item


def test_an_override_below_something_that_is_no_section_is_refused() -> None:
    with pytest.raises(ConfigError):
        raw = apply_overrides({"label": {"judge": "facts"}}, ("label.judge.name=x",))
        validate(Config, raw, source="--set")


# --- the whole of the settings --------------------------------------------------------------------


def test_the_defaults_are_a_valid_setting() -> None:
    spelled_out = Config().model_dump(mode="json")
    assert validate(Config, spelled_out, source="defaults") == Config()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_means(name: str) -> None:
    if name != "train.method":  # its one value is explained where the class is
        assert len(SETTINGS[name].description or "") >= 12, f"{name} has no docstring"


def test_every_section_says_what_it_is_for() -> None:
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type) and field.annotation.__doc__, name


def test_every_setting_is_read_by_something() -> None:
    """A setting that nothing reads is a promise nobody keeps. Names alone are compared."""
    read = set()
    for file in SOURCE.rglob("*.py"):
        if file.name != "config.py":
            tree = ast.parse(file.read_text())
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in SETTINGS if name.split(".")[-1] not in read} == set()


def test_a_setting_from_a_file_reaches_its_field() -> None:
    raw = tomllib.loads('[model]\nbase = "b"\n[train]\nlora_targets = ["q_proj"]\n')
    config = validate(Config, raw, source="trueup.toml")
    assert config.model.base == "b"
    assert config.train.lora_targets == ("q_proj",)
