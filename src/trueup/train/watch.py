"""What training looks at between steps: held-out pairs, and what the policy now says itself.

Pair accuracy goes on rising long after a policy has begun to fall apart, so it is shown and never
stops anything. What can stop a run is the chosen answers' own log-prob, and the distance of the
policy's answers from the reference.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from trueup.errors import TrainingError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import completion_logprobs
from trueup.models.sampler import Drawn, SampleRequest, sample
from trueup.models.shared_prompt import Branches
from trueup.records import Completion, Sampling
from trueup.train.config import TrainConfig
from trueup.train.data import Row, split
from trueup.train.objectives import Objective
from trueup.train.reference import NoReference, Reference

__all__ = ["Watch"]

CHANGE = "held_out_chosen_logps_change_per_token"
MAX_ANSWER = 128  # tokens; enough to see length, entropy and drift move


class Watch:
    """Measures on held-out rows; the same rows and the same randomness every time."""

    def __init__(
        self,
        backbone: Backbone,
        rows: Sequence[Row],
        objective: Objective,
        reference: Reference,
        config: TrainConfig,
        *,
        tokens_per_batch: int,
        start: Reference | None = None,
    ) -> None:
        """`start` is the model the run began with, by default the reference; with a loss that has
        no reference, or one that moves, only it can tell what was lost since."""
        self.rows, self.objective, self.reference = list(rows), objective, reference
        self.start = start or reference
        self.config, self.tokens_per_batch = config, tokens_per_batch
        self._eos_ids = chat.eos_ids(backbone.tokenizer)
        asked = {row.prompt_hash: row for row in self.rows}.values()
        room = backbone.context - MAX_ANSWER
        fitting = [row for row in asked if len(row.branches.prompt_ids) <= room]
        self._asked = fitting[: config.eval_answers]
        self._need_lines()

    def _need_lines(self) -> None:
        """A line that nothing is measured against would never be crossed."""
        blind = {
            "max_kl": (not self._asked, f"of at most {MAX_ANSWER} tokens below the context"),
            "max_chosen_drop": (
                not any(any(row.desirable) for row in self.rows),
                "with a desirable answer",
            ),
        }
        for name, (is_blind, wanted) in blind.items():
            if is_blind and getattr(self.config, name) is not None:
                raise TrainingError(
                    f"No held-out prompt can tell when train.{name} is crossed",
                    got=f"{len(self.rows)} held-out records",
                    expected=f"one {wanted}",
                    next=f"raise train.eval_share, or unset train.{name}",
                )

    def measure(self, model: Any) -> dict[str, float]:
        """Held-out loss and log-probs under `held_out_…`, the chosen answers' change a token since
        the start among them, and figures of fresh answers under `answer_…`: mean tokens, nats of
        entropy estimate a token, and nats of KL to the reference (or the start) an answer."""
        return {**self._on_pairs(model), **self._on_answers(model)}

    def stop(self, measured: dict[str, float]) -> str | None:
        """The line that was crossed, or None."""
        drop = -measured.get(CHANGE, 0.0)
        kl = measured.get("answer_kl", 0.0)
        if self.config.max_chosen_drop is not None and drop > self.config.max_chosen_drop:
            return (
                f"held-out chosen answers lost {drop:.3f} nats a token, "
                f"over train.max_chosen_drop = {self.config.max_chosen_drop:g}"
            )
        if self.config.max_kl is not None and kl > self.config.max_kl:
            return (
                f"the policy's answers are {kl:.1f} nats from the reference, "
                f"over train.max_kl = {self.config.max_kl:g}"
            )
        return None

    @torch.no_grad()
    def _on_pairs(self, model: Any) -> dict[str, float]:
        if not self.rows:
            return {}
        self.objective.prepare(model, self.rows, self.tokens_per_batch)
        figures = [
            one
            for group in split(self.rows, tokens_per_batch=self.tokens_per_batch)
            for one in self.objective.group_loss(model, group)[1]
        ]
        names = dict.fromkeys(name for one in figures for name in one)
        measured = {
            f"held_out_{name}": fmean(one[name] for one in figures if name in one) for name in names
        }
        is_told = self.start is self.reference and CHANGE in measured
        if not is_told and not isinstance(self.start, NoReference):
            measured[CHANGE] = self._change(model)
        return measured

    def _change(self, model: Any) -> float:
        """Nats a token that chosen answers have gained since the start, on average."""
        changes = []
        for group in split(self.rows, tokens_per_batch=self.tokens_per_batch):
            found = completion_logprobs(model, [row.branches for row in group])
            for row, ours in zip(group, found, strict=True):
                pieces = zip(ours, self.start.of(row), row.desirable, strict=True)
                changes += [float((a.cpu() - b).mean()) for a, b, good in pieces if good]
        return fmean(changes) if changes else 0.0

    def _on_answers(self, model: Any) -> dict[str, float]:
        if not self._asked:
            return {}
        sampling = Sampling(max_tokens=MAX_ANSWER, seed=self.config.seed)
        requests = [SampleRequest(row.branches.prompt_ids, sampling) for row in self._asked]
        drawn = [one[0] for one in sample(model, requests, eos_ids=self._eos_ids)]
        measured = {
            "answer_tokens": fmean(len(one.token_ids) for one in drawn),
            # the mean surprise of one's own samples estimates the entropy without bias
            "answer_entropy": -sum(sum(one.logprobs) for one in drawn)
            / sum(len(one.token_ids) for one in drawn),
        }
        held_to = self.start if isinstance(self.reference, NoReference) else self.reference
        if not isinstance(held_to, NoReference):
            measured["answer_kl"] = fmean(self._kl(drawn, held_to))
        return measured

    def _kl(self, drawn: Sequence[Drawn], held_to: Reference) -> list[float]:
        """k3 of each answer, summed over its tokens: r - 1 - log r with r = ref / policy; never
        negative, unbiased on the policy's own samples."""
        rows = [
            row._replace(
                branches=Branches(row.branches.prompt_ids, [one.token_ids]),
                completions=(Completion(text="", token_ids=tuple(one.token_ids)),),
                desirable=(True,),
            )
            for row, one in zip(self._asked, drawn, strict=True)
        ]
        refs = held_to.compute(rows)
        estimates = []
        for row, one in zip(rows, drawn, strict=True):
            log_r = refs[row.id][0] - torch.tensor(one.logprobs)
            estimates.append(float((log_r.exp() - 1 - log_r).sum()))
        return estimates
