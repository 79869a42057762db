"""Data and settings that would train something else than was meant: stopped, skipped or told."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import (
    ADAPTER,
    CONFIG,
    STOPPABLE,
    MakeProject,
    Project,
    pair,
    question,
    written_pairs,
)

from trueup.errors import ConfigError, DataError, ModelError, TrainingError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.records import Completion, Dataset, Label, PreferencePair, Release
from trueup.train import TrainConfig, run
from trueup.train.data import encode
from trueup.train.gather import look, records_of, sides
from trueup.train.lint import lint
from trueup.train.objectives import _other_prompts


def changed(**settings: Any) -> TrainConfig:
    return TrainConfig.model_validate(CONFIG.model_dump() | settings)


def singles(answers: list[Completion]) -> list[Label]:
    return [
        Label(
            prompt=question("sky", at),
            candidates=(answer,),
            scores=(1.0 if at % 2 == 0 else -1.0,),
            annotator="user",
            annotator_kind="human",
        )
        for at, answer in enumerate(answers)
    ]


def of_labels(project: Project, labels: list[Label]) -> Project:
    project.store.add_all(labels)
    dataset = Dataset(pair_ids=(), label_ids=tuple(one.id for one in labels), source="file:x")
    project.store.add(dataset)
    return project._replace(dataset=dataset)


# --- single answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kto", "sft"])
def test_a_single_answer_that_lost_its_end_token_stops(
    make_project: MakeProject, method: str
) -> None:
    project = make_project()
    ids = project.champion.backbone.tokenizer("blue.")["input_ids"]
    lost = Completion(text="blue.", token_ids=tuple(ids), finish_reason="stop")
    project = of_labels(project, singles([lost] * 4))
    with pytest.raises(DataError, match="would train without its end token") as caught:
        project.train(changed(method=method))
    assert len(caught.value.got["lost-eos"]) == 4
    allowed = project.train(changed(method=method, allow=("lost-eos",)))
    assert allowed.metrics["num_pairs"] > 0


def test_single_answers_are_looked_at_under_another_template_too(make_project: MakeProject) -> None:
    project = of_labels(make_project(), singles([Completion(text="blue.")] * 3))
    labels = project.store.get_all(Label, project.dataset.label_ids)
    found = lint(
        project.champion.backbone, [], labels, max_tokens=200, served_template="template_other"
    )
    assert [one.name for one in found.problems] == ["other-template"]
    assert found.problems[0].num_pairs == found.num_labels == found.num_records == 3
    assert all(bool(one.chosen) != bool(one.rejected) for one in found.samples)


def test_a_look_at_single_answers_shows_their_tokens(make_project: MakeProject) -> None:
    from trueup.cli.lint_text import lint_text

    project = of_labels(make_project(), singles([Completion(text="blue."), Completion(text="um.")]))
    config = changed(method="kto")
    records = records_of(project.store, config, project.dataset, lambda prompt: False)
    text = lint_text(look(project.store, config, project.champion, records))
    assert "2 of 2 single answers" in text
    assert "prompt + chosen" in text and "prompt + rejected" in text


def test_ktos_reference_point_takes_only_answers_that_fit(make_project: MakeProject) -> None:
    """A long prompt and another's long answer need not fit together, though each fits alone."""
    project = make_project()
    short, long = Completion(text="blue."), Completion(text="um " * 30)
    prompts = [question("sky"), question("leaf", 80), question("coal")]
    given = [
        pair(prompts[0], long, short),
        pair(prompts[1], short, Completion(text="um.")),
        pair(prompts[2], short, Completion(text="um.")),
    ]
    rows, _ = encode(project.champion.backbone, given, max_tokens=2048)
    room = max(row.num_tokens for row in rows)
    for row, other in _other_prompts(rows, room):
        assert len(row.branches.prompt_ids) + other.lengths[0] <= room
        assert row.prompt_hash != other.prompt_hash
    with_long = {row.id for row, other in _other_prompts(rows, 10**6) if other is rows[0]}
    assert with_long, "somebody would get the long answer if there were room"
    tight = len(rows[1].branches.prompt_ids) + rows[0].lengths[0] - 1
    assert all(
        row is not rows[1] or other is not rows[0] for row, other in _other_prompts(rows, tight)
    )


# --- records that are not what they say -----------------------------------------------------------


def test_a_pair_that_was_changed_in_the_store_stops(make_project: MakeProject) -> None:
    project = make_project()
    victim = project.dataset.pair_ids[-1]
    database = sqlite3.connect(project.store.folder / "store.sqlite")
    (body,) = database.execute("select body from pair where id = ?", (victim,)).fetchone()
    record = json.loads(body)
    record["chosen"]["text"] = "POISON"
    database.execute("update pair set body = ? where id = ?", (json.dumps(record), victim))
    database.commit()
    database.close()
    with pytest.raises(DataError, match="not what it was when it was frozen") as caught:
        project.train()
    assert victim in str(caught.value.got)


@pytest.mark.parametrize("token", [-1, 99_999])
def test_tokens_of_another_tokenizer_are_skipped_and_counted(
    make_project: MakeProject, token: int
) -> None:
    project = make_project()
    end = chat.end_id(project.champion.backbone.tokenizer)
    foreign = Completion(text="x", token_ids=(token, end), finish_reason="stop")
    added = pair(question("sky", 9), foreign, Completion(text="um."))
    rows, skipped = encode(project.champion.backbone, [added, *written_pairs()], max_tokens=200)
    assert skipped == {"tokens that the model does not have": 1}
    assert len(rows) == len(written_pairs())


def test_an_answer_that_is_its_end_token_alone_is_empty(make_project: MakeProject) -> None:
    backbone = make_project().champion.backbone
    silent = Completion(text="", token_ids=(chat.end_id(backbone.tokenizer),), finish_reason="stop")
    _, skipped = encode(
        backbone, [pair(question("sky"), silent, Completion(text="um."))], max_tokens=99
    )
    assert skipped == {"empty completion": 1}


@pytest.fixture
def other_end(tmp_path: Path) -> Backbone:
    """A tokenizer whose end-of-sequence token is not the one its template ends turns with."""
    folder = save_tiny(tmp_path / "model", seed=0, hidden_size=32)
    backbone = Backbone.load(folder)
    assert backbone.tokenizer.eos_token == "<|im_end|>"
    other = next(
        str(one)
        for one in backbone.tokenizer.added_tokens_decoder.values()
        if one.special and str(one) != "<|im_end|>"
    )
    backbone.tokenizer.eos_token = other
    return backbone


def test_answers_end_as_the_template_ends_them(other_end: Backbone) -> None:
    end = other_end.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = chat.completion_ids(other_end.tokenizer, Completion(text="blue."))
    assert ids[-1] == end == chat.end_id(other_end.tokenizer)
    assert chat.eos_ids(other_end.tokenizer) == {end, other_end.tokenizer.eos_token_id}
    found = lint(other_end, written_pairs(), max_tokens=200)
    assert (found.eos_id, found.eos_token) == (end, "<|im_end|>")
    assert found.num_ended == 2 * len(written_pairs()) and not found.problems


def test_a_template_without_an_end_takes_the_tokenizers(other_end: Backbone) -> None:
    other_end.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert chat.end_id(other_end.tokenizer) == other_end.tokenizer.eos_token_id


# --- settings -------------------------------------------------------------------------------------


def test_repeats_are_for_training_only(make_project: MakeProject) -> None:
    project = make_project()
    pairs = project.store.get_all(PreferencePair, project.dataset.pair_ids)
    rows, _ = encode(project.champion.backbone, pairs, max_tokens=200)
    longer = [row._replace(id=f"{row.id}-{n}") for n in range(2) for row in rows]
    swapped = [  # the longer answer chosen, so that short ones are few
        row._replace(branches=row.branches._replace(completions=row.branches.completions[::-1]))
        for row in longer[2:]
    ]
    config = changed(short_share=0.5, eval_share=0.5)
    train_rows, held_rows = sides([*longer[:2], *swapped], config, 0.5)
    assert held_rows and len({row.id for row in held_rows}) == len(held_rows)
    if any(row.lengths[0] < row.lengths[1] for row in train_rows):
        short = [row for row in train_rows if row.lengths[0] < row.lengths[1]]
        assert len(short) / len(train_rows) >= 0.5


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_kl": 5.0, "eval_share": 0.5}, "max_kl"),
        ({"max_chosen_drop": 0.1, "eval_share": 0.5, "method": "kto"}, "max_chosen_drop"),
    ],
)
def test_a_line_that_could_never_be_crossed_stops(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, settings: dict, line: str
) -> None:
    project = make_project()
    if line == "max_kl":
        from trueup.train import watch

        monkeypatch.setattr(watch, "MAX_ANSWER", 10**6)  # no prompt leaves room for an answer
    else:
        bad = [
            Label(
                prompt=question(thing, at),
                candidates=(Completion(text="um."),),
                scores=(-1.0,),
                annotator="user",
                annotator_kind="human",
            )
            for at in range(4)
            for thing in ("sky", "coal")
        ]
        project = of_labels(project, bad)
    with pytest.raises(TrainingError, match=f"when train.{line} is crossed") as caught:
        project.train(changed(**settings))
    assert f"unset train.{line}" in caught.value.next


def test_a_whole_champion_has_no_base_to_refer_to(make_project: MakeProject) -> None:
    project = make_project()
    whole = project.train(changed(adapter="full", learning_rate=5e-4))
    project.store.release(Release(action="promote", weights=whole.weights, checkpoint_id=whole.id))
    champion = StoredModel.serving(project.store, project.champion.backbone)
    with pytest.raises(ConfigError, match="no base below it") as caught:
        run(project.store, changed(reference="base"), project.dataset, champion)
    assert "previous" in caught.value.next


def test_auto_is_asked_of_the_data_only_where_the_method_reads_it(
    make_project: MakeProject,
) -> None:
    found = make_project().train(changed(method="ipo", label_smoothing="auto", alpha="auto"))
    assert found.metrics["settled"] == {}


def test_targets_that_no_layer_has_are_told(make_project: MakeProject) -> None:
    with pytest.raises(ModelError, match="no such layers") as caught:
        make_project().train(changed(lora_targets=("nonsense",)))
    assert caught.value.got == ["nonsense"]


def test_an_adapter_of_another_base_without_a_card_does_not_fit(
    make_project: MakeProject, tmp_path: Path
) -> None:
    other = Backbone.load(save_tiny(tmp_path / "other", seed=1, hidden_size=32))
    other.new_adapter("policy", rank=2, alpha=4.0, targets=["all-linear"], seed=0)
    other.save_adapter("policy", tmp_path / "adapter", card={})
    (tmp_path / "adapter" / "card.json").unlink()
    with pytest.raises(ModelError, match="does not fit this model"):
        make_project().champion.backbone.attach("policy", tmp_path / "adapter")


# --- the first loss -------------------------------------------------------------------------------


def test_the_first_loss_of_kto_is_half_an_answers_weight(make_project: MakeProject) -> None:
    found = make_project().train(
        changed(method="kto", desirable_weight=1.0, undesirable_weight=1.2)
    )
    assert found.metrics["identity"]["first_loss"] == pytest.approx(0.55, abs=1e-6)


def test_the_first_loss_is_that_of_the_whole_sum(make_project: MakeProject) -> None:
    alone = make_project(name="alone").train(changed(method="dpo"))
    both = make_project(name="both").train(changed(method="dpo", plus={"hinge": 0.5}))
    assert alone.metrics["identity"]["first_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert both.metrics["identity"]["first_loss"] == pytest.approx(1.193147, abs=1e-6)
    assert both.metrics["first"]["loss"] == pytest.approx(1.193147, abs=1e-5)


def test_a_kto_policy_that_is_not_the_reference_stops(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trueup.errors import IdentityError
    from trueup.train import identity

    real = identity.kto_loss

    def off(*args: Any, **more: Any) -> Any:
        found = real(*args, **more)
        return found._replace(losses=found.losses * 1.01)

    monkeypatch.setattr(identity, "kto_loss", off)
    with pytest.raises(IdentityError, match="first kto loss"):
        make_project().train(changed(method="kto"))


# --- half precision and resumed runs --------------------------------------------------------------

WHOLE = {"adapter": "full", "learning_rate": 5e-4, "epochs": 3}


def in_half(project: Project) -> Project:
    backbone = Backbone.load(project.champion.backbone.folder, dtype="bfloat16")
    return project._replace(champion=StoredModel.serving(project.store, backbone))


def test_whole_weights_under_a_half_precision_champion_learn_as_in_full(
    make_project: MakeProject,
) -> None:
    """Every forward pass must see the last step's weights."""
    full = make_project(written_pairs(), name="full").train(changed(**WHOLE))
    half = in_half(make_project(written_pairs(), name="half")).train(changed(**WHOLE))
    theirs, ours = ([one["loss"] for one in run.metrics["history"]] for run in (full, half))
    assert theirs[-1] < 0.6 * theirs[0], "the comparison needs a run that learns"
    assert ours == pytest.approx(theirs, abs=0.1)


def interrupted(project: Project, config: TrainConfig, between: Callable[[], None]) -> Path:
    """Stop in the third step after a state was saved, do something, and go on."""
    from trueup.train import step as module

    real, steps = module._check, []

    def check(step: int, loss: float, norm: float) -> None:
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        real(step, loss, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_check", check)
        with pytest.raises(KeyboardInterrupt):
            project.train(config)
    assert list((project.store.folder / "runs").glob("*/step-*")), "nothing to resume from"
    between()
    found = project.train(config)
    return project.store.folder / found.path


def test_a_stopped_half_precision_run_ends_in_the_same_weights(make_project: MakeProject) -> None:
    config = changed(**WHOLE, save_every_steps=2)
    once = in_half(make_project(written_pairs(), name="once"))
    expected = load_file(once.store.folder / once.train(config).path / "model.safetensors")
    twice = in_half(make_project(written_pairs(), name="twice"))
    found = load_file(interrupted(twice, config, lambda: None) / "model.safetensors")
    assert all(torch.equal(found[name], one) for name, one in expected.items())


def test_what_comes_into_the_store_meanwhile_is_not_replayed(
    make_project: MakeProject, pairs: list[PreferencePair]
) -> None:
    """A resumed run sees the earlier turns that it saw at first."""
    config = STOPPABLE.model_copy(update={"replay_share": 0.4, "epochs": 2})

    def with_earlier(name: str) -> Project:
        project = make_project(pairs[:6], name=name)
        new = Dataset(pair_ids=tuple(one.id for one in pairs[6:]), source="loop")
        project.store.add_all([*pairs[6:], new])
        return project._replace(dataset=new)

    def meanwhile(project: Project) -> Callable[[], None]:
        def add() -> None:
            more = [
                pair(question("rose", at), Completion(text="red."), Completion(text="um red."))
                for at in range(9)
            ]
            late = Dataset(pair_ids=tuple(one.id for one in more), source="loop")
            project.store.add_all([*more, late])

        return add

    once, twice = with_earlier("once"), with_earlier("twice")
    expected = load_file(once.store.folder / once.train(config).path / ADAPTER)
    found = load_file(interrupted(twice, config, meanwhile(twice)) / ADAPTER)
    assert all(torch.equal(found[name], one) for name, one in expected.items())
