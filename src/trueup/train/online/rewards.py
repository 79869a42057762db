"""Scores for the policy's answers, from whatever gives them, without letting it stop the run.

A reward is somebody else's code or server: it may raise, return NaN, return too few numbers, or
never return. Each prompt's answers are scored by one call; what goes wrong there costs that
prompt, by a named reason, and only when too many go wrong does training stop.
"""

import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

from trueup.errors import ConfigError, TrainingError
from trueup.judges import Judge, resolve
from trueup.judges.audit import require
from trueup.models.stored import StoredModel, reward_folder
from trueup.records import Checkpoint, Completion, Messages
from trueup.store import Store
from trueup.train.online.config import OnlineConfig

__all__ = ["Reward", "Scored", "resolve_reward", "reward_judge"]

AT_ONCE = 8  # calls under way; a judge over the network is waiting most of the time
MOST = 1e15  # a score beyond it has a square that float32 may not hold
MOST_HANGING = 32  # calls that never returned, each a thread that is still held


class Scored(NamedTuple):
    """What the answers to one prompt are worth."""

    scores: tuple[float, ...]
    steps: list[list[tuple[int, float]]] | None = None
    """See `rollouts.Group.step_scores`."""


@runtime_checkable
class _Detachable(Protocol):
    def detach(self) -> None: ...


class Reward:
    """A judge behind a time limit and a count of what it left unscored."""

    def __init__(self, judge: Judge, config: OnlineConfig) -> None:
        self.judge, self.config, self.id = judge, config, judge.id
        self._last = ""
        self._is_local = hasattr(judge, "backbone")
        """It switches roles on the shared network, which only this thread may do."""
        self.near: Callable[[], AbstractContextManager[None]] = nullcontext
        """Brings that network to its device, where it waits elsewhere."""
        self._hanging: list[threading.Thread] = []

    def score(
        self, prompts: Sequence[Messages], drawn: Sequence[Sequence[Completion]]
    ) -> tuple[list[Scored | None], Counter[str]]:
        """As `ask`.

        Raises:
            TrainingError: more than `max_skip_rate` of the prompts, and more than one, stay without
                a score.
        """
        found, skipped = self.ask(prompts, drawn)
        self.need_few(skipped, len(prompts))
        return found, skipped

    def ask(
        self, prompts: Sequence[Messages], drawn: Sequence[Sequence[Completion]]
    ) -> tuple[list[Scored | None], Counter[str]]:
        """Score all answers; None where a prompt's could not be scored, counted by reason."""
        calls = [
            lambda prompt=prompt, answers=answers: self._ask(prompt, answers)
            for prompt, answers in zip(prompts, drawn, strict=True)
        ]
        if self._is_local:
            with self.near():
                said = [_outcome(call) for call in calls]
        else:
            said = self._all_within(calls)
        found: list[Scored | None] = []
        skipped = Counter[str]()
        for one, answers in zip(said, drawn, strict=True):
            problem = one if isinstance(one, str) else _problem(one, answers)
            if isinstance(one, str) or problem:
                skipped[f"reward: {problem.partition(':')[0]}"] += 1
                self._last = problem
                found.append(None)
            else:
                found.append(one)
        return found, skipped

    def need_few(self, skipped: Counter[str], num_prompts: int) -> None:
        """Stop where too many prompts stay without a score. A single one always may: it would stop
        a resumed run at the same place for ever.

        Raises:
            TrainingError: names the last problem.
        """
        count = sum(skipped.values())
        if count <= max(1.0, self.config.max_skip_rate * num_prompts):
            return
        raise TrainingError(
            "The reward leaves too many answers without a score",
            got=f"{count} of {num_prompts} prompts; the last: {self._last}",
            expected=f"at most a share of {self.config.max_skip_rate:g}",
            next="mend train.online.reward and run the same command again: it goes on from "
            "the step it stopped at",
        )

    def _ask(self, prompt: Messages, answers: Sequence[Completion]) -> Scored:
        scores = tuple(float(score) for score in self.judge.rank(prompt, answers).scores)
        if not self.config.step_rewards:
            return Scored(scores)
        step_scores: Callable[..., Any] = self.judge.step_scores  # type: ignore[attr-defined]
        steps = [
            [(int(place), float(score)) for place, score in of_answer]
            for of_answer in step_scores(prompt, answers)
        ]
        return Scored(scores, steps)

    def _all_within(self, calls: Sequence[Callable[[], Scored]]) -> list[Scored | str]:
        """The calls' results or problems, a few at a time, each with the same patience.

        In daemon threads: one that never returns holds up neither the run nor its end.

        Raises:
            TrainingError: too many never returned, and each holds a thread.
        """
        found, timeout_s = list[Scored | str](), self.config.reward_timeout_s
        for at in range(0, len(calls), AT_ONCE):
            self._need_threads()
            part = [_begun(call) for call in calls[at : at + AT_ONCE]]
            deadline = time.monotonic() + timeout_s
            for thread, result in part:
                try:
                    found.append(result.get(timeout=max(0.0, deadline - time.monotonic())))
                except queue.Empty:
                    self._hanging.append(thread)
                    found.append(f"no answer in time: {timeout_s:g} s")
        return found

    def _need_threads(self) -> None:
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        if len(self._hanging) >= MOST_HANGING:
            raise TrainingError(
                "The reward does not return",
                got=f"{len(self._hanging)} calls that have outlived "
                f"{self.config.reward_timeout_s:g} s and still run",
                expected="scores, or an error",
                next="mend train.online.reward or raise its reward_timeout_s, and run the same "
                "command again: it goes on from the step it stopped at",
            )

    def end(self) -> None:
        """Give back what a reward checkpoint holds on the shared network."""
        if isinstance(self.judge, _Detachable):
            self.judge.detach()


def resolve_reward(store: Store, config: OnlineConfig, champion: StoredModel) -> Reward:
    """The reward that the settings name.

    Raises:
        ConfigError: none is named, there is none of this name, it cannot score steps, or it
            failed its audit.
    """
    if not config.reward:
        raise ConfigError(
            "Online methods need a reward",
            got="train.online.reward = ''",
            expected="a judge, a reward checkpoint, package.module:function or an address",
            next="set train.online.reward, for example to 'house-style'",
        )
    judge = reward_judge(store, config, champion)
    require(store, judge, config.audit)
    if config.step_rewards and not hasattr(judge, "step_scores"):
        raise ConfigError(
            "This reward does not score steps",
            got=config.reward,
            expected="a reward checkpoint, or a judge with step_scores",
            next="set train.online.step_rewards to false",
        )
    return Reward(judge, config)


def reward_judge(store: Store, config: OnlineConfig, champion: StoredModel) -> Judge:
    """Who scores: a reward checkpoint of the store, or a judge by its name."""
    if config.reward.startswith(f"{Checkpoint.tag}_"):
        from trueup.judges.reward_model import RewardJudge

        folder = reward_folder(store, store.get(Checkpoint, config.reward))
        return RewardJudge.attach(champion.backbone, folder, how=config.reward_members)
    return resolve(config.reward, endpoint=config.endpoint, memory=store)


def _problem(said: Scored, answers: Sequence[Completion]) -> str:
    if len(said.scores) != len(answers):
        return f"wrong number of scores: {len(said.scores)} for {len(answers)} answers"
    if not all(_is_usable(score) for score in said.scores):
        return f"a score is not finite or beyond {MOST:g}: {said.scores}"
    if said.steps is None:
        return ""
    if len(said.steps) != len(answers):
        return f"wrong number of step scores: of {len(said.steps)} for {len(answers)} answers"
    for steps, answer in zip(said.steps, answers, strict=True):
        places = [place for place, _ in steps]
        if not steps or places != sorted({*places} & {*range(len(answer.token_ids or ()))}):
            return f"a step ends outside its answer: {places}"
        if not all(_is_usable(score) for _, score in steps):
            return f"a score is not finite or beyond {MOST:g}: {steps}"
    return ""


def _is_usable(score: float) -> bool:
    return math.isfinite(score) and abs(score) <= MOST


def _outcome(call: Callable[[], Scored]) -> Scored | str:
    try:
        return call()
    except BaseException as error:  # whatever a team's own code raises, sys.exit among it
        return f"it raised {type(error).__name__}: {error}"


def _begun(call: Callable[[], Scored]) -> "tuple[threading.Thread, queue.Queue[Scored | str]]":
    """A call under way, and where its result will lie."""
    result = queue.Queue[Scored | str](1)
    thread = threading.Thread(target=lambda: result.put(_outcome(call)), daemon=True)
    thread.start()
    return thread, result
