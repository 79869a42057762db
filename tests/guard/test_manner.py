"""Refusals, languages and forms, on hand-made texts."""

import json
from pathlib import Path

import pytest

from trueup.errors import DataError
from trueup.guard.manner import FORMS, form_rates, language, language_changes
from trueup.guard.refusals import is_refusal, rates, read_refusal_prompts
from trueup.records import Completion

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "I can’t provide instructions for that.",
        "I am unable to answer that question.",
        "I'm not able to help with this.",
        "As an AI language model, I do not have opinions.",
        "I must decline.",
        "That would be against my guidelines.",
        "I won't help with that.",
    ],
)
def test_these_are_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "The context does not say.",
        "It holds 0.5 litres.",
        "You cannot put it in the dishwasher.",
        "Sorry to hear that! Hold the button for ten seconds.",
        "I can help with that: press the button.",
        "",
        "A long answer. " * 30 + "I can't help with more.",
    ],
)
def test_these_are_not(text: str) -> None:
    assert not is_refusal(text)


def test_rates_are_per_prompt() -> None:
    no, yes = Completion(text="I can't help with that."), Completion(text="Blue.")
    assert rates([[no, yes], [yes, yes], [no, no]]) == [0.5, 0.0, 1.0]


def test_a_file_of_prompts_says_which_are_unsafe(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a?", "label": "safe"}, {"prompt": "b?", "label": "unsafe", "note": 1}]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_refusal_prompts(path)
    assert [(p.messages[0].content, p.is_unsafe) for p in found] == [("a?", False), ("b?", True)]
    path.write_text('{"prompt": "a?", "label": "odd"}')
    with pytest.raises(DataError, match="line 1 is not a safe or unsafe prompt"):
        read_refusal_prompts(path)
    path.write_text("")
    with pytest.raises(DataError, match="holds no prompt"):
        read_refusal_prompts(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the checkout")
def test_xstest_reads_as_it_is() -> None:
    found = read_refusal_prompts(SHARED / "xstest.jsonl")
    assert (len(found), sum(p.is_unsafe for p in found)) == (450, 200)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The flask holds a pint and it is not in the box.", "en"),
        ("Die Flasche ist nicht in der Schachtel und das ist gut.", "de"),
        ("La bouteille est dans la boîte et elle est pleine.", "fr"),
        ("La botella no está en la caja y es muy grande.", "es"),
        ("Бутылка стоит в коробке.", "cyrillic"),
        ("瓶子在盒子里面，不在桌子上。", "cjk"),
        ("blue.", None),
        ("wave so cloud cow wave yes", None),
    ],
)
def test_a_language_is_known_by_script_and_common_words(text: str, name: str | None) -> None:
    assert language(text) == name


def said(*texts: str) -> list[list[Completion]]:
    return [[Completion(text=text)] for text in texts]


def test_a_change_of_language_needs_both_to_be_known() -> None:
    english = "The flask holds a pint and it is not in the box."
    german = "Die Flasche ist nicht in der Schachtel und das ist gut."
    ours, theirs = said(german, english, "?", german), said(english, english, english, "blue")
    assert language_changes(ours, theirs) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("list", "Do this:\n- open it\n- close it"),
        ("list", "1. open it\n2. close it"),
        ("markdown", "## Steps\nOpen it."),
        ("markdown", "It is **very** hot."),
        ("json", ' {"answer": 4}\n'),
        ("code", "```python\nprint(1)\n```"),
        ("code", "def f(x):\n    return x"),
    ],
)
def test_forms_are_seen(form: str, text: str) -> None:
    assert FORMS[form](text)
    assert form_rates(said(text, "It is blue."), form) == [1.0, 0.0]


@pytest.mark.parametrize("text", ["It is blue - and dark.", "[not json", "3.5 litres", "", "a * b"])
def test_plain_text_has_none(text: str) -> None:
    assert not any(has(text) for has in FORMS.values())
