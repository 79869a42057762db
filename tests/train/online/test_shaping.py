"""The reward as the update sees it: scale, clip, penalties, price; and which settings cannot be."""

from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from runs import setting
from tabular import Table, as_group
from torch import Tensor

from trueup.records import Completion
from trueup.train import TrainConfig
from trueup.train.online.config import OnlineConfig
from trueup.train.online.pairs import OwnPairs
from trueup.train.online.rollouts import Group
from trueup.train.online.shaping import KLPrice, RunningScale, Shaping

OLD = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5, -0.5, -1.0])]
REF = [torch.tensor([-1.5, -1.0]), torch.tensor([-0.5, -1.5, -2.0])]


def group(*scores: float, finish: tuple[Any, ...] = ("stop", "length")) -> Group:
    """Two answers, of two tokens and of three."""
    answers = [
        Completion(text="", token_ids=(5,) * len(old), finish_reason=how)
        for old, how in zip(OLD, finish, strict=True)
    ]
    return as_group(answers, scores, OLD, REF)


def rewards(*scores: float, **given: Any) -> list[float]:
    return Shaping("rloo", OnlineConfig(**given)).rewards(group(*scores))


# --- score to reward ------------------------------------------------------------------------------


def test_every_token_costs_the_length_penalty() -> None:
    assert rewards(1.0, 1.0, length_penalty=0.1) == pytest.approx([0.8, 0.7])


def test_an_answer_that_was_cut_off_pays_for_the_missing_end() -> None:
    assert rewards(1.0, 1.0, missing_eos_penalty=0.5) == [1.0, 0.5]


def test_scores_are_clipped_before_penalties() -> None:
    found = rewards(7.0, -7.0, reward_clip=2.0, missing_eos_penalty=0.5)
    assert found == [2.0, -2.5]


def test_scores_are_normalised_by_all_that_were_so_far_and_then_clipped() -> None:
    shaping = Shaping("rloo", OnlineConfig(normalize_reward=True, reward_clip=1.1))
    first, second = group(1.0, 3.0), group(2.0, 10.0)
    shaping.heed([first])
    assert shaping.rewards(first) == pytest.approx([-1.0, 1.0])
    shaping.heed([second])
    seen = [1.0, 3.0, 2.0, 10.0]
    mean, spread = fmean(seen), pstdev(seen)
    assert shaping.rewards(second) == pytest.approx([(2 - mean) / spread, 1.1])


def test_the_running_scale_is_that_of_all_scores_at_once() -> None:
    random = torch.Generator().manual_seed(0)
    scores = (100 + 3 * torch.randn(60, generator=random, dtype=torch.float64)).tolist()
    scale = RunningScale()
    for at in range(0, 60, 12):
        scale.add(scores[at : at + 12])
    assert scale.of(105.0) == pytest.approx((105 - fmean(scores)) / pstdev(scores))


def test_a_batch_without_a_score_leaves_the_scale_as_it_is() -> None:
    scale = RunningScale()
    scale.add([])
    assert scale.of(3.0) == 3.0
    scale.add([1.0, 3.0])
    scale.add([])
    assert scale.of(3.0) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "dr_grpo", "online_dpo"])
def test_a_batch_without_an_answer_has_nothing_to_fill(method: str) -> None:
    shaping = Shaping(method, OnlineConfig(normalize_reward=True))
    shaping.heed([])
    shaping.fill([])
    assert shaping.kept["reward_scale"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("score", [0.0, 0.1, -1234.567])
def test_while_all_scores_are_equal_they_stay_as_they_are(score: float) -> None:
    """Though the rounding of their mean gives them a deviation."""
    scale = RunningScale()
    assert scale.of(score) == score
    for count in (3, 7):
        scale.add([score] * count)
    assert scale.of(score) == score


# --- the price ------------------------------------------------------------------------------------


def test_rloo_pays_for_the_whole_answer_in_its_reward() -> None:
    one = group(2.0, 1.0)
    Shaping("rloo", OnlineConfig(kl_coef=0.1)).fill([one])
    prices = [0.1 * float((old - ref).sum()) for old, ref in zip(OLD, REF, strict=True)]
    lead = (2.0 - prices[0]) - (1.0 - prices[1])
    for advantages, expected, old in zip(one.advantages, (lead, -lead), OLD, strict=True):
        assert advantages.tolist() == pytest.approx([expected] * len(old))


def test_ppo_pays_token_by_token_and_earns_at_the_end() -> None:
    one = group(2.0, 1.0)
    one.values = [torch.zeros(2), torch.zeros(3)]
    Shaping("ppo", OnlineConfig(kl_coef=0.1, lam=1.0, whiten=False)).fill([one])
    for at, score in enumerate((2.0, 1.0)):
        each = -0.1 * (OLD[at] - REF[at])
        each[-1] += score
        assert torch.allclose(one.returns[at], each.flip(0).cumsum(0).flip(0))


@pytest.mark.parametrize("method", ["grpo", "dr_grpo"])
def test_with_the_price_in_the_loss_the_advantages_know_nothing_of_it(method: str) -> None:
    found = []
    for coef in (0.0, 5.0):
        one = group(2.0, 1.0)
        Shaping(method, OnlineConfig(kl_coef=coef)).fill([one])
        found.append(torch.cat(one.advantages))
    assert torch.equal(*found) and found[0].abs().min() > 0.4


def test_whitened_advantages_of_a_batch_have_mean_0_and_deviation_1() -> None:
    batch = [group(2.0, 1.0), group(-3.0, 0.5)]
    for one in batch:
        one.values = [torch.zeros(2), torch.zeros(3)]
    Shaping("ppo", OnlineConfig()).fill(batch)
    flat = torch.cat([piece for one in batch for piece in one.advantages])
    assert float(flat.mean()) == pytest.approx(0, abs=1e-6)
    assert float(flat.std(unbiased=False)) == pytest.approx(1, abs=1e-5)


def test_equal_rewards_of_a_group_push_nowhere() -> None:
    for method in ("rloo", "grpo", "dr_grpo"):
        one = group(1000.1, 1000.1)
        Shaping(method, OnlineConfig(kl_coef=0.0)).fill([one])
        assert max(float(piece.abs().max()) for piece in one.advantages) < 1e-6


# --- the price, adapted ---------------------------------------------------------------------------


def test_too_far_away_the_price_rises_and_too_near_it_falls() -> None:
    """By hand: 20 % off at most, over 50 of 100 answers: 10 %."""
    price = KLPrice(OnlineConfig(kl_coef=0.1, kl_target=2.0, kl_horizon=100))
    price.heed(9.0, 50)
    assert price.coef == pytest.approx(0.11)
    price.heed(1.9, 50)
    assert price.coef == pytest.approx(0.11 * (1 - 0.05 * 0.5))
    price.heed(2.0, 50)
    assert price.coef == pytest.approx(0.11 * (1 - 0.05 * 0.5))
    price.heed(0.0, 0)
    assert price.coef == pytest.approx(0.11 * (1 - 0.05 * 0.5)), "no answers say nothing"


def test_however_few_answers_the_horizon_has_the_price_stays_above_zero() -> None:
    price = KLPrice(OnlineConfig(kl_coef=0.1, kl_target=2.0, kl_horizon=1))
    for _ in range(5):
        price.heed(0.0, 1000)
    assert 0 < price.coef == pytest.approx(0.1**6)


def test_without_a_target_the_price_stays() -> None:
    price = KLPrice(OnlineConfig(kl_coef=0.1))
    price.heed(50.0, 1000)
    assert price.coef == pytest.approx(0.1)


# --- steps ----------------------------------------------------------------------------------------


def stepped(*given: list[tuple[int, float]], **config: Any) -> list[Tensor]:
    """Returns of PPO without values or price: what is to come at each token."""
    one = group(2.0, 1.0)
    one.step_scores = list(given)
    one.values = [torch.zeros(2), torch.zeros(3)]
    settings = OnlineConfig(step_rewards=True, kl_coef=0.0, lam=1.0, whiten=False, **config)
    Shaping("ppo", settings).fill([one])
    return one.returns


def test_each_step_earns_what_the_answer_gained_by_it() -> None:
    found = stepped([(0, 0.5), (1, 2.0)], [(0, 3.0), (1, 4.0), (2, 1.0)])
    assert found[0].tolist() == [2.0, 1.5]
    assert found[1].tolist() == [1.0, -2.0, -3.0]


def test_more_steps_earn_no_more_and_penalties_are_paid_once() -> None:
    few = stepped([(1, 2.0)], [(2, 1.0)], missing_eos_penalty=0.5, length_penalty=0.1)
    many = stepped(
        [(0, 9.0), (1, 2.0)], [(0, -4.0), (2, 1.0)], missing_eos_penalty=0.5, length_penalty=0.1
    )
    starts = [[float(one[0]) for one in found] for found in (few, many)]
    assert starts[0] == pytest.approx([1.8, 0.2]) and starts[1] == pytest.approx([1.8, 0.2])


# --- online DPO -----------------------------------------------------------------------------------


def test_the_best_and_the_worst_after_penalties_are_the_pair() -> None:
    table = Table(2, 2, seed=0)
    one = table.group([0, 1, 2, 3])
    (row,) = OwnPairs([one], [[0.5, 2.0, -1.0, 0.0]]).rows
    assert [tuple(ids) for ids in row.branches.completions] == [(0, 1), (1, 0)]
    assert row.desirable == (True, False) and row.margin == 3.0


def test_the_length_penalty_can_turn_a_pair_around() -> None:
    one = group(1.0, 1.05, finish=("stop", "stop"))
    for penalty, best in ((0.0, 3), (0.1, 2)):
        shaping = Shaping("online_dpo", OnlineConfig(length_penalty=penalty))
        shaping.fill([one])
        (row,) = OwnPairs([one], [shaping.rewards(one)]).rows
        assert len(row.branches.completions[0]) == best


def test_answers_that_earn_alike_or_are_the_same_tokens_give_no_pair() -> None:
    table = Table(2, 2, seed=0)
    assert OwnPairs([table.group([0, 1])], [[1.0, 1.0]]).rows == []
    assert OwnPairs([table.group([2, 2])], [[1.0, 0.0]]).rows == []


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "complaint"),
    [
        ("grpo", {"kl_estimator": "k1"}, "k1 in the loss has no gradient"),
        ("rloo", {"kl_estimator": "k1", "kl_in": "loss"}, "k1 in the loss has no gradient"),
        ("rloo", {"kl_target": 1.0, "kl_coef": 0.0}, "kl_coef, which starts above 0"),
        ("rloo", {"num_samples": 1}, "compares answers"),
        ("rloo", {"importance": "token"}, "weighs whole answers"),
        ("rloo", {"step_rewards": True}, "one reward an answer"),
        ("grpo", {"minibatches": 5}, "cannot be cut from"),
        ("online_dpo", {"train": {"label_smoothing": "auto"}}, "online_dpo has none"),
        ("online_dpo", {"train": {"alpha": "auto"}}, "online_dpo has none"),
        ("ppo head", {"train": {"plus": {"sft": 0.1}}}, "cannot be summed"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(
    name: str, given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        setting(name, **given)


def test_a_single_answer_a_prompt_is_enough_for_ppo() -> None:
    assert isinstance(setting("ppo head", num_samples=1), TrainConfig)
