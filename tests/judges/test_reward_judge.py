"""A reward checkpoint judges: its scores, whatever the order, under a name of its own."""

import json
from pathlib import Path

import pytest
import torch

from trueup.judges import compare
from trueup.judges.reward_model import RewardJudge
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.reward import RewardModel
from trueup.models.shared_prompt import Branches
from trueup.models.tiny import save_tiny
from trueup.records import Completion, Message

PROMPT = (Message(role="user", content="sky?"),)
ANSWERS = [Completion(text=text, finish_reason="stop") for text in ("blue.", "um, um, blue.")]


@pytest.fixture
def judge(tmp_path: Path) -> RewardJudge:
    base = save_tiny(tmp_path / "model", seed=3, hidden_size=32)
    backbone, names = Backbone.load(base), []
    for number in range(2):
        model = RewardModel.new(
            backbone, "reward", rank=4, alpha=8.0, targets=["all-linear"], seed=number
        )
        model.head.learned.data.normal_(generator=torch.Generator().manual_seed(number))
        names.append(model.save(tmp_path / "both" / f"member-{number}", card={}))
        model.detach()
    card = {"kind": "reward", "members": names}
    (tmp_path / "both" / "card.json").write_text(json.dumps(card))
    return RewardJudge.attach(backbone, tmp_path / "both")


def test_a_ranking_is_the_ensembles_scores_of_the_answers_tokens(judge: RewardJudge) -> None:
    tokenizer = judge.backbone.tokenizer
    ids = [chat.completion_ids(tokenizer, one) for one in ANSWERS]
    row = Branches(chat.prompt_ids(tokenizer, PROMPT), ids)
    ranking = judge.rank(PROMPT, ANSWERS)
    assert ranking.scores == pytest.approx(judge.ensemble.scores([row])[0])
    assert ranking.reasons == ((), ())
    assert judge.rank(PROMPT, ANSWERS[::-1]).scores == pytest.approx(ranking.scores[::-1], abs=1e-5)
    assert compare(judge, PROMPT, *ANSWERS) == (
        "win" if ranking.scores[0] > ranking.scores[1] else "loss"
    )


def test_its_name_is_of_its_weights_and_of_how_members_are_combined(judge: RewardJudge) -> None:
    careful = RewardJudge(judge.backbone, judge.ensemble, how="uwo", lam=0.5)
    assert judge.id == f"reward:{judge.ensemble.weights}:mean/1"
    assert careful.id == f"reward:{judge.ensemble.weights}:uwo-0.5/1"
    assert careful.rank(PROMPT, ANSWERS).scores[0] < judge.rank(PROMPT, ANSWERS).scores[0]


def test_an_empty_answer_is_scored_like_any_other(judge: RewardJudge) -> None:
    scores = judge.rank(PROMPT, [Completion(text="", finish_reason="length"), *ANSWERS]).scores
    assert len(scores) == 3 and len(set(scores)) == 3
