"""Records: their ids are hashes of what they say, they are frozen, and they survive JSON."""

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from trueup import records
from trueup.records import (
    ABReport,
    Checkpoint,
    Completion,
    Dataset,
    EvalReport,
    Feedback,
    Flag,
    GuardReport,
    Interaction,
    JudgeAudit,
    Label,
    Message,
    PreferencePair,
    Record,
    Release,
    ReviewTask,
    SampleSet,
    Sampling,
    TrainingRun,
    Verdict,
    content_hash,
)

PROMPT = (Message(role="user", content="How long?"),)
OTHER_PROMPT = (Message(role="user", content="How wide?"),)
ANSWER, OTHER_ANSWER = Completion(text="4 hours."), Completion(text="5 hours.")
PASSED = Verdict(gate="guard", status="passed", reason="fine")
REFUSED = Verdict(gate="guard", status="refused", reason="length")
REPORT = {"checkpoint_id": "checkpoint_1", "champion": "weights_1", "verdict": PASSED}
OTHER_REPORT = {
    "checkpoint_id": "checkpoint_2",
    "champion": "weights_2",
    "verdict": REFUSED,
    "config": {"margin": 0.1},
    "details": {"items": [1, 2]},
}

# for each kind: one record's fields, and another value for every field it has
KINDS: dict[type[Record], tuple[dict[str, Any], dict[str, Any]]] = {
    Interaction: (
        {"prompt": PROMPT, "completion": ANSWER, "source": "gateway"},
        {
            "prompt": OTHER_PROMPT,
            "completion": OTHER_ANSWER,
            "source": "file:a.jsonl",
            "request_id": "r1",
            "model": "m",
            "user": "u",
            "tenant": "t",
            "tools": ({"type": "function"},),
            "error": "timeout",
            "input_tokens": 3,
            "output_tokens": 4,
            "latency_ms": 1.5,
        },
    ),
    Feedback: (
        {"interaction_id": "interaction_1"},
        {"interaction_id": "interaction_2", "rating": -1, "edit": "4 h.", "comment": "late"},
    ),
    Flag: (
        {"interaction_id": "interaction_1", "flagger": "signals/1", "score": 0.5, "raised": True},
        {
            "interaction_id": "interaction_2",
            "flagger": "signals/2",
            "score": 0.25,
            "raised": False,
            "reasons": ("empty",),
            "signals": {"empty": 1.0},
        },
    ),
    Label: (
        {
            "prompt": PROMPT,
            "candidates": (ANSWER, OTHER_ANSWER),
            "scores": (1.0, 0.0),
            "annotator": "ann",
            "annotator_kind": "human",
        },
        {
            "prompt": OTHER_PROMPT,
            "candidates": (OTHER_ANSWER, ANSWER),
            "scores": (0.0, 1.0),
            "annotator": "bob",
            "annotator_kind": "llm",
            "interaction_id": "interaction_1",
            "source": "file:a.jsonl",
            "reasons": (("short",), ()),
            "task_id": "task_1",
            "vote_ids": ("label_1",),
            "comment": "close",
            "replaces": "label_3",
        },
    ),
    ReviewTask: (
        {"prompt": PROMPT, "candidates": (ANSWER, OTHER_ANSWER)},
        {
            "prompt": OTHER_PROMPT,
            "candidates": (OTHER_ANSWER, ANSWER),
            "interaction_id": "interaction_1",
            "source": "loop",
            "gold": (1.0, 0.0),
        },
    ),
    PreferencePair: (
        {
            "prompt": PROMPT,
            "chosen": ANSWER,
            "rejected": OTHER_ANSWER,
            "margin": 1.0,
            "label_ids": ("label_1",),
        },
        {
            "prompt": OTHER_PROMPT,
            "chosen": OTHER_ANSWER,
            "rejected": ANSWER,
            "margin": 0.5,
            "label_ids": ("label_1", "label_2"),
            "prompt_hash": "abc",
        },
    ),
    Dataset: (
        {"pair_ids": ("pair_1", "pair_2"), "source": "loop"},
        {
            "pair_ids": ("pair_2", "pair_1"),
            "label_ids": ("label_1",),
            "source": "file:a.jsonl",
            "skipped": {"tie": 1},
            "prompts": (OTHER_PROMPT,),
            "interaction_ids": ("interaction_1",),
        },
    ),
    TrainingRun: (
        {
            "dataset_id": "dataset_1",
            "method": "dpo",
            "config": {"beta": 0.1},
            "base_weights": "weights_1",
            "start_weights": "weights_1",
            "ref_weights": "weights_1",
            "template": "template_1",
        },
        {
            "dataset_id": "dataset_2",
            "method": "ipo",
            "config": {"beta": 0.2},
            "base_weights": "weights_2",
            "start_weights": "weights_2",
            "ref_weights": "weights_2",
            "template": "template_2",
        },
    ),
    Checkpoint: (
        {"run_id": "run_1", "path": "a", "weights": "weights_1", "base_weights": "weights_0"},
        {
            "run_id": "run_2",
            "path": "b",
            "weights": "weights_2",
            "base_weights": "weights_3",
            "metrics": {"loss": 0.5},
        },
    ),
    SampleSet: (
        {
            "prompt": PROMPT,
            "completions": (ANSWER,),
            "weights": "weights_1",
            "sampling": Sampling(seed=1),
        },
        {
            "prompt": OTHER_PROMPT,
            "completions": (ANSWER, OTHER_ANSWER),
            "weights": "weights_2",
            "sampling": Sampling(seed=2),
        },
    ),
    GuardReport: (REPORT, OTHER_REPORT),
    EvalReport: (REPORT, OTHER_REPORT),
    ABReport: (REPORT, OTHER_REPORT),
    JudgeAudit: (
        {"judge": "llm:a/1", "source": "built-in", "verdict": PASSED},
        {
            "judge": "llm:b/1",
            "source": "file:human.jsonl",
            "verdict": REFUSED,
            "checks": ({"name": "kappa", "status": "failed", "figure": 0.1},),
            "config": {"min_kappa": 0.4},
            "details": {"requests": 3},
            "previous": "audit_1",
        },
    ),
    Release: (
        {"action": "first", "weights": "weights_1"},
        {
            "action": "promote",
            "weights": "weights_2",
            "checkpoint_id": "checkpoint_1",
            "previous": "release_1",
            "restores": "release_2",
            "approved_by": "Ada",
            "report_ids": ("guard_1",),
            "reason": "better",
        },
    ),
}

TEXTS = {
    "emoji and scripts": "né 🙂 שלום 日本語 e\u0301",
    "line and paragraph separators": "a\u2028b\u2029c\x85d\r\n",
    "control characters": "a\x00b\x1b[31m\x7f",
    "quotes and escapes": '"\\u0041" \\ / {"a": 1}',
    "right-to-left marks": "\u202eabc\u202c\ufeff",
}


def example(kind: type[Record]) -> Record:
    return kind(**KINDS[kind][0])


def kinds() -> list[type[Record]]:
    named = [getattr(records, name) for name in records.__all__]
    return [k for k in named if isinstance(k, type) and issubclass(k, Record) and hasattr(k, "tag")]


every_kind = pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)


# --- ids ------------------------------------------------------------------------------------------


@every_kind
def test_the_same_input_twice_is_the_same_record_once(kind: type[Record]) -> None:
    first, second = example(kind), example(kind)
    assert first.id == second.id == first.expected_id()
    assert first.id.startswith(f"{kind.tag}_")
    assert len(first.id.removeprefix(f"{kind.tag}_")) == 20


@every_kind
def test_the_time_it_was_made_is_not_part_of_a_records_id(kind: type[Record]) -> None:
    fields = KINDS[kind][0]
    early, late = (kind(**fields, created_at=f"{year}-01-01T00:00:00") for year in (1999, 2999))
    assert early.created_at != late.created_at
    assert early.id == late.id


@every_kind
def test_any_changed_field_gives_another_id(kind: type[Record]) -> None:
    fields, others = KINDS[kind]
    assert set(others) == set(kind.model_fields) - {"id", "created_at"}, "a field is not tried"
    ids = [example(kind).id] + [kind(**{**fields, name: v}).id for name, v in others.items()]
    assert len(set(ids)) == len(ids)


def test_records_of_different_kinds_never_share_an_id() -> None:
    assert len({example(kind).id for kind in kinds()}) == len(kinds())


def test_ids_are_the_same_in_every_process_and_release() -> None:
    """Ids stand in stores that outlive a version: this one may not change."""
    code = (
        "from trueup.records import Flag; print(Flag(interaction_id='i', flagger='f', score=0.5, "
        "raised=True, signals={'b': 1.0, 'a': 0.25, 'é': 0.0}).id)"
    )
    ids = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert ids == {"flag_859851e65cdcdab87c15"}


def test_lists_from_a_file_and_tuples_from_code_give_one_id() -> None:
    from_file = Label.model_validate(
        {
            "prompt": [{"role": "user", "content": "How long?"}],
            "candidates": [{"text": "4 hours."}, {"text": "5 hours."}],
            "scores": [1, 0],
            "annotator": "ann",
            "annotator_kind": "human",
        }
    )
    assert from_file.id == example(Label).id


def test_a_record_that_was_tampered_with_no_longer_has_the_id_it_calls_for() -> None:
    honest = example(Interaction)
    forged = honest.model_copy(update={"completion": OTHER_ANSWER})
    assert forged.id == honest.id
    assert forged.expected_id() != forged.id


def test_content_hash_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert content_hash({"a": 1, "b": [2, 3]}) == content_hash({"b": [2, 3], "a": 1})
    different = [{"a": [2, 3]}, {"a": [3, 2]}, {"a": "23"}, {"a": ["2", 3]}, {"b": [2, 3]}, None]
    assert len({content_hash(one) for one in different}) == len(different)


# --- JSON -----------------------------------------------------------------------------------------


@every_kind
def test_a_record_comes_back_from_json_as_it_was(kind: type[Record]) -> None:
    fields, others = KINDS[kind]
    for record in (kind(**fields), kind(**{**fields, **others})):
        back = kind.model_validate_json(record.model_dump_json())
        assert back == record
        assert back.expected_id() == record.id


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_any_unicode_text_comes_back_from_json_as_it_was(text: str) -> None:
    record = Interaction(
        prompt=(Message(role="user", content=text),), completion=Completion(text=text), source=text
    )
    back = Interaction.model_validate_json(record.model_dump_json())
    assert back == record
    assert back.expected_id() == record.id


def test_half_a_surrogate_pair_has_an_id_but_no_json() -> None:
    """UTF-8 cannot hold it, so no store can; the doors turn such text away before this."""
    fields = {"prompt": PROMPT, "source": "gateway"}
    broken = [Interaction(completion=Completion(text=t), **fields) for t in ("\ud83d", "\ude42")]
    assert broken[0].id != broken[1].id
    with pytest.raises(ValueError, match="surrogates not allowed"):
        broken[0].model_dump_json()


def test_log_probs_come_back_from_json_to_the_last_bit() -> None:
    logprobs = (-0.1, -1e-300, -2 / 3, -123456.789, 0.0)
    completion = Completion(text="a", token_ids=(1, 2, 3, 4, 5), logprobs=logprobs)
    assert Completion.model_validate_json(completion.model_dump_json()).logprobs == logprobs


NOT_A_NUMBER = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("number", NOT_A_NUMBER)
def test_a_score_that_json_cannot_hold_is_refused_before_it_reaches_a_store(number: float) -> None:
    fields = KINDS[Label][0]
    with pytest.raises(ValidationError):
        Label(**{**fields, "scores": (number, 0.0)})


@pytest.mark.parametrize("number", NOT_A_NUMBER)
def test_a_log_prob_that_json_cannot_hold_is_refused(number: float) -> None:
    with pytest.raises(ValidationError):
        Completion(text="a", token_ids=(1,), logprobs=(number,))


# --- frozen, strict -------------------------------------------------------------------------------


@every_kind
def test_a_record_is_frozen_and_knows_no_other_fields(kind: type[Record]) -> None:
    record = example(kind)
    for name in kind.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, name, getattr(record, name))
    with pytest.raises(ValidationError, match="extra"):
        kind(**KINDS[kind][0], surplus=1)


def test_the_parts_of_a_record_are_frozen_too() -> None:
    for value, name in ((PROMPT[0], "role"), (ANSWER, "text"), (PASSED, "status")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(value, name, "other")


def test_a_label_has_one_score_for_each_candidate() -> None:
    fields = KINDS[Label][0]
    with pytest.raises(ValidationError, match="1 scores for 2 candidates"):
        Label(**{**fields, "scores": (1.0,)})
    with pytest.raises(ValidationError, match="at least 1"):
        Label(**{**fields, "candidates": (), "scores": ()})


def test_a_pair_without_a_label_behind_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        PreferencePair(**{**KINDS[PreferencePair][0], "label_ids": ()})


# --- lineage and small promises -------------------------------------------------------------------


def test_every_record_names_the_records_it_was_made_from() -> None:
    wanted = {
        Interaction: (),
        Feedback: ("interaction_2",),
        Flag: ("interaction_2",),
        Label: ("interaction_1", "task_1", "label_1"),
        ReviewTask: ("interaction_1",),
        PreferencePair: ("label_1", "label_2"),
        Dataset: ("pair_2", "pair_1", "label_1", "interaction_1"),
        TrainingRun: ("dataset_2",),
        Checkpoint: ("run_2",),
        SampleSet: (),
        GuardReport: ("checkpoint_2",),
        EvalReport: ("checkpoint_2",),
        ABReport: ("checkpoint_2",),
        JudgeAudit: ("audit_1",),
        Release: ("checkpoint_1", "release_1", "release_2", "guard_1"),
    }
    found = {kind: kind(**{**KINDS[kind][0], **KINDS[kind][1]}).parents() for kind in kinds()}
    assert found == wanted


def test_a_parent_that_is_not_there_is_not_named() -> None:
    assert example(Label).parents() == ()
    assert example(Release).parents() == ()


def test_only_passed_lets_a_candidate_through() -> None:
    passed = {
        status: Verdict(gate="ab", status=status, reason="").passed
        for status in ("passed", "refused", "pending")
    }
    assert passed == {"passed": True, "refused": False, "pending": False}
    with pytest.raises(ValidationError):
        Verdict(gate="ab", status="unknown", reason="")  # type: ignore[arg-type]


def test_only_untouched_sampling_draws_from_the_models_own_distribution() -> None:
    assert Sampling().is_plain
    assert not Sampling(temperature=0.9).is_plain
    assert not Sampling(top_p=0.9).is_plain
    assert not Sampling(temperature=0).is_plain


def test_indexed_fields_exist() -> None:
    for kind in kinds():
        assert set(kind.indexed) <= set(kind.model_fields), kind


def test_a_field_that_came_later_changes_no_id_while_it_says_nothing() -> None:
    """What was hashed before these fields existed is still what it was."""
    assert Dataset(pair_ids=("a",), source="loop").id == "dataset_98b61e1bd2a416bf957c"
    drawn = Completion(text="y", sampling=Sampling(temperature=0.7, seed=3))
    one = Interaction(prompt=(Message(role="user", content="x"),), completion=drawn, source="g")
    assert one.id == "interaction_abaf80d382ee86b5ac4a"
    assert "top_k" not in Sampling().model_dump() and Sampling(top_k=5).model_dump()["top_k"] == 5
    again = Interaction.model_validate_json(one.model_dump_json())
    assert again == one and again.expected_id() == one.id
