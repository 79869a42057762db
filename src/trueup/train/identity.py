"""Before the first step: is what trains what serves, and is the loss what it should be?

A fresh adapter on the base, a champion loaded from the wrong folder, another chat template or
dropout left on all train without complaint and silently throw away last week's work. Five checks
make that impossible: the starting policy gives the log-probs that were recorded when the champion
served; it is the champion; the kernel agrees with a plain forward pass; the first loss is the one
that algebra, or those independent log-probs, call for; and the reference, wherever its log-probs
came from, says what its weights say.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from trueup.errors import IdentityError
from trueup.models.logprobs import completion_logprobs
from trueup.models.stored import StoredModel
from trueup.train.config import ONLINE, TrainConfig
from trueup.train.data import Row
from trueup.train.losses import kto_loss
from trueup.train.objectives import PairLogps, preference_loss
from trueup.train.reference import FixedReference, MovingReference, NoReference

__all__ = ["check_identity", "check_reference", "closed_form"]

TOLERANCE = 1e-4  # nats per token, fp32
HALF_TOLERANCE = 0.25  # nats per token: two bf16 passes of other shapes agree to about 0.1
LOSS_TOLERANCE = 1e-6  # relative to the loss, or to 1
NUM_ROWS = 4
WITHOUT_PAIRS = frozenset(("reward", *ONLINE))
"""Methods whose loss is not one of a chosen and a rejected answer."""

Acting = Callable[[], AbstractContextManager[Any]]


def closed_form(method: str, config: TrainConfig) -> float | None:
    """The loss of every pair where policy and reference agree; None where it depends on the
    pair (Rafailov et al. Eq. 7 at h = 0 and its kin)."""
    at_zero = {
        **dict.fromkeys(("dpo", "robust_dpo", "soft_dpo", "ln_dpo", "ld_dpo", "dpop"), math.log(2)),
        **dict.fromkeys(("ipo", "ipo_norm"), (1 / (2 * config.beta)) ** 2),
        "hinge": 1.0,
    }
    return at_zero.get(method)


@torch.no_grad()
def check_identity(
    champion: StoredModel, acting: Acting, rows: Sequence[Row], config: TrainConfig
) -> dict[str, float]:
    """Stop unless the policy, before its first step, is the champion, and its loss is right.

    Args:
        acting: makes the network the policy that is about to be trained.
        rows: the run's rows; those with completions the champion drew are looked at first.

    Returns:
        The figures: the largest difference of any token's log-prob from what was served
        (`served_gap`, absent where the champion drew none), from the champion now
        (`policy_gap`) and from a plain forward pass (`kernel_gap`), and `first_loss`.

    Raises:
        IdentityError: with the likely cause.
    """
    served = [row for row in rows if any(_stored(row, champion))]
    longest = max(rows, key=lambda row: row.num_tokens)  # windows and contexts show there
    picked = [*(served or list(rows))[: NUM_ROWS - 1], longest]
    with acting() as model:
        ours = completion_logprobs(model, [row.branches for row in picked])
        plain = [_plain_logprobs(model, row) for row in picked]
        causes = _causes(model)
    with champion.acting() as model:
        theirs = completion_logprobs(model, [row.branches for row in picked])
    tolerance = TOLERANCE if ours[0][0].dtype == torch.float32 else HALF_TOLERANCE
    if _is_half(champion):
        tolerance = HALF_TOLERANCE

    figures = {"policy_gap": _gap(ours, theirs), "kernel_gap": _gap(plain, ours)}
    gaps = [
        float((side.cpu().float() - torch.tensor(stored)).abs().max())
        for row, sides in zip(picked, ours, strict=True)
        for side, stored in zip(sides, _stored(row, champion), strict=True)
        if stored
    ]
    if gaps:
        figures["served_gap"] = max(gaps)
        _need(
            "The starting policy is not the model that served",
            max(gaps),
            tolerance,
            f"compare what trains with what serves: adapter, chat template; {causes}",
        )
    _need(
        "The starting policy is not the champion",
        figures["policy_gap"],
        tolerance,
        f"check which adapter training starts from; {causes}",
    )
    _need(
        "The log-prob kernel disagrees with a plain forward pass of this model",
        figures["kernel_gap"],
        tolerance,
        f"this architecture may need the cache path: report its config; {causes}",
    )
    if config.method == "kto":
        figures["first_loss"] = _check_kto(config, picked, ours, theirs, tolerance)
    elif config.method not in WITHOUT_PAIRS and all(len(r.completions) == 2 for r in picked):
        weights = {config.method: 1.0, **config.plus}
        figures["first_loss"] = sum(
            weight * _check_loss(method, config, picked, ours, theirs, plain, tolerance)
            for method, weight in weights.items()
        )
    return figures


@torch.no_grad()
def check_reference(
    reference: FixedReference | MovingReference | NoReference,
    champion: StoredModel,
    rows: Sequence[Row],
    config: TrainConfig,
) -> dict[str, float]:
    """Stop unless the reference's log-probs, stored, cached or computed, are its weights'.

    Returns:
        The largest difference of any token's log-prob from a plain forward pass of the model it
        is named after, over rows from the whole data set: `reference_gap`. Nothing without a
        reference.

    Raises:
        IdentityError: with the likely cause.
    """
    if isinstance(reference, NoReference):
        return {}
    picked = list(rows)[:: max(1, len(rows) // NUM_ROWS)][:NUM_ROWS]
    starts_as_champion = config.reference in ("previous", "ema")
    acting = champion.acting if starts_as_champion else reference.acting
    with acting() as model:
        plain = [_plain_logprobs(model, row) for row in picked]
    reference.follow(picked)
    gap = _gap([[one.cpu() for one in row] for row in plain], [reference.of(r) for r in picked])
    _need(
        "The reference's log-probs are not those of its weights",
        gap,
        HALF_TOLERANCE if _is_half(champion) else TOLERANCE,
        "check which adapter the reference is; delete cache/logprobs.sqlite in the store, which "
        "loses nothing",
    )
    return {"reference_gap": gap}


def _check_kto(
    config: TrainConfig,
    rows: Sequence[Row],
    ours: list[list[Tensor]],
    theirs: list[list[Tensor]],
    tolerance: float,
) -> float:
    """Half its weight for every answer, where the reference point is 0."""
    policy, ref = (
        torch.stack([o.double().cpu().sum() for row in s for o in row]) for s in (ours, theirs)
    )
    desirable = torch.tensor([good for row in rows for good in row.desirable])
    loss = kto_loss(
        policy,
        ref,
        desirable,
        torch.zeros((), dtype=policy.dtype),
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    ).losses
    weights = torch.where(desirable, config.desirable_weight, config.undesirable_weight).double()
    off = float(((loss - weights / 2) / weights).abs().max())
    allowed = LOSS_TOLERANCE if tolerance == TOLERANCE else 1e-2
    # the sigmoid's slope is at most a quarter
    allowed += config.beta / 4 * float((policy - ref).abs().max()) if tolerance == TOLERANCE else 0
    if not off <= allowed:
        raise IdentityError(
            "The first kto loss is not what it must be, so the policy does not start at its "
            "reference",
            got=f"{off:.2g} off half an answer's weight",
            expected=f"at most {allowed:.2g}",
            next="check that policy and reference are the same weights and that dropout is off",
        )
    return float(loss.mean())


def _check_loss(
    method: str,
    config: TrainConfig,
    rows: Sequence[Row],
    ours: list[list[Tensor]],
    theirs: list[list[Tensor]],
    plain: list[list[Tensor]],
    tolerance: float,
) -> float:
    """The first loss against its closed form, and against the loss from plain log-probs."""
    loss = preference_loss(method, _logps(rows, ours, theirs), config).losses
    expected = closed_form(method, config)
    is_exact = tolerance == TOLERANCE
    if expected is not None:
        tolerated = (LOSS_TOLERANCE if is_exact else 1e-2) * max(1.0, 1 / config.beta)
        # a merged adapter is the champion to rounding, which adds up over a long answer
        tolerated += _slope(config) * _most(ours, theirs) if is_exact else 0.0
        off = float((loss - expected).abs().max())
        if not off <= tolerated * max(1.0, expected):
            raise IdentityError(
                f"The first {method} loss is not what it must be, so the policy does not start "
                "at its reference",
                got=float(loss.mean()),
                expected=f"{expected:.6f} within {tolerated * max(1.0, expected):.2g}",
                next="check that policy and reference are the same weights and that dropout is off",
            )
    slow = preference_loss(method, _logps(rows[:1], plain[:1], theirs[:1]), config).losses
    tokens = sum(rows[0].lengths)
    allowed = tolerance * tokens * max(1.0, config.beta, 1 / config.beta)
    if not abs(float(slow[0] - loss[0])) <= allowed:
        raise IdentityError(
            f"The first {method} loss differs from the one computed from a plain forward pass",
            got=float(loss[0]),
            expected=f"{float(slow[0]):.6f} within {allowed:g}",
            next="check reference, dropout, dtype and template",
        )
    return float(loss.mean())


def _slope(config: TrainConfig) -> float:
    """The most that a loss with a closed form changes with one nat of a summed log-prob."""
    kept = 1 - 2 * float(config.label_smoothing)
    return max(config.beta * (1 + config.penalty) / kept, 1 / config.beta)


def _most(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> float:
    """The largest difference of a pair's log-probs, in nats, all its tokens' added up."""
    return max(
        sum(float((a - b).abs().double().sum()) for a, b in zip(x, y, strict=True))
        for x, y in zip(ours, theirs, strict=True)
    )


def _logps(rows: Sequence[Row], ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> PairLogps:
    def side(part: list[list[Tensor]], at: int) -> list[Tensor]:
        return [one[at].double().cpu() for one in part]

    margins = torch.tensor([row.margin for row in rows])
    return PairLogps(side(ours, 0), side(ours, 1), side(theirs, 0), side(theirs, 1), margins)


def _plain_logprobs(model: Any, row: Row) -> list[Tensor]:
    """The slow version: each completion a row of its own, transformers' own forward pass."""
    found = []
    for completion in row.branches.completions:
        ids = torch.tensor([[*row.branches.prompt_ids, *completion]], device=model.device)
        logits = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[0, :-1].double()
        targets = torch.tensor(completion, device=logits.device)
        chosen = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
        found.append(chosen.float())
    return found


def _stored(row: Row, champion: StoredModel) -> list[tuple[float, ...] | None]:
    """What was recorded of each completion when the champion served it. Looser than what a
    reference may reuse: here a wrong prompt or a cut distribution must show, not hide."""
    pieces = zip(row.completions, row.branches.completions, strict=True)
    return [
        one.logprobs
        if one.weights == champion.weights
        and one.logprobs is not None
        and one.token_ids == tuple(ids)
        and len(one.logprobs) == len(ids)
        else None
        for one, ids in pieces
    ]


def _need(what: str, gap: float, tolerance: float, hint: str) -> None:
    if not gap <= tolerance:
        raise IdentityError(
            what,
            got=f"log-probs differ by {gap:.2g} nats",
            expected=f"at most {tolerance:g}",
            next=hint,
        )


def _causes(model: Any) -> str:
    """What can be seen of the usual suspects."""
    dropping = [name for name, one in model.named_modules() if one.training and _drops(one)]
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    on = f"dropout is on in {dropping[0]}" if dropping else "dropout is off"
    return f"{on}, dtype {' and '.join(dtypes)}"


def _drops(module: nn.Module) -> bool:
    """True where a module would drop something in training; attention has a rate of its own."""
    rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0)
    return isinstance(rate, float) and rate > 0


def _is_half(champion: StoredModel) -> bool:
    return next(champion.backbone.model.parameters()).dtype != torch.float32


def _gap(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> float:
    """The largest difference of any token's log-prob, in nats."""
    pairs = zip(ours, theirs, strict=True)
    gaps = [float((a - b).abs().max()) for x, y in pairs for a, b in zip(x, y, strict=True)]
    return max(gaps, default=0.0)
