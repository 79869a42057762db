"""One seed's world: the taught base, who answers, who labels, and what is measured on the way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trueup.judges import Judge
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Completion, Label, Messages, PreferencePair
from trueup.rounds.answers import pairs_of, rank_answers
from trueup.rounds.config import RoundsConfig
from trueup.store import Store
from trueup.toy.labellers import GoldJudge, Labeller
from trueup.toy.language import MAX_TOKENS, Writer, prompts
from trueup.toy.measure import figures
from trueup.toy.model import toy_folder
from trueup.train.config import TrainConfig
from trueup.train.data import Row, encode
from trueup.train.objectives import Preference
from trueup.train.online.config import OnlineConfig
from trueup.train.online.rewards import Reward
from trueup.train.policy import Policy
from trueup.train.reference import FixedReference
from trueup.train.watch import Watch

__all__ = ["LOOK_AT", "NUM_PAIRS", "PAIRS_PER_STEP", "STEPS", "Eye", "World"]

Point = dict[str, float]
"""What was measured at one step."""

NUM_PAIRS, PAIRS_PER_STEP, STEPS = 1536, 64, 192
LOOK_AT = (0, 6, 12, 24, 36, 48, 96, 192)
"""Optimizer steps: dense where KL 3.5 lies."""
NUM_HELD_OUT = 1024
SHARPNESS = 1.5
LEARNING_RATE = 3e-4


class World:
    """All runs of a seed see the same base and the same labeller; each has a store of its own."""

    def __init__(self, folder: Path, models: Path, seed: int) -> None:
        """`models` is where taught bases are kept."""
        self.seed = seed
        self.store = Store(folder)
        self.backbone = Backbone.load(toy_folder(models, seed=seed), device="cpu")
        self.base = StoredModel.serving(self.store, self.backbone)
        self.labeller = Labeller(sharpness=SHARPNESS, seed=seed)

    def config(self, **settings: Any) -> TrainConfig:
        """The pilot's settings: every weight trains, at a constant rate."""
        own = {
            "beta": 0.1,
            "adapter": "full",
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "warmup": 0.0,
            "pairs_per_step": PAIRS_PER_STEP,
            "tokens_per_batch": 8192,
            "save_every_steps": 0,
            "eval_answers": 0,
            "seed": self.seed,
        }
        return TrainConfig.model_validate(own | settings)

    def prompts(self, n: int, *, part: int = 0, held_out: bool = False) -> list[Messages]:
        """Prompts of this seed; another `part` is another draw."""
        return prompts(n, 1000 * part + self.seed, held_out=held_out)

    # --- pairs --------------------------------------------------------------------------------

    def own_pairs(
        self,
        asked: list[Messages],
        *,
        model: StoredModel | None = None,
        judge: Judge | None = None,
        num_samples: int = 2,
    ) -> list[PreferencePair]:
        """The model's own answers, by default the base's, best against worst as a judge has it, by
        default the labeller."""
        config = self._rounds(num_samples)
        labels = rank_answers(
            self.store, config, model or self.base, self.reward(judge or self.labeller), asked
        )
        return self.pairs_of(labels.labels)

    def written_pairs(self, asked: list[Messages], writer: Writer) -> list[PreferencePair]:
        """Two answers of somebody else to every prompt."""
        import random

        rng, labels = random.Random(self.seed), []
        for prompt in asked:
            said = tuple(Completion(text=writer(prompt, rng)) for _ in range(2))
            labels.append(
                Label(
                    prompt=prompt,
                    candidates=said,
                    scores=self.labeller.rank(prompt, said).scores,
                    annotator=self.labeller.id,
                    annotator_kind=self.labeller.kind,
                )
            )
        self.store.add_all(labels)
        return self.pairs_of(labels)

    def reward(self, judge: Judge) -> Reward:
        return Reward(judge, OnlineConfig(max_tokens=MAX_TOKENS))

    def rows(self, pairs: Sequence[PreferencePair]) -> list[Row]:
        rows, _ = encode(self.backbone, pairs, max_tokens=512)
        return rows

    def reference(self, rows: Sequence[Row] = ()) -> FixedReference:
        """The base, with the log-probs of these rows at hand."""
        found = FixedReference(self.base.acting, self.base.weights, tokens_per_batch=8192)
        found.prepare(rows)
        return found

    def _rounds(self, num_samples: int) -> RoundsConfig:
        return RoundsConfig(num_samples=num_samples, max_tokens=MAX_TOKENS, seed=self.seed)

    def pairs_of(self, labels: Sequence[Label]) -> list[PreferencePair]:
        pairs, _ = pairs_of(labels, self._rounds(2), min_margin=0.0)
        self.store.add_all(pairs)
        return pairs


class Eye(NamedTuple):
    """Looks at a policy from outside: the truth on held-out prompts, and on held-out pairs of the
    base's own answers what a team could see."""

    world: World
    labelled: Watch
    """On pairs as the labeller has them: some 17 % are the wrong way round, so that nobody can
    agree with more than 0.83 of them."""
    true: Watch
    """On the same answers as they truly compare."""

    @classmethod
    def of(cls, world: World) -> "Eye":
        asked = world.prompts(NUM_HELD_OUT, part=9, held_out=True)
        config = world.config()
        watches = []
        for judge in (world.labeller, GoldJudge()):
            rows = world.rows(world.own_pairs(asked, judge=judge))
            reference = world.reference(rows)
            objective = Preference(config, reference)
            budget = config.tokens_per_batch or 0
            watches.append(
                Watch(world.backbone, rows, objective, reference, config, tokens_per_batch=budget)
            )
        return cls(world, *watches)

    def look(self, policy: Policy | StoredModel, step: int) -> Point:
        """Measure the policy as it is now."""
        backbone, role = policy.backbone, policy.role
        found = figures(backbone, role, base=self.world.backbone, num_prompts=256, num_samples=4)
        with policy.acting() as model:
            labelled, true = self.labelled.measure(model), self.true.measure(model)
        return {
            "step": step,
            "gold": found.gold.mean,
            "gold_error": found.gold.error,
            "kl": found.kl.mean,
            "length": found.length.mean,
            "entropy": found.entropy.mean,
            "unique": found.unique,
            "copy": found.copy.mean,
            "agrees": labelled["held_out_accuracy"],
            "right": true["held_out_accuracy"],
            "held_out_chosen_change": labelled["held_out_chosen_logps_change"],
        }
