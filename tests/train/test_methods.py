"""Every method trains: the first loss is what algebra says, and it falls; the right side rises."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import CONFIG, MakeProject, Project, pair, question, reference_of, written_pairs
from torch import Tensor

from trueup.errors import ConfigError
from trueup.records import Completion, Dataset, Label, PreferencePair
from trueup.train import TrainConfig
from trueup.train.config import ONLINE, Method
from trueup.train.data import Row, encode, split
from trueup.train.identity import closed_form
from trueup.train.objectives import KTO, SFT, Preference

REFERENCE_FREE = ("simpo", "orpo")
METHODS: dict[Method, dict[str, Any]] = {
    "dpo": {"label_smoothing": 0.1},
    "robust_dpo": {"label_smoothing": 0.1},
    "soft_dpo": {},
    "ipo": {"beta": 0.3},
    "ipo_norm": {"beta": 1.0},
    "hinge": {},
    "ln_dpo": {"beta": 2.0},
    "rdpo": {},
    "ld_dpo": {},
    "dpop": {},
    "rpo": {},
    "simpo": {"beta": 2.0},
    "orpo": {"beta": 0.5},
    "kto": {},
    "sft": {},
}
"""Settings each of them learns with, in a few steps."""


def setting(method: Method, **others: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        CONFIG.model_dump() | {"method": method, "epochs": 4} | METHODS[method] | others
    )


def test_every_method_but_the_reward_model_is_here() -> None:
    from typing import get_args

    assert set(METHODS) == set(get_args(Method)) - {"reward", *ONLINE}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_its_loss_falls(make_project: MakeProject, method: Method) -> None:
    config = setting(method)
    metrics = make_project().train(config).metrics
    history = metrics["history"]
    assert all(math.isfinite(value) for step in history for value in step.values())
    steps_per_epoch = len(history) // config.epochs
    first, last = history[:steps_per_epoch], history[-steps_per_epoch:]
    before, after = (fmean(step["loss"] for step in part) for part in (first, last))
    assert after < before * 0.98
    assert all(step["grad_norm"] > 0 for step in first)
    if "margin" in history[0]:
        before, after = (fmean(step["margin"] for step in part) for part in (first, last))
        assert after > before


@pytest.mark.parametrize("method", METHODS)
def test_the_first_loss_is_its_closed_form_where_there_is_one(
    make_project: MakeProject, method: Method
) -> None:
    config = setting(method, epochs=1)
    metrics = make_project(written_pairs()).train(config).metrics
    expected = closed_form(method, config)
    if expected is not None:
        assert metrics["identity"]["first_loss"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert metrics["first"]["loss"] == pytest.approx(expected, rel=1e-4)
    elif method == "kto":
        # at its start every answer costs half its weight
        assert metrics["first"]["loss"] == pytest.approx(0.5, abs=1e-5)
        assert metrics["first"]["kl"] == pytest.approx(0.0, abs=1e-4)
    else:
        assert math.isfinite(metrics["identity"]["first_loss"])


@pytest.mark.parametrize(
    ("method", "beta", "value"), [("dpo", 0.1, 0.693147), ("ipo", 0.1, 25.0), ("hinge", 9.0, 1.0)]
)
def test_the_closed_forms_are_the_published_ones(method: str, beta: float, value: float) -> None:
    found = closed_form(method, CONFIG.model_copy(update={"beta": beta}))
    assert found == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("method", REFERENCE_FREE)
def test_a_method_without_a_reference_looks_at_none(
    make_project: MakeProject, method: Method
) -> None:
    """Whatever it is held to: the same first loss, and no reference pass."""
    project = make_project(written_pairs())
    previous = project.train(setting(method, epochs=1)).metrics
    base = project.train(setting(method, epochs=1, reference="base")).metrics
    assert previous["reference"] == base["reference"] == {}
    assert previous["first"]["loss"] == base["first"]["loss"]


# --- sums of losses -------------------------------------------------------------------------------


def test_dpo_plus_a_share_of_sft_is_rpo(make_project: MakeProject) -> None:
    found = {}
    for name, config in {
        "rpo": setting("rpo", nll_weight=0.2),
        "sum": setting("dpo", label_smoothing=0.0, plus={"sft": 0.2}),
    }.items():
        project = make_project(name=name)
        checkpoint = project.train(config)
        found[name] = checkpoint.metrics["first"]["loss"], load_file(project.adapter(checkpoint))
    assert found["sum"][0] == pytest.approx(found["rpo"][0], abs=1e-6)
    for name, tensor in found["rpo"][1].items():
        assert torch.allclose(found["sum"][1][name], tensor, atol=1e-6, rtol=0), name


def test_a_weight_of_nothing_adds_nothing_and_more_weight_more(make_project: MakeProject) -> None:
    project = make_project(written_pairs())
    firsts = [
        project.train(setting("dpo", epochs=1, plus=plus)).metrics["first"]["loss"]
        for plus in ({}, {"sft": 0.0}, {"sft": 1.0}, {"sft": 2.0})
    ]
    assert firsts[0] == firsts[1]
    assert firsts[3] - firsts[0] == pytest.approx(2 * (firsts[2] - firsts[0]), rel=1e-5)


@pytest.mark.parametrize("method", REFERENCE_FREE)
def test_a_reference_free_loss_plus_one_with_a_reference_has_a_reference(
    make_project: MakeProject, method: Method
) -> None:
    """At the start DPO's share is its weight times log 2, whatever the log-probs are."""
    project = make_project(written_pairs())
    alone = project.train(setting(method, epochs=1)).metrics
    both = project.train(setting(method, epochs=1, plus={"dpo": 0.5})).metrics
    added = both["first"]["loss"] - alone["first"]["loss"]
    assert added == pytest.approx(0.5 * math.log(2), abs=1e-5)
    assert sum(both["reference"].values()) == 2 * len(written_pairs())


def test_sft_is_a_loss_on_top_and_has_none_on_top() -> None:
    with pytest.raises(ValueError, match="sft cannot be summed"):
        TrainConfig(method="sft", plus={"dpo": 1.0})
    with pytest.raises(ValueError, match="kto cannot be summed"):
        TrainConfig(method="dpo", plus={"kto": 1.0})
    assert TrainConfig(method="dpo", plus={"sft": 1.0}).plus == {"sft": 1.0}


# --- weights a pair -------------------------------------------------------------------------------


def test_wpo_weighs_each_pair_between_nothing_and_one(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trueup.train import losses

    seen: list[Tensor] = []
    real = losses.wpo_weights

    def noted(*args: Sequence[Tensor]) -> Tensor:
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(losses, "wpo_weights", noted)  # to read what is otherwise not told
    project = make_project()
    metrics = project.train(setting("dpo", label_smoothing=0.0, weighting="wpo")).metrics
    weights = torch.cat(seen)
    assert bool((weights > 0).all()) and bool((weights <= 1).all())
    assert float(weights.std()) > 0.01, "they are not all the same"
    num = metrics["num_pairs"]
    first = metrics["history"][0]["loss"]
    assert 0 < first < math.log(2)
    assert len(weights) == num * 4


def test_wpo_is_the_loss_times_the_weight(make_project: MakeProject) -> None:
    project = make_project()
    rows = rows_of(project)
    config = setting("dpo", label_smoothing=0.0, weighting="wpo")
    objective = Preference(config, reference_of(project, rows))
    plain = Preference(config.model_copy(update={"weighting": "none"}), objective.reference)
    with project.champion.acting() as model, torch.no_grad():
        weighed = objective.group_loss(model, rows)[0]
        assert plain.group_loss(model, rows)[0] == pytest.approx(len(rows) * math.log(2), rel=1e-5)
        expected = 0.0
        for row in rows:
            typical = 0.0
            for completion in row.branches.completions:
                ids = torch.tensor([[*row.branches.prompt_ids, *completion]])
                logits = model(ids).logits[0, len(row.branches.prompt_ids) - 1 : -1].double()
                probs = logits.softmax(-1)
                drawn = probs.gather(1, torch.tensor(completion)[:, None])[:, 0].log()
                typical += float((drawn - (probs**2).sum(-1).log()).mean())
            expected += min(1.0, math.exp(typical)) * math.log(2)
    assert float(weighed) == pytest.approx(expected, rel=1e-4)


# --- settings that the data decide ----------------------------------------------------------------


def repeated_labels(num: int, contested: int) -> list[Label]:
    """Two annotators on the same comparisons; of some they think differently."""
    sides = (Completion(text="blue."), Completion(text="um, um, blue"))
    return [
        Label(
            prompt=question("sky", n),
            candidates=sides,
            scores=(1.0, 0.0) if who == "ann" or n >= contested else (0.0, 1.0),
            annotator=who,
            annotator_kind="human",
        )
        for n in range(num)
        for who in ("ann", "bob")
    ]


def compared(labels: list[Label]) -> list[PreferencePair]:
    """A pair of every prompt, as the first of its two annotators has it."""
    return [
        PreferencePair(
            prompt=one.prompt,
            chosen=one.candidates[0],
            rejected=one.candidates[1],
            margin=1.0,
            label_ids=(one.id, other.id),
        )
        for one, other in zip(labels[::2], labels[1::2], strict=True)
    ]


@pytest.mark.parametrize("method", ["dpo", "robust_dpo"])
def test_label_smoothing_auto_is_the_share_that_two_annotators_contradictions_imply(
    make_project: MakeProject, method: Method
) -> None:
    """8 contested of 40: d = 0.2, e = (1 - sqrt(1 - 2 d)) / 2 = 0.1127."""
    labels = repeated_labels(40, 8)
    project = make_project(compared(labels))
    project.store.add_all(labels)
    expected = (1 - math.sqrt(0.6)) / 2
    automatic = project.train(setting(method, epochs=1, label_smoothing="auto")).metrics
    assert automatic["settled"] == {"label_smoothing": pytest.approx(expected, abs=1e-12)}
    by_hand = project.train(setting(method, epochs=1, label_smoothing=expected)).metrics
    assert [step["loss"] for step in automatic["history"]] == [
        step["loss"] for step in by_hand["history"]
    ]
    assert by_hand["settled"] == {}


def test_label_smoothing_auto_without_a_repeated_comparison_is_an_error(
    make_project: MakeProject,
) -> None:
    project = make_project(written_pairs())
    with pytest.raises(ConfigError, match="label_smoothing = 'auto'") as caught:
        project.train(setting("dpo", label_smoothing="auto"))
    error = caught.value
    assert error.got == "label_noise"
    assert "labelled more than once" in error.expected
    assert "to a number" in error.next


def test_alpha_auto_is_the_labels_own_length_preference(make_project: MakeProject) -> None:
    """Pairs of which the longer answer is chosen three times in four."""
    long, short = Completion(text="blue, the sky is blue."), Completion(text="blue.")
    pairs = [
        pair(question("sky", n), *((long, short) if n % 4 else (short, long))) for n in range(24)
    ]
    project = make_project(pairs)
    automatic = project.train(setting("rdpo", epochs=1, alpha="auto")).metrics
    alpha = automatic["settled"]["alpha"]
    assert alpha == automatic["quality"]["length_coefficient"]["rdpo_alpha"]
    assert alpha > 0
    by_hand = project.train(setting("rdpo", epochs=1, alpha=alpha)).metrics
    assert by_hand["last"]["loss"] == automatic["last"]["loss"]


def test_alpha_auto_of_pairs_of_one_length_is_an_error(make_project: MakeProject) -> None:
    pairs = [
        pair(question("sky", n), Completion(text="blue."), Completion(text="grey."))
        for n in range(6)
    ]
    with pytest.raises(ConfigError, match=r"train\.alpha = 'auto'") as caught:
        make_project(pairs).train(setting("rdpo", alpha="auto"))
    assert "pairs of different lengths" in str(caught.value)


# --- single answers -------------------------------------------------------------------------------


def rows_of(project: Project, pairs: Sequence[PreferencePair] | None = None) -> list[Row]:
    some = project.store.all(PreferencePair) if pairs is None else list(pairs)
    return encode(project.champion.backbone, some, max_tokens=2048)[0]


def singles(score: float = 1.0) -> list[Label]:
    """Thumbs: up for a plain answer, down for one that hesitates."""
    return [
        Label(
            prompt=one.prompt,
            candidates=(side,),
            scores=(value,),
            annotator="user",
            annotator_kind="human",
        )
        for one in written_pairs()
        for side, value in ((one.chosen, score), (one.rejected, -score))
    ]


def with_singles(project: Project, labels: list[Label], pairs: Sequence[str] = ()) -> Project:
    project.store.add_all(labels)
    dataset = Dataset(
        pair_ids=tuple(pairs), label_ids=tuple(one.id for one in labels), source="loop"
    )
    project.store.add(dataset)
    return project._replace(dataset=dataset)


def likelihoods(project: Project, config: TrainConfig) -> tuple[float, float]:
    """How much the mean log-prob of chosen and rejected written answers rises by training."""
    rows = rows_of(project, written_pairs())
    checkpoint = project.train(config)
    backbone = project.champion.backbone
    before = mean_logps(project, rows)
    backbone.attach("candidate", project.store.folder / checkpoint.path)
    after = mean_logps(project, rows, "candidate")
    return after[0] - before[0], after[1] - before[1]


def mean_logps(project: Project, rows: list[Row], role: str | None = None) -> tuple[float, float]:
    from trueup.models.logprobs import completion_logprobs

    with project.champion.backbone.acting_as(role) as model, torch.no_grad():
        found = completion_logprobs(model, [row.branches for row in rows])
    chosen, rejected = ([float(row[side].sum()) for row in found] for side in (0, 1))
    return sum(chosen) / len(chosen), sum(rejected) / len(rejected)


def test_sft_raises_the_likelihood_of_chosen_answers(make_project: MakeProject) -> None:
    chosen, _ = likelihoods(make_project(written_pairs()), setting("sft"))
    assert chosen > 0.5


def test_sft_learns_nothing_from_an_answer_nobody_wanted(make_project: MakeProject) -> None:
    labels = singles()
    wanted = [one for one in labels if one.scores[0] > 0]
    histories = [
        with_singles(make_project([], name=name), some).train(setting("sft")).metrics["history"]
        for name, some in (("all", labels), ("wanted", wanted))
    ]
    assert [step["loss"] for step in histories[0]] == [step["loss"] for step in histories[1]]


def test_sft_is_the_mean_over_the_steps_tokens(make_project: MakeProject) -> None:
    project = make_project(written_pairs())
    rows = rows_of(project)
    objective = SFT()
    with project.champion.acting() as model, torch.no_grad():
        summed = sum(
            float(objective.group_loss(model, group)[0])
            for group in split(rows, tokens_per_batch=300)
        )
    tokens = sum(row.lengths[0] for row in rows)
    assert objective.total(rows) == tokens
    slow = -mean_logps(project, rows)[0] * len(rows) / tokens
    assert summed / tokens == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("num_pairs", [0, 1, 3])
@pytest.mark.parametrize("method", ["kto", "sft"])
def test_unpaired_labels_train_beside_pairs(
    make_project: MakeProject, method: Method, num_pairs: int
) -> None:
    project = make_project(written_pairs())
    ids = [one.id for one in written_pairs()[:num_pairs]]
    metrics = with_singles(project, singles(), ids).train(setting(method, epochs=1)).metrics
    num_labels = 16 if method == "kto" else 8  # sft has no use for thumbs down
    assert metrics["num_pairs"] == num_pairs + num_labels
    assert metrics["skipped"] == {}


def test_kto_on_thumbs_raises_what_was_wanted_and_lowers_the_rest(
    make_project: MakeProject,
) -> None:
    project = with_singles(make_project([]), singles())
    chosen, rejected = likelihoods(project, setting("kto", pairs_per_step=8, epochs=6))
    assert chosen > 0 > rejected


def test_kto_on_pairs_raises_what_was_chosen_over_what_was_not(make_project: MakeProject) -> None:
    chosen, rejected = likelihoods(make_project(written_pairs()), setting("kto"))
    assert chosen > rejected and rejected < 0


def test_a_thumb_that_says_nothing_is_skipped_and_counted(make_project: MakeProject) -> None:
    neither = [
        Label.model_validate(one.model_dump() | {"scores": (0.0,), "id": ""})
        for one in singles()[:1]
    ]
    project = with_singles(make_project([]), [*singles(), *neither])
    metrics = project.train(setting("kto", epochs=1)).metrics
    assert metrics["skipped"] == {"neither desirable nor undesirable": 1}


def test_a_pair_loss_has_no_use_for_unpaired_labels(make_project: MakeProject) -> None:
    project = make_project(written_pairs())
    ids = [one.id for one in written_pairs()]
    metrics = with_singles(project, singles(), ids).train(setting("dpo", epochs=1)).metrics
    assert metrics["num_pairs"] == len(ids)


def test_ktos_loss_does_not_depend_on_how_a_step_is_split(make_project: MakeProject) -> None:
    """A policy that has moved, so that its reference point is not 0."""
    project = make_project()
    rows = rows_of(project)
    reference = reference_of(project, rows)
    found = []
    with moved(project) as model:
        parameters = [p for n, p in model.named_parameters() if ".moved." in n]
        for parameter in parameters:
            parameter.requires_grad_(True)
        for tokens in (1, 150, 10**6):
            objective = KTO(setting("kto"), reference)
            objective.prepare(model, rows, tokens)
            total = objective.total(rows)
            loss = 0.0
            for group in split(rows, tokens_per_batch=tokens):
                part = objective.group_loss(model, group)[0] / total
                part.backward()
                loss += float(part.detach())
            found.append((float(objective.kl), loss, [p.grad.clone() for p in parameters]))
            for parameter in parameters:
                parameter.grad = None
    assert found[0][0] > 0.1
    for kl, loss, gradients in found[1:]:
        assert kl == pytest.approx(found[0][0], rel=1e-5)
        assert loss == pytest.approx(found[0][1], rel=1e-5)
        for ours, theirs in zip(gradients, found[0][2], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-7, rtol=1e-5)


def test_ktos_reference_point_pairs_every_answer_with_another_prompt(
    make_project: MakeProject,
) -> None:
    """Against plain forward passes of policy and reference."""
    project = make_project(written_pairs())
    rows = rows_of(project)[:4]
    objective = KTO(setting("kto"), reference_of(project, rows))
    changes = []
    with moved(project) as model:
        objective.prepare(model, rows, 1024)
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
            answer = other.branches.completions[0]
            policy = plain(model, row.branches.prompt_ids, answer)
            with project.champion.acting() as champion:
                changes.append(policy - plain(champion, row.branches.prompt_ids, answer))
    assert float(objective.kl) == pytest.approx(max(0.0, sum(changes) / 4), abs=1e-4)
    assert objective.kl > 0


def test_ktos_reference_point_knows_no_answer_to_its_own_prompt(make_project: MakeProject) -> None:
    """Where a step has one prompt alone there is none, however far the policy has moved."""
    project = make_project(written_pairs())
    rows = rows_of(project)
    same = [rows[0], rows[0]._replace(id="again", completions=rows[0].completions[::-1])]
    objective = KTO(setting("kto"), reference_of(project, [*rows, *same]))
    with moved(project) as model:
        for picked in (rows[:1], same):
            objective.prepare(model, picked, 1024)
            assert float(objective.kl) == 0.0
        objective.prepare(model, [*same, rows[1]], 1024)
        three = float(objective.kl)
        objective.prepare(model, [same[1], rows[1], same[0]], 1024)
    assert three > 0 and float(objective.kl) == pytest.approx(three, rel=1e-5)


def plain(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).double().sum())


def moved(project: Project) -> Any:
    """The network as something that is no longer the champion: every written answer is likelier."""
    policy = project.train(setting("sft"))
    project.champion.backbone.attach("moved", project.store.folder / policy.path)
    return project.champion.backbone.acting_as("moved")
