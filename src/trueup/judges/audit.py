"""Is a judge fit to label? Asked before it does, written down, and held against it.

An audit puts a judge to sixty built-in questions whose answers are known (`traps`), and, where
there is a file of people's verdicts, to those rows as well. Each check has a figure, a line from
the settings, and an outcome. The promise: a judge whose newest audit failed writes no label, and a
language model that was never audited is audited before its first one.

The outcome goes by the figure and not by its interval, because the built-in audit is short: the
lines lie about three standard errors from a judge without bias that is right nine times in ten.
What is unknown fails where it is required, and elsewhere is shown.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from trueup import stats
from trueup.errors import ConfigError, UnreadableVerdict
from trueup.judges import checks
from trueup.judges.base import Judge, Side
from trueup.judges.config import AuditConfig, CheckName
from trueup.judges.people import JudgedByPeople
from trueup.judges.questions import Question
from trueup.judges.traps import Trap, built_in
from trueup.judges.usage import counted
from trueup.progress import task
from trueup.records import AuditCheck, Completion, JudgeAudit, Verdict
from trueup.store import Store

__all__ = ["Decision", "audit", "audit_file", "check_audited", "decide", "require", "run"]

BUILT_IN = "built-in"

MIN_ROWS = 20
"""Rows that people judged, below which a comparison with them is unknown."""
_OF_TRAPS: tuple[CheckName, ...] = (
    "unreadable",
    "swap_consistency",
    "position_bias",
    "known_accuracy",
    "null_answer",
    "longest_answer",
)
_LINES: dict[CheckName, tuple[int, Callable[[AuditConfig], float]]] = {
    "unreadable": (-1, lambda config: config.max_unreadable_rate),
    "swap_consistency": (1, lambda config: config.min_swap_consistency),
    "position_bias": (-1, lambda config: config.max_position_bias),
    "known_accuracy": (1, lambda config: config.min_known_accuracy),
    "null_answer": (-1, lambda config: config.max_null_points),
    "longest_answer": (-1, lambda config: config.max_padded_points),
    "kappa": (1, lambda config: config.min_kappa),
    "balanced_agreement": (1, lambda config: config.min_balanced_agreement),
    "length_excess": (-1, lambda config: config.max_length_excess),
    "self_preference": (-1, lambda config: config.max_self_preference),
}
"""+1 where the figure must reach the line, -1 where it must not pass it."""


class Decision(NamedTuple):
    """A judge's verdicts on a question as it stands and with the answers swapped, both told in the
    question's own places; None where unreadable."""

    forward: Side | None
    backward: Side | None

    @property
    def verdict(self) -> Side | None:
        """What both orders say; a verdict that changes with the order is a tie."""
        if self.forward is None or self.backward is None:
            return None
        return self.forward if self.forward == self.backward else 0


class _Figure(NamedTuple):
    value: float | None
    low: float | None = None
    high: float | None = None
    num_items: int = 0


# --- the audit ------------------------------------------------------------------------------------


def require(store: Store, judge: Judge, config: AuditConfig) -> None:
    """Stop a judge that may not label; audit a language model that never was, if the settings say
    so. Judges made of code and reward models need no audit.

    Cost: nothing for a judge that was audited before; else 120 requests pairwise, 80 pointwise,
        retries aside.

    Raises:
        ConfigError: its newest audit by any source fails by today's lines.
        UpstreamError: the judge cannot be reached.
    """
    known = _newest(store, judge)
    if not known:
        if not config.before_labels or not _is_language_model(judge):
            return
        known = [run(store, judge, config)]
    for one in known:
        verdict = _verdict(_held(one, config), config, one.details["required"])
        if not verdict.passed:
            raise _failed(judge, verdict, "may not label")


def check_audited(store: Store, judge: Judge) -> None:
    """Stop a judge that was found unfit, wherever its word counts; one that was never audited
    passes, because what promotes and grades is asked by people who know it.

    Raises:
        ConfigError: one of its newest audits failed by the lines of that day.
    """
    for one in _newest(store, judge):
        if not one.verdict.passed:
            raise _failed(judge, one.verdict, "may not decide")


def _newest(store: Store, judge: Judge) -> list[JudgeAudit]:
    """The newest audit by each source: what people's rows have shown, the built-in questions do not
    take back."""
    return list({one.source: one for one in store.each(JudgeAudit, judge=judge.id)}.values())


def _failed(judge: Judge, verdict: Verdict, what: str) -> ConfigError:
    return ConfigError(
        f"This judge failed its audit and {what}",
        got=f"{judge.id}: {verdict.reason}",
        expected="a judge that passes",
        next="name another judge, or see what it got wrong with 'trueup judge audit'",
    )


def run(
    store: Store,
    judge: Judge,
    config: AuditConfig,
    rows: Sequence[JudgedByPeople] = (),
    *,
    source: str = BUILT_IN,
    own_model: str = "",
) -> JudgeAudit:
    """Audit a judge and write it down; the newest audit of a judge is the one that counts."""
    before = store.last(JudgeAudit, judge=judge.id)
    found = audit(judge, config, rows, source=source, own_model=own_model)
    linked = found.model_copy(update={"id": "", "previous": before and before.id})
    record = JudgeAudit.model_validate(linked.model_dump())
    store.add(record)
    return record


def audit(
    judge: Judge,
    config: AuditConfig,
    rows: Sequence[JudgedByPeople] = (),
    *,
    source: str = BUILT_IN,
    own_model: str = "",
) -> JudgeAudit:
    """Ask a judge the built-in questions, and about `rows`; writes nothing.

    Args:
        own_model: the judge's own model, as `models` in the rows names it, for self-preference.
    """
    traps = built_in()
    asked = [one.question for one in traps]
    asked += [Question(one.prompt, *one.answers) for one in rows]
    with counted() as usage:
        decisions = decide(judge, asked)
    of_traps, of_rows = decisions[: len(traps)], decisions[len(traps) :]
    figures = _of_traps(traps, of_traps)
    details: dict[str, Any] = {"usage": usage.as_json(), "wrong": _wrong(traps, of_traps)}
    if (members := getattr(judge, "agreement", None)) is not None:
        details["members"] = members()
    required: list[CheckName] = list(_OF_TRAPS)
    if rows:
        verdicts = [one.verdict for one in of_rows]
        details |= _of_people(rows, verdicts, own_model, figures)
        details["swap_consistency_of_rows"] = _consistency(of_rows)._asdict()
        required.append("kappa")
    return _record(judge.id, source, figures, config, details, required)


def audit_file(
    rows: Sequence[JudgedByPeople],
    verdicts: Sequence[Side | None],
    config: AuditConfig,
    *,
    source: str,
    own_model: str = "",
) -> JudgeAudit:
    """What verdicts in a file say of whoever gave them; nobody is asked and nothing is written.

    How often the judge errs by order, or falls into a trap, a file cannot tell: those are unknown.
    """
    num_unreadable = sum(one is None for one in verdicts)
    share = stats.wilson(num_unreadable, len(verdicts))
    figures: dict[CheckName, _Figure] = {"unreadable": _figure(share, len(verdicts))}
    details = _of_people(rows, verdicts, own_model, figures)
    return _record(source, source, figures, config, details, ["kappa"])


def decide(judge: Judge, questions: Sequence[Question]) -> list[Decision]:
    """Every question in both orders.

    A judge with `verdicts` (a language model, a panel of them) is asked in each order alone; of
    others `rank` is asked, once where it is symmetric.
    """
    both = [*questions, *(one.swapped() for one in questions)]
    single = getattr(judge, "verdicts", None)
    if single is not None:
        said = list(single(both))
    else:
        said = _by_rank(judge, both if not _is_symmetric(judge) else questions)
        said += [_other(one) for one in said] if _is_symmetric(judge) else []
    forward, backward = said[: len(questions)], said[len(questions) :]
    return [Decision(a, _other(b)) for a, b in zip(forward, backward, strict=True)]


# --- asking ---------------------------------------------------------------------------------------


def _by_rank(judge: Judge, questions: Sequence[Question]) -> list[Side | None]:
    said: list[Side | None] = []
    with task("audit", len(questions)) as advance:
        for one in questions:
            answers = [Completion(text=one.first), Completion(text=one.second)]
            try:
                first, second = judge.rank(one.prompt, answers).scores
                said.append(1 if first > second else 2 if second > first else 0)
            except UnreadableVerdict:
                said.append(None)
            advance(1)
    return said


def _is_symmetric(judge: Judge) -> bool:
    return getattr(judge, "is_symmetric", False)  # a judge of the user's own may not say


def _is_language_model(judge: Judge) -> bool:
    """True for what must be audited; reward models are kind `llm`, too, and say they need none."""
    return judge.kind == "llm" and getattr(judge, "needs_audit", True)


def _other(side: Side | None) -> Side | None:
    """The same answer's place after a swap."""
    return {1: 2, 2: 1}.get(side, side) if side is not None else None


# --- figures --------------------------------------------------------------------------------------


def _of_traps(traps: Sequence[Trap], decisions: Sequence[Decision]) -> dict[CheckName, _Figure]:
    single = [one for decision in decisions for one in decision]
    unreadable = sum(one is None for one in single)

    def points(kind: str, side: Side) -> _Figure:
        chosen = [d.verdict for t, d in zip(traps, decisions, strict=True) if t.kind == kind]
        known = [0.5 if one == 0 else float(one == side) for one in chosen if one is not None]
        return _mean(known)

    return {
        "unreadable": _figure(stats.wilson(unreadable, len(single)), len(single)),
        "swap_consistency": _consistency(decisions),
        "position_bias": _position_bias(decisions),
        "known_accuracy": points("known", 1),
        "null_answer": points("null", 2),
        "longest_answer": points("longest", 2),
    }


def _consistency(decisions: Sequence[Decision]) -> _Figure:
    """The share of questions on which both orders say the same."""
    known = [d for d in decisions if None not in d]
    same = sum(d.forward == d.backward for d in known)
    return _figure(stats.wilson(same, len(known)), len(known))


def _position_bias(decisions: Sequence[Decision]) -> _Figure:
    """Share of verdicts for the first place less that for the second; a question is one item."""
    leans = {1: 1.0, 2: -1.0, 0: 0.0}
    known = [
        (leans[d.forward] - leans[d.backward]) / 2  # the swapped question's second is our first
        for d in decisions
        if d.forward is not None and d.backward is not None
    ]
    return _mean(known, least=-1.0)


def _of_people(
    rows: Sequence[JudgedByPeople],
    verdicts: Sequence[Side | None],
    own_model: str,
    figures: dict[CheckName, _Figure],
) -> dict[str, Any]:
    """The details of a comparison with people; adds its figures."""
    judged, length = checks.with_people(rows, verdicts), checks.length_control(rows, verdicts)
    figures["kappa"] = _told(judged["kappa"], judged["num_items"])
    figures["balanced_agreement"] = _told(length["balanced_agreement"], length["num_items"])
    figures["length_excess"] = _told(length["excess"], length["num_items"])
    details = {
        "human_human": checks.among_people(rows),
        "judge_human": judged,
        "length": length,
        "num_rows": len(rows),
    }
    if own_model:
        interval, num = checks.self_preference(rows, verdicts, own_model)
        figures["self_preference"] = _figure(interval, num)
    return details


def _wrong(traps: Sequence[Trap], decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """The first questions it did not get right, for a person to look at."""
    return [
        {
            "kind": trap.kind,
            "question": trap.question.prompt[-1].content,
            "better": trap.question.first,
            "worse": trap.question.second,
            "said": decision._asdict(),
        }
        for trap, decision in zip(traps, decisions, strict=True)
        if decision.verdict != 1
    ][:10]


def _figure(interval: stats.Interval | None, num_items: int) -> _Figure:
    return _Figure(*interval, num_items) if interval else _Figure(None, num_items=num_items)


def _told(interval: dict[str, float] | None, num_items: int) -> _Figure:
    """A figure beside people; unknown on so few rows that chance could have made it."""
    if num_items < MIN_ROWS:
        return _Figure(None, num_items=num_items)
    return _figure(stats.Interval(**interval) if interval else None, num_items)


def _mean(values: Sequence[float], *, least: float = 0.0) -> _Figure:
    """A mean of values from `least` to 1; its interval stays within, however few they are."""
    if not values:
        return _Figure(None)
    width = 1 - least
    share = stats.cluster_share([(value - least) / width for value in values])
    if share is None:
        return _Figure(fmean(values), None, None, len(values))
    return _figure(stats.Interval(*(least + width * end for end in share)), len(values))


# --- outcomes -------------------------------------------------------------------------------------


def _record(
    judge: str,
    source: str,
    figures: dict[CheckName, _Figure],
    config: AuditConfig,
    details: dict[str, Any],
    required: Sequence[CheckName],
) -> JudgeAudit:
    held = [_check(name, figures.get(name, _Figure(None)), config) for name in _LINES]
    return JudgeAudit(
        judge=judge,
        source=source,
        verdict=_verdict(held, config, required),
        checks=tuple(held),
        config=config.model_dump(mode="json"),
        details={**details, "required": list(required)},
    )


def _check(name: CheckName, figure: _Figure, config: AuditConfig) -> AuditCheck:
    direction, line = _LINES[name]
    threshold = line(config)
    status = "unknown"
    if figure.value is not None:
        # a bias either way is a bias
        value = abs(figure.value) if name == "position_bias" else figure.value
        status = "passed" if direction * (value - threshold) >= 0 else "failed"
    return AuditCheck(
        name=name,
        status=status,
        figure=figure.value,
        low=figure.low,
        high=figure.high,
        threshold=threshold,
        num_items=figure.num_items,
    )


def _held(record: JudgeAudit, config: AuditConfig) -> list[AuditCheck]:
    """An audit's figures against today's lines."""
    figures = {c.name: _Figure(c.figure, c.low, c.high, c.num_items) for c in record.checks}
    return [_check(name, figures.get(name, _Figure(None)), config) for name in _LINES]


def _verdict(
    held: Sequence[AuditCheck], config: AuditConfig, required: Sequence[CheckName]
) -> Verdict:
    needed = {*required, *config.required}
    against = [one for one in held if one.status == "failed"]
    against += [one for one in held if one.status == "unknown" and one.name in needed]
    figures = {one.name: one.figure for one in held}
    if not against:
        known = sum(one.status == "passed" for one in held)
        reason = f"{known} checks passed, {len(held) - known} could not be made"
        return Verdict(gate="audit", status="passed", reason=reason, figures=figures)
    reason = "; ".join(_why(one) for one in against)
    return Verdict(gate="audit", status="refused", reason=reason, figures=figures)


def _why(check: AuditCheck) -> str:
    if check.figure is None:
        return f"{check.name} is unknown and required"
    return f"{check.name} {check.figure:.2f} (line {check.threshold:.2f})"
