"""Reward models from pairs: an ensemble of adapters with heads on the base, none of which serves.

Every member starts from the base, not from the champion, so that what rewards the next policy is
not the last one's own taste; each has its own initial values and order of the pairs. A share of
the prompts is never trained on: it gives each member its scale and the figures on the card.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueup.models.backbone import Backbone
from trueup.models.reward import (
    RewardHead,
    RewardModel,
    Scale,
    branch_scores,
    combine,
    ensemble_weights,
)
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset, Messages, TrainingRun
from trueup.store import Store
from trueup.train import losses
from trueup.train.config import TrainConfig
from trueup.train.data import Row, held_out
from trueup.train.fit import fit
from trueup.train.gather import gather, need_rows, sides
from trueup.train.keep import keep, new_folder
from trueup.train.objectives import Figures
from trueup.train.reference import NoReference
from trueup.train.reward_metrics import evaluate
from trueup.train.step import budget
from trueup.train.watch import Watch
from trueup.train.workers import Workers

__all__ = ["RewardObjective", "TrainedRewards", "run_reward", "train_reward"]

ROLE = "reward"
SEED_STEP = 7919  # between members, so that ensembles of neighbouring seeds share none
SCORES_FILE = "held_out.json"


class RewardObjective:
    """Bradley-Terry on pairs: the chosen answer's score above the rejected one's."""

    def __init__(
        self, head: RewardHead, config: TrainConfig, *, with_margins: bool = False
    ) -> None:
        """`with_margins` asks each pair's scores to differ by more than its label's margin; only
        for labels whose margins are in nats."""
        self.head, self.config, self.with_margins = head, config, with_margins

    def total(self, picked: Sequence[Row]) -> float:
        return float(len(picked))

    def prepare(self, model: Any, picked: Sequence[Row], tokens_per_batch: int) -> None:
        pass

    def group_loss(self, model: Any, group: Sequence[Row]) -> tuple[Tensor, Figures]:
        scores_B2 = branch_scores(model, self.head, [row.branches for row in group]).view(-1, 2)
        chosen, rejected = scores_B2.unbind(1)
        margins = None
        if self.with_margins:
            margins = torch.tensor([row.margin for row in group], device=scores_B2.device)
        each = losses.bradley_terry_loss(chosen, rejected, margins, centering=self.config.centering)
        return each.sum(), _figures(each.detach(), chosen.detach(), rejected.detach())


def _figures(loss: Tensor, chosen: Tensor, rejected: Tensor) -> Figures:
    columns = {
        "loss": loss,
        "accuracy": (chosen > rejected).float(),
        "margin": chosen - rejected,
        "chosen_score": chosen,
        "rejected_score": rejected,
        "score_sum": chosen + rejected,
    }
    values = torch.stack(list(columns.values())).T.tolist()
    return [dict(zip(columns, row, strict=True)) for row in values]


class TrainedRewards(NamedTuple):
    """What training an ensemble left behind."""

    folders: list[Path]
    """One a member, as `RewardModel.attach` reads them."""
    metrics: dict[str, Any]


def train_reward(
    backbone: Backbone,
    rows: Sequence[Row],
    config: TrainConfig,
    folder: Path,
    *,
    workers: Workers | None = None,
) -> TrainedRewards:
    """Train `config.reward_models` members on pairs and measure them on held-out ones.

    A finished member is kept in `folder` and not trained again; a half-trained one goes on from
    its last saved state, to the same bytes (CPU).

    Args:
        rows: all pairs; at least a tenth of their prompts is held out, by hash.

    Raises:
        TrainingError: a loss or gradient is no longer finite.
    """
    workers = workers or Workers()
    train_rows, held_rows = sides(rows, config, max(0.1, config.eval_share))
    places = [folder / f"member-{number}" for number in range(config.reward_models)]
    for number, place in enumerate(places):
        if not place.is_dir():
            seeded = config.model_copy(update={"seed": config.seed + SEED_STEP * number})
            _train_member(backbone, train_rows, held_rows, seeded, place, workers)
    cards = [json.loads((place / "card.json").read_text()) for place in places]
    members = [
        {"weights": one["weights"], "scale": one["scale"], **one["metrics"]} for one in cards
    ]
    return TrainedRewards(
        places,
        {
            "num_pairs": len(train_rows),
            "num_held_out": len(held_rows),
            **_evaluate_together(held_rows, places, cards),
            "first": members[0]["first"],
            "last": members[0]["last"],
            "members": members,
        },
    )


def _train_member(
    backbone: Backbone,
    train_rows: Sequence[Row],
    held_rows: Sequence[Row],
    config: TrainConfig,
    place: Path,
    workers: Workers,
) -> None:
    """Train one member, measure it, and write it beside its place before it is renamed."""
    states = place.with_name(f"states-{place.name}")
    states.mkdir(parents=True, exist_ok=True)
    model = RewardModel.new(
        backbone,
        ROLE,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        targets=config.lora_targets,
        seed=config.seed,
    )
    try:
        objective = RewardObjective(model.head, config)
        watch = _watch(backbone, held_rows, objective, config)
        fitted = fit(
            model.acting,
            model.parameters(),
            train_rows,
            objective,
            config,
            states,
            watching=watch,
            workers=workers,
        )
        raw = model.scores([row.branches for row in held_rows])
        model.scale = _scale(raw or model.scores([row.branches for row in train_rows]))
        metrics = {
            "seed": config.seed,
            **_evaluate(held_rows, raw),
            "first": fitted.history[0],
            "last": fitted.history[-1],
            "history": fitted.history,
        }
        workers.alone(lambda: _write(model, place, metrics, held_rows, raw))
    finally:
        model.detach()
    workers.alone(lambda: shutil.rmtree(states, ignore_errors=True))


def _watch(
    backbone: Backbone, held_rows: Sequence[Row], objective: RewardObjective, config: TrainConfig
) -> Watch | None:
    """Held-out loss and accuracy between steps, where the settings hold out rows to look at."""
    if not config.eval_share or not held_rows:
        return None
    silent = config.model_copy(update={"eval_answers": 0})
    tokens_per_batch = budget(config, backbone.device)
    return Watch(
        backbone, held_rows, objective, NoReference(), silent, tokens_per_batch=tokens_per_batch
    )


def _write(
    model: RewardModel,
    place: Path,
    metrics: dict[str, Any],
    held_rows: Sequence[Row],
    raw: Sequence[Sequence[float]],
) -> None:
    scratch = place.with_name(f".{place.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save(scratch, card={"metrics": metrics})
    said = [[row.id, *scores] for row, scores in zip(held_rows, raw, strict=True)]
    (scratch / SCORES_FILE).write_text(json.dumps(said))
    scratch.rename(place)


# --- measuring ----------------------------------------------------------------------------------


def _scale(raw: Sequence[Sequence[float]]) -> Scale:
    """Mean and deviation over all answers; a model that says the same of all keeps its unit."""
    flat = [score for row in raw for score in row]
    return Scale(fmean(flat), pstdev(flat) or 1.0)


def _evaluate(held_rows: Sequence[Row], raw: Sequence[Sequence[float]]) -> dict[str, Any]:
    scores = [(chosen, rejected) for chosen, rejected in raw]
    lengths = [(row.lengths[0], row.lengths[1]) for row in held_rows]
    return evaluate(scores, lengths).model_dump(mode="json", exclude={"num_pairs"})


def _evaluate_together(
    held_rows: Sequence[Row], places: Sequence[Path], cards: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The members' mean, as an ensemble gives it, in nats again: times their mean deviation."""
    scales = [Scale(**card["scale"]) for card in cards]
    unit = fmean(scale.std for scale in scales)
    said = [json.loads((place / SCORES_FILE).read_text()) for place in places]
    together = []
    for rows in zip(*said, strict=True):
        each = [[s.of(raw) for raw in row[1:]] for s, row in zip(scales, rows, strict=True)]
        together.append([unit * score for score in combine(each)])
    return _evaluate(held_rows, together)


# --- the step -----------------------------------------------------------------------------------


def run_reward(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    champion: StoredModel,
    record: TrainingRun,
    *,
    is_held_out: Callable[[Messages], bool] = lambda prompt: False,
) -> Checkpoint:
    """Train a reward model, or an ensemble of them, on a data set's pairs.

    Reads:   the data set's pairs; the base's weights, not the champion's.
    Writes:  one Checkpoint: a folder with one folder a member, and a card that names them.
    Skips:   as for a policy, counted by reason in the checkpoint's metrics.
    Keeps:   accuracy with its interval, calibration and length figures on held-out pairs, for
             each member and for all together; every held-out score.
    Killed:  finished members are kept and the current one resumes from its last saved state, to
             the same bytes (CPU).
    Stops:   TrainingError on a non-finite loss or an empty data set.
    Cost:    about 3 forward passes a pair, epoch and member.
    """
    rows, told = gather(store, config, dataset, champion, is_held_out, before=record.created_at)
    need_rows(held_out(rows, max(0.1, config.eval_share))[0], config, told)
    workers = Workers()
    folder = store.folder / "runs" / record.id
    trained = train_reward(champion.backbone, rows, config, folder, workers=workers)
    metrics = {**told, **trained.metrics}
    return workers.alone(lambda: _save(store, champion.backbone, record, trained.folders, metrics))


def _save(
    store: Store,
    backbone: Backbone,
    record: TrainingRun,
    members: Sequence[Path],
    metrics: dict[str, Any],
) -> Checkpoint:
    """Copy the members: a run that is killed here still has its own."""
    scratch = new_folder(store, record)
    for place in members:
        shutil.copytree(place, scratch / place.name)
    base = backbone.base_weights
    weights = ensemble_weights(base, scratch)
    card = {
        "kind": "reward",
        "base_weights": base,
        "template": backbone.template,
        "weights": weights,
        "members": [one["weights"] for one in metrics["members"]],
        "run": record.model_dump(mode="json"),
        "metrics": metrics,
    }
    (scratch / "card.json").write_text(json.dumps(card, indent=2, sort_keys=True))
    return keep(
        store, record, weights, base, metrics, name_of=lambda at: ensemble_weights(base, at)
    )
