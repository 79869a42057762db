"""The online training loop: draw, score, learn, again; one paragraph an idea."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from trueup.errors import TrainingError, UpstreamError
from trueup.progress import task
from trueup.train.config import TrainConfig
from trueup.train.data import Row, order
from trueup.train.objectives import Objective, Preference
from trueup.train.online.critic import Critic
from trueup.train.online.engine import Engine
from trueup.train.online.objectives import PolicyObjective, ValueObjective
from trueup.train.online.pairs import OwnPairs
from trueup.train.online.rollouts import Group, Prompt, Rollouts
from trueup.train.online.shaping import Shaping
from trueup.train.policy import Policy
from trueup.train.reference import NoReference, Reference
from trueup.train.schedule import learning_rate
from trueup.train.state import load_state, save_state
from trueup.train.step import Metrics, Stepper, mean_figures
from trueup.train.workers import Workers

__all__ = ["OnlineRun", "fit_online"]

ENOUGH = 8  # prompts after which the share that was skipped says something
SKIPPED, MEASURED = "skipped: ", "answer_tokens"  # names in the history
HELD_OUT_SEED = 999_983  # answers to held-out prompts: the same randomness at every measurement


class OnlineRun(NamedTuple):
    """What a run works with."""

    policy: Policy
    engine: Engine
    rollouts: Rollouts
    reference: Reference
    critic: Critic | None
    config: TrainConfig
    folder: Path
    """Where states to resume from are kept."""


class Fitted(NamedTuple):
    """What a run gave: metrics of every batch, why it ended early if it did, and the prompts left
    out, counted by reason."""

    history: list[Metrics]
    stopped: str | None
    skipped: Counter[str]


def fit_online(
    run: OnlineRun,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    *,
    after_batch: Callable[[int], None] = lambda _: None,
) -> Fitted:
    """Let the policy learn from its own answers to these prompts, in place.

    Bitwise the same whether or not it was stopped and resumed in between (CPU).

    Args:
        after_batch: called after every batch with the number of batches done.

    Raises:
        TrainingError: loss or gradient is not finite, or the reward leaves too many answers
            unscored; then all that was done before it asked is saved first.
    """
    config, online = run.config, run.config.online
    parameters = run.policy.parameters | (run.critic.parameters if run.critic else {})
    stepper = Stepper(parameters, config, Workers())
    shaping = Shaping(config.method, online)
    kept = shaping.kept | run.policy.average | (run.critic.kept if run.critic else {})
    total = num_steps(len(prompts), config)
    done, history = load_state(run.folder, parameters, stepper.optimizer, kept)
    stopped = None

    def save(step: int) -> None:
        save_state(run.folder, step, parameters, stepper.optimizer, history, kept)

    with run.policy.acting(), task("train", total) as advance:
        advance(done)
        for step in range(done, total + 1):
            run.engine.weights = f"{run.folder.name}@{step}"
            try:
                if held_out and _is_due(step, total, config):
                    stopped = _look(run, held_out, history, is_last=step == total)
                if stopped or step == total:
                    break
                started = time.perf_counter()
                picked = _pick(prompts, step, config)
                seed = config.seed * 1_000_003 + step
                groups, left_out = run.rollouts.groups(picked, seed=seed, name=f"step-{step}")
                asked = _num_asked(len(prompts), step + 1, config)
                if left_out and asked >= ENOUGH:
                    # batches of one prompt are too small to tell that a reward is broken
                    run.rollouts.reward.need_few(_all_skipped(history) + left_out, asked)
            except (TrainingError, UpstreamError):
                if step:
                    save(step)
                raise
            drawn_s = time.perf_counter() - started

            # what the answers are worth, as those who drew them saw it
            shaping.heed(groups)
            if run.critic:
                run.critic.heed([one for group in groups for one in shaping.rewards(group)])
                run.critic.fill(groups, stepper.tokens_per_batch)
            shaping.fill(groups)
            coef = shaping.price.coef
            shaping.price.heed(_mean([kl for g in groups for kl in g.kl()]), _answers(groups))

            rate = learning_rate(
                step,
                total,
                peak=config.learning_rate,
                warmup=config.warmup,
                schedule=config.schedule,
            )
            taken = _learn(run, stepper, shaping, groups, coef, rate, step + 1)

            history.append(
                {"step": step + 1, "learning_rate": rate, "kl_coef": coef}
                | _told(groups, shaping, run)
                | taken
                | {
                    "prompts_skipped": float(sum(left_out.values())),
                    **{f"{SKIPPED}{reason}": float(count) for reason, count in left_out.items()},
                    "seconds": time.perf_counter() - started,
                    "rollout_seconds": drawn_s,
                }
            )
            after_batch(step + 1)
            advance(1)
            is_last = step + 1 == total
            every = config.save_every_steps
            if every and (step + 1) % every == 0 and not is_last:
                save(step + 1)
    stepper.end()
    return Fitted(history, stopped, _all_skipped(history))


def num_steps(num_prompts: int, config: TrainConfig) -> int:
    """Batches of the run: what the settings say, or as many as its passes over the prompts take."""
    size = config.online.prompts_per_step
    return config.online.steps or math.ceil(num_prompts / size) * config.epochs


def _pick(prompts: Sequence[Prompt], step: int, config: TrainConfig) -> list[Prompt]:
    """The prompts of a batch: each pass over them in another order, none left out."""
    size = min(config.online.prompts_per_step, len(prompts))
    steps_per_epoch = math.ceil(len(prompts) / size)
    epoch, place = divmod(step, steps_per_epoch)
    shuffled = order(len(prompts), epoch=epoch, seed=config.seed)
    return [prompts[i] for i in shuffled[place * size :][:size]]


def _num_asked(num_prompts: int, steps: int, config: TrainConfig) -> int:
    """Prompts that so many batches ask; the last of a pass may be a short one."""
    size = min(config.online.prompts_per_step, num_prompts)
    passes, rest = divmod(steps, math.ceil(num_prompts / size))
    return passes * num_prompts + min(rest * size, num_prompts)


def _learn(
    run: OnlineRun,
    stepper: Stepper,
    shaping: Shaping,
    groups: Sequence[Group],
    kl_coef: float,
    rate: float,
    number: int,
) -> Metrics:
    """Every update of one batch; metrics are means over them, of the first under `first_…`."""
    online = run.config.online
    rows, parts = _objectives(run, shaping, groups, kl_coef)
    taken: list[Metrics] = []
    if not rows:
        return _over(taken)
    for epoch in range(online.updates_per_batch):
        shuffled = order(len(rows), epoch=epoch, seed=run.config.seed * 31 + number)
        for minibatch in _cut(shuffled, online.minibatches):
            acting = [(_acting(run, objective), objective) for objective in parts]
            metrics = stepper.gradients(acting, [rows[i] for i in minibatch], rate, number)
            if online.target_kl is not None and metrics["moved_kl"] > online.target_kl:
                return _over(taken) | {"left_early": 1.0}
            stepper.take()
            run.reference.moved()
            taken.append(metrics)
    return _over(taken)


def _objectives(
    run: OnlineRun, shaping: Shaping, groups: Sequence[Group], kl_coef: float
) -> tuple[list[Row], list[Objective]]:
    """The rows to learn on, and what is minimised on them."""
    config, by_row = run.config, {group.row.id: group for group in groups}
    if config.method == "online_dpo":
        pairs = OwnPairs(groups, [shaping.rewards(group) for group in groups])
        loss = config.model_copy(update={"method": config.online.loss})
        return pairs.rows, [Preference(loss, pairs)]
    shared = run.critic if run.critic and run.critic.shares_states else None
    policy = PolicyObjective(
        config.method,
        config.online,
        by_row,
        kl_coef=kl_coef,
        value_head=shared.head if shared else None,
    )
    parts: list[Objective] = [policy]
    if run.critic and not shared:
        parts.append(ValueObjective(config.online, by_row, run.critic.head))
    return [group.row for group in groups], parts


def _acting(run: OnlineRun, objective: Objective) -> AbstractContextManager[Any]:
    if isinstance(objective, ValueObjective):
        assert run.critic is not None
        return run.critic.acting()
    return run.policy.acting()


def _cut(places: Sequence[int], parts: int) -> list[list[int]]:
    """In `parts` minibatches of nearly the same size, none empty."""
    parts = min(parts, len(places))
    return [list(places[at::parts]) for at in range(parts)]


def _over(taken: Sequence[Metrics]) -> Metrics:
    if not taken:
        return {"updates": 0.0}
    names = ("ratio", "clip_rate", "moved_kl")
    first = {f"first_{name}": taken[0][name] for name in names if name in taken[0]}
    means = mean_figures([dict(one) for one in taken])
    return (
        {k: v for k, v in means.items() if k not in ("step", "learning_rate")}
        | first
        | {"updates": float(len(taken))}
    )


# --- what to log --------------------------------------------------------------------------------


def _told(groups: Sequence[Group], shaping: Shaping, run: OnlineRun) -> Metrics:
    if not groups:
        return {"answers": 0.0}
    tokens = [len(old) for group in groups for old in group.old_logprobs]
    scores = [score for group in groups for score in group.scores]
    flat = [max(g.scores) == min(g.scores) for g in groups]
    ended = [c.finish_reason == "stop" for group in groups for c in group.completions]
    empty = [not c.text.strip() for group in groups for c in group.completions]
    told = {
        "answers": float(len(scores)),
        "score": fmean(scores),
        "reward": fmean(one for group in groups for one in shaping.rewards(group)),
        # the mean surprise of one's own samples estimates the entropy without bias
        "entropy": -sum(float(old.sum()) for g in groups for old in g.old_logprobs) / sum(tokens),
        "tokens": fmean(tokens),
        "ended_rate": fmean(ended),
        "empty_rate": fmean(empty),
        "equal_scores_rate": fmean(flat),
    }
    # what nobody measured is left out, not 0
    if not isinstance(run.reference, NoReference):
        told["kl"] = fmean(kl for group in groups for kl in group.kl())
    if run.config.online.importance not in (None, "none"):
        told["weight"] = fmean(float(one.mean()) for group in groups for one in group.weights)
        told["engine_kl"] = fmean(kl for group in groups for kl in group.engine_kl())
    return told


def _all_skipped(history: Sequence[Metrics]) -> Counter[str]:
    """The prompts that batches left out, of a resumed run from the beginning."""
    found = Counter[str]()
    for batch in history:
        for name, count in batch.items():
            if name.startswith(SKIPPED):
                found[name.removeprefix(SKIPPED)] += int(count)
    return found


def _is_due(step: int, total: int, config: TrainConfig) -> bool:
    return step > 0 and (step == total or step % config.eval_every_steps == 0)


def _look(
    run: OnlineRun, held_out: Sequence[Prompt], history: list[Metrics], *, is_last: bool
) -> str | None:
    """Measure the policy as it is, unless that was done before the run was stopped; says why the
    training should end here, if it should."""
    if MEASURED not in history[-1]:
        history[-1] |= _measure(run, held_out)
    return None if is_last else _stop(run.config, history[-1])


def _measure(run: OnlineRun, held_out: Sequence[Prompt]) -> Metrics:
    """Answers to held-out prompts, scored by the same reward: under `held_out_…`."""
    asked = list(held_out)[: run.config.eval_answers]
    if not asked:
        return {}
    groups, _ = run.rollouts.groups(asked, seed=HELD_OUT_SEED, name="held-out")
    if not groups:
        return {}
    measured = {
        "held_out_score": fmean(score for group in groups for score in group.scores),
        MEASURED: fmean(len(old) for group in groups for old in group.old_logprobs),
    }
    if not isinstance(run.reference, NoReference):
        measured["answer_kl"] = fmean(kl for group in groups for kl in group.kl())
    return measured


def _stop(config: TrainConfig, measured: Metrics) -> str | None:
    kl = measured.get("answer_kl", 0.0)
    if config.max_kl is not None and kl > config.max_kl:
        return (
            f"the policy's answers are {kl:.1f} nats from the reference, "
            f"over train.max_kl = {config.max_kl:g}"
        )
    return None


def _answers(groups: Sequence[Group]) -> int:
    return sum(len(group.scores) for group in groups)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
