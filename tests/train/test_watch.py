"""What is measured between steps, against direct computations, and what ends a run early."""

import math
import random
from typing import Any

import pytest
import torch
from tiny_project import CONFIG, MakeProject, Project, pair, question, reference_of, written_pairs
from torch import Tensor

from trueup.errors import TrainingError
from trueup.models import chat
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.sampler import SampleRequest, sample
from trueup.records import Checkpoint, Completion, Label, PreferencePair, Sampling, content_hash
from trueup.train import TrainConfig
from trueup.train.config import Method
from trueup.train.data import Row, encode, held_out
from trueup.train.objectives import Preference
from trueup.train.reference import NoReference
from trueup.train.watch import Watch

WATCHED = CONFIG.model_copy(
    update={"eval_share": 0.4, "eval_every_steps": 3, "eval_answers": 3, "epochs": 2}
)


def rows_of(project: Project) -> list[Row]:
    return encode(
        project.champion.backbone, project.store.all(PreferencePair), max_tokens=CONFIG.max_tokens
    )[0]


# --- who is held out ------------------------------------------------------------------------------


def many(num: int) -> list[PreferencePair]:
    good, bad = Completion(text="blue."), Completion(text="um")
    return [pair(question(f"sky {n}"), good, bad) for n in range(num)]


def test_a_prompt_is_held_out_by_its_hash_whatever_else_is_there(make_project: MakeProject) -> None:
    backbone = make_project([]).champion.backbone
    rows, _ = encode(backbone, many(300), max_tokens=2048)
    _, held = held_out(rows, 0.2)
    ids = {row.id for row in held}
    assert 0.12 < len(held) / 300 < 0.28
    dice = random.Random(3)
    for _ in range(20):
        some = dice.sample(rows, dice.randrange(1, 300))
        train, measured = held_out(some, 0.2)
        assert {row.id for row in measured} == ids & {row.id for row in some}
        assert [row for row in some if row not in measured] == train, "the order stays"


def test_a_larger_share_holds_out_the_same_prompts_and_more(make_project: MakeProject) -> None:
    rows, _ = encode(make_project([]).champion.backbone, many(200), max_tokens=2048)
    before: set[str] = set()
    for share in (0.0, 0.05, 0.3, 0.7, 0.99):
        ids = {row.id for row in held_out(rows, share)[1]}
        assert before <= ids
        before = ids
    assert held_out(rows, 0.0)[1] == []


def test_a_prompts_pairs_and_labels_are_on_one_side(make_project: MakeProject) -> None:
    """Pairs that say their prompt's hash, pairs that do not, and single answers."""
    from trueup.train.data import encode_single

    backbone = make_project([]).champion.backbone
    pairs, labels = [], []
    for n, one in enumerate(many(40)):
        said = content_hash([m.model_dump() for m in one.prompt])
        other = one.model_dump() | {"id": "", "prompt_hash": said, "margin": 2.0}
        pairs += [one, PreferencePair.model_validate(other)]
        labels.append(
            Label(
                prompt=one.prompt,
                candidates=(Completion(text=f"blue {n}"),),
                scores=(1.0,),
                annotator="ann",
                annotator_kind="human",
            )
        )
    rows = encode(backbone, pairs, max_tokens=2048)[0]
    rows += encode_single(backbone, labels, max_tokens=2048)[0]
    assert len(rows) == 120
    train, held = held_out(rows, 0.3)
    assert train and held
    prompts = [{tuple(row.branches.prompt_ids) for row in side} for side in (train, held)]
    assert not prompts[0] & prompts[1]


def test_a_run_measures_on_the_prompts_it_does_not_train_on(make_project: MakeProject) -> None:
    project = make_project()
    metrics = project.train(WATCHED).metrics
    train, held = held_out(rows_of(project), 0.4)
    assert (metrics["num_pairs"], metrics["num_held_out"]) == (len(train), len(held))
    assert held and train
    steps = metrics["history"]
    measured = [step["step"] for step in steps if "held_out_loss" in step]
    assert measured == [n for n in range(1, len(steps) + 1) if n % 3 == 0 or n == len(steps)]


def test_without_a_share_nothing_is_measured(make_project: MakeProject) -> None:
    metrics = make_project().train(CONFIG).metrics
    assert metrics["num_held_out"] == 0 and metrics["stopped"] is None
    assert not [k for step in metrics["history"] for k in step if k.startswith(("held", "answer"))]


# --- what is measured -----------------------------------------------------------------------------


def plain_logps(model: Any, row: Row) -> Tensor:
    """Summed log-probs of a row's completions, each in a plain forward pass of its own."""
    sums = []
    for ids in row.branches.completions:
        with torch.no_grad():
            logits = model(torch.tensor([[*row.branches.prompt_ids, *ids]])).logits[0]
        logprobs = logits[len(row.branches.prompt_ids) - 1 : -1].log_softmax(-1)
        sums.append(logprobs.gather(1, torch.tensor(ids)[:, None]).sum())
    return torch.stack(sums)


def test_the_last_held_out_figures_are_those_of_the_finished_policy(
    make_project: MakeProject,
) -> None:
    """Computed again from the checkpoint on disk, pair by pair."""
    project = make_project()
    config = WATCHED.model_copy(update={"beta": 0.3})
    checkpoint = project.train(config)
    last = checkpoint.metrics["last"]
    backbone = project.champion.backbone
    backbone.attach("finished", project.store.folder / checkpoint.path)
    held = held_out(rows_of(project), 0.4)[1]
    with backbone.acting_as("finished") as model:
        ours = torch.stack([plain_logps(model, row) for row in held])
    with project.champion.acting() as model:
        theirs = torch.stack([plain_logps(model, row) for row in held])
    change = ours - theirs
    margins = change[:, 0] - change[:, 1]
    lengths = torch.tensor([row.lengths[0] for row in held])
    expected = {
        "loss": -torch.nn.functional.logsigmoid(0.3 * margins).mean(),
        "margin": 0.3 * margins.mean(),
        "accuracy": (margins > 0).float().mean(),
        "chosen_logps_change": change[:, 0].mean(),
        "rejected_logps_change": change[:, 1].mean(),
        "chosen_logps_change_per_token": (change[:, 0] / lengths).mean(),
    }
    for name, value in expected.items():
        assert last[f"held_out_{name}"] == pytest.approx(float(value), abs=1e-4), name


def test_the_figures_of_answers_are_those_of_the_finished_policy(make_project: MakeProject) -> None:
    project = make_project()
    checkpoint = project.train(WATCHED)
    last = checkpoint.metrics["last"]
    backbone = project.champion.backbone
    backbone.attach("finished", project.store.folder / checkpoint.path)
    held = held_out(rows_of(project), 0.4)[1]
    asked = list({row.prompt_hash: row for row in held}.values())[: WATCHED.eval_answers]
    requests = [
        SampleRequest(row.branches.prompt_ids, Sampling(max_tokens=128, seed=0)) for row in asked
    ]
    with backbone.acting_as("finished") as model:
        drawn = [d[0] for d in sample(model, requests, eos_ids=chat.eos_ids(backbone.tokenizer))]
    rows = [
        Branches(row.branches.prompt_ids, [one.token_ids])
        for row, one in zip(asked, drawn, strict=True)
    ]
    with torch.no_grad(), project.champion.acting() as model:
        refs = [row[0] for row in completion_logprobs(model, rows)]
    kl = [
        float(((ref - torch.tensor(d.logprobs)).expm1() - (ref - torch.tensor(d.logprobs))).sum())
        for ref, d in zip(refs, drawn, strict=True)
    ]
    tokens = [len(d.token_ids) for d in drawn]
    assert last["answer_tokens"] == sum(tokens) / len(tokens)
    surprise = -sum(sum(d.logprobs) for d in drawn) / sum(tokens)
    assert last["answer_entropy"] == pytest.approx(surprise, abs=1e-5)
    assert last["answer_kl"] == pytest.approx(sum(kl) / len(kl), abs=1e-4)


def watch_of(project: Project, reference: Any, **settings: Any) -> Watch:
    config = WATCHED.model_copy(update=settings)
    return Watch(
        project.champion.backbone,
        rows_of(project),
        Preference(config, reference),
        reference,
        config,
        tokens_per_batch=512,
    )


def test_answers_are_no_way_from_the_reference_where_the_policy_is_the_reference(
    make_project: MakeProject,
) -> None:
    project = make_project()
    watch = watch_of(project, reference_of(project, rows_of(project)))
    with project.champion.acting() as model:
        measured = watch.measure(model)
        assert watch.measure(model) == measured, "the same rows, the same randomness"
    assert measured["answer_kl"] == pytest.approx(0.0, abs=1e-6)
    assert measured["held_out_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert measured["held_out_chosen_logps_change_per_token"] == pytest.approx(0.0, abs=1e-5)
    assert watch.stop(measured) is None


def test_answers_move_away_from_the_reference_in_training(make_project: MakeProject) -> None:
    metrics = make_project().train(WATCHED.model_copy(update={"learning_rate": 1e-2})).metrics
    kl = [step["answer_kl"] for step in metrics["history"] if "answer_kl" in step]
    assert min(kl) >= 0, "k3 is never negative"
    assert kl[-1] > 0.05


def test_k3_estimates_the_true_divergence_without_bias(make_project: MakeProject) -> None:
    """One token, whose divergence can be summed over the whole vocabulary."""
    project = make_project(written_pairs())
    backbone = project.champion.backbone
    backbone.new_adapter("away", rank=4, alpha=8.0, targets=["all-linear"], seed=3)
    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if ".away." in name and "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=noise))
    row = rows_of(project)[0]
    ids = torch.tensor([list(row.branches.prompt_ids)])
    with torch.no_grad():
        with backbone.acting_as("away") as model:
            policy = model(ids).logits[0, -1].log_softmax(-1)
        with backbone.acting_as(None) as model:
            ref = model(ids).logits[0, -1].log_softmax(-1)
    true = float((policy.exp() * (policy - ref)).sum())
    assert true > 0.01
    watch = watch_of(project, reference_of(project, rows_of(project)))
    watch._asked = [row._replace(id=f"{row.id} {n}") for n in range(1500)]
    picked = torch.multinomial(policy.exp(), 1500, replacement=True, generator=noise)
    from trueup.models.sampler import Drawn

    drawn = [Drawn([t], [float(policy[t])], "length") for t in picked.tolist()]
    terms = torch.tensor(watch._kl(drawn, watch.reference))
    error = float(terms.std()) / 1500**0.5
    assert float(terms.mean()) == pytest.approx(true, abs=4 * error)


def test_measuring_changes_nothing_about_the_training(make_project: MakeProject) -> None:
    """Often, seldom, with answers or without: the same weights, bit for bit."""
    found = {
        make_project(name=name)
        .train(WATCHED.model_copy(update={"eval_every_steps": every, "eval_answers": answers}))
        .weights
        for name, every, answers in (("a", 1, 4), ("b", 100, 0), ("c", 3, 1))
    }
    assert len(found) == 1


def test_a_prompt_that_leaves_no_room_for_an_answer_is_not_asked(make_project: MakeProject) -> None:
    project = make_project([pair(question("sky", 900), *sides()), pair(question("sky"), *sides())])
    watch = watch_of(project, reference_of(project, rows_of(project)))
    assert project.champion.backbone.context == 1024
    assert [len(row.branches.prompt_ids) < 100 for row in watch._asked] == [True]
    assert len(watch.rows) == 2, "its pair is measured all the same"


def sides() -> tuple[Completion, Completion]:
    return Completion(text="blue."), Completion(text="um blue.")


# --- what ends a run ------------------------------------------------------------------------------

FAST = WATCHED.model_copy(update={"learning_rate": 2e-2, "epochs": 4})


@pytest.mark.parametrize(
    ("line", "at", "says"),
    [
        ("max_kl", 1e-6, "nats from the reference, over train.max_kl = 1e-06"),
        ("max_chosen_drop", 0.02, "nats a token, over train.max_chosen_drop = 0.02"),
    ],
)
def test_a_line_that_is_crossed_ends_the_run_and_is_named(
    make_project: MakeProject, line: str, at: float, says: str
) -> None:
    project = make_project()
    whole = project.train(FAST).metrics
    stopped = project.train(FAST.model_copy(update={line: at})).metrics
    assert says in stopped["stopped"]
    assert len(stopped["history"]) < len(whole["history"])
    crossing = stopped["history"][-1]
    if line == "max_kl":
        assert crossing["answer_kl"] > at
    else:
        assert -crossing["held_out_chosen_logps_change_per_token"] > at
    keys = crossing.keys() - {"seconds"}
    at_step = whole["history"][len(stopped["history"]) - 1]
    assert {k: crossing[k] for k in keys} == {k: at_step[k] for k in keys}, "until then the same"


def test_a_line_far_away_stops_nothing(make_project: MakeProject) -> None:
    project = make_project()
    lines = {"max_kl": 1e6, "max_chosen_drop": 1e6}
    metrics = project.train(FAST.model_copy(update=lines)).metrics
    assert metrics["stopped"] is None
    assert metrics["history"][-1]["step"] == len(metrics["history"])


def test_a_stopped_run_is_a_checkpoint_like_any_other(make_project: MakeProject) -> None:
    """Its weights are those of the step it stopped at, and again returns it."""
    project = make_project()
    config = FAST.model_copy(update={"max_kl": 1e-6})
    checkpoint = project.train(config)
    assert project.train(config) == checkpoint
    assert project.store.count(Checkpoint) == 1
    assert list((project.store.folder / "runs").iterdir()) == []


def test_pair_accuracy_never_stops_anything(make_project: MakeProject) -> None:
    project = make_project()
    lines = {"max_kl": 5.0, "max_chosen_drop": 0.5}
    watch = watch_of(project, reference_of(project, rows_of(project)), **lines)
    good = {"held_out_chosen_logps_change_per_token": -0.1, "answer_kl": 1.0}
    for accuracy in (0.0, 0.5, 1.0):
        for loss in (0.0, 100.0):
            said = good | {"held_out_accuracy": accuracy, "held_out_loss": loss, "accuracy": 0.0}
            assert watch.stop(said) is None
    assert "max_chosen_drop" in str(watch.stop(good | {next(iter(good)): -0.6}))
    assert watch.stop(good | {next(iter(good)): +0.6}) is None, "a rise is no drop"
    assert "max_kl" in str(watch.stop(good | {"answer_kl": 5.1}))


@pytest.mark.parametrize("method", ["simpo", "orpo", "sft", "kto", "dpo"])
def test_every_method_measures_its_way_from_where_it_started(
    make_project: MakeProject, method: Method
) -> None:
    """Also one without a reference: before it has moved, nothing is lost and nothing stops it."""
    project = make_project()
    config = TrainConfig.model_validate(
        WATCHED.model_dump()
        | {"method": method, "learning_rate": 1e-9, "epochs": 1}
        | {"max_chosen_drop": 0.01, "max_kl": 0.01}
    )
    metrics = project.train(config).metrics
    assert metrics["stopped"] is None
    last = metrics["last"]
    assert last["held_out_chosen_logps_change_per_token"] == pytest.approx(0.0, abs=1e-4)
    assert last["answer_kl"] == pytest.approx(0.0, abs=1e-4)


def test_a_reference_that_moves_hides_no_drop(make_project: MakeProject) -> None:
    """An average right behind the policy is never far from it; the start is."""
    config = FAST.model_copy(
        update={"reference": "ema", "ema_decay": 1e-6, "max_chosen_drop": 0.02, "epochs": 12}
    )
    metrics = make_project().train(config).metrics
    assert "max_chosen_drop" in metrics["stopped"]
    assert abs(metrics["last"]["held_out_chosen_logps_change"]) < 0.01, "from the average"


def test_what_a_champion_lost_in_earlier_turns_is_not_counted_again(
    make_project: MakeProject,
) -> None:
    """Held to the base, a champion that has moved starts away from its reference."""
    from trueup.models.stored import StoredModel
    from trueup.records import Release

    project = make_project()
    first = project.train(FAST)
    assert first.metrics["last"]["held_out_chosen_logps_change_per_token"] < -0.05
    project.store.release(Release(action="promote", weights=first.weights, checkpoint_id=first.id))
    champion = StoredModel.serving(project.store, project.champion.backbone)
    config = WATCHED.model_copy(
        update={"reference": "base", "learning_rate": 1e-9, "max_chosen_drop": 0.01}
    )
    metrics = project._replace(champion=champion).train(config).metrics
    assert metrics["stopped"] is None
    last = metrics["last"]
    assert last["held_out_chosen_logps_change_per_token"] == pytest.approx(0.0, abs=1e-4)
    assert last["held_out_chosen_logps_change"] < -0.05, "from the base it has moved"


@pytest.mark.parametrize("line", ["max_kl", "max_chosen_drop"])
def test_a_line_without_held_out_prompts_is_an_error_before_training(
    make_project: MakeProject, line: str
) -> None:
    with pytest.raises(TrainingError, match=f"train.{line} could not stop anything") as caught:
        make_project(written_pairs()).train(CONFIG.model_copy(update={line: 1.0}))
    assert caught.value.got == "train.eval_share = 0"
    assert "raise train.eval_share" in caught.value.next


def test_a_line_on_answers_needs_answers() -> None:
    with pytest.raises(ValueError, match="eval_answers"):
        TrainConfig(max_kl=1.0, eval_answers=0, eval_share=0.1)


def test_prompts_that_are_all_held_out_leave_nothing_to_train_on(make_project: MakeProject) -> None:
    project = make_project(written_pairs())
    with pytest.raises(TrainingError, match="Every prompt is held out") as caught:
        project.train(CONFIG.model_copy(update={"eval_share": 0.999}))
    assert "8 usable records" in str(caught.value.got)
    assert "lower train.eval_share" in caught.value.next


def test_without_a_reference_no_divergence_is_claimed(make_project: MakeProject) -> None:
    project = make_project()
    watch = watch_of(project, NoReference(), method="simpo")
    with project.champion.acting() as model:
        measured = watch.measure(model)
    assert "answer_kl" not in measured and "answer_entropy" in measured
