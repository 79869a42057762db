"""lm-evaluation-harness on a model of ours: one task over local JSON, and the two questions it asks
against a plain forward pass."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from trueup.errors import ConfigError
from trueup.evaluate.lm_eval_tasks import HarnessModel, run_tasks
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.models.tiny import save_tiny
from trueup.store import Store

PAIRS = [("The sky is", " blue"), ("", "alone"), ("One and", " one and two"), ("x", "y")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    folder = save_tiny(tmp_path_factory.mktemp("m") / "model", seed=0, hidden_size=32)
    return StoredModel(Store(folder.parent / "store"), Backbone.load(folder), None)


def choice_task(folder: Path, rows: list[dict]) -> Path:
    """A multiple-choice task file over a JSON file beside it."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = folder / "local_colours.yaml"
    file.write_text(
        f"""task: local_colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "rows.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""
    )
    return file


def by_hand(model: StoredModel, context: str, continuation: str) -> tuple[float, bool]:
    """Token by token through a plain forward pass."""
    network, tokenizer = model.backbone.model, model.backbone.tokenizer
    ids = tokenizer.encode(context, add_special_tokens=False) or [HarnessModel(model).eot_token_id]
    wanted = tokenizer.encode(continuation, add_special_tokens=False)
    total, likeliest = 0.0, True
    for token in wanted:
        with torch.no_grad():
            logprobs = torch.log_softmax(network(torch.tensor([ids])).logits[0, -1].double(), -1)
        total += float(logprobs[token])
        likeliest &= int(logprobs.argmax()) == token
        ids.append(token)
    return total, likeliest


class Asked:
    def __init__(self, *args: object) -> None:
        self.args = args


def test_log_likelihoods_are_those_of_a_plain_forward_pass(model: StoredModel) -> None:
    found = HarnessModel(model).loglikelihood([Asked(*pair) for pair in PAIRS])  # type: ignore[list-item]
    for (total, likeliest), pair in zip(found, PAIRS, strict=True):
        expected, greedy = by_hand(model, *pair)
        assert total == pytest.approx(expected, abs=1e-4) and likeliest == greedy, pair


def test_a_greedy_continuation_is_the_likeliest_and_stops_at_its_string(model: StoredModel) -> None:
    harness = HarnessModel(model)
    [text] = harness.generate_until([Asked("The sky", {"until": [], "max_gen_toks": 6})])
    assert by_hand(model, "The sky", text)[1] is True or "\ufffd" in text
    stop = text[2:4]
    [cut] = harness.generate_until([Asked("The sky", {"until": [stop], "max_gen_toks": 6})])
    assert stop and cut == text[: text.index(stop)]


def test_a_local_task_is_scored_as_its_log_likelihoods_say(
    model: StoredModel, tmp_path: Path
) -> None:
    rows = [
        {"question": f"Colour of {thing}?", "choices": ["blue", "green", "red"], "answer": i % 3}
        for i, thing in enumerate(["sky", "leaf", "rose", "sea", "moss", "brick", "ice"])
    ]
    [score] = run_tasks(model, [str(choice_task(tmp_path, rows))])
    right = 0
    for row in rows:
        totals = [by_hand(model, row["question"], f" {choice}")[0] for choice in row["choices"]]
        right += totals.index(max(totals)) == row["answer"]
    assert (score.task, score.metric, score.items) == ("local_colours", "acc", 7)
    assert score.score.estimate == pytest.approx(right / 7)
    assert score.score.low < score.score.estimate < score.score.high or right in (0, 7)


def test_a_task_that_does_not_exist_is_a_named_error(model: StoredModel, tmp_path: Path) -> None:
    choice_task(tmp_path, [])
    with pytest.raises(ConfigError, match=r"no task of this name.*colour_of_magic"):
        run_tasks(model, [str(tmp_path / "colour_of_magic.yaml")])
