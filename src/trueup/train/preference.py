"""The preference training loop: reads top to bottom, one paragraph an idea."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trueup.errors import TrainingError
from trueup.models.backbone import Backbone
from trueup.models.logprobs import completion_logprobs
from trueup.progress import task
from trueup.train.config import DPOConfig
from trueup.train.data import TokenPair, order, split
from trueup.train.losses import dpo_loss
from trueup.train.state import load_state, save_state

__all__ = ["train_preferences"]


def train_preferences(
    backbone: Backbone,
    role: str,
    rows: Sequence[TokenPair],
    refs: dict[str, Tensor],
    config: DPOConfig,
    folder: Path,
) -> list[dict[str, float]]:
    """Train a role's adapter on pairs, in place; returns the metrics of every optimizer step.

    Bitwise the same whether or not it was stopped and resumed in between (CPU).

    Args:
        refs: reference log-probs by pair id, each of shape (2,): chosen, rejected.
        folder: where states to resume from are kept.

    Raises:
        TrainingError: the loss or the gradient is no longer finite; the last saved state stays.
    """
    parameters = {n: p for n, p in backbone.model.named_parameters() if f".{role}." in n}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0)
    steps_per_epoch = math.ceil(len(rows) / config.pairs_per_step)
    total = steps_per_epoch * config.epochs
    done, history = load_state(folder, parameters, optimizer)

    with backbone.acting_as(role) as model, task("train", total) as advance:
        advance(done)
        for step in range(done, total):
            started = time.perf_counter()
            epoch, place = divmod(step, steps_per_epoch)
            shuffled = order(len(rows), epoch=epoch, seed=config.seed)
            picked = [
                rows[i] for i in shuffled[place * config.pairs_per_step :][: config.pairs_per_step]
            ]

            # peft freezes adapters when roles change; the policy's must learn
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            optimizer.zero_grad(set_to_none=True)
            seen = []
            for group in split(picked, tokens_per_batch=config.tokens_per_batch):
                loss, figures = _group_loss(model, group, refs, config)
                # divided by the pairs of the step, not of the group: splitting changes nothing
                (loss / len(picked)).backward()
                seen += figures

            norm = float(
                torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.max_grad_norm)
            )
            metrics = _mean(seen) | {
                "step": step + 1,
                "grad_norm": norm,
                "seconds": time.perf_counter() - started,
            }
            if not math.isfinite(metrics["loss"]) or not math.isfinite(norm):
                raise TrainingError(
                    f"Training broke at step {step + 1}: loss or gradient is not finite",
                    got={"loss": metrics["loss"], "grad_norm": norm},
                    expected="finite numbers",
                    next="lower train.learning_rate; the state of the last save is kept",
                )
            for group_settings in optimizer.param_groups:
                group_settings["lr"] = _learning_rate(step, total, config)
            optimizer.step()

            history.append(metrics)
            advance(1)
            if (
                config.save_every_steps
                and (step + 1) % config.save_every_steps == 0
                and step + 1 < total
            ):
                save_state(folder, step + 1, parameters, optimizer, history)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return history


def _group_loss(
    model: torch.nn.Module, group: Sequence[TokenPair], refs: dict[str, Tensor], config: DPOConfig
) -> tuple[Tensor, list[dict[str, float]]]:
    """Summed loss of a few pairs run together, and each pair's figures."""
    logprobs = completion_logprobs(model, [row.branches for row in group])  # type: ignore[arg-type]
    chosen, rejected = (torch.stack([row[side].sum() for row in logprobs]) for side in (0, 1))
    ref = torch.stack([refs[row.pair_id] for row in group]).to(chosen)
    loss = dpo_loss(chosen, rejected, ref[:, 0], ref[:, 1], beta=config.beta)
    figures = [
        {
            "loss": float(loss.losses[i].detach()),
            "margin": float(loss.chosen_rewards[i] - loss.rejected_rewards[i]),
            "accuracy": float(loss.chosen_rewards[i] > loss.rejected_rewards[i]),
            "chosen_logps_change": float(loss.chosen_rewards[i]) / config.beta,
            "rejected_logps_change": float(loss.rejected_rewards[i]) / config.beta,
        }
        for i in range(len(group))
    ]
    return loss.losses.sum(), figures


def _mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: sum(f[key] for f in figures) / len(figures) for key in figures[0]}


def _learning_rate(step: int, total: int, config: DPOConfig) -> float:
    """Linear warm-up over a tenth of the steps, then linear decay to zero after the last."""
    warmup = max(1, round(0.1 * total))
    return config.learning_rate * min(
        (step + 1) / warmup, (total - step) / max(1, total - warmup + 1), 1.0
    )
