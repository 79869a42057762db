"""The cases of `online.py`: which sides are compared, and what each is asked."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from processes import Task

__all__ = [
    "BATCH",
    "CASES",
    "COEFFICIENTS",
    "FULL_SIZE",
    "LEARNING_RATES",
    "QUICK_SIZE",
    "SEED",
    "Case",
    "Comparison",
    "Run",
    "Runners",
    "Sides",
    "Size",
    "asked",
    "inputs",
]

SEED = 0
LEARNING_RATES = {"full": 1e-6, "lora": 1e-4}
COEFFICIENTS = {
    "kl_coef": 0.05,
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
}
"""Of PPO, by TRL's names and at its defaults."""
BATCH, PARTS = 8, 4

Sides = dict[str, list[Task]]
Run = Callable[[Task], Task]


class Comparison(NamedTuple):
    """One row of a table: a side and what stands beside it."""

    beside: str
    ours: str
    name: str
    speed_goal: float | None = None
    """At least so many times as fast."""
    peak_goal: float | None = None
    """At most this share of the memory."""


@dataclass(frozen=True)
class Case:
    """Sides that do the same, and which of them are compared."""

    name: str
    comparisons: tuple[Comparison, ...]

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    @property
    def shape(self) -> str:
        return self.name.partition("-")[2]

    @property
    def sides(self) -> list[str]:
        """Each once, in the order of the rows."""
        return list(dict.fromkeys(side for one in self.comparisons for side in one[:2]))


DRAWN = (
    Comparison("generate", "trueup", "generate"),
    Comparison("generate-logprobs", "trueup", "+ log-probs", speed_goal=2.5),
)
SCORED = (Comparison("transformers", "trueup", "transformers", speed_goal=3.0),)
LEARNED = Comparison("trl", "trueup", "TRL", speed_goal=1 / 0.45, peak_goal=0.25)
CASES = [
    Case("draw-even", DRAWN),
    Case("draw-ragged", DRAWN),
    Case("draw-natural", DRAWN),
    Case("score-even", SCORED),
    Case("score-ragged", SCORED),
    Case(
        "ppo-8x1",
        (
            LEARNED,
            Comparison("trl-parts", "trueup", "TRL in 4 parts"),
            Comparison("trl", "trueup-full", "TRL, ours full"),
        ),
    ),
    Case("ppo-2x4", (LEARNED,)),
    Case("memory-4x2", (Comparison("dpo", "trueup", "our DPO", peak_goal=1.4),)),
]


class Size(NamedTuple):
    """Tokens of a prompt and of an answer, prompts, and answers to each."""

    prompt: int
    num_new: int
    num_prompts: int
    num_samples: int


FULL_SIZE, QUICK_SIZE = Size(192, 64, 4, 8), Size(48, 16, 2, 4)


class Runners(NamedTuple):
    """What does a side's tasks."""

    own: Run
    """trueup and transformers."""
    dpo: Run
    """The training benchmark's sides."""
    trl: Run | None
    """None where TRL 1.12 is not to be had."""


def inputs(case: Case, prepared: Task, size: Size) -> Task:
    """What a case's sides are given: prompts, and what is drawn, scored or learned from there."""
    draw = random.Random(SEED)
    few = prepared["prompts"][: size.num_prompts]
    if case.kind == "draw":
        is_natural = case.shape == "natural"
        ends = [[draw.randint(1, size.num_new) for _ in range(size.num_samples)] for _ in few]
        for of_prompt in ends:
            of_prompt[0] = size.num_new  # somebody goes on to the end
        return {
            "prompts": few,
            "eos_ids": prepared["eos_ids"] if is_natural else [],
            "lengths": ends if case.shape == "ragged" else None,
            "num_new": size.num_new * (2 if is_natural else 1),
        }
    if case.kind == "score":
        candidates = prepared["candidates"][: size.num_prompts]
        if case.shape == "ragged":
            candidates = [
                [one[: draw.randint(size.num_new // 4, size.num_new)] for one in of_prompt]
                for of_prompt in candidates
            ]
        return {"prompts": few, "candidates": candidates}
    num_prompts, num_samples = map(int, case.shape.split("x"))
    prompts = prepared["prompts"][:num_prompts]
    pairs = [
        [prompt, *of_prompt[:2]]
        for prompt, of_prompt in zip(prompts, prepared["candidates"], strict=False)
    ]
    return {
        "prompts": prompts,
        "texts": prepared["texts"][:num_prompts],
        "num_samples": num_samples,
        "pairs": pairs,
    }


def asked(case: Case, side: str, runners: Runners) -> tuple[Run, Task]:
    """Who does a side's task, and what is particular to it."""
    if case.kind == "draw":
        name = "draw-trueup" if side == "trueup" else "draw-transformers"
        return runners.own, {"side": name, "with_logprobs": side == "generate-logprobs"}
    if case.kind == "score":
        return runners.own, {"side": f"score-{side}"}
    if side == "dpo":
        return _dpo(runners.dpo), {}
    if side.startswith("trl"):
        assert runners.trl
        own = {"side": "trl", "parts": PARTS if side == "trl-parts" else 1}
        return runners.trl, {**own, "learning_rate": LEARNING_RATES["full"]}
    adapter = "full" if side == "trueup-full" else "lora"
    return runners.own, {
        "side": "ppo-trueup",
        "adapter": adapter,
        "value": "full" if adapter == "full" else "head",
        "learning_rate": LEARNING_RATES[adapter],
    }


def _dpo(run: Run) -> Run:
    """Steps of DPO on as many tokens: each prompt with two answers."""

    def asked_of(task: Task) -> Task:
        found = run(
            {
                "side": "trueup",
                "model": task["model"],
                "pairs": task["pairs"] * (1 + task["timed"]),
                "pairs_per_step": len(task["pairs"]),
                "timed": task["timed"],
                "counted": 0,
                "adapter": "lora",
                "reference": "online",
                "beta": 0.1,
                "learning_rate": LEARNING_RATES["lora"],
                "checkpointing": False,
                "seed": SEED,
            }
        )
        lengths = [[len(answer) for pair in task["pairs"] for answer in pair[1:]]]
        return {**found, "answer_tokens": lengths * (1 + task["timed"])}

    return asked_of
