"""The judge of a gold set's `judge` items, if it has any.

The promise: what taught a model does not mark its answers. The same id as a judge that labelled
refuses to start, as it does for the scorer of the head-to-head.
"""

from collections.abc import Sequence

from trueup.errors import ConfigError
from trueup.evaluate.config import EvaluateConfig
from trueup.evaluate.gold import GoldItem
from trueup.judges import Judge, members_of, resolve
from trueup.judges.audit import check_audited
from trueup.store import Store

__all__ = ["gold_judge"]


def gold_judge(
    store: Store, config: EvaluateConfig, gold: Sequence[GoldItem], taught_by: Sequence[str] = ()
) -> Judge | None:
    """Who grades; None where no item asks for a judge.

    Args:
        taught_by: ids of all whose judgement the candidate has learned from.

    Raises:
        ConfigError: items ask for a judge and none is named, or the one named has labelled or
            failed its newest audit.
    """
    asking = [item.id for item in gold if item.checker["type"] == "judge"]
    if not asking:
        return None
    if not config.judge:
        raise ConfigError(
            "Gold items ask for a judge, and none is named",
            got=f"{len(asking)} items, the first {asking[0]!r}",
            expected="a judge that has not labelled",
            next="set evaluate.judge in trueup.toml",
        )
    judge = resolve(config.judge, endpoint=config.endpoint)
    taught = {member for one in taught_by for member in members_of(one)}
    if taught & {*members_of(judge.id)}:  # a panel is all of its members
        raise ConfigError(
            "The judge of the gold set is the judge that labelled: it would mark its own teaching",
            got=judge.id,
            expected="another judge in evaluate.judge",
            next="set evaluate.judge in trueup.toml",
        )
    check_audited(store, judge)
    return judge
