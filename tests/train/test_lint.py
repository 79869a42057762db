"""The linter: what would train, token by token, and the four mistakes that stop it.

A tiny model on the CPU; half of the answers are its own samples, half are text from a file.
"""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trueup.cli.lint_text import lint_text
from trueup.errors import ConfigError, DataError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import completion_logprobs
from trueup.models.shared_prompt import Branches
from trueup.models.tiny import TEMPLATE, save_tiny
from trueup.records import Completion, Message, Messages, PreferencePair, Sampling
from trueup.train.config import Allowed
from trueup.train.data import Row, encode
from trueup.train.lint import Lint, Sample, Token, lint

THINGS = ("sky", "leaf", "coal", "snow")


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> Backbone:
    return Backbone.load(tiny_model)


def question(text: str) -> Messages:
    return (Message(role="user", content=text),)


def pair(prompt: str, chosen: Completion, rejected: Completion) -> PreferencePair:
    return PreferencePair(
        prompt=question(prompt), chosen=chosen, rejected=rejected, margin=1, label_ids=("label_1",)
    )


def text(words: str, finish_reason: Any = "stop") -> Completion:
    return Completion(text=words, finish_reason=finish_reason)


def written(num: int = 4) -> list[PreferencePair]:
    """Text that never was tokens."""
    return [pair(f"{n}?", text(f"{n} it is."), text(f"Well, {n}, I think.")) for n in range(num)]


@pytest.fixture(scope="module")
def drawn(backbone: Backbone) -> list[PreferencePair]:
    """The model's own answers, whole and cut off."""
    prompts = [question(f"{thing}?") for thing in THINGS]
    found = []
    for max_tokens in (30, 3):
        sampling = Sampling(max_tokens=max_tokens, seed=1)
        answers = backbone.complete(
            prompts, sampling, role=None, weights=backbone.base_weights, num_samples=4
        )
        for thing, group in zip(THINGS, answers, strict=True):
            by_length = sorted(group, key=lambda c: len(c.token_ids or ()))
            if by_length[0].token_ids != by_length[-1].token_ids:
                found.append(pair(f"{thing}?", by_length[0], by_length[-1]))
    return found


def without_end(backbone: Backbone, one: PreferencePair, side: str = "chosen") -> PreferencePair:
    """What a server gives that leaves the end token out of an answer's tokens."""
    words: str = getattr(one, side).text
    ids = tuple(backbone.tokenizer(words, add_special_tokens=False)["input_ids"])
    bare = Completion(text=words, token_ids=ids, finish_reason="stop")
    return pair(
        one.prompt[0].content, **{"chosen": one.chosen, "rejected": one.rejected, side: bare}
    )


def look(backbone: Backbone, pairs: list[PreferencePair], **settings: Any) -> Lint:
    return lint(backbone, pairs, **{"max_tokens": 2048, **settings})


def names(found: Lint) -> list[str]:
    return [problem.name for problem in found.problems]


# --- what would train -----------------------------------------------------------------------------


def test_sound_pairs_pass(backbone: Backbone, drawn: list[PreferencePair]) -> None:
    pairs = drawn + written()
    found = look(backbone, pairs, served_template=backbone.template)
    assert found.problems == ()
    found.stop()
    assert (found.num_pairs, found.num_records, found.skipped) == (len(pairs), len(pairs), {})
    assert found.template == found.served_template == chat.template_hash(backbone.tokenizer)
    assert (found.eos_token, found.eos_id) == ("<|im_end|>", backbone.tokenizer.eos_token_id)
    assert Lint.model_validate(json.loads(found.model_dump_json())) == found


def test_every_answer_that_trains_is_counted_by_how_it_ends(
    backbone: Backbone, drawn: list[PreferencePair]
) -> None:
    cut = sum(c.finish_reason == "length" for p in drawn for c in (p.chosen, p.rejected))
    assert 0 < cut < 2 * len(drawn)
    untold = Completion(text="blue", token_ids=(66, 76), finish_reason="unknown")
    pairs = [*drawn, *written(3), pair("a", text("b", "length"), untold)]
    found = look(backbone, pairs)
    assert found.num_cut_off == cut + 1
    assert (found.num_lost_eos, found.num_unknown_end) == (0, 1)
    assert found.num_ended + found.num_cut_off + found.num_unknown_end == 2 * found.num_records
    assert found.problems == (), "what was cut off trains without an end, and rightly"


def test_what_is_left_out_is_counted_by_reason_and_the_longest_named(backbone: Backbone) -> None:
    good = written()
    pairs = [
        *good,
        pair("empty", text("", "length"), text("b")),
        pair("long", text("x" * 400), text("b")),
    ]
    found = look(backbone, pairs, max_tokens=200)
    assert found.skipped == {"empty completion": 1, "longer than train.max_tokens": 1}
    rows, _ = encode(backbone, good, max_tokens=200)
    assert found.longest_tokens == max(row.num_tokens for row in rows)
    assert found.longest in {row.id for row in rows if row.num_tokens == found.longest_tokens}


def test_of_no_pairs_nothing_would_train(backbone: Backbone) -> None:
    found = look(backbone, [], served_template="template_other")
    assert (found.num_records, found.longest_tokens, found.longest) == (0, 0, "")
    assert found.samples == found.problems == ()
    assert "0 of 0 pairs" in lint_text(found)


def test_answers_drawn_under_another_template_are_counted(
    backbone: Backbone, drawn: list[PreferencePair]
) -> None:
    assert look(backbone, drawn).num_other_prompt == 0
    old = drawn[0].chosen.model_copy(update={"after": chat.digest([1, 2, 3])})
    found = look(backbone, [pair("sky?", old, drawn[0].rejected), *written()])
    assert found.num_other_prompt == 1
    assert found.problems == (), "they train as anybody's answers do"


# --- the tokens -----------------------------------------------------------------------------------


def joined(tokens: tuple[Token, ...], *, loss: bool) -> str:
    return "".join(token.text for token in tokens if token.carries_loss is loss)


def test_a_sample_shows_each_token_and_which_of_them_carry_loss(backbone: Backbone) -> None:
    (sample,) = look(backbone, [pair("sky?", text("blue."), text("um", "length"))]).samples
    prompt = "<|im_start|>user\nsky?<|im_end|>\n<|im_start|>assistant\n"
    for tokens, answer in ((sample.chosen, "blue.<|im_end|>"), (sample.rejected, "um")):
        assert joined(tokens, loss=False) == prompt
        assert joined(tokens, loss=True) == answer
        flags = [token.carries_loss for token in tokens]
        assert flags == sorted(flags), "the prompt comes first"
    assert sample.chosen[-1] == Token(backbone.tokenizer.eos_token_id, "<|im_end|>", True)


def test_the_tokens_said_to_carry_loss_are_those_the_kernel_scores(
    backbone: Backbone, drawn: list[PreferencePair]
) -> None:
    """The sum over flagged tokens of a plain forward pass is the sum that trains."""
    pairs = drawn + written()
    found = look(backbone, pairs)
    rows, _ = encode(backbone, pairs, max_tokens=2048)
    by_id = {row.id: row for row in rows}
    assert len(found.samples) == 3
    for sample in found.samples:
        with torch.no_grad():
            trained = completion_logprobs(backbone.model, [by_id[sample.pair_id].branches])[0]
            for tokens, logprobs in zip((sample.chosen, sample.rejected), trained, strict=True):
                ids = torch.tensor([[token.token_id for token in tokens]])
                scores = backbone.model(ids).logits[0].log_softmax(-1)
                flagged = [at for at, token in enumerate(tokens) if token.carries_loss]
                slow = [scores[at - 1, ids[0, at]] for at in flagged]
                assert torch.allclose(torch.stack(slow), logprobs, atol=1e-4)


def test_the_samples_are_the_shortest_a_median_and_the_longest(backbone: Backbone) -> None:
    pairs = [pair(f"{n}", text("a" * n), text("b" * n)) for n in (9, 3, 7, 1, 5)]
    assert [sample.pair_id for sample in look(backbone, pairs).samples] == [
        pairs[3].id,
        pairs[4].id,
        pairs[0].id,
    ]


def test_a_pair_with_a_problem_is_shown_first(backbone: Backbone) -> None:
    bad = without_end(backbone, written()[2])
    found = look(backbone, [*written(), bad])
    assert found.samples[0].pair_id == bad.id
    assert joined(found.samples[0].chosen, loss=True) == "2 it is."


def test_a_character_in_several_tokens_stands_with_its_last(backbone: Backbone) -> None:
    (sample,) = look(backbone, [pair("?", text("é😀."), text("b"))]).samples
    texts = [token.text for token in sample.chosen if token.carries_loss]
    assert texts == ["", "é", "", "", "", "😀", ".", "<|im_end|>"]


def test_bytes_that_are_no_text_are_shown_as_such(backbone: Backbone) -> None:
    """What a model at temperature 2 may draw."""
    (byte,) = (
        i for i in range(256) if backbone.tokenizer.convert_ids_to_tokens(i) == "ÿ"
    )  # 0xFF begins no character
    broken = Completion(text="?", token_ids=(byte,) * 6, finish_reason="length")
    (sample,) = look(backbone, [pair("?", broken, text("b"))]).samples
    assert joined(sample.chosen, loss=True) == "\ufffd" * 6


class OtherTokenizer:
    """A backbone with a tokenizer of words, whose first decoded token loses its blank."""

    def __init__(self) -> None:
        vocab = {"<unk>": 0, "</s>": 1, "▁the": 2, "▁sky": 3, "▁is": 4, "▁blue": 5, "▁red": 6}
        core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        core.decoder = decoders.Metaspace()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
        self.tokenizer.chat_template = "{{ messages[0]['content'] }}"
        self.template = chat.template_hash(self.tokenizer)
        self.context, self.num_tokens = 100, len(vocab)


def test_blanks_that_a_tokenizer_drops_when_it_decodes_one_token_are_shown() -> None:
    backbone: Any = OtherTokenizer()
    (sample,) = look(backbone, [pair("the sky", text("is blue"), text("is red"))]).samples
    assert [token.text for token in sample.chosen] == ["the", " sky", " is", " blue", "</s>"]


# --- what stops -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_answer_that_ended_without_its_end_token_stops(backbone: Backbone, side: str) -> None:
    bad = without_end(backbone, written()[1], side)
    found = look(backbone, [*written(), bad])
    assert found.num_lost_eos == 1
    assert names(found) == ["lost-eos"]
    assert found.problems[0].examples == (bad.id,)
    with pytest.raises(DataError) as caught:
        found.stop()
    error = caught.value
    assert error.what == "An answer that ended would train without its end token (1 record)"
    assert error.got == {"lost-eos": [bad.id]}
    assert "end-of-turn token" in error.expected
    assert "--allow lost-eos" in error.next
    look(backbone, [*written(), bad], allow={"lost-eos"}).stop()


def test_text_that_was_encoded_without_its_end_stops(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A patch, because the mistake it looks for would be one of our own encoding."""
    plain = chat.completion_ids
    monkeypatch.setattr(chat, "completion_ids", lambda *args: plain(*args)[:-1])
    found = look(backbone, written(5))
    assert (found.num_lost_eos, found.num_ended) == (10, 0)
    assert names(found) == ["lost-eos"]
    assert found.problems[0].num_pairs == 5


def test_another_template_than_served_stops(backbone: Backbone, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "other", seed=0)
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("assistant\n", "assistant:\n"))
    other = Backbone.load(folder)
    assert other.template != backbone.template
    found = look(other, written(), served_template=backbone.template)
    assert names(found) == ["other-template"]
    with pytest.raises(
        DataError, match=r"not the one that served \(4 records\).*--allow other-temp"
    ):
        found.stop()
    look(other, written(), served_template=backbone.template, allow={"other-template"}).stop()
    look(other, written(), served_template=other.template).stop()
    look(other, written()).stop()


def moved_border(row: Row, by: int) -> Row:
    """The same tokens, with the prompt's end counted to the completions or the other way round."""
    prompt = list(row.branches.prompt_ids)
    sides = [list(ids) for ids in row.branches.completions]
    if by < 0:
        moved = Branches(prompt[:by], [prompt[by:] + ids for ids in sides])
    else:
        moved = Branches(prompt + sides[0][:by], [ids[by:] for ids in sides])
    return row._replace(branches=moved)


@pytest.mark.parametrize("by", [-1, -5, 1])
def test_a_prompt_that_carries_loss_stops(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, by: int
) -> None:
    """A patch, because the mistake it looks for would be one of our own encoding."""

    def leaky(*args: Any, **settings: Any) -> Any:
        rows, skipped = encode(*args, **settings)
        return [moved_border(row, by) if n == 1 else row for n, row in enumerate(rows)], skipped

    monkeypatch.setattr("trueup.train.lint.encode", leaky)
    pairs = [pair(f"{n}", text("so it is"), text("so be it")) for n in range(3)]
    found = look(backbone, pairs)
    assert names(found) == ["prompt-loss"]
    assert found.problems[0].examples == (pairs[1].id,)
    assert found.samples[0].pair_id == pairs[1].id
    assert ("assistant\n"[by:] in joined(found.samples[0].chosen, loss=True)) is (by < 0)
    with pytest.raises(DataError, match=r"would carry loss \(1 record\).*--allow prompt-loss"):
        found.stop()


def test_equal_answers_stop_and_never_train(
    backbone: Backbone, drawn: list[PreferencePair]
) -> None:
    same_text = pair("a", text("yes"), text("yes"))
    same_tokens = pair("b", drawn[0].chosen, drawn[0].chosen.model_copy(update={"text": "other"}))
    pairs = [*written(), same_text, same_tokens]
    found = look(backbone, pairs)
    assert names(found) == ["equal-pair"]
    assert found.num_equal == 2
    assert found.problems[0].examples == (same_text.id, same_tokens.id)
    with pytest.raises(DataError, match=r"token for token \(2 records\).*--allow equal-pair"):
        found.stop()
    lenient = look(backbone, pairs, allow={"equal-pair"})
    lenient.stop()
    assert (lenient.num_equal, lenient.num_records) == (2, 4)
    assert lenient.skipped == {"chosen equals rejected": 2}


def test_several_problems_are_told_at_once_and_allowed_one_by_one(backbone: Backbone) -> None:
    pairs = [without_end(backbone, written()[0]), pair("a", text("yes"), text("yes"))]
    with pytest.raises(DataError, match="--allow lost-eos --allow equal-pair"):
        look(backbone, pairs).stop()
    half = look(backbone, pairs, allow={"equal-pair"})
    assert [problem.allowed for problem in half.problems] == [False, True]
    with pytest.raises(DataError) as caught:
        half.stop()
    assert "equal-pair" not in str(caught.value)
    look(backbone, pairs, allow={"equal-pair", "lost-eos"}).stop()


def test_a_name_that_is_no_problem_is_not_allowed(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="no such problem") as caught:
        look(backbone, written(), allow={"lost-oes", "equal-pair"})
    assert caught.value.got == ["lost-oes"]
    assert all(name in caught.value.expected for name in get_args(Allowed))


# --- on the terminal ------------------------------------------------------------------------------


def test_the_text_of_a_lint(backbone: Backbone) -> None:
    """A token that carries loss has `^` under its beginning; the model's are bytes."""
    one = pair("sky?", text("blue."), text("um", "length"))
    expected = f"""\
template   {backbone.template} (served with is unknown)
end token  <|im_end|> (id {backbone.tokenizer.eos_token_id})
records    1 of 1 pairs
longest    31 of at most 2,048 tokens
answers    1 with their end token
           1 cut off when drawn: they train without one

^ begins a token that carries loss, ~ goes on with it

Sample 1 of 1: {one.id}

prompt + chosen: 29 tokens, loss on the last 6
<|im_start|>user\\n
sky?<|im_end|>\\n
<|im_start|>assistant\\n
blue.<|im_end|>
^^^^^^~~~~~~~~~

prompt + rejected: 25 tokens, loss on the last 2
<|im_start|>user\\n
sky?<|im_end|>\\n
<|im_start|>assistant\\n
um
^^
"""
    assert lint_text(look(backbone, [one])) == expected


def test_the_text_names_what_stops_and_how_to_let_it_pass(backbone: Backbone) -> None:
    pairs = [*written(), without_end(backbone, written()[0]), pair("a", text("yes"), text("yes"))]
    found = look(backbone, pairs, allow={"equal-pair"}, served_template=backbone.template)
    told = " ".join(lint_text(found).split())
    assert "(the one that served)" in told
    assert "1 LOST their end token" in told
    assert "its end token (1 record): stops training; --allow lost-eos lets it pass" in told
    assert "token for token (1 record): allowed" in told
    assert "skipped 1 chosen equals rejected" in told


def test_no_line_is_wider_than_a_terminal_and_marks_stay_under_their_text(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone.model.config, "max_position_embeddings", 4096)
    prose = "Der schnelle Fuchs springt. " * 40
    wide = "天空是蓝色的。" * 40
    pairs = [
        pair(prose, text(wide), text(prose)),
        pair("code", text("def f():\n\treturn '\\n'\n" * 9), text("e\u0301" * 90)),
        pair("x" * 30, text("y" * 300), text("[INST] ^^ ~~")),
    ]
    found = look(backbone, pairs, max_tokens=10_000)
    lines = lint_text(found).splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        assert width(line) <= 80
        if line and not line.strip(" ^~"):
            assert width(line) <= width(above)
    told = "\n".join(lines)
    assert re.search(r"\.\.\. 1,\d\d\d tokens \.\.\.", told), "the middle is told by its number"
    assert "\\n" in told and "\\t" in told


def width(line: str) -> int:
    return sum(0 if c == "\u0301" else 2 if "\u3000" <= c <= "\u9fff" else 1 for c in line)


def test_no_record_can_steer_the_terminal(backbone: Backbone) -> None:
    nasty = "\x1b[31mred\x07\r\u202egnp.exe"
    told = lint_text(look(backbone, [pair(nasty, text(nasty), text("b"))]))
    assert "\\x1b[31mred\\x07\\r\\u202e" in told
    assert all(char.isprintable() or char == "\n" for char in told)


def test_a_token_that_goes_on_is_told_from_one_that_begins() -> None:
    found = Sample(
        pair_id="pair_1",
        chosen=(Token(1, "Why?", False), Token(2, " be", True), Token(3, "cause", True)),
        rejected=(Token(1, "Why?", False), Token(4, "天空", True), Token(5, "</s>", True)),
    )
    empty: Any = OtherTokenizer()
    told = lint_text(look(empty, []).model_copy(update={"samples": (found,)})).splitlines()
    assert told[-6:] == [
        "Why? because",
        "    ^~~^~~~~",
        "",
        "prompt + rejected: 3 tokens, loss on the last 2",
        "Why?天空</s>",
        "    ^~~~^~~~",
    ]
