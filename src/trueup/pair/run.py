"""The step from labels to pairs, and from pairs to a frozen data set."""

from collections import Counter
from collections.abc import Iterable

from trueup.pair.config import PairConfig
from trueup.pair.decontaminate import HeldOut
from trueup.records import (
    Checkpoint,
    Dataset,
    Interaction,
    Label,
    Messages,
    PreferencePair,
    TrainingRun,
    content_hash,
)
from trueup.store import Store

TURNS = ("loop", "rounds", "best-of-n:best", "best-of-n:random")
"""Data sets that use up what is in them; one made of a file for a trial does not."""

ROUNDS = "rounds:"
"""How the source of labels begins that rounds wrote."""

__all__ = ["Paired", "freeze", "freeze_prompts", "new_pairs", "run", "traffic_prompts", "unpaired"]


class Paired(Counter[str]):
    """Labels that gave no pair, counted by reason."""


def run(store: Store, config: PairConfig, held_out: HeldOut) -> Paired:
    """Turn each label into its best-against-worst pair.

    Reads:   labels that no pair was made from.
    Writes:  at most one PreferencePair a label, in one transaction.
    Skips:   unpaired labels; people's votes, and what a newer label replaces; margins under
             `min_margin`; chosen equal to rejected; empty chosen; prompts of the held-out suite or
             the gold set. Counted by reason in what it returns.
    Keeps:   every candidate's tokens, log-probs and weights; the label's id.
    Again:   writes nothing until there are new labels.
    Killed:  all pairs of the call or none.
    Cost:    no model calls; linear in labels.
    Next:    freeze, then train.run
    """
    used, skipped, pairs = store.used(PreferencePair), Paired(), []
    replaced = _replaced(store)
    for label in store.each(Label):
        # rounds and best-of-N make what they need of their own labels
        if label.id in used or label.source.startswith(ROUNDS):
            continue
        made = "replaced" if label.id in replaced else _pair(label, config, held_out)
        if isinstance(made, PreferencePair):
            pairs.append(made)
        else:
            skipped[made] += 1
    store.add_all(pairs)
    return skipped


def new_pairs(store: Store, held_out: HeldOut | None = None) -> list[PreferencePair]:
    """Pairs that no turn has used; of equal ones the widest margin. What became held out since a
    pair was made is left out, and so is a pair whose label was replaced."""
    replaced = _replaced(store)
    used = {one for dataset in _used_up(store) for one in dataset.pair_ids}
    known, kept = set(), {}
    for pair in store.each(PreferencePair):
        key = (pair.prompt_hash, pair.chosen.text.strip(), pair.rejected.text.strip())
        if pair.id in used:
            known.add(key)
        elif (held_out and held_out.contains(pair.prompt)) or not replaced.isdisjoint(
            pair.label_ids
        ):
            continue
        elif key not in kept or pair.margin > kept[key].margin:
            kept[key] = pair
    return [pair for key, pair in kept.items() if key not in known]


def unpaired(store: Store, held_out: HeldOut, *, source: str | None = None) -> list[Label]:
    """Labels of a single answer, for methods that learn from those; of one file, or all that no
    turn has used."""
    used = {one for dataset in _used_up(store) for one in dataset.label_ids}
    found = store.each(Label, source=source) if source else store.each(Label)
    return [
        one
        for one in found
        if len(one.candidates) == 1
        and not one.is_vote
        and (source or one.id not in used)
        and not held_out.contains(one.prompt)
    ]


def _replaced(store: Store) -> set[str]:
    """Labels that a newer one took the place of: votes that were changed, and what people's votes
    were settled into before."""
    return {one.replaces for one in store.each(Label, annotator_kind="human") if one.replaces}


def _used_up(store: Store) -> list[Dataset]:
    """The data sets whose pairs and labels are not new any more. One of the command line is among
    them once a policy was trained on it: a dry run, a run that was killed and a reward model leave
    what they looked at for others."""
    learned = set[str]()
    for checkpoint in store.each(Checkpoint):
        run = store.get(TrainingRun, checkpoint.run_id)
        if run.method != "reward":
            learned.add(run.dataset_id)
    return [
        one
        for one in store.each(Dataset)
        if one.source in TURNS or (one.source == "command line" and one.id in learned)
    ]


def freeze(
    store: Store,
    pairs: Iterable[PreferencePair],
    *,
    labels: Iterable[Label] = (),
    source: str = "loop",
    skipped: Counter[str] | None = None,
) -> Dataset:
    """Name these pairs as one data set; the same pairs again, in any order, are the same one."""
    ordered = sorted(pairs, key=lambda p: (p.prompt_hash, p.chosen.text, p.rejected.text, p.id))
    dataset = Dataset(
        pair_ids=tuple(p.id for p in ordered),
        label_ids=tuple(one.id for one in labels),
        source=source,
        skipped=dict(skipped or {}),
    )
    store.add(dataset)
    return dataset


def traffic_prompts(store: Store, held_out: HeldOut) -> dict[Messages, str]:
    """Every prompt of the traffic that is not held out, with the first interaction it came in."""
    found: dict[Messages, str] = {}
    for one in store.each(Interaction):
        if one.prompt not in found and not held_out.contains(one.prompt):
            found[one.prompt] = one.id
    return found


def freeze_prompts(
    store: Store, prompts: Iterable[Messages], *, source: str, interaction_ids: Iterable[str] = ()
) -> Dataset:
    """Name these prompts as one data set, for methods that draw their own answers."""
    dataset = Dataset(
        pair_ids=(),
        prompts=tuple(dict.fromkeys(prompts)),
        interaction_ids=tuple(dict.fromkeys(interaction_ids)),
        source=source,
    )
    store.add(dataset)
    return dataset


def _pair(label: Label, config: PairConfig, held_out: HeldOut) -> PreferencePair | str:
    """The label's pair, or why there is none."""
    if label.is_vote:
        return "vote"
    if len(label.candidates) < 2:
        return "unpaired"
    best = max(range(len(label.scores)), key=lambda i: label.scores[i])
    worst = min(range(len(label.scores)), key=lambda i: label.scores[i])
    margin = label.scores[best] - label.scores[worst]
    if margin < config.min_margin or margin == 0:
        return "tie"
    chosen, rejected = label.candidates[best], label.candidates[worst]
    if not chosen.text.strip():
        return "empty chosen"
    if chosen.text.strip() == rejected.text.strip():
        return "chosen equals rejected"
    if held_out.contains(label.prompt):
        return "held out"
    return PreferencePair(
        prompt=label.prompt,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        label_ids=(label.id,),
        prompt_hash=content_hash([m.model_dump() for m in label.prompt]),
    )
