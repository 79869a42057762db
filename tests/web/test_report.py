"""The report page: its facts, its safety, and that it is good when little was measured."""

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest

from page_reader import Page
from trueup import stats
from trueup.errors import ConfigError, DataError, StorageError
from trueup.measure import Cost
from trueup.records import (
    ABReport,
    Checkpoint,
    Completion,
    Dataset,
    EvalReport,
    GuardReport,
    Interaction,
    Label,
    Message,
    PreferencePair,
    Release,
    Report,
    SampleSet,
    Sampling,
    TrainingRun,
    Verdict,
    content_hash,
)
from trueup.store import Store
from trueup.web import plots, report_data, write_report

BASE, CHAMPION, CANDIDATE = "w_4be1c09d2a77", "w_9f31aa6c0be2", "w_c2d870e51f94"
SCRIPT = "<script>alert(1)</script>"
BREAKOUT = '"><img onerror=alert(1) src=x>'
SLICES = {"instructions": 44, "python": 40, "arithmetic": 36}
TOPICS = (
    ("How long does a full charge take?", "4 hours with the supplied cable."),
    ("Is the feeder waterproof?", "It withstands rain; do not put it under water."),
    ("Which seeds can I use?", "Any dry seed up to 8 mm across."),
    ("How do I reset the camera?", "Hold the button under the roof for ten seconds."),
    ("Does it work without Wi-Fi?", "Yes, it keeps 200 pictures and sends them later."),
    ("Can I use it in winter?", "Yes, down to −20 °C, but charge it above freezing."),
)


class Made(NamedTuple):
    """A turn as its records."""

    store: Store
    checkpoint: Checkpoint
    verdict: Verdict
    reports: list[Report]
    costs: list[Cost]
    counts: dict[str, int]

    def write(self, **changes: Any) -> Path:
        return write_report(self.store, self.checkpoint, **{**self._rest(), **changes})

    def data(self, **changes: Any) -> dict[str, Any]:
        return report_data(self.store, self.checkpoint, **{**self._rest(), **changes})

    def page(self, **changes: Any) -> str:
        return self.write(**changes).read_text()

    def _rest(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "reports": self.reports,
            "costs": self.costs,
            "counts": self.counts,
        }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / ".trueup")
    yield store
    store.close()


@pytest.fixture
def turn(store: Store) -> Made:
    return make_turn(store)


def make_turn(store: Store, *, edge: float = 0.2, num_prompts: int = 160) -> Made:
    """A turn of a support assistant; `edge` is how much better the candidate is."""
    rng = random.Random(3)
    checkpoint = make_checkpoint(store, make_dataset(store, rng), rng)
    reports: list[Report] = [
        make_guard(checkpoint, rng, num_prompts),
        make_eval(checkpoint, rng),
        make_ab(checkpoint, rng, edge, num_prompts),
    ]
    store.add(*reports)
    verdict = next((r.verdict for r in reports if not r.verdict.passed), None)
    if verdict is None:
        verdict = Verdict(gate="promote", status="passed", reason=f"{CANDIDATE} is champion")
    costs = [
        Cost("flag", 3.214, 214.7),
        Cost("label", 412.9, 1893.2),
        Cost("pair", 0.41, 220.1),
        Cost("train", 1287.55, 3120.9),
        Cost("guard", 305.02, 1960.4),
        Cost("evaluate", 96.8, 1931.0),
        Cost("ab", 12.33, 412.6),
    ]
    counts = {
        "examined": 4210,
        "flagged": 811,
        "labelled": 640,
        "new_pairs": 512,
        "skipped: tie": 97,
        "skipped: chosen equals rejected": 22,
        "skipped: held out": 9,
    }
    return Made(store, checkpoint, verdict, reports, costs, counts)


def make_dataset(store: Store, rng: random.Random, num_pairs: int = 60) -> Dataset:
    pairs, records = [], []
    for n in range(num_pairs):
        question, answer = TOPICS[n % len(TOPICS)]
        prompt = (
            Message(role="system", content="You are the support assistant for Wren."),
            Message(role="user", content=f"{question} (ticket {n})"),
        )
        asked = Interaction(prompt=prompt, completion=Completion(text=answer), source="gateway")
        chosen = Completion(text=answer, weights=CHAMPION)
        rejected = Completion(
            text=f"Great question! I would be delighted to help. {answer} Is there anything else?",
            weights=CHAMPION,
        )
        human = n % 4 == 0
        label = Label(
            prompt=prompt,
            candidates=(chosen, rejected),
            scores=(0.5 + rng.random() / 2, rng.random() / 2),
            annotator="human:ada" if human else "code:house-style/1",
            annotator_kind="human" if human else "code",
            interaction_id=asked.id,
        )
        pair = PreferencePair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            margin=label.scores[0] - label.scores[1],
            label_ids=(label.id,),
            prompt_hash=content_hash([m.model_dump() for m in prompt]),
        )
        records += [asked, label, pair]
        pairs.append(pair)
    store.add_all(records)
    dataset = Dataset(
        pair_ids=tuple(p.id for p in pairs),
        source="loop",
        skipped={"tie": 97, "chosen equals rejected": 22, "held out": 9},
    )
    store.add(dataset)
    return dataset


def make_checkpoint(store: Store, dataset: Dataset, rng: random.Random) -> Checkpoint:
    run = TrainingRun(
        dataset_id=dataset.id,
        method="dpo",
        config={"method": "dpo", "beta": 0.1, "learning_rate": 0.0001, "epochs": 1},
        base_weights=BASE,
        start_weights=CHAMPION,
        ref_weights=CHAMPION,
        template="5d1c7e0b",
    )
    history = []
    for step in range(1, 65):
        risen = 1 - math.exp(-step / 25)
        margin = 1.6 * risen + rng.gauss(0, 0.18) * min(1, step / 4)
        history.append(
            {
                "step": step,
                "loss": math.log1p(math.exp(-margin)) + abs(rng.gauss(0, 0.03)),
                "margin": margin,
                "accuracy": 0.5 + 0.45 * risen,
                "chosen_logps_change": 2.1 * risen - 1.2 * risen**2 + rng.gauss(0, 0.3),
                "rejected_logps_change": -14 * risen + rng.gauss(0, 1.1),
                "grad_norm": 1.3,
                "seconds": 20.0,
            }
        )
    checkpoint = Checkpoint(
        run_id=run.id,
        path="checkpoints/x",
        weights=CANDIDATE,
        base_weights=BASE,
        metrics={
            "num_pairs": 58,
            "skipped": {"too long": 2},
            "first": history[0],
            "last": history[-1],
            "history": history,
        },
    )
    store.add(run, checkpoint)
    return checkpoint


def make_guard(
    checkpoint: Checkpoint, rng: random.Random, num_prompts: int, longer: float = 1.06
) -> GuardReport:
    hard = [rng.lognormvariate(3.4, 0.35) for _ in range(num_prompts)]
    length = {
        "champion": [h * rng.lognormvariate(0, 0.2) for h in hard],
        "candidate": [h * longer * rng.lognormvariate(0, 0.2) for h in hard],
    }
    entropy = {
        "champion": [rng.gammavariate(9, 0.11) for _ in hard],
        "candidate": [rng.gammavariate(8, 0.1) for _ in hard],
    }
    kl = [rng.gammavariate(2.2, 2.4) for _ in range(48)]
    ratio = stats.ratio_interval(length["candidate"], length["champion"])
    sharper = stats.ratio_interval(entropy["candidate"], entropy["champion"])
    drift = stats.mean_interval(kl)
    assert ratio and sharper and drift
    refused = ratio.estimate > 1.3
    reason = f"length: answers are {ratio.estimate:.2f} times the champion's, over 1.3"
    return GuardReport(
        checkpoint_id=checkpoint.id,
        champion=CHAMPION,
        config={
            "samples_per_prompt": 2,
            "max_length_ratio": 1.3,
            "min_entropy_ratio": 0.35,
            "max_kl": 30.0,
            "max_same_answer_rate": 0.2,
            "kl_prompts": 48,
        },
        verdict=Verdict(
            gate="guard",
            status="refused" if refused else "passed",
            reason=reason if refused else "within every line",
            figures={
                "length_ratio": ratio.estimate,
                "length_ratio_low": ratio.low,
                "length_ratio_high": ratio.high,
                "length": fmean(length["candidate"]),
                "champion_length": fmean(length["champion"]),
                "entropy_ratio": sharper.estimate,
                "entropy": fmean(entropy["candidate"]),
                "champion_entropy": fmean(entropy["champion"]),
                "kl": drift.estimate,
                "kl_low": drift.low,
                "kl_high": drift.high,
                "same_answer_rate": 0.01875,
                "champion_same_answer_rate": 0.0125,
            },
        ),
        details={"length": length, "entropy": entropy, "kl": kl},
    )


def make_eval(checkpoint: Checkpoint, rng: random.Random) -> EvalReport:
    from trueup.evaluate.config import EvaluateConfig
    from trueup.evaluate.run import _verdict

    items: list[dict[str, Any]] = []
    for name, number in SLICES.items():
        for n in range(number):
            skill = rng.random()
            items.append(
                {
                    "id": f"{name}-{n:03}",
                    "slice": name,
                    "prompt": f"{name} {n}: write double(x), which returns twice x.",
                    "passed": skill + rng.gauss(0, 0.09) < 0.62,
                    "champion_passed": skill < 0.6,
                    "answer": "def double(x):\n    return x + x",
                    "champion_answer": "def double(x):\n    return 2 * x",
                }
            )
    text = Completion(text="")
    config = EvaluateConfig()
    return EvalReport(
        checkpoint_id=checkpoint.id,
        champion=CHAMPION,
        config={**config.model_dump(mode="json"), "items": [i["id"] for i in items]},
        # the gate's own rule, so that page and gate cannot disagree unseen
        verdict=_verdict(
            config,
            [(i["passed"], text) for i in items],
            [(i["champion_passed"], text) for i in items],
        ),
        details={"items": items, "slices": {}},
    )


def make_ab(checkpoint: Checkpoint, rng: random.Random, edge: float, num_prompts: int) -> ABReport:
    from trueup.ab.config import ABConfig
    from trueup.ab.run import _paths
    from trueup.ab.sequence import NextPlace
    from trueup.ab.verdict import findings, gate_verdict

    votes = []
    for n in range(num_prompts):
        question, answer = TOPICS[n % len(TOPICS)]
        before = min(1.0, max(0.0, round(rng.gauss(0.55, 0.3), 1)))
        after = min(1.0, max(0.0, round(before + rng.gauss(edge, 0.25), 1)))
        outcome = "win" if after > before else "loss" if after < before else "tie"
        votes.append(
            {
                "prompt": f"{question} (held-out {n})",
                "prompt_hash": f"hash {n}",
                "stratum": "",
                "length_differences": [-43 + 30 * (n % 4), -43],
                "points": {"win": 1.0, "tie": 0.5, "loss": 0.0}[outcome],
                "outcomes": [outcome, outcome],
                "score": after,
                "champion_score": before,
                "answer": answer,
                "champion_answer": f"Thank you for reaching out about this. {answer}",
            }
        )
    config = ABConfig()
    return ABReport(
        checkpoint_id=checkpoint.id,
        champion=CHAMPION,
        config={
            **config.model_dump(mode="json"),
            "scorer_id": "code:facts/1",
            "samples_per_prompt": 2,
        },
        verdict=gate_verdict(
            config, findings(config, votes), NextPlace("e-lond", 0.1, 1, (), 26.1)
        ),
        details={"votes": votes, **_paths(votes)},
    )


def with_details(report: Report, **details: Any) -> Any:
    return report.model_copy(update={"details": {**report.details, **details}})


def row(page: Page, name: str) -> str:
    """The words of the page from a measure's name on."""
    return page.text[page.text.index(name) :][:260]


# the facts


def test_a_promotion_says_passed_and_what_serves(turn: Made) -> None:
    turn.store.release(
        Release(action="promote", weights=CANDIDATE, checkpoint_id=turn.checkpoint.id)
    )
    page = Page(turn.page())
    assert turn.verdict.passed
    assert "PASSED every gate" in page.text
    assert CANDIDATE in page.text and CHAMPION in page.text
    assert "60 pairs, 58 of them trained on" in page.text
    assert "Serving the candidate" in page.text
    assert "trueup rollback" in page.text and "trueup status" in page.text


def test_a_refusal_names_the_gate_and_the_reason(store: Store) -> None:
    turn = make_turn(store, edge=0.0)
    page = Page(turn.page())
    assert turn.verdict.gate == "ab"
    assert "REFUSED by the A/B test" in page.text
    assert "not shown to be better" in page.text
    assert "trueup rollback" not in page.text, "there is nothing to roll back"
    assert "outside" in row(page, "Win rate")


def test_the_gate_strip_tells_what_ran(turn: Made) -> None:
    refused = turn.reports[0].verdict.model_copy(update={"status": "refused"})
    data = turn.data(verdict=refused, reports=turn.reports[:1])
    assert [(g["gate"], g["status"]) for g in data["gates"]] == [
        ("guard", "refused"), ("evaluate", None), ("ab", None), ("promote", None)
    ]  # fmt: skip


def test_a_pending_verdict_is_said_in_words(turn: Made) -> None:
    verdict = Verdict(gate="train", status="pending", reason="12 new pairs of the 500")
    page = Page(turn.page(verdict=verdict, reports=()))
    assert "PENDING at training" in page.text
    assert "12 new pairs of the 500" in page.text


def test_passing_the_last_gate_is_not_yet_a_promotion(turn: Made) -> None:
    page = Page(turn.page(verdict=turn.reports[-1].verdict))
    assert "PASSED the A/B test, not promoted" in page.text


def test_every_figure_stands_with_its_threshold(turn: Made) -> None:
    page = Page(turn.page())
    ab, guard, gold = (turn.reports[n].verdict.figures for n in (2, 0, 1))
    assert f"{ab['win_rate']:.1%}" in row(page, "Win rate")
    assert f"[{ab['win_rate_low']:.1%}, {ab['win_rate_high']:.1%}]" in row(page, "Win rate")
    assert "interval above 50%" in row(page, "Win rate")
    assert "at least 26.1" in row(page, "Evidence")
    lc = f"[{ab['lc_win_rate_low']:.1%}, {ab['lc_win_rate_high']:.1%}]"
    assert lc in row(page, "Win rate at equal length")
    assert "at most ×1.30" in row(page, "Answer length")
    assert f"×{guard['length_ratio']:.2f}" in row(page, "Answer length")
    assert "at least ×0.35" in row(page, "Token entropy")
    assert f"{guard['kl']:.2f}" in row(page, "KL per answer")
    assert "at most 30 nats" in row(page, "KL per answer")
    assert f"{gold['accuracy']:.1%}" in row(page, "Gold accuracy")
    assert "interval above −10 points" in row(page, "Gold accuracy")


@pytest.mark.parametrize("edge", [-0.2, 0.0, 0.05, 0.2])
def test_inside_and_outside_follow_the_gates(store: Store, edge: float) -> None:
    turn = make_turn(store, edge=edge)
    status = {m["name"]: m["status"] for m in turn.data()["measures"]}
    assert turn.reports[2].verdict.passed == (status["Win rate"] == status["Evidence"] == "inside")
    assert turn.reports[1].verdict.passed == (status["Gold accuracy"] == "inside")


@pytest.mark.parametrize(
    ("figures", "name", "status"),
    [
        ({"length_ratio": 1.4, "length_ratio_low": 1.2}, "Answer length", "outside"),
        ({"length_ratio": 1.4, "length_ratio_low": 0.9}, "Answer length", "inside"),
        ({"length_ratio": None, "length_ratio_low": None}, "Answer length", "unknown"),
        ({"entropy_ratio": 0.34}, "Token entropy", "outside"),
        ({"kl": 30.0}, "KL per answer", "inside"),
        ({"kl": float("nan")}, "KL per answer", "unknown"),
        ({"same_answer_rate": 0.5}, "Most common answer", "outside"),
        (
            {"same_answer_rate": 0.5, "champion_same_answer_rate": 0.5},
            "Most common answer",
            "inside",
        ),
    ],
)
def test_the_guards_lines_are_read_as_the_guard_reads_them(
    turn: Made, figures: dict[str, float | None], name: str, status: str
) -> None:
    guard = turn.reports[0]
    verdict = guard.verdict.model_copy(update={"figures": {**guard.verdict.figures, **figures}})
    changed = guard.model_copy(update={"verdict": verdict})
    found = {m["name"]: m["status"] for m in turn.data(reports=[changed])["measures"]}
    assert found[name] == status


def test_a_candidate_tried_before_needs_the_evidence_the_gate_asked_of_it(turn: Made) -> None:
    guard, gold, ab = turn.reports
    evidence = ab.verdict.figures["evidence"]
    assert evidence
    figures = {**ab.verdict.figures, "evidence_needed": 2 * evidence}
    again = ab.model_copy(update={"verdict": ab.verdict.model_copy(update={"figures": figures})})
    data = turn.data(reports=[guard, gold, again])
    (measure,) = [m for m in data["measures"] if m["name"] == "Evidence"]
    assert (measure["status"], measure["line"]) == ("outside", f"at least {2 * evidence:g}")
    assert data["plots"]["evidence"]["min_evidence"] == 2 * evidence


def test_too_few_gold_items_are_unknown_not_inside(turn: Made) -> None:
    gold = turn.reports[1]
    figures = {**gold.verdict.figures, "items": 5.0}
    verdict = gold.verdict.model_copy(update={"figures": figures})
    [measure] = [
        m
        for m in turn.data(reports=[gold.model_copy(update={"verdict": verdict})])["measures"]
        if m["name"] == "Gold accuracy"
    ]
    assert measure["status"] == "unknown"
    assert "5 items of the " in measure["note"]


def test_examples_show_as_many_losses_as_gains(turn: Made) -> None:
    page, shown = Page(turn.page()), turn.data()["head_to_head"]
    votes = turn.reports[2].details["votes"]
    gaps = sorted(v["score"] - v["champion_score"] for v in votes)
    assert [e["change"] for e in shown["worse"]["shown"]] == pytest.approx(gaps[:6])
    assert [e["change"] for e in shown["improved"]["shown"]] == pytest.approx(gaps[:-7:-1])
    assert shown["worse"]["total"] == sum(g < 0 for g in gaps)
    assert page.text.index("Got worse most") < page.text.index("Improved most")
    for example in shown["worse"]["shown"] + shown["improved"]["shown"]:
        assert example["prompt"]["text"] in page.text


def test_gold_items_that_flipped_are_shown_both_ways(turn: Made) -> None:
    items = [i for i in turn.reports[1].details["items"] if i["passed"] is not None]
    lost = [i["id"] for i in items if i["champion_passed"] and not i["passed"]]
    gained = [i["id"] for i in items if i["passed"] and not i["champion_passed"]]
    gold = turn.data()["gold"]
    for ids, group in ((lost, gold["lost"]), (gained, gold["gained"])):
        assert group["count"] == len(ids) > 0
        assert [e["id"] for e in group["shown"]] + group["other_ids"] == ids
    assert gold["not_checked"] == 0
    page = Page(turn.page())
    assert all(one in page.text for one in lost + gained)


def test_gold_slices_are_paired_and_the_worst_comes_first(turn: Made) -> None:
    gold = turn.data()["plots"]["gold"]
    items = [i for i in turn.reports[1].details["items"] if i["passed"] is not None]
    for one in gold["slices"]:
        members = [i for i in items if i["slice"] == one["slice"]]
        expected = stats.paired_difference(
            [i["passed"] for i in members], [i["champion_passed"] for i in members]
        )
        assert (one["estimate"], one["low"], one["high"]) == expected
    estimates = [one["estimate"] for one in gold["slices"]]
    assert estimates == sorted(estimates) and len(estimates) == len(SLICES)


def test_it_says_what_it_was_trained_on_and_by_whom(turn: Made) -> None:
    page, training = Page(turn.page()), turn.data()["training"]
    assert training["annotators"] == [
        {"annotator": "code:house-style/1", "annotator_kind": "code", "labels": 45},
        {"annotator": "human:ada", "annotator_kind": "human", "labels": 15},
    ]
    margins = [e["margin"] for e in training["examples"]]
    assert len(margins) == 5 and margins == sorted(margins, reverse=True)
    assert "chosen equals rejected 22" in page.text
    assert "too long 2" in page.text
    assert "examined 4,210" in page.text


def test_costs_are_listed_and_summed(turn: Made) -> None:
    page = Page(turn.page())
    assert "train 1,287.6 3,121" in page.text or "train 1,287.5 3,121" in page.text
    assert "Whole turn 2,118.2 3,121" in page.text


def test_ids_and_settings_are_there_to_do_it_again(turn: Made) -> None:
    page = Page(turn.page())
    for one in [turn.checkpoint.id, turn.checkpoint.run_id, BASE, *(r.id for r in turn.reports)]:
        assert one in page.text
    assert '"learning_rate": 0.0001' in page.text
    assert '"max_same_answer_rate": 0.2' in page.text


# partial reports


@pytest.mark.parametrize("ran", [0, 1, 2])
def test_what_did_not_run_is_unknown_and_never_zero(turn: Made, ran: int) -> None:
    page = Page(turn.page(reports=turn.reports[:ran], costs=(), counts={}))
    assert page.problems == []
    assert "unknown" in row(page, "Win rate") and "not run" in row(page, "Win rate")
    assert not re.search(r"\b0\.0+\b|\b0\.0%|NaN|None|nan\b", page.text.split("What moved")[0])
    assert "The A/B test did not run" in page.text
    assert "evidence" not in page.drawn()


def test_a_bare_checkpoint_still_makes_a_good_page(store: Store) -> None:
    checkpoint = Checkpoint(run_id="run_gone", path="x", weights=CANDIDATE, base_weights=BASE)
    page = Page(
        write_report(
            store,
            checkpoint,
            verdict=Verdict(gate="guard", status="pending", reason=""),
            reports=[],
        ).read_text()
    )
    assert page.problems == [] and page.drawn() == []
    assert "PENDING at the guard" in page.text
    assert "Data set unknown pairs" in page.text


def test_a_turn_stopped_by_the_guard_shows_what_the_guard_saw(turn: Made) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=48, seed=7)
    for n, longer in enumerate((1, 9, 3)):
        prompt = (Message(role="user", content=f"held-out {n}"),)
        for weights, text in ((CHAMPION, "Ten seconds."), (CANDIDATE, "Ten seconds. " * longer)):
            turn.store.add(
                SampleSet(
                    prompt=prompt,
                    completions=(Completion(text=text),),
                    weights=weights,
                    sampling=sampling,
                )
            )
    stopped = turn.data(reports=turn.reports[:1])["unjudged"]
    assert [e["prompt"]["text"] for e in stopped] == ["held-out 1", "held-out 2", "held-out 0"]
    page = Page(turn.page(reports=turn.reports[:1]))
    assert "Changed most in length not judged" in page.text and "117 characters" in page.text
    assert turn.data()["unjudged"] == []


def test_reports_with_empty_or_broken_details_are_drawn_as_far_as_known(turn: Made) -> None:
    guard, gold, ab = turn.reports
    broken = [
        with_details(guard, length={}, entropy=None, kl=[None, float("nan")]),
        with_details(gold, items=[]),
        with_details(ab, votes=[{"prompt": "p"}], evidence=[float("inf"), None, -1.0]),
    ]
    page = Page(turn.page(reports=broken))
    assert page.problems == []
    assert not {"length", "entropy", "kl", "gold"} & set(page.drawn())


def test_erased_pairs_are_counted(store: Store) -> None:
    turn = make_turn(store)
    run = store.get(TrainingRun, turn.checkpoint.run_id)
    dataset = store.get(Dataset, run.dataset_id)
    smaller = Dataset(pair_ids=(*dataset.pair_ids[:3], "pair_erased"), source="loop")
    again = run.model_copy(update={"dataset_id": smaller.id, "id": ""})
    again = TrainingRun.model_validate({**again.model_dump(), "id": ""})
    store.add(smaller, again)
    checkpoint = turn.checkpoint.model_copy(update={"run_id": again.id})
    page = Page(turn._replace(checkpoint=checkpoint).page())
    assert "4 pairs" in page.text and "No longer in the store: 1." in page.text


def test_reports_of_two_contests_are_never_mixed(turn: Made) -> None:
    guard, gold, _ = turn.reports
    other = guard.model_copy(update={"champion": "w_other"})
    with pytest.raises(DataError, match="one champion"):
        turn.write(reports=[other, gold])
    with pytest.raises(DataError, match="this checkpoint"):
        turn.write(reports=[guard.model_copy(update={"checkpoint_id": "checkpoint_x"})])


# safety


def hostile(turn: Made, text: str) -> str:
    """The page of a turn in which everything that a model or a user can write is `text`."""
    guard, gold, ab = turn.reports
    votes = [{**v, "answer": text, "champion_answer": text, "prompt": text}
             for v in ab.details["votes"]]  # fmt: skip
    items = [{**i, "answer": text, "champion_answer": text, "prompt": text, "id": text,
              "slice": text + i["slice"]} for i in gold.details["items"]]  # fmt: skip
    prompt = (Message(role="user", content=text),)
    sides = Completion(text=text), Completion(text=text + text)
    label = Label(prompt=prompt, candidates=sides, scores=(1.0, 0.0), annotator=text,
                  annotator_kind="llm")  # fmt: skip
    pair = PreferencePair(prompt=prompt, chosen=sides[0], rejected=sides[1], margin=1.0,
                          label_ids=(label.id,))  # fmt: skip
    dataset = Dataset(pair_ids=(pair.id,), source=text, skipped={text: 1})
    run = TrainingRun(dataset_id=dataset.id, method=text, config={text: text}, base_weights=text,
                      start_weights=text, ref_weights=text, template=text)  # fmt: skip
    turn.store.add(label, pair, dataset, run)
    checkpoint = turn.checkpoint.model_copy(update={"run_id": run.id, "weights": text})
    return turn._replace(checkpoint=checkpoint).page(
        verdict=Verdict(gate="ab", status="refused", reason=text),
        reports=[
            guard.model_copy(update={"champion": text}),
            with_details(gold, items=items).model_copy(update={"champion": text}),
            with_details(ab, votes=votes).model_copy(update={"champion": text}),
        ],
        costs=[Cost(text, 1.0, 1.0)],
        counts={text: 1, f"skipped: {text}": 2},
    )


@pytest.mark.parametrize(
    "text", [SCRIPT, BREAKOUT, "{{7*7}}", "{% raw %}", "</style></svg></details>", "<!--", "]]>"]
)
def test_what_a_model_wrote_stays_text(turn: Made, text: str) -> None:
    html = hostile(turn, text)
    page = Page(html)
    assert page.problems == []
    assert page.text.count(text) > 20
    allowed = {tag for tag, _ in Page(turn.page()).tags}
    assert {tag for tag, _ in page.tags} <= allowed and "script" not in allowed
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_control_characters_are_made_visible(turn: Made) -> None:
    html = hostile(turn, "a\x00b\x1b[31mc\x7fd\u202ee\r\nf\x85g")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    assert "a␀b␛[31mc⟨U+007F⟩d⟨U+202E⟩e\nf⟨U+0085⟩g" in html


def test_half_a_surrogate_pair_does_not_stop_the_page(turn: Made) -> None:
    ab = turn.reports[2]
    votes = [{**v, "answer": "a\ud800b", "score": 1.0, "champion_score": 0.0}
             for v in ab.details["votes"]]  # fmt: skip
    assert "a⟨U+D800⟩b" in turn.page(reports=[with_details(ab, votes=votes)])


def test_a_long_answer_is_folded_then_cut_with_a_note(turn: Made) -> None:
    long = "word " * 20_000
    ab = turn.reports[2]
    votes = [dict(ab.details["votes"][0], answer=long, score=1.0, champion_score=0.0)]
    html = turn.page(reports=[with_details(ab, votes=votes)])
    page = Page(html)
    assert len(html) < 120_000
    assert "Cut here: 4,000 of 100,000 characters shown." in page.text
    assert "99,400 more characters" in page.text
    assert html.count("word word word") < 2000


def test_the_page_loads_nothing_and_forbids_it(turn: Made) -> None:
    html = turn.page()
    page = Page(html)
    [policy] = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "script" not in policy
    css = html.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"//|url\(|@import", css)
    assert not [v for _, attrs in page.tags for v in attrs.values() if v and "//" in v]
    links = {value for _, attrs in page.tags for name, value in attrs.items()
             if name in ("src", "href", "action", "data", "srcset", "xlink:href")}  # fmt: skip
    assert links == {f"{turn.checkpoint.id}.json"}


# the files


def test_the_json_twin_holds_the_same_figures(turn: Made) -> None:
    page = turn.write()
    twin = json.loads(page.with_suffix(".json").read_text())
    assert twin == turn.data()
    shown = Page(page.read_text()).text
    for measure in twin["measures"]:
        assert plots.figure(measure["candidate"], measure["kind"]) in row(
            Page(page.read_text()), measure["name"]
        )
    assert twin["verdict"]["status"].upper() in shown


def test_the_data_is_strict_json(turn: Made) -> None:
    guard = with_details(turn.reports[0], kl=[1.0, float("nan"), float("inf"), 2.0])
    data = turn.data(reports=[guard])
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["plots"]["kl"]["values"] == [1.0, 2.0]


def test_the_same_records_give_the_same_bytes(turn: Made, tmp_path: Path) -> None:
    assert turn.page() == turn.page()
    elsewhere = turn.write(path=tmp_path / "deep" / "page.html")
    assert elsewhere.exists() and elsewhere.with_suffix(".json").exists()
    assert turn.write() == turn.store.folder / "reports" / f"{turn.checkpoint.id}.html"


def test_a_write_that_fails_leaves_the_old_page_and_no_scratch(
    turn: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = turn.write()
    before = page.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    # the disk cannot be filled in a test
    monkeypatch.setattr("trueup.web.page.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        turn.write(verdict=Verdict(gate="ab", status="refused", reason="other"))
    assert page.read_bytes() == before
    assert sorted(p.suffix for p in page.parent.iterdir()) == [".html", ".json"]


def test_a_folder_that_is_a_file_is_a_storage_error(turn: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        turn.write(path=tmp_path / "file" / "page.html")


def test_the_page_cannot_take_its_twins_name(turn: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="twin"):
        turn.write(path=tmp_path / "page.json")


# the form


def test_the_page_is_well_formed_with_unique_ids(turn: Made) -> None:
    page = Page(turn.page())
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert turn.page().startswith("<!doctype html>")


def test_every_plot_is_drawn_and_speaks(turn: Made) -> None:
    page = Page(turn.page())
    assert page.drawn() == [
        "evidence", "win-rate", "length", "entropy", "kl", "loss", "margin", "logps", "gold",
        "funnel",
    ]  # fmt: skip
    for key in page.drawn():
        assert f"{key}-title" in page.ids and f"{key}-desc" in page.ids
    captions = [t for t, _ in page.tags if t == "figcaption"]
    assert len(captions) == len([t for t, _ in page.tags if t == "figure"]) == 9
    assert "needs 26.1" in page.text and "needed at 26.1" in page.text


def test_the_win_rate_ends_where_the_table_says_with_the_sequence_around_it(turn: Made) -> None:
    path = turn.data()["plots"]["win_rate"]
    votes = turn.reports[2].details["votes"]
    assert path["rate"][-1] == pytest.approx(100 * fmean(v["points"] for v in votes))
    assert len(path["low"]) == len(path["high"]) == len(votes)
    assert all(
        low is None or high is None or low <= rate <= high
        for low, rate, high in zip(path["low"], path["rate"], path["high"], strict=True)
    )


def test_votes_without_their_sequence_draw_no_win_rate(turn: Made) -> None:
    ab = turn.reports[2]
    cut = ab.model_copy(update={"details": ab.details | {"sequence": ab.details["sequence"][1:]}})
    page = Page(turn.page(reports=[*turn.reports[:2], cut]))
    assert "win-rate" not in page.drawn()


def test_colours_are_readable_in_light_and_dark(turn: Made) -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for lines that carry meaning."""
    css = turn.page().split("<style>")[1].split("</style>")[0]
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6});", block))
                   for block in css.split("@media (prefers-color-scheme: dark)", 1))  # fmt: skip
    for theme in (light, dark):
        for name in ("ink", "quiet", "good", "bad", "wait", "candidate", "rejected"):
            assert contrast(theme[name], theme["paper"]) >= 4.5, name
        assert contrast(theme["champion"], theme["paper"]) >= 3
    assert light.keys() == dark.keys()


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


# the plots


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "rate", "unknown"),
        (float("nan"), "number", "unknown"),
        (0.5837, "rate", "58.4%"),
        (-0.039, "points", "−3.9"),
        (0.0591, "difference", "+0.059"),
        (1.1366, "ratio", "1.14"),
        (1234567.0, "number", "1.2 × 10⁶"),
        (0.00012, "number", "1.2 × 10⁻⁴"),
        (4210.0, "count", "4,210"),
        (0.0, "number", "0"),
    ],
)
def test_figures_read_as_people_write_them(value: float | None, kind: str, text: str) -> None:
    assert plots.figure(value, kind) == text


@pytest.mark.parametrize(
    "ys",
    [[5.0], [1.0, 1.0], [0.0, 0.0], [None, 2.0, None, 3.0], [1e-9, 1e9], [1e308, 5e-324],
     [-3.0, -1.0]],
)  # fmt: skip
@pytest.mark.parametrize("log", [False, True])
def test_line_plots_stay_inside_their_frame(ys: Sequence[float | None], log: bool) -> None:
    svg = plots.line_plot("k", "t", [plots.Curve("c", ys)], x_label="x", y_label="y", log=log)
    for x, y in re.findall(r"[ \"](\d+|nan),(-?[\d.]+)", svg):
        assert 0 <= float(x) <= plots.STRIP and 0 <= float(y) <= plots.HEIGHT
    assert "nan" not in svg and "inf" not in svg


def test_an_unknown_value_breaks_the_line_rather_than_touching_zero() -> None:
    svg = plots.line_plot(
        "k", "t", [plots.Curve("c", [1.0, 2.0, None, 2.0, 3.0])], x_label="x", y_label="y"
    )
    assert svg.count("<polyline") == 2


def test_a_histogram_counts_every_value_once() -> None:
    values = [0.1 * n for n in range(101)]
    edges = plots._edges(min(values), max(values))
    assert sum(plots._counts(values, edges)) == 101
    assert edges[0] <= 0 and edges[-1] >= 10


def test_plots_of_nothing_are_nothing() -> None:
    assert plots.line_plot("k", "t", [plots.Curve("c", [])], x_label="x", y_label="y") == ""
    assert plots.histogram("k", "t", [plots.Histogram("h", [])], x_label="x") == ""
    assert plots.forest("k", "t", [], x_label="x") == ""
    assert plots.bars("k", "t", []) == ""


def test_a_trace_goes_from_its_first_point_to_its_last() -> None:
    drawn = plots.trace_plot("k", "t", [0.0, None, 2.0], [1.0, 5.0, 3.0], x_label="x", y_label="y")
    places = re.search('points="([^"]+)"', drawn)
    assert places and places[1] == "0,190.0 10000,0.0"
    assert "from 1 at 0 to 3 at 2" in drawn
    assert not plots.trace_plot("k", "t", [1.0], [1.0], x_label="x", y_label="y")


def test_names_in_plots_are_escaped() -> None:
    svg = plots.bars("k", "t", [plots.Bar(SCRIPT, 3)]) + plots.forest(
        "f", SCRIPT, [plots.Row(BREAKOUT, SCRIPT, 1.0, 0.0, 2.0)], x_label=SCRIPT
    )
    assert "<script" not in svg and "<img" not in svg


def test_the_text_alternative_carries_the_figures() -> None:
    svg = plots.forest("k", "t", [plots.Row("python", "3 → 4 of 9", 11.1, -20.0, 40.0)], x_label="")
    assert "python: +11.1 points, from −20.0 to +40.0; 3 → 4 of 9." in svg
