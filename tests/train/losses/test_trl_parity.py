"""The same loss and the same gradients as TRL 1.16, from the same tokens and weights.

TRL's own trainers tokenise the texts and compute their loss on a batch; the token ids are taken
from that batch and go through `completion_logprobs` and our losses. Losses agree to 1e-6, of
their own size where that is above 1, gradients of every parameter to 1e-5 likewise. Where TRL
does something else on purpose or by accident, a test says what: those come last.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.tiny import save_tiny
from trueup.train.losses import (
    bradley_terry_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    ipo_norm_loss,
    kto_loss,
    kto_reference_point,
    ld_dpo_loss,
    ln_dpo_loss,
    nll_loss,
    orpo_loss,
    robust_dpo_loss,
    rpo_loss,
    simpo_loss,
    wpo_weights,
)

trl = pytest.importorskip("trl", reason="TRL is not installed: nothing to compare with")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

RAGGED = [
    ("What is blue? ", "The sky.", "Some frogs."),
    ("What is green? ", "A leaf, mostly.", "Coal."),
    ("And black? ", "Coal", "Snow"),
    ("Snow is ", "white.", "red, always."),
    ("A rose: ", "red", "no rose"),
]
"""Short: in single precision a sum of log-probs carries an error that grows with it."""
EVEN = [
    ("What is blue? ", "The sky.", "Some frogs."),
    ("What is green? ", "A leaf!!", "Coal."),
    ("And black? ", "Coal is.", "Snow"),
]
"""Chosen answers of equal length: there a mean over answers is a mean over tokens."""


class Models(NamedTuple):
    """A policy that has moved away from its reference, and what they were loaded from."""

    folder: Path
    tokenizer: Any
    policy: Any
    ref: Any


class Sides(NamedTuple):
    """Token log-probs of a batch of pairs, chosen and rejected."""

    chosen: list[Tensor]
    rejected: list[Tensor]

    @property
    def logps(self) -> tuple[Tensor, Tensor]:
        return torch.stack([t.sum() for t in self.chosen]), torch.stack(
            [t.sum() for t in self.rejected]
        )

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([len(t) for t in self.chosen]), torch.tensor(
            [len(t) for t in self.rejected]
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny(tmp_path_factory.mktemp("parity") / "model", seed=3, hidden_size=32)
    random = torch.Generator().manual_seed(4)
    ref = roughened(AutoModelForCausalLM.from_pretrained(folder), 0.15, random)
    policy = roughened(copy.deepcopy(ref), 0.06, random)
    return Models(folder, AutoTokenizer.from_pretrained(folder), policy, ref)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def roughened(model: Any, scale: float, random: torch.Generator) -> Any:
    """With noise on its weights: fresh ones are so small that every token is about as likely."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=random))
    return model


# --- TRL's side -----------------------------------------------------------------------------------


def settings(config: Any, folder: Path, rows: int, **given: Any) -> Any:
    """TRL's settings for a CPU in single precision; all rows are one batch."""
    return config(
        output_dir=str(folder / "run"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        disable_tqdm=True,
        **given,
    )


def pairs(texts: list[tuple[str, str, str]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": p, "chosen": chosen, "rejected": rejected} for p, chosen, rejected in texts]
    )


def dpo_trainer(models: Models, texts: list[tuple[str, str, str]], **given: Any) -> Any:
    return trl.DPOTrainer(
        model=copy.deepcopy(models.policy),
        ref_model=copy.deepcopy(models.ref),
        args=settings(trl.DPOConfig, models.folder, len(texts), **given),
        train_dataset=pairs(texts),
        processing_class=models.tokenizer,
    )


def loss_of(trainer: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """TRL's loss on its first batch, its gradients left on its model; and the batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model.train(), dict(batch))
    loss.backward()
    return loss.detach(), batch


def rows_of(ids: Tensor, attended: Tensor, is_completion: Tensor) -> list[tuple[list[int], ...]]:
    """(prompt ids, completion ids) of each row, padding left out."""
    return [
        (one[seen & ~loss].tolist(), one[seen & loss].tolist())
        for one, seen, loss in zip(ids, attended.bool(), is_completion.bool(), strict=True)
    ]


def branches(batch: dict[str, Tensor]) -> list[Branches]:
    """A batch of DPOTrainer: its first half is chosen, its second rejected."""
    rows = rows_of(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    chosen, rejected = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert [prompt for prompt, _ in chosen] == [prompt for prompt, _ in rejected]
    return [Branches(c[0], [c[1], r[1]]) for c, r in zip(chosen, rejected, strict=True)]


def labelled_branches(batch: dict[str, Tensor]) -> list[Branches]:
    """A batch of CPOTrainer or ORPOTrainer: labels are -100 where a token carries no loss."""
    chosen, rejected = (
        rows_of(
            batch[f"{side}_input_ids"],
            batch[f"{side}_attention_mask"],
            batch[f"{side}_labels"] != -100,
        )
        for side in ("chosen", "rejected")
    )
    return [Branches(c[0], [c[1], r[1]]) for c, r in zip(chosen, rejected, strict=True)]


# --- our side -------------------------------------------------------------------------------------


def logprobs_of(model: Any, rows: list[Branches]) -> Sides:
    logprobs = completion_logprobs(model, rows)
    return Sides([row[0] for row in logprobs], [row[1] for row in logprobs])


def both(models: Models, rows: list[Branches]) -> tuple[Any, Sides, Sides]:
    """A policy of our own, its log-probs with gradients, and the reference's without."""
    policy = copy.deepcopy(models.policy)
    with torch.no_grad():
        ref = logprobs_of(models.ref, rows)
    return policy, logprobs_of(policy, rows), ref


def assert_same(theirs: Tensor, ours: Tensor, their_model: Any, our_model: Any) -> None:
    """Loss and gradients, after a backward pass of ours."""
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs), abs=1e-6, rel=1e-6)
    found = {name: p.grad for name, p in our_model.named_parameters()}
    expected = {name: p.grad for name, p in their_model.named_parameters()}
    assert found.keys() == expected.keys()
    size = max(float(grad.abs().max()) for grad in expected.values() if grad is not None)
    assert size > 1e-3
    for name, grad in expected.items():
        one = found[name]
        assert grad is not None and one is not None, name
        assert torch.allclose(one, grad, atol=1e-5 * max(1.0, size), rtol=0), name


def by_token(losses: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the tokens of a batch, from per-token means of its answers."""
    return (losses * lengths).sum() / lengths.sum()


# --- pairs with a reference -----------------------------------------------------------------------

Loss = Callable[[Sides, Sides], Tensor]
"""From log-probs of policy and reference to what a batch costs: the mean is still to be taken."""

SAME_AS_DPO_TRAINER: dict[str, tuple[dict[str, Any], Loss]] = {
    "sigmoid": (
        {"loss_type": ["sigmoid"], "beta": 0.1},
        lambda p, r: dpo_loss(*p.logps, *r.logps, beta=0.1).losses,
    ),
    "robust": (
        {"loss_type": ["robust"], "beta": 0.1, "label_smoothing": 0.15},
        lambda p, r: robust_dpo_loss(*p.logps, *r.logps, beta=0.1, label_smoothing=0.15).losses,
    ),
    "hinge": (
        {"loss_type": ["hinge"], "beta": 0.05},
        lambda p, r: hinge_loss(*p.logps, *r.logps, beta=0.05).losses,
    ),
    "ipo": (
        {"loss_type": ["ipo"], "beta": 0.1},
        lambda p, r: ipo_norm_loss(*p.logps, *r.logps, *p.lengths, beta=0.1).losses,
    ),
    "sigmoid_norm": (
        {"loss_type": ["sigmoid_norm"], "beta": 3.0},
        lambda p, r: ln_dpo_loss(*p.logps, *r.logps, *p.lengths, beta=3.0).losses,
    ),
    "ld_alpha": (
        {"loss_type": ["sigmoid"], "beta": 0.1, "ld_alpha": 0.4},
        lambda p, r: ld_dpo_loss(*p, *r, beta=0.1, alpha=0.4).losses,
    ),
    "sft": (
        {"loss_type": ["sft"]},
        lambda p, r: by_token(nll_loss(p.logps[0], p.lengths[0]), p.lengths[0]),
    ),
    "sigmoid + sft": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1},
        lambda p, r: (
            dpo_loss(*p.logps, *r.logps, beta=0.1).losses
            + 0.2 * by_token(nll_loss(p.logps[0], p.lengths[0]), p.lengths[0])
        ),
    ),
    "hinge + ipo": (
        {"loss_type": ["hinge", "ipo"], "loss_weights": [0.5, 2.0], "beta": 0.1},
        lambda p, r: (
            0.5 * hinge_loss(*p.logps, *r.logps, beta=0.1).losses
            + 2 * ipo_norm_loss(*p.logps, *r.logps, *p.lengths, beta=0.1).losses
        ),
    ),
}


@pytest.mark.parametrize("name", SAME_AS_DPO_TRAINER)
def test_dpo_trainer(models: Models, name: str) -> None:
    given, loss = SAME_AS_DPO_TRAINER[name]
    trainer = dpo_trainer(models, RAGGED, **given)
    theirs, batch = loss_of(trainer)
    policy, logprobs, ref = both(models, branches(batch))
    assert float((logprobs.logps[0] - ref.logps[0]).detach().abs().mean()) > 0.5  # it has moved
    assert_same(theirs, loss(logprobs, ref).mean(), trainer.model, policy)


def test_the_pairs_are_ragged_and_their_answers_end_as_ours_do(models: Models) -> None:
    _, batch = loss_of(dpo_trainer(models, RAGGED))
    rows = branches(batch)
    end = models.tokenizer.eos_token_id
    assert all(ids[-1] == end and end not in ids[:-1] for row in rows for ids in row.completions)
    assert len({len(ids) for row in rows for ids in row.completions}) > 5


def test_dpo_trainers_logged_rewards_are_ours(models: Models) -> None:
    trainer = dpo_trainer(models, RAGGED, beta=0.1)
    _, batch = loss_of(trainer)
    _, logprobs, ref = both(models, branches(batch))
    ours = dpo_loss(*logprobs.logps, *ref.logps, beta=0.1)
    logged = trainer._metrics["train"]
    assert logged["rewards/chosen"] == pytest.approx([float(ours.chosen_rewards.mean())], abs=1e-5)
    assert logged["rewards/rejected"] == pytest.approx(
        [float(ours.rejected_rewards.mean())], abs=1e-5
    )


def test_rpo_where_chosen_answers_have_one_length(models: Models) -> None:
    """With unequal ones see `sigmoid + sft` above: TRL's second term is a mean over tokens."""
    trainer = dpo_trainer(
        models, EVEN, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2], beta=0.1
    )
    theirs, batch = loss_of(trainer)
    policy, logprobs, ref = both(models, branches(batch))
    assert len(set(logprobs.lengths[0].tolist())) == 1
    ours = rpo_loss(*logprobs.logps, *ref.logps, logprobs.lengths[0], beta=0.1, nll_weight=0.2)
    assert_same(theirs, ours.losses.mean(), trainer.model, policy)


@pytest.mark.parametrize("pair", RAGGED[:2])
def test_conservative_dpo_is_alignment_via_optimal_transport_of_one_pair(
    models: Models, pair: tuple[str, str, str]
) -> None:
    """TRL smooths labels in `aot`, which sorts a batch and is then DPO: on one pair, only that."""
    trainer = dpo_trainer(models, [pair], loss_type=["aot"], beta=0.1, label_smoothing=0.15)
    theirs, batch = loss_of(trainer)
    policy, logprobs, ref = both(models, branches(batch))
    ours = dpo_loss(*logprobs.logps, *ref.logps, beta=0.1, label_smoothing=0.15)
    assert_same(theirs, ours.losses.mean(), trainer.model, policy)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_trainer_with_wpo_weights(models: Models, loss_type: str) -> None:
    """On answers that are not the policy's, whose weights are below 1."""
    trainer = dpo_trainer(models, RAGGED, loss_type=[loss_type], beta=0.1, use_weighting=True)
    theirs, batch = loss_of(trainer)
    rows = branches(batch)
    policy, logprobs, ref = both(models, rows)
    weights = wpo_weights(*logprobs, *collisions(models.policy, rows))
    assert bool((weights < 0.99).all()) and len(set(weights.tolist())) == len(RAGGED)
    loss = SAME_AS_DPO_TRAINER[loss_type][1](logprobs, ref)
    assert_same(theirs, (weights * loss).mean(), trainer.model, policy)


@torch.no_grad()
def collisions(model: Any, rows: list[Branches]) -> Sides:
    """log sum_v p_v ** 2 where each completion token is predicted, one row at a time."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for row in rows:
        for side, completion in zip(found, row.completions, strict=True):
            ids = torch.tensor([[*row.prompt_ids, *completion]])
            logprobs = model(ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
            side.append((2 * logprobs).logsumexp(-1))
    return Sides(*found)


# --- answers without a partner --------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
@pytest.mark.parametrize("backwards", [False, True], ids=["drifted up", "drifted down"])
def test_kto_trainer(models: Models, weights: tuple[float, float], backwards: bool) -> None:
    """With policy and reference also the other way round: one of the two reference points is
    above zero, the other clamped."""
    from datasets import Dataset

    policy, ref = models.policy, models.ref
    if backwards:
        policy, ref = ref, policy
    models = models._replace(policy=policy, ref=ref)
    texts = [(p, c, i % 2 == 0) for i, (p, c, _) in enumerate(RAGGED)] + [
        (p, r, False) for p, _, r in RAGGED[:3]
    ]
    trainer = trl.KTOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(ref),
        args=settings(
            trl.KTOConfig,
            models.folder,
            len(texts),
            beta=0.1,
            desirable_weight=weights[0],
            undesirable_weight=weights[1],
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": p, "completion": c, "label": label} for p, c, label in texts]
        ),
        processing_class=models.tokenizer,
    )
    theirs, batch = loss_of(trainer)
    own = rows_of(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    foreign = rows_of(
        batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_completion_mask"]
    )
    rows = [Branches(o[0], [o[1], f[1]]) for o, f in zip(own, foreign, strict=True)]
    model, logprobs, ref_logprobs = both(models, rows)
    kl = kto_reference_point(logprobs.logps[1], ref_logprobs.logps[1])
    ours = kto_loss(
        logprobs.logps[0],
        ref_logprobs.logps[0],
        batch["label"].bool(),
        kl,
        beta=0.1,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    assert trainer._metrics["train"]["kl"] == pytest.approx([float(kl)], abs=1e-5)
    assert_same(theirs, ours.losses.mean(), trainer.model, model)


def test_the_two_directions_try_both_sides_of_the_clamp(models: Models) -> None:
    rows = [
        Branches(models.tokenizer(p)["input_ids"], [models.tokenizer(c)["input_ids"]] * 2)
        for p, c, _ in RAGGED
    ]
    with torch.no_grad():
        policy, ref = (logprobs_of(m, rows).logps[0] for m in (models.policy, models.ref))
    points = float(kto_reference_point(policy, ref)), float(kto_reference_point(ref, policy))
    assert min(points) == 0 < max(points)


# --- no reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (2.5, 0.0)])
def test_cpo_trainers_simpo(models: Models, beta: float, gamma: float) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo", reason="this TRL has no CPOTrainer any more")
    trainer = cpo.CPOTrainer(
        model=copy.deepcopy(models.policy),
        args=settings(
            cpo.CPOConfig,
            models.folder,
            len(RAGGED),
            loss_type="simpo",
            cpo_alpha=0.0,
            beta=beta,
            simpo_gamma=gamma,
        ),
        train_dataset=pairs(RAGGED),
        processing_class=models.tokenizer,
    )
    theirs, batch = loss_of(trainer)
    policy, logprobs, _ = both(models, labelled_branches(batch))
    ours = simpo_loss(*logprobs.logps, *logprobs.lengths, beta=beta, gamma=gamma)
    assert_same(theirs, ours.losses.mean(), trainer.model, policy)


def orpo_trainer(models: Models, texts: list[tuple[str, str, str]], beta: float) -> Any:
    orpo = pytest.importorskip(
        "trl.experimental.orpo", reason="this TRL has no ORPOTrainer any more"
    )
    return orpo.ORPOTrainer(
        model=copy.deepcopy(models.policy),
        args=settings(orpo.ORPOConfig, models.folder, len(texts), beta=beta),
        train_dataset=pairs(texts),
        processing_class=models.tokenizer,
    )


def test_orpo_trainer_where_there_is_no_prompt_to_imitate(models: Models) -> None:
    """Prompts of one token, which nothing predicts, and chosen answers of one length."""
    texts = [(prompt[0], chosen, rejected) for prompt, chosen, rejected in EVEN]
    trainer = orpo_trainer(models, texts, 0.4)
    theirs, batch = loss_of(trainer)
    rows = labelled_branches(batch)
    assert all(len(row.prompt_ids) == 1 for row in rows)
    policy, logprobs, _ = both(models, rows)
    ours = orpo_loss(*logprobs.logps, *logprobs.lengths, beta=0.4)
    assert_same(theirs, ours.losses.mean(), trainer.model, policy)


def test_orpo_trainer_but_for_the_prompt_it_imitates(models: Models) -> None:
    """Our odds term, and TRL's likelihood: of prompt and answer, averaged over all tokens."""
    trainer = orpo_trainer(models, RAGGED, 0.4)
    theirs, batch = loss_of(trainer)
    rows = labelled_branches(batch)
    policy, logprobs, _ = both(models, rows)
    ours = orpo_loss(*logprobs.logps, *logprobs.lengths, beta=0.4).losses
    odds_term = (ours - nll_loss(logprobs.logps[0], logprobs.lengths[0])).mean()
    whole = [Branches(r.prompt_ids[:1], [[*r.prompt_ids[1:], *r.completions[0]]]) for r in rows]
    nll = -torch.cat([row[0] for row in completion_logprobs(policy, whole)]).mean()
    assert_same(theirs, nll + odds_term, trainer.model, policy)


# --- reward models --------------------------------------------------------------------------------


@pytest.mark.parametrize("centering", [None, 0.05])
@pytest.mark.parametrize("with_margins", [False, True], ids=["plain", "margins"])
def test_reward_trainer(models: Models, centering: float | None, with_margins: bool) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        models.folder, num_labels=1, pad_token_id=models.tokenizer.pad_token_id
    )
    model = roughened(model, 0.15, torch.Generator().manual_seed(5))
    dataset = pairs(RAGGED)
    if with_margins:
        dataset = dataset.add_column("margin", [0.1 * i for i in range(len(RAGGED))])
    trainer = trl.RewardTrainer(
        model=copy.deepcopy(model),
        args=settings(
            trl.RewardConfig, models.folder, len(RAGGED), center_rewards_coefficient=centering
        ),
        train_dataset=dataset,
        processing_class=models.tokenizer,
    )
    theirs, batch = loss_of(trainer)
    assert ("margin" in batch) == with_margins
    lengths = batch["attention_mask"].sum(-1).tolist()
    alone = [ids[None, :n] for ids, n in zip(batch["input_ids"], lengths, strict=True)]
    chosen, rejected = torch.cat([model(ids).logits[:, 0] for ids in alone]).chunk(2)
    assert float((chosen - rejected).detach().std()) > 0.1
    ours = bradley_terry_loss(chosen, rejected, batch.get("margin"), centering=centering or 0.0)
    assert_same(theirs, ours.mean(), trainer.model, model)


# --- where TRL differs ----------------------------------------------------------------------------


def test_trls_sigmoid_loss_ignores_label_smoothing(models: Models) -> None:
    plain, _ = loss_of(dpo_trainer(models, RAGGED, beta=1.0))
    smoothed, batch = loss_of(dpo_trainer(models, RAGGED, beta=1.0, label_smoothing=0.2))
    _, logprobs, ref = both(models, branches(batch))
    ours = dpo_loss(*logprobs.logps, *ref.logps, beta=1.0, label_smoothing=0.2).losses.mean()
    assert float(smoothed) == float(plain)
    assert abs(float(ours.detach()) - float(plain)) > 1e-2


def test_trl_cannot_train_the_hinge_with_weights(models: Models) -> None:
    """It multiplies the loss in place, and the backward pass of relu needs what was there."""
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss_of(dpo_trainer(models, RAGGED, loss_type=["hinge"], beta=0.1, use_weighting=True))


def test_trls_ipo_is_not_the_papers(models: Models) -> None:
    theirs, batch = loss_of(dpo_trainer(models, RAGGED, loss_type=["ipo"], beta=0.1))
    _, logprobs, ref = both(models, branches(batch))
    summed = ipo_loss(*logprobs.logps, *ref.logps, beta=0.1).losses.mean()
    assert abs(float(summed.detach()) - float(theirs)) > 1.0


def test_trls_sft_term_weighs_long_answers_more(models: Models) -> None:
    theirs, batch = loss_of(dpo_trainer(models, RAGGED, loss_type=["sft"]))
    _, logprobs, _ = both(models, branches(batch))
    ours = nll_loss(logprobs.logps[0], logprobs.lengths[0]).mean()
    assert abs(float(ours.detach()) - float(theirs)) > 1e-3


def test_trls_wpo_weights_go_above_one(models: Models) -> None:
    """On a pair of the policy's own greedy answers, where the authors' code and ours stop at 1."""
    prompt = "What is blue? "
    ids = models.tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        best = models.policy(torch.tensor([ids])).logits[0, -1].topk(2).indices.tolist()
    rows = [Branches(ids, [best[:1], best[:1]])]
    trainer = dpo_trainer(models, RAGGED[:1], use_weighting=True, beta=0.1)
    row = torch.tensor([[*ids, best[0]]] * 2)
    mask = torch.zeros_like(row)
    mask[:, -1] = 1
    batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "completion_mask": mask}
    theirs = trainer.compute_loss(trainer.model, batch).detach()
    _, logprobs, ref = both(models, rows)
    weights = wpo_weights(*logprobs, *collisions(models.policy, rows))
    loss = dpo_loss(*logprobs.logps, *ref.logps, beta=0.1).losses.detach()
    assert weights.tolist() == [1.0]
    assert float(theirs) > 1.1 * float(loss)
