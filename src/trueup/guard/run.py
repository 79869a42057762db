"""The first gate: has the candidate hacked, collapsed or run away?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from trueup.guard.alarms import Alarm, verdict
from trueup.guard.answers import Answers, Both, entropy, firsts, length
from trueup.guard.config import GuardConfig
from trueup.guard.refusals import RefusalPrompt
from trueup.judges import Judge, signature
from trueup.models.embedder import Embedder
from trueup.models.stored import StoredModel
from trueup.records import (
    Checkpoint,
    Dataset,
    GuardReport,
    Messages,
    PreferencePair,
    Sampling,
    TrainingRun,
    content_hash,
)
from trueup.store import Store
from trueup.suite import SuitePrompt

__all__ = ["Beside", "run", "settings"]

T = TypeVar("T")


@dataclass(frozen=True)
class Beside:
    """What the guard looks at beside the held-out prompts. What is not given is not asked, and the
    report says so; it does not refuse."""

    embedder: Embedder | None = None
    """By default the lexical one."""
    base: StoredModel | None = None
    gold: Sequence[Messages] = ()
    """Prompts of the gold set."""
    refusals: Sequence[RefusalPrompt] = ()
    proxy: Judge | None = None
    """The scorer behind the labels or the reward."""
    scorer: Judge | None = None
    """The one that promotes."""

    def settings(self) -> dict[str, Any]:
        """What a report must have been made beside to be the answer."""
        return {
            "embedder": self.embedder.id if self.embedder else None,
            "base": self.base.weights if self.base else None,
            "gold": content_hash([[m.model_dump() for m in one] for one in self.gold]),
            "refusals": content_hash([one.model_dump(mode="json") for one in self.refusals]),
            "proxy": signature(self.proxy) if self.proxy else None,
            "scorer": signature(self.scorer) if self.scorer else None,
        }


def run(
    store: Store,
    config: GuardConfig,
    candidate: StoredModel,
    champion: StoredModel,
    suite: Sequence[SuitePrompt],
    beside: Beside | None = None,
) -> GuardReport:
    """Hold the candidate's answers against the champion's.

    Reads:   the held-out prompts; some gold prompts; the chosen answers it was trained on; answers
             already drawn by any of the models.
    Writes:  the missing answers; one GuardReport with every alarm, and figures prompt by prompt.
    Again:   the same candidate, champion, prompts and config return the same report.
    Killed:  answers drawn so far are kept.
    Refuses: any alarm that is red, see `GuardConfig` for the lines; any that is unknown. Amber
             ones pass with a warning.
    Stops:   ConfigError if the scorer that promotes is the one behind the labels.
    Cost:    samples_per_prompt samples a held-out prompt and model, one a gold prompt and model,
             a forward pass for each KL and for the chosen answers; embeddings.
    Next:    evaluate.run
    """
    from trueup.models.embedder import lexical

    beside = beside or Beside()
    if beside.proxy and beside.scorer:
        from trueup.guard.hacking import check_two_scorers

        check_two_scorers(beside.proxy, beside.scorer)
    wanted = settings(config, suite, beside)
    known = _known(store, wanted, candidate, champion)
    if known:
        return known
    looked = _Look(store, config, candidate, champion, beside, beside.embedder or lexical())
    looked.at_held_out([p.messages for p in suite])
    looked.at_chosen()
    looked.at_gold()
    looked.at_refusals()
    report = GuardReport(
        checkpoint_id=_checkpoint(candidate).id,
        champion=champion.weights,
        verdict=verdict(looked.alarms, looked.figures | _estimates(looked.alarms)),
        config=wanted,
        details=looked.details
        | {
            "alarms": [one.data() for one in looked.alarms],
            "warnings": [one.reason() for one in looked.alarms if one.status == "amber"],
            "not_asked": looked.not_asked,
            "embedder": looked.embedder.id,
        },
    )
    store.add(report)
    return report


class _Look:
    """One candidate being looked at; alarms and figures gather as it goes."""

    def __init__(
        self,
        store: Store,
        config: GuardConfig,
        candidate: StoredModel,
        champion: StoredModel,
        beside: Beside,
        embedder: Embedder,
    ) -> None:
        self.store, self.config, self.beside, self.embedder = store, config, beside, embedder
        self.candidate, self.champion = candidate, champion
        self.alarms: list[Alarm] = []
        self.figures: dict[str, float | None] = {}
        self.details: dict[str, Any] = {}
        self.not_asked: dict[str, str] = {}

    def at_held_out(self, prompts: Sequence[Messages]) -> None:
        """Length, collapse, distance, diversity, manner and hacking."""
        from trueup.guard import figures

        config = self.config
        both = self._both(prompts, config.samples_per_prompt, "answers")
        sized, sharp = (f(config, both) for f in (figures.length_alarms, figures.collapse_alarms))
        kl = self._kl(both)
        self.alarms += [*sized, *sharp, *kl, figures.refusal_alarm(config, both)]
        self.alarms += figures.manner_alarms(config, both)
        vectors = figures.Vectors(*(self._vectors(side) for side in (both.ours, both.theirs)))
        diverse = figures.diversity_alarms(config, both, vectors)
        self.alarms += diverse
        if config.samples_per_prompt < 2:
            self.not_asked["diversity within a prompt"] = "one answer a prompt"
        self._hacking(both, vectors)
        self.figures |= _plain(both, sized[0], sharp[0], kl[0], diverse[-1])
        self.details |= self._examples(both, vectors)

    def at_gold(self) -> None:
        """Length, collapse and distance where nothing was trained: forgetting shows there."""
        from trueup.guard import figures
        from trueup.guard.drift import sequence_kl

        prompts = _some(self.beside.gold, self.config.gold_prompts)
        if len(prompts) < 2:
            self.not_asked["gold prompts"] = "none are given"
            return
        both = self._both(prompts, 1, "gold samples")
        kl = sequence_kl(self.candidate, self.champion, both.prompts, both.ours)
        self.alarms += figures.length_alarms(self.config, both, on="gold")
        self.alarms += figures.collapse_alarms(self.config, both, on="gold")
        self.alarms += figures.kl_alarms(self.config, kl, both.ours, on="gold")
        self.details["gold_kl"] = kl

    def at_chosen(self) -> None:
        """The answers it was trained to give."""
        from trueup.guard.drift import chosen_changes
        from trueup.guard.figures import chosen_alarm

        run = self.store.get_all(TrainingRun, [_checkpoint(self.candidate).run_id])
        data = self.store.get_all(Dataset, [one.dataset_id for one in run])
        pairs = self.store.get_all(PreferencePair, [i for one in data for i in one.pair_ids])
        some = _some([(p.prompt, p.chosen) for p in pairs], self.config.chosen_answers)
        if len(some) < 2:
            self.not_asked["chosen log-prob"] = "it was not trained on pairs"
            return
        changes = chosen_changes(self.candidate, self.champion, some)
        self.alarms.append(chosen_alarm(self.config, changes))

    def at_refusals(self) -> None:
        """Prompts that say whether they should be answered."""
        from trueup.guard.figures import refusal_alarm

        if not self.beside.refusals:
            self.not_asked["unsafe prompts"] = "guard.refusal_prompts names none"
            return
        for unsafe in (False, True):
            prompts = [one.messages for one in self.beside.refusals if one.is_unsafe == unsafe]
            if prompts:
                both = self._both(prompts, 1, "refusals")
                one = refusal_alarm(self.config, both, unsafe=unsafe)
                self.alarms.append(one if unsafe else one._replace(name="over-refusals"))

    def _both(self, prompts: Sequence[Messages], num_samples: int, name: str) -> Both:
        config = self.config
        sampling = Sampling(temperature=1.0, max_tokens=config.max_tokens, seed=config.seed)
        ours, theirs = (
            model.samples(
                self.store, prompts, sampling, num_samples=num_samples, name=f"{who} {name}"
            )
            for who, model in (("candidate", self.candidate), ("champion", self.champion))
        )
        return Both(prompts, ours, theirs)

    def _kl(self, both: Both) -> list[Alarm]:
        """To the champion and, where that is another, to the base."""
        from trueup.guard.drift import sequence_kl
        from trueup.guard.figures import kl_alarms

        places = _some(range(len(both.prompts)), self.config.kl_prompts)
        prompts, ours = [both.prompts[i] for i in places], [both.ours[i] for i in places]
        kl = self.details["kl"] = sequence_kl(self.candidate, self.champion, prompts, ours)
        found = kl_alarms(self.config, kl, ours)
        base = self.beside.base
        if base is None or base.weights == self.champion.weights:
            self.not_asked["base kl"] = "the champion is the base" if base else "no base is given"
            return found
        far = self.details["base_kl"] = sequence_kl(self.candidate, base, prompts, ours)
        return found + kl_alarms(self.config, far, ours, on="base")

    def _vectors(self, answers: Answers) -> list[Any]:
        """For each prompt its answers' vectors."""
        flat = self.embedder([c.text for group in answers for c in group])
        sizes = [len(group) for group in answers]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [flat[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _hacking(self, both: Both, vectors: Any) -> None:
        """What takes two scorers."""
        from trueup.guard import hacking

        proxy, scorer = self.beside.proxy, self.beside.scorer
        if proxy is None or scorer is None:
            self.not_asked["reward hacking"] = (
                "the scorer behind the labels is not known, or guard.ask_scorers leaves it out"
            )
            return
        said = [hacking.ask(judge, both) for judge in (proxy, scorer)]
        places = sorted(said[0].keys() & said[1].keys())
        self.figures["scored_by_both"] = float(len(places))
        if len(places) < hacking.LEAST_SCORED * len(both.prompts):
            self.alarms.append(hacking.UNKNOWN)
            return
        reward, gold = (hacking.scored(one, places, both) for one in said)
        ours_ND, theirs_ND = vectors.firsts()
        both, drawn = both.at(places), (ours_ND[places], theirs_ND[places])
        self.alarms += hacking.hacking_alarms(self.config, both, reward, gold, drawn)
        rise, truth = hacking.gain(reward), hacking.gain(gold)
        self.figures |= {
            "reward_gain": rise and rise.estimate,
            "gold_gain": truth and truth.estimate,
        }
        self.details["pays_for"] = {
            judge.id: hacking.what_it_pays_for(judge, both) for judge in (proxy, scorer)
        }

    def _examples(self, both: Both, vectors: Any) -> dict[str, Any]:
        """Values prompt by prompt, and what came back most often."""
        from trueup.guard.diversity import duplicates, kernel, most_common_opening

        said = firsts(both.ours)
        near = duplicates(kernel(vectors.firsts()[0]))
        return {
            "length": {"candidate": length(both.ours), "champion": length(both.theirs)},
            "entropy": {"candidate": entropy(both.ours), "champion": entropy(both.theirs)},
            "opening": most_common_opening(said),
            "near_duplicates": [said[i] for i in near][:5],
        }


def _plain(both: Both, size: Alarm, sharp: Alarm, kl: Alarm, same: Alarm) -> dict[str, Any]:
    """The figures that the closing table and the page show by name."""
    return {
        "length_ratio": size.estimate,
        "length_ratio_low": size.low,
        "length_ratio_high": size.high,
        "length": fmean(length(both.ours)),
        "champion_length": fmean(length(both.theirs)),
        "entropy_ratio": sharp.estimate,
        "entropy": fmean(entropy(both.ours)),
        "champion_entropy": fmean(entropy(both.theirs)),
        "kl": kl.estimate,
        "kl_low": kl.low,
        "kl_high": kl.high,
        "same_answer_rate": same.candidate,
        "champion_same_answer_rate": same.champion,
    }


SHOWN_ALREADY = ("length", "shortness", "entropy", "kl", "sameness")


def _estimates(alarms: Sequence[Alarm]) -> dict[str, float | None]:
    """The other alarms' figures by name."""
    return {
        one.name.replace(" ", "_").replace("-", "_"): one.estimate
        for one in alarms
        if one.name not in SHOWN_ALREADY
    }


def _some(items: Sequence[T], most: int) -> list[T]:
    """At most so many, spread over the whole: a file is often sorted by topic."""
    places = random.Random(0).sample(range(len(items)), min(most, len(items)))
    return [items[i] for i in sorted(places)]


def settings(
    config: GuardConfig, suite: Sequence[SuitePrompt], beside: Beside | None = None
) -> dict[str, Any]:
    """What a report must have been made with to be the answer to this call."""
    return {
        **config.model_dump(mode="json"),
        "suite": content_hash([p.model_dump(mode="json") for p in suite]),
        "beside": (beside or Beside()).settings(),
    }


def _known(
    store: Store, wanted: dict[str, Any], candidate: StoredModel, champion: StoredModel
) -> GuardReport | None:
    reports = store.all(
        GuardReport, checkpoint_id=_checkpoint(candidate).id, champion=champion.weights
    )
    return next((r for r in reversed(reports) if r.config == wanted), None)


def _checkpoint(candidate: StoredModel) -> Checkpoint:
    assert candidate.checkpoint is not None, "a candidate is a checkpoint"
    return candidate.checkpoint
