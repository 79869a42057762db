"""Audits: figures against scikit-learn, who passes and who does not, and what a failure stops."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from trueup import label
from trueup.errors import ConfigError, DataError
from trueup.judges import EndpointConfig, resolve
from trueup.judges.audit import (
    Decision,
    _position_bias,
    audit,
    audit_file,
    check_audited,
    decide,
    require,
    run,
)
from trueup.judges.base import Ranking
from trueup.judges.checks import among_people, length_control, self_preference, with_people
from trueup.judges.config import AuditConfig
from trueup.judges.llm import LLMJudge
from trueup.judges.people import JudgedByPeople, read_people, read_verdicts
from trueup.judges.questions import Question
from trueup.judges.scripted import ScriptedJudge, _Mind, running
from trueup.judges.traps import NULLS, built_in
from trueup.records import AnnotatorKind, Completion, JudgeAudit, Label, Message, Messages
from trueup.store import Store

DATA = Path(__file__).parents[3] / "shared" / "data"
PANDALM = (DATA / "pandalm-human.jsonl", DATA / "pandalm-gpt35.jsonl")
needs_data = pytest.mark.skipif(not PANDALM[0].is_file(), reason=f"no PandaLM rows in {DATA}")
CONFIG = AuditConfig()


class Known:
    """The key's scores, worked out once a question: audits come by the hundred."""

    id, kind, is_symmetric = "code:known", "code", True
    scores: ClassVar[dict[tuple, Ranking]] = {}

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        key = (prompt, *(one.text for one in candidates))
        if key not in self.scores:
            self.scores[key] = resolve("house-style").rank(prompt, candidates)
        return self.scores[key]


class Scripted:
    """The scripted judge without its server."""

    kind: AnnotatorKind = "llm"
    is_symmetric = False

    def __init__(self, config: ScriptedJudge) -> None:
        self.mind, self.id = _Mind(config), f"llm:scripted/{config.seed}"
        self.mind.key = Known()

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        first, second = (one.text for one in candidates)
        said = self.mind.verdict(Question(prompt, first, second))
        return Ranking({"A": (1, 0), "B": (0, 1), "tie": (0, 0)}[said], ((), ()))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def judged(
    first: str = "a", second: str = "bb", people: tuple = (1, 1, 2), **more: Any
) -> JudgedByPeople:
    return JudgedByPeople(
        "1", (Message(role="user", content="?"),), (first, second), people, **more
    )


def outcomes(found: JudgeAudit) -> dict[str, str]:
    return {one.name: one.status for one in found.checks}


# --- against people -------------------------------------------------------------------------------


@needs_data
def test_figures_on_pandalm_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    human = [json.loads(line) for line in PANDALM[0].read_text().splitlines()]
    machine = [json.loads(line)["gpt_result"] for line in PANDALM[1].read_text().splitlines()]
    votes = np.array([[row[f"annotator{n}"] for n in (1, 2, 3)] for row in human])
    most = np.array([np.bincount(row, minlength=3).argmax() for row in votes])
    judge = np.array([{"1": 1, "2": 2, "Tie": 0}.get(one, -1) for one in machine])

    rows = read_people(PANDALM[0])
    found = audit_file(rows, read_verdicts(PANDALM[1], rows), CONFIG, source="file:x").details
    for pair, (a, b) in zip(found["human_human"]["pairs"], ((0, 1), (0, 2), (1, 2)), strict=True):
        assert pair["annotators"] == [a + 1, b + 1] and pair["num_items"] == 500
        assert_figures(pair, votes[:, a], votes[:, b], metrics)
    readable = judge >= 0
    assert found["judge_human"]["num_items"] == readable.sum() == 478
    assert found["judge_human"]["num_unreadable"] == 22
    assert_figures(found["judge_human"], most[readable], judge[readable], metrics)
    decided = (judge > 0) & (most > 0)
    sides = found["judge_human"]["without_ties"]
    assert_figures(sides, most[decided], judge[decided], metrics)
    assert sides["num_items"] == decided.sum()


def assert_figures(found: dict, first: np.ndarray, second: np.ndarray, metrics: Any) -> None:
    agreement, kappa = found["agreement"], found["kappa"]
    assert agreement["estimate"] == pytest.approx(metrics.accuracy_score(first, second))
    assert kappa["estimate"] == pytest.approx(metrics.cohen_kappa_score(first, second))
    for one in (agreement, kappa):
        assert one["low"] < one["estimate"] < one["high"]


@needs_data
def test_a_judge_that_only_measures_length_agrees_with_people_by_luck_of_length_alone() -> None:
    rows = read_people(PANDALM[0])
    longest = [1 if len(one.answers[0]) > len(one.answers[1]) else 2 for one in rows]
    assert with_people(rows, longest)["without_ties"]["agreement"]["estimate"] > 0.55
    found = length_control(rows, longest)
    assert found["balanced_agreement"]["estimate"] == 0.5
    assert found["judge_prefers_longer"]["estimate"] == 1
    held = outcomes(audit_file(rows, longest, CONFIG, source="file:x"))
    assert held["balanced_agreement"] == held["length_excess"] == "failed"
    assert held["kappa"] == "failed"


def test_what_a_file_cannot_tell_is_unknown_and_refuses_only_where_it_is_required() -> None:
    rows = [judged(people=(n % 2 + 1,) * 3) for n in range(40)]
    said = [n % 2 + 1 for n in range(40)]
    found = audit_file(rows, said, CONFIG, source="file:x")
    held = outcomes(found)
    assert found.verdict.passed and held["kappa"] == "passed"
    assert held["swap_consistency"] == held["self_preference"] == "unknown"
    strict = AuditConfig(required=("swap_consistency",))
    refused = audit_file(rows, said, strict, source="file:x").verdict
    assert refused.status == "refused" and "swap_consistency is unknown" in refused.reason


def test_length_figures_by_hand() -> None:
    # people: longer, longer, longer, shorter, shorter; the judge: longer in all but the last
    people, judge = (2, 2, 2, 1, 1), (2, 2, 2, 2, 1)
    rows = [judged(people=(one,)) for one in people]
    rows += [judged("aa", "bb", (1,)), judged(people=(0,)), judged(people=(1, 2))]
    found = length_control(rows, [*judge, 1, 1, 1])
    assert found["num_items"] == 5, "equal lengths, ties and draws of votes say nothing"
    assert found["judge_prefers_longer"]["estimate"] == 0.8
    assert found["people_prefer_longer"]["estimate"] == 0.6
    assert found["excess"]["estimate"] == pytest.approx(0.2)
    assert found["balanced_agreement"]["estimate"] == pytest.approx((1 + 1 / 2) / 2)


def test_self_preference_is_what_the_judge_gives_beyond_people() -> None:
    own, other = ("me", "you"), ("you", "me")
    rows = [
        judged(people=(2,), models=own),
        judged(people=(0,), models=own),
        judged(people=(2,), models=other),
        judged(people=(1,), models=("you", "they")),
        judged(people=(1,)),
    ]
    found, num = self_preference(rows, [1, 1, 2, 1, 1], "me")
    assert num == 3
    assert found and found.estimate == pytest.approx((1 + 0.5 + 0) / 3)
    assert self_preference(rows, [1] * 5, "nobody") == (None, 0)


def test_a_judge_that_likes_its_own_answers_fails() -> None:
    rows = [judged(people=(n % 2 + 1,), models=("me", "you")) for n in range(60)]
    fair = [n % 2 + 1 for n in range(60)]
    vain = [1 if n % 4 else side for n, side in enumerate(fair)]
    for said, outcome in ((fair, "passed"), (vain, "failed")):
        found = audit_file(rows, said, CONFIG, source="file:x", own_model="me")
        assert outcomes(found)["self_preference"] == outcome


def test_people_who_left_rows_out_are_compared_on_the_others() -> None:
    rows = [judged(people=(1, 1, None)), judged(people=(2, 2, 2)), judged(people=(1, 2, None))]
    found = among_people(rows)
    assert [one["num_items"] for one in found["pairs"]] == [3, 1, 1]
    assert found["mean_kappa"] is None, "one pair's is unknown"


# --- files ----------------------------------------------------------------------------------------


def written(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_the_plain_layout_is_read(tmp_path: Path) -> None:
    row = {"id": 7, "prompt": "Why?", "answers": ["So.", "No."], "people": [1, None, 2, 1]}
    short = {"id": "8", "prompt": [{"role": "user", "content": "?"}], "answers": ["", "x"]}
    path = written(tmp_path / "h.jsonl", row, short | {"people": [0], "models": ["a", "b"]})
    first, second = read_people(path)
    assert first.prompt[0].content == "Why?" and first.people == (1, None, 2, 1)
    assert first.majority == 1 and first.models is None
    assert second.people == (0, None, None, None) and second.models == ("a", "b")
    said = written(tmp_path / "v.jsonl", {"id": "8", "verdict": "Tie"}, {"id": 7, "verdict": "?"})
    assert read_verdicts(said, [first, second]) == [None, 0]
    # a column with gaps, as a data frame writes it
    said = written(tmp_path / "w.jsonl", {"id": 7, "verdict": 1.0}, {"id": 8, "verdict": None})
    assert read_verdicts(said, [first, second]) == [1, None]


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    row = {"id": 7, "prompt": "Why?", "answers": ["So.", "No."], "people": [1]}
    with pytest.raises(DataError, match="rows of the same id"):
        read_people(written(tmp_path / "h.jsonl", row, row | {"prompt": "Why not?"}))


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1},
        {"id": 1, "prompt": "?", "answers": ["a"], "people": [1]},
        {"id": 1, "prompt": "?", "answers": ["a", None], "people": [1]},
        {"id": 1, "prompt": "?", "answers": ["a", "b"], "people": [3]},
        {"id": 1, "prompt": {"x": 1}, "answers": ["a", "b"], "people": [1]},
        {"prompt": "?", "answers": ["a", "b"], "people": [1]},
        {"idx": 1, "response1": "a", "response2": "b", "annotator1": 1},
        [1],
    ],
)
def test_a_row_of_no_layout_is_named_by_its_line(tmp_path: Path, row: object) -> None:
    good = {"id": 1, "prompt": "?", "answers": ["a", "b"], "people": [1]}
    with pytest.raises(DataError, match=r"h\.jsonl, line 2"):
        read_people(written(tmp_path / "h.jsonl", good, row))


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    rows = [judged()]
    with pytest.raises(DataError, match="verdicts on none of the rows"):
        read_verdicts(written(tmp_path / "v.jsonl", {"id": "x", "verdict": 1}), rows)
    with pytest.raises(DataError, match="line 1: a row without a verdict"):
        read_verdicts(written(tmp_path / "v.jsonl", {"id": "1"}), rows)
    with pytest.raises(DataError, match="cannot be read"):
        read_people(tmp_path / "nowhere.jsonl")


# --- who passes -----------------------------------------------------------------------------------


def test_the_built_in_questions_have_their_better_answer_first() -> None:
    traps = built_in()
    assert len(traps) == 60 and {t.kind for t in traps} == {"known", "null", "longest"}
    assert len({t.question for t in traps}) == 60
    assert {t.question.second for t in traps if t.kind == "null"} == set(NULLS)
    assert all(d.verdict == 1 for d in decide(resolve("house-style"), [t.question for t in traps]))


@pytest.mark.parametrize(
    ("faults", "share_that_passes"),
    [
        ({"accuracy": 0.95}, (0.99, 1)),
        ({"accuracy": 0.9}, (0.95, 1)),
        ({"accuracy": 0.9, "position_bias": 0.4}, (0, 0.01)),
        ({"accuracy": 0.9, "length_bias": 0.6}, (0, 0.05)),
        ({"accuracy": 0.7}, (0, 0.1)),
        ({"accuracy": 0.5}, (0, 0)),
    ],
    ids=str,
)
def test_a_judge_passes_or_fails_by_what_it_is_and_not_by_its_seed(
    faults: dict[str, float], share_that_passes: tuple[float, float]
) -> None:
    num = 60
    found = [audit(Scripted(ScriptedJudge(**faults, seed=n)), CONFIG) for n in range(num)]
    share = sum(one.verdict.passed for one in found) / num
    assert share_that_passes[0] <= share <= share_that_passes[1], share


@pytest.mark.parametrize(
    ("faults", "failed"),
    [
        ({"position_bias": 1.0}, {"swap_consistency", "position_bias", "known_accuracy"}),
        ({"length_bias": 1.0}, {"longest_answer"}),
        ({"accuracy": 0.0}, {"known_accuracy", "null_answer", "longest_answer"}),
    ],
)
def test_a_fault_shows_in_the_checks_that_look_for_it(
    faults: dict[str, float], failed: set[str]
) -> None:
    found = audit(Scripted(ScriptedJudge(**{"accuracy": 1.0, **faults})), CONFIG)
    held = outcomes(found)
    assert failed <= {name for name, status in held.items() if status == "failed"}
    assert found.verdict.status == "refused" and found.details["wrong"]


def test_position_bias_has_the_sign_of_the_place_and_its_known_size() -> None:
    found = audit(Scripted(ScriptedJudge(accuracy=1, position_bias=0.5, seed=2)), CONFIG)
    (bias,) = [one for one in found.checks if one.name == "position_bias"]
    # half say A blindly, the other half are right, in either place
    assert bias.low is not None and bias.high is not None and bias.low < 0.5 < bias.high


def test_a_judge_whose_verdicts_cannot_be_read_fails() -> None:
    with running(ScriptedJudge(accuracy=1, malformed_rate=1)) as base_url:
        judge = LLMJudge(EndpointConfig(base_url=base_url, max_retries=0))
        found = audit(judge, CONFIG)
    assert outcomes(found)["unreadable"] == "failed"
    assert outcomes(found)["known_accuracy"] == "unknown"
    assert not found.verdict.passed


@pytest.mark.parametrize(("form", "num_requests"), [("pairwise", 120), ("pointwise", 80)])
def test_an_audit_over_the_wire_costs_what_it_says(form: str, num_requests: int) -> None:
    with running(ScriptedJudge(accuracy=1)) as base_url:
        judge = LLMJudge(EndpointConfig.model_validate({"base_url": base_url, "form": form}))
        found = audit(judge, CONFIG)
    assert found.verdict.passed, found.verdict.reason
    assert found.details["usage"]["num_requests"] == num_requests
    assert found.details["usage"]["input_tokens"] > 1000


def test_rows_are_asked_in_both_orders_and_compared_with_people() -> None:
    rows = [
        judged(t.question.second, t.question.first, (2, 2, 1))._replace(prompt=t.question.prompt)
        for t in built_in()[:30]
    ]
    rows += [r._replace(answers=r.answers[::-1], people=(1, 1, 2)) for r in rows]
    found = audit(Scripted(ScriptedJudge(accuracy=1)), CONFIG, rows, source="file:x")
    assert found.details["judge_human"]["agreement"]["estimate"] == 1
    assert found.details["swap_consistency_of_rows"]["num_items"] == 60
    assert "kappa" in found.details["required"]
    assert found.verdict.passed, found.verdict.reason


# --- what a failure stops -------------------------------------------------------------------------


def test_a_judge_that_fails_may_not_label_and_one_that_passes_is_asked_once(store: Store) -> None:
    bad = Scripted(ScriptedJudge(accuracy=1, position_bias=0.8))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"failed its audit.*position_bias"):
            require(store, bad, CONFIG)
    assert store.count(JudgeAudit, judge=bad.id) == 1, "it is not asked again"
    good = Scripted(ScriptedJudge(accuracy=1, seed=1))
    require(store, good, CONFIG)
    require(store, good, CONFIG)
    assert store.count(JudgeAudit, judge=good.id) == 1


def test_the_newest_audit_counts_also_where_it_finds_what_was_found_before(store: Store) -> None:
    good, bad = (Scripted(ScriptedJudge(1, bias)) for bias in (0.0, 1.0))
    assert good.id == bad.id, "the model behind the name changed"
    for judge, passes in ((good, True), (bad, False), (good, True)):
        found = run(store, judge, CONFIG)
        assert found.verdict.passed == passes
        assert store.last(JudgeAudit, judge=judge.id) == found
    assert store.count(JudgeAudit) == 3


def test_figures_are_held_against_the_lines_of_today(store: Store) -> None:
    judge = Scripted(ScriptedJudge(accuracy=0.9))
    require(store, judge, CONFIG)
    with pytest.raises(ConfigError, match="swap_consistency"):
        require(store, judge, AuditConfig(min_swap_consistency=0.99))
    with pytest.raises(ConfigError, match="kappa is unknown and required"):
        require(store, judge, AuditConfig(required=("kappa",)))
    assert store.count(JudgeAudit) == 1


def test_code_is_not_audited_unless_somebody_did(store: Store) -> None:
    judge = resolve("house-style")
    require(store, judge, CONFIG)
    require(store, resolve("http://127.0.0.1:9/score"), CONFIG)
    require(store, Scripted(ScriptedJudge(0.0)), AuditConfig(before_labels=False))
    assert store.count(JudgeAudit) == 0
    run(store, judge, AuditConfig(min_swap_consistency=1.0))
    require(store, judge, CONFIG)


def test_label_stops_before_it_writes_and_keeps_no_label_of_a_biased_judge(
    store: Store, tmp_path: Path
) -> None:
    from trueup.models.backbone import Backbone
    from trueup.models.stored import StoredModel
    from trueup.models.tiny import save_tiny
    from trueup.records import Flag, Interaction

    champion = StoredModel.serving(
        store, Backbone.load(save_tiny(tmp_path / "m", seed=0, hidden_size=32))
    )
    asked = Interaction(
        prompt=(Message(role="user", content="When?"),),
        completion=Completion(text="At nine."),
        source="gateway",
    )
    store.add(asked, Flag(interaction_id=asked.id, flagger="f/1", score=1.0, raised=True))
    settings = {"judge": "llm", "num_candidates": 2, "max_tokens": 4}
    with running(ScriptedJudge(accuracy=0.9, position_bias=0.6)) as base_url:
        endpoint = EndpointConfig(base_url=base_url)
        config = label.LabelConfig.model_validate(settings | {"endpoint": endpoint})
        with pytest.raises(ConfigError, match="may not label"):
            label.run(store, config, champion)
    assert store.count(Label) == 0 and store.count(JudgeAudit) == 1
    with running(ScriptedJudge(accuracy=0.9)) as base_url:
        endpoint = EndpointConfig(base_url=base_url, model="another")
        config = label.LabelConfig.model_validate(settings | {"endpoint": endpoint})
        assert len(label.run(store, config, champion)) == 1


# --- the command ----------------------------------------------------------------------------------


def command(*words: str) -> subprocess.CompletedProcess[str]:
    done = [sys.executable, "-m", "trueup", *words]
    return subprocess.run(done, capture_output=True, text=True)


@needs_data
def test_the_command_compares_two_files_anywhere_and_says_by_its_exit_code_who_failed(
    tmp_path: Path,
) -> None:
    files = ("--human", str(PANDALM[0]), "--limit", "100")
    done = command(
        "-p", str(tmp_path), "judge", "audit", *files, "--verdicts", str(PANDALM[1]), "--json"
    )
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["verdict"]["status"] == "passed"
    assert told["human_human"]["mean_kappa"] > told["judge_human"]["kappa"]["estimate"] > 0.4
    first = written(tmp_path / "first.jsonl", *({"id": n, "verdict": 1} for n in range(100)))
    done = command("-p", str(tmp_path), "judge", "audit", *files, "--verdicts", str(first))
    assert done.returncode == 3 and "REFUSED by audit: kappa" in done.stdout
    assert list(tmp_path.iterdir()) == [first], "nothing is written"


def test_the_command_asks_the_judge_of_the_project_and_shows_what_that_cost(tmp_path: Path) -> None:
    with running(ScriptedJudge(accuracy=0.9)) as base_url:
        settings = f'[label]\njudge = "llm"\n[label.endpoint]\nbase_url = "{base_url}"\n'
        (tmp_path / "trueup.toml").write_text(settings)
        done = command("-p", str(tmp_path), "judge", "audit", "--json")
        again = command("-p", str(tmp_path), "judge", "audit")
    assert done.returncode == again.returncode == 0
    assert "120 judge requests" in done.stderr and "0 judge requests" in again.stderr
    assert json.loads(done.stdout)["usage"]["num_requests"] == 120
    store = Store(tmp_path / ".trueup")
    assert store.count(JudgeAudit) == 2
    store.close()


@pytest.mark.slow
def test_smollm2_is_rejected_as_a_judge() -> None:
    """Through the project's own gateway; about a quarter of an hour on two CPU cores."""
    import tempfile
    import threading
    import time

    from trueup import Project
    from trueup.errors import ModelError
    from trueup.gateway.app import create_app
    from trueup.gateway.serve import listen, make_server
    from trueup.models.engine import Engine

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "trueup.toml").write_text('[model]\nbase = "smollm2-135m-instruct-q4"\n')
        project = Project(folder, ("serve.port=0",))
        try:
            engine = Engine(project.backbone, project.store)
        except ModelError as error:
            pytest.skip(str(error))
        serve = project.config.serve
        server = make_server(create_app(project.store, serve, project.config.capture, engine))
        with listen(serve) as listening:
            sockets = {"sockets": [listening]}
            thread = threading.Thread(target=server.run, kwargs=sockets, daemon=True)
            thread.start()
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            endpoint = EndpointConfig(
                base_url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1",
                model="champion",
                timeout_s=600,
                max_tokens=16,
                max_retries=0,
            )
            try:
                found = run(project.store, LLMJudge(endpoint), CONFIG)
            finally:
                server.should_exit = True
                thread.join(60)
                engine.close()
        project.store.close()
    assert found.verdict.status == "refused", found.verdict.figures


def test_a_judge_that_people_found_unfit_is_not_cleared_by_the_built_in_questions(
    store: Store,
) -> None:
    judge = Scripted(ScriptedJudge(accuracy=1.0))
    people = [judged("a", "bb", (2, 2, 2) if i % 2 else (1, 1, 1)) for i in range(40)]
    assert not run(store, judge, CONFIG, people, source="file:rows.jsonl").verdict.passed
    assert run(store, judge, CONFIG).verdict.passed
    with pytest.raises(ConfigError, match="may not label"):
        require(store, judge, CONFIG)
    with pytest.raises(ConfigError, match="may not decide"):
        check_audited(store, judge)


def test_a_judge_that_was_never_audited_may_decide(store: Store) -> None:
    check_audited(store, Scripted(ScriptedJudge(accuracy=0.0)))


def test_two_rows_of_people_say_nothing() -> None:
    judge = Scripted(ScriptedJudge(accuracy=1.0))
    found = audit(judge, CONFIG, [judged("a", "bb", (1, 1, 1)), judged("bb", "a", (2, 2, 2))])
    assert outcomes(found)["kappa"] == "unknown" and not found.verdict.passed


def test_three_readable_verdicts_leave_an_interval_within_its_range() -> None:
    found = _position_bias([Decision(1, 1), Decision(1, 2), Decision(2, 1)])
    assert found.value == pytest.approx(0) and found.low is not None and found.high is not None
    assert -1 <= found.low < -0.5 and 0.5 < found.high <= 1
    same = _position_bias([Decision(1, 1)] * 40)
    assert same.value == pytest.approx(0) and same.high is not None and 0 < same.high < 0.2
