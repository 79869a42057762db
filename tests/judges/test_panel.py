"""Panels decide as their members do, and the rule of two scorers sees through them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from trueup import ab
from trueup.errors import ConfigError
from trueup.judges import EndpointConfig, members_of, resolve
from trueup.judges.audit import audit
from trueup.judges.base import Ranking
from trueup.judges.config import AuditConfig
from trueup.judges.panel import Panel
from trueup.judges.scripted import ScriptedJudge, running
from trueup.loop import behind
from trueup.records import AnnotatorKind, Completion, Message, Messages
from trueup.store import Store

PROMPT: Messages = (Message(role="user", content="?"),)


class Likes:
    """Scores answers by their place in a list, the best first."""

    kind: AnnotatorKind = "code"
    is_symmetric = True

    def __init__(self, *order: str) -> None:
        self.id, self.order = f"code:likes/{''.join(order)}", order

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        scores = tuple(-100.0 * self.order.index(one.text) for one in candidates)
        return Ranking(scores, tuple(() for _ in candidates))


class First(Likes):
    """Prefers what stands first."""

    is_symmetric = False

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        return Ranking(tuple(-float(n) for n in range(len(candidates))), ())


def texts(*answers: str) -> list[Completion]:
    return [Completion(text=one) for one in answers]


def test_most_members_decide_each_pair() -> None:
    panel = Panel([Likes("a", "b", "c"), Likes("b", "a", "c"), Likes("a", "c", "b")])
    # a over b by 2 to 1, a over c by 3, b over c by 2 to 1
    assert panel.rank(PROMPT, texts("a", "b", "c")).scores == (1, 0.5, 0)
    assert panel.rank(PROMPT, texts("c", "b", "a")).scores == (0, 0.5, 1)


def test_members_who_disagree_make_a_tie() -> None:
    panel = Panel([Likes("a", "b"), Likes("b", "a")])
    assert panel.rank(PROMPT, texts("a", "b")).scores == (0.5, 0.5)


def test_half_of_the_members_are_not_most_of_them() -> None:
    panel = Panel([Likes("a", "b"), First("x"), First("y"), Likes("a", "b", "c")])
    assert panel.rank(PROMPT, texts("a", "b")).scores == (0.5, 0.5), (
        "two say a, two depend on place"
    )
    mean = Panel(panel.members, rule="mean")
    assert mean.rank(PROMPT, texts("a", "b")).scores == (0.75, 0.25)


def test_the_mean_is_of_points_and_not_of_scores_in_units_of_their_own() -> None:
    panel = Panel([Likes("a", "b", "c"), Likes("c", "b", "a"), Likes("b", "a", "c")], rule="mean")
    # a beats b once of three and c twice; b beats both twice of three; c beats a and b once
    assert panel.rank(PROMPT, texts("a", "b", "c")).scores == pytest.approx((1 / 2, 2 / 3, 1 / 3))


def test_members_agreement_is_counted_over_what_was_asked() -> None:
    panel = Panel([Likes("a", "b", "c"), Likes("a", "c", "b")])
    assert panel.agreement() == {"num_pairs": 0, "unanimous_rate": None, "alpha": None}
    panel.rank(PROMPT, texts("a", "b", "c"))
    found = panel.agreement()
    assert found["num_pairs"] == 3 and found["unanimous_rate"] == pytest.approx(2 / 3)


def test_a_panel_needs_two_different_members() -> None:
    with pytest.raises(ConfigError, match="at least two different judges"):
        resolve("panel:house-style")
    with pytest.raises(ConfigError, match="at least two different judges"):
        resolve("panel:house-style,house-style")


def test_the_id_names_all_members_in_any_order_and_is_taken_apart_again() -> None:
    one = resolve("panel:llm:m,house-style")
    assert one.id == resolve("panel:house-style, llm:m").id
    assert one.id != resolve("panel-mean:house-style,llm:m").id
    assert one.kind == "llm"
    first, *rest = members_of(one.id)
    assert first == one.id and sorted(rest) == sorted(m.id for m in one.members)  # type: ignore[attr-defined]
    nested = Panel([one, Likes("a")])
    assert set(members_of(nested.id)) == {nested.id, *members_of(one.id), "code:likes/a"}


@pytest.mark.parametrize("name", ["panel:", "panel:x", "panel:x:y", "panel:x:3", "llm:m/1", ""])
def test_an_id_that_is_no_panels_stands_for_itself(name: str) -> None:
    assert members_of(name) == [name]


def test_a_member_that_labelled_may_not_promote_inside_a_panel_nor_the_other_way(
    tmp_path: Path,
) -> None:
    panel, member = resolve("panel:house-style,llm:m"), resolve("house-style")
    other = resolve("panel:llm:m,llm:n")
    for scorer, labeller in ((panel, member), (member, panel), (panel, other)):
        with pytest.raises(ConfigError, match="a hack would promote itself"):
            ab.check_scorer(scorer, [labeller.id])
    ab.check_scorer(resolve("llm:n"), [panel.id])
    store = Store(tmp_path)
    assert set(behind(store, panel.id)) == set(members_of(panel.id))
    store.close()


def test_a_panel_of_models_is_asked_at_one_endpoint_and_audited_as_one_judge() -> None:
    with running(ScriptedJudge(accuracy=0.95)) as base_url:
        endpoint = EndpointConfig(base_url=base_url)
        panel = resolve("panel:llm:m,llm:n,house-style", endpoint=endpoint)
        found = audit(panel, AuditConfig())
    assert found.verdict.passed, found.verdict.reason
    assert found.details["usage"]["num_requests"] == 240
    assert found.details["members"]["num_pairs"] == 120
    assert found.details["members"]["unanimous_rate"] > 0.8


def test_a_panel_of_judges_that_love_the_first_place_fails_its_audit() -> None:
    with running(ScriptedJudge(accuracy=1, position_bias=1)) as base_url:
        endpoint = EndpointConfig(base_url=base_url)
        found = audit(resolve("panel:llm:m,llm:n,house-style", endpoint=endpoint), AuditConfig())
    held = {one.name: one.status for one in found.checks}
    assert held["swap_consistency"] == held["position_bias"] == "failed"
