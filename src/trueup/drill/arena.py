"""Where a drill takes place: a project with a scratch store, real stages and real gates.

Nothing in it knows that it is a drill. It has settings, held-out prompts, a gold set and a store;
traffic comes in, the loop turns, and what is planted is planted in the records that a team's own
faults would be in: labels, data sets, the judge's verdicts.
"""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from trueup import loop, pair, train
from trueup.loop import Turn
from trueup.models.stored import StoredModel
from trueup.project import Project
from trueup.records import Checkpoint, Completion, Flag, Interaction, Label, Messages, Sampling
from trueup.rounds.answers import prompts_of
from trueup.toy.language import MAX_TOKENS, copy_prompts, gold, prompts
from trueup.toy.measure import Estimate, figures
from trueup.toy.model import toy_folder

__all__ = ["Answer", "Arena", "OwnArena", "ToyArena", "Truth"]

NUM_BASES = 8
"""Taught toy models that the seeds share; everything else of a seed is its own."""

NUM_TRAFFIC, NUM_HELD_OUT, NUM_GOLD, NUM_COPIES = 256, 128, 120, 128

NUM_TAUGHT = 96
"""Prompts that a team's model is taught on: enough for a fault, in minutes."""

PLANTER = "code:drill/1"
"""Who signs planted labels."""

SETTINGS = """\
[model]
base = {base}
device = "cpu"
num_threads = 1

[embedder]
name = "lexical"

[label]
judge = {judge}
max_tokens = {max_tokens}

[train]
min_new_pairs = 64
adapter = "full"
learning_rate = 3e-4
schedule = "constant"
warmup = 0.0
epochs = 6
pairs_per_step = 64
save_every_steps = 0
eval_answers = 0
seed = {seed}

[guard]
max_tokens = {max_tokens}

[evaluate]
max_tokens = {max_tokens}

[ab]
scorer = "toy-gold"
"""

Answer = tuple[Messages, str]
"""A prompt and what a candidate is taught to say to it."""


class Truth(NamedTuple):
    """What no deployment can know: how much better a candidate is than the champion, on prompts
    that no gate sees."""

    gold: float
    gold_low: float
    """Lower end of the 95 % interval of its gain."""
    copy: float
    """Gain of the second skill, a share of prompts."""


class Arena:
    """A project in which candidates can be planted."""

    def __init__(self, project: Project, seed: int) -> None:
        self.project, self.seed = project, seed

    def asked(self, part: int) -> list[Messages]:
        """Prompts that no gate asks; another part is another draw."""
        raise NotImplementedError

    def right_answers(self) -> list[Answer]:
        """What every planted candidate also learns, so that it does not forget by the way."""
        return []

    def best(self, prompt: Messages, texts: Sequence[str]) -> str:
        """The best of these answers, where anybody knows; else the first."""
        return texts[0]

    def truth(self, turn: Turn) -> Truth | None:
        """What a turn's candidate is worth beside the champion it was held against; None where
        nobody can know."""
        return None

    def taught(self, answers: Iterable[Answer], *, epochs: int) -> Turn:
        """A candidate that learned these answers by heart, put to the gates."""
        store, champion = self.project.store, self.project.champion()
        labels = [
            Label(
                prompt=prompt,
                candidates=(Completion(text=text, finish_reason="stop"),),
                scores=(1.0,),
                annotator=PLANTER,
                annotator_kind="code",
            )
            for prompt, text in answers
        ]
        store.add_all(labels)
        dataset = pair.freeze(store, [], labels=labels, source="drill")
        config = self.project.config.train.model_copy(update={"method": "sft", "epochs": epochs})
        checkpoint = train.run(store, config, dataset, champion)
        return loop.gated(self.project, checkpoint)

    def says(
        self, asked: Sequence[Messages], *, temperature: float = 1.0, num_samples: int = 1
    ) -> list[list[str]]:
        """What the champion answers."""
        sampling = self.sampling(0).model_copy(update={"temperature": temperature})
        said = self.project.champion().complete(asked, sampling, num_samples=num_samples)
        return [[one.text for one in group] for group in said]

    def sampling(self, part: int) -> Sampling:
        """As the guard draws; another part is another draw."""
        most = self.project.config.guard.max_tokens
        return Sampling(temperature=1.0, max_tokens=most, seed=1000 * self.seed + part)

    def random(self) -> random.Random:
        return random.Random(self.seed)

    def close(self) -> None:
        self.project.store.close()


class OwnArena(Arena):
    """A team's base model, prompts, gold set and settings, with a store that is not theirs."""

    def __init__(self, project: Project, scratch: Path, seed: int) -> None:
        """
        Args:
            project: the team's, which is only read.
            scratch: where the drill's store is made.

        Raises:
            DataError: it has no prompts to teach on.
        """
        super().__init__(project.with_store(scratch), seed)
        config, held_out = project.config.rounds, loop.held_out(project)
        self._prompts, _ = prompts_of(project, config, held_out, self.project.champion())

    def asked(self, part: int) -> list[Messages]:
        """Of the project's traffic, or of the file that `rounds.prompts` names."""
        some = random.Random(1000 * self.seed + part)
        return some.sample(self._prompts, min(NUM_TAUGHT, len(self._prompts)))


class ToyArena(Arena):
    """A project of the toy language."""

    def __init__(self, folder: Path, models: Path, seed: int, *, judge: str = "") -> None:
        """Write the project's files.

        Args:
            models: where taught toy models are kept.
            judge: who labels, by its name in the settings; by default a toy labeller that errs as
                people do and favours nothing.
        """
        base = toy_folder(models, seed=seed % NUM_BASES)
        folder.mkdir(parents=True, exist_ok=True)
        text = SETTINGS.format(
            base=json.dumps(str(base)),
            judge=json.dumps(judge or f"toy-labeller(seed={seed})"),
            max_tokens=MAX_TOKENS,
            seed=seed,
        )
        (folder / "trueup.toml").write_text(text)
        suite = prompts(NUM_HELD_OUT, seed, held_out=True)
        _write(folder / "heldout.jsonl", ({"messages": _plain(one)} for one in suite))
        _write(folder / "gold.jsonl", map(_gold_item, copy_prompts(NUM_GOLD, seed, held_out=True)))
        super().__init__(Project(folder), seed)

    def week(self, number: int) -> Turn:
        """New traffic, answered by today's champion and flagged; one turn of the loop."""
        store, champion = self.project.store, self.project.champion()
        asked = self.asked(number)
        said = champion.complete(asked, self.sampling(number), name="traffic")
        traffic = [
            Interaction(prompt=prompt, completion=answers[0], source="gateway", model="toy")
            for prompt, answers in zip(asked, said, strict=True)
        ]
        store.add_all(traffic)
        store.add_all(
            Flag(interaction_id=one.id, flagger="drill/1", score=1.0, raised=True)
            for one in traffic
        )
        return loop.turn(self.project)

    def asked(self, part: int) -> list[Messages]:
        """Prompts about topics."""
        return prompts(NUM_TRAFFIC, 1000 * self.seed + part)

    def right_answers(self) -> list[Answer]:
        """Copies."""
        asked = copy_prompts(NUM_COPIES, self.seed)
        return [(p, p[-1].content.removeprefix("copy ")) for p in asked]

    def best(self, prompt: Messages, texts: Sequence[str]) -> str:
        """By the formula."""
        return max(texts, key=lambda text: gold(prompt, text))

    def truth(self, turn: Turn) -> Truth | None:
        """By the formula, on fresh answers to other held-out prompts."""
        if turn.checkpoint is None:
            return None
        ours = self._figures(self.project.candidate(turn.checkpoint))
        theirs = self._figures(self._earlier(turn.champion))
        gold = _less(ours.gold, theirs.gold)
        return Truth(gold.mean, gold.mean - 1.96 * gold.error, ours.copy.mean - theirs.copy.mean)

    def _earlier(self, weights: str) -> StoredModel:
        known = self.project.store.last(Checkpoint, weights=weights)
        return self.project.released(known.id if known else None)

    def _figures(self, model: StoredModel):
        return figures(model.backbone, model.role, num_prompts=256)


def _less(a: Estimate, b: Estimate) -> Estimate:
    """The difference, as if the two were independent; answered by the same prompts they are not,
    and the interval is the wider for it."""
    return Estimate(a.mean - b.mean, (a.error**2 + b.error**2) ** 0.5)


def _plain(prompt: Messages) -> list[dict[str, str]]:
    return [one.model_dump() for one in prompt]


def _gold_item(prompt: Messages) -> dict[str, object]:
    asked = prompt[-1].content
    return {
        "id": asked.replace(" ", "-"),
        "slice": "copy",
        "prompt": asked,
        "checker": {"type": "exact", "answers": [asked.removeprefix("copy ")]},
    }


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
