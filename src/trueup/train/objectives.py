"""What a method minimises: rows in, the summed loss of a few of them out.

A step's rows run in groups that fit in memory. An objective gives each group's loss as a sum and
says what the whole step is divided by, so that splitting a step changes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trueup.models.logprobs import Branches, completion_collisions, completion_logprobs
from trueup.train import losses
from trueup.train.config import TrainConfig
from trueup.train.data import Row, split
from trueup.train.reference import Reference

__all__ = ["KTO", "SFT", "Figures", "Objective", "PairLogps", "Preference", "preference_loss"]

Figures = list[dict[str, float]]
"""For each row of a group its metrics; a step logs their means."""


class Objective(Protocol):
    """One optimizer step: `prepare`, `group_loss` for every group, all over `total`."""

    def total(self, picked: Sequence[Row]) -> float:
        """What the step's summed loss is divided by."""
        ...

    def prepare(self, model: Any, picked: Sequence[Row], tokens_per_batch: int) -> None:
        """What needs the whole step before its groups run; no gradient."""
        ...

    def group_loss(self, model: Any, group: Sequence[Row]) -> tuple[Tensor, Figures]:
        """The group's summed loss, with its gradient, and each row's figures."""
        ...


class PairLogps(NamedTuple):
    """Log-probs a token of B pairs, under the policy and under the reference; each a list of B
    tensors of shape (tokens,). The reference's are None for methods without one."""

    policy_chosen: list[Tensor]
    policy_rejected: list[Tensor]
    ref_chosen: list[Tensor]
    ref_rejected: list[Tensor]
    margins: Tensor
    """Of the labels, shape (B,)."""

    def sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four summed log-probs, each of shape (B,)."""
        pc, pr, rc, rr = (torch.stack([one.sum() for one in side]) for side in self[:4])
        return pc, pr, rc, rr

    def lengths(self) -> tuple[Tensor, Tensor]:
        """Tokens of chosen and rejected, each of shape (B,)."""
        chosen, rejected = (
            torch.tensor([float(len(one)) for one in side], device=side[0].device)
            for side in self[:2]
        )
        return chosen, rejected


def preference_loss(method: str, logps: PairLogps, config: TrainConfig) -> losses.PreferenceLoss:
    """One method's loss on B pairs. `label_smoothing` and `alpha` must be numbers by now."""
    beta, smoothing, alpha = config.beta, float(config.label_smoothing), float(config.alpha)
    sums, (chosen, rejected) = logps.sums(), logps.lengths()
    policy = sums[:2]
    table: dict[str, Callable[[], losses.PreferenceLoss]] = {
        "dpo": lambda: losses.dpo_loss(*sums, beta=beta, label_smoothing=smoothing),
        "robust_dpo": lambda: losses.robust_dpo_loss(*sums, beta=beta, label_smoothing=smoothing),
        "soft_dpo": lambda: losses.soft_dpo_loss(
            *sums, logps.margins, beta=beta, margin_scale=config.margin_scale
        ),
        "ipo": lambda: losses.ipo_loss(*sums, beta=beta),
        "ipo_norm": lambda: losses.ipo_norm_loss(*sums, chosen, rejected, beta=beta),
        "hinge": lambda: losses.hinge_loss(*sums, beta=beta),
        "ln_dpo": lambda: losses.ln_dpo_loss(*sums, chosen, rejected, beta=beta),
        "rdpo": lambda: losses.rdpo_loss(*sums, chosen, rejected, beta=beta, alpha=alpha),
        "ld_dpo": lambda: losses.ld_dpo_loss(*logps[:4], beta=beta, alpha=config.ld_alpha),
        "dpop": lambda: losses.dpop_loss(*sums, beta=beta, penalty=config.penalty),
        "rpo": lambda: losses.rpo_loss(*sums, chosen, beta=beta, nll_weight=config.nll_weight),
        "simpo": lambda: losses.simpo_loss(
            *policy, chosen, rejected, beta=beta, gamma=config.gamma
        ),
        "orpo": lambda: losses.orpo_loss(*policy, chosen, rejected, beta=beta),
        "sft": lambda: _likelihood(sums, chosen),
    }
    return table[method]()


def _likelihood(sums: tuple[Tensor, ...], chosen: Tensor) -> losses.PreferenceLoss:
    """The chosen answer's mean negative log-likelihood in a pair loss's clothes."""
    nll = losses.nll_loss(sums[0], chosen)
    return losses.PreferenceLoss(nll, (sums[0] - sums[2]).detach(), (sums[1] - sums[3]).detach())


class Preference:
    """A loss on pairs, or a weighted sum of several, all on the same log-probs."""

    def __init__(self, config: TrainConfig, reference: Reference) -> None:
        self.config, self.reference = config, reference

    def total(self, picked: Sequence[Row]) -> float:
        return float(len(picked))

    def prepare(self, model: Any, picked: Sequence[Row], tokens_per_batch: int) -> None:
        self.reference.follow(picked)

    def group_loss(self, model: Any, group: Sequence[Row]) -> tuple[Tensor, Figures]:
        branches = [row.branches for row in group]
        weights = None
        if self.config.weighting == "wpo":
            logprobs, sure = completion_collisions(model, branches)
            sides = [[row[side] for row in part] for part in (logprobs, sure) for side in (0, 1)]
            weights = losses.wpo_weights(*sides)
        else:
            logprobs = completion_logprobs(model, branches)
        logps = self.logps(group, logprobs)
        loss = self.loss(logps)
        each = loss.losses if weights is None else loss.losses * weights
        return each.sum(), _figures(logps, loss, each)

    def logps(self, group: Sequence[Row], logprobs: Sequence[Sequence[Tensor]]) -> PairLogps:
        """The policy's log-probs beside the reference's."""
        refs = [self.reference.of(row) for row in group]
        device = logprobs[0][0].device
        return PairLogps(
            [row[0] for row in logprobs],
            [row[1] for row in logprobs],
            [ref[0].to(device) for ref in refs],
            [ref[1].to(device) for ref in refs],
            torch.tensor([row.margin for row in group], device=device),
        )

    def loss(self, logps: PairLogps) -> losses.PreferenceLoss:
        """The method's loss plus the others', each times its weight."""
        first = preference_loss(self.config.method, logps, self.config)
        total = first.losses
        for method, weight in self.config.plus.items():
            total = total + weight * preference_loss(method, logps, self.config).losses
        return first._replace(losses=total)


class KTO:
    """KTO on single answers; a pair counts as one desirable and one undesirable answer."""

    def __init__(self, config: TrainConfig, reference: Reference) -> None:
        self.config, self.reference = config, reference
        self.kl = torch.zeros(())

    def total(self, picked: Sequence[Row]) -> float:
        return float(sum(len(row.completions) for row in picked))

    @torch.no_grad()
    def prepare(self, model: Any, picked: Sequence[Row], tokens_per_batch: int) -> None:
        """The reference point: how far the policy has moved on answers to other prompts, over the
        whole step, whatever groups it is split into; 0 in a step of one prompt."""
        self.reference.follow(picked)
        mismatched = [
            row._replace(
                id=f"{row.id}+{other.id}",
                branches=Branches(row.branches.prompt_ids, other.branches.completions[:1]),
                completions=other.completions[:1],
                desirable=(True,),
            )
            for row, other in _other_prompts(picked, self._room(model))
        ]
        self.kl = torch.zeros(())
        if not mismatched:
            return
        refs = self.reference.compute(mismatched)
        moved = []
        for group in split(mismatched, tokens_per_batch=tokens_per_batch):
            found = completion_logprobs(model, [row.branches for row in group])
            moved += [
                (float(one[0].sum()), float(refs[row.id][0].sum()))
                for row, one in zip(group, found, strict=True)
            ]
        policy, ref = torch.tensor(moved).T
        self.kl = losses.kto_reference_point(policy, ref)

    def _room(self, model: Any) -> int:
        """Tokens that a prompt and another's answer may have."""
        context = getattr(model.config, "max_position_embeddings", None)
        return min(self.config.max_tokens, context or self.config.max_tokens)

    def group_loss(self, model: Any, group: Sequence[Row]) -> tuple[Tensor, Figures]:
        logprobs = completion_logprobs(model, [row.branches for row in group])
        policy = torch.stack([one.sum() for row in logprobs for one in row])
        ref = torch.stack([one.sum() for row in group for one in self.reference.of(row)])
        desirable = torch.tensor([d for row in group for d in row.desirable], device=policy.device)
        loss = losses.kto_loss(
            policy,
            ref.to(policy),
            desirable,
            self.kl.to(policy),
            beta=self.config.beta,
            desirable_weight=self.config.desirable_weight,
            undesirable_weight=self.config.undesirable_weight,
        )
        figures: Figures = []
        for at, good in enumerate(desirable.tolist()):
            side = "chosen" if good else "rejected"
            moved = float(loss.rewards[at]) / self.config.beta
            figures.append(
                {
                    "loss": float(loss.losses[at].detach()),
                    "kl": float(self.kl),
                    f"{side}_logps_change": moved,
                }
            )
        return loss.losses.sum(), figures


def _other_prompts(picked: Sequence[Row], room: int) -> Iterator[tuple[Row, Row]]:
    """Each row with the next one that answers another prompt and fits behind this one's; none
    where there is no such row."""
    for at, row in enumerate(picked):
        rest = (*picked[at + 1 :], *picked[:at])
        left = room - len(row.branches.prompt_ids)
        others = (one for one in rest if one.prompt_hash != row.prompt_hash)
        other = next((one for one in others if one.lengths[0] <= left), None)
        if other:
            yield row, other


class SFT:
    """Maximum likelihood on the desirable answers alone: the mean over the step's tokens."""

    def total(self, picked: Sequence[Row]) -> float:
        return float(sum(len(c) for row in picked for c in _desirable(row)))

    def prepare(self, model: Any, picked: Sequence[Row], tokens_per_batch: int) -> None:
        pass

    def group_loss(self, model: Any, group: Sequence[Row]) -> tuple[Tensor, Figures]:
        branches = [Branches(row.branches.prompt_ids, _desirable(row)) for row in group]
        logprobs = completion_logprobs(model, branches)
        nll = [-torch.cat(row) for row in logprobs]
        figures = [{"loss": float(one.detach().mean()), "tokens": float(len(one))} for one in nll]
        return torch.cat(nll).sum(), figures


def _desirable(row: Row) -> list[Sequence[int]]:
    pieces = zip(row.branches.completions, row.desirable, strict=True)
    return [completion for completion, good in pieces if good]


def _figures(logps: PairLogps, loss: losses.PreferenceLoss, each: Tensor) -> Figures:
    pc, pr, rc, rr = (side.detach() for side in logps.sums())
    chosen, rejected = logps.lengths()
    columns = {
        "loss": each.detach(),
        "margin": loss.chosen_rewards - loss.rejected_rewards,
        "accuracy": (loss.chosen_rewards > loss.rejected_rewards).float(),
        "chosen_logps_change": pc - rc,
        "rejected_logps_change": pr - rr,
        "chosen_logps_change_per_token": (pc - rc) / chosen,
        "chosen_tokens": chosen,
        "rejected_tokens": rejected,
    }
    names, values = list(columns), torch.stack(list(columns.values())).T.tolist()
    return [dict(zip(names, row, strict=True)) for row in values]
