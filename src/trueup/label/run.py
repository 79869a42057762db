"""The step from flags to labels: draw rivals to the logged answer, and rank them all."""

from collections.abc import Sequence

from trueup.errors import UnreadableVerdict
from trueup.judges import Judge, resolve
from trueup.judges.audit import require
from trueup.label.config import PEOPLE, LabelConfig
from trueup.label.settle import settle
from trueup.label.tasks import comparisons
from trueup.models.stored import StoredModel
from trueup.progress import task
from trueup.records import Completion, Feedback, Flag, Interaction, Label, ReviewTask, Sampling
from trueup.store import Store

__all__ = ["run"]

EDITOR = "feedback:edit"
BATCH = 32  # prompts between two commits


def run(store: Store, config: LabelConfig, champion: StoredModel) -> list[Label]:
    """Rank the logged answer of each flagged prompt among fresh samples from the champion.

    Reads:   raised flags whose interaction has no label yet, the worst first; user edits.
    Writes:  one Label an interaction, with every candidate and its score; an edit gives a second
             label, by `human`, that prefers the edit to the logged answer. With `people`, review
             tasks instead, which compare the logged answer with samples. What people's votes on
             tasks are settled into, see `settle`.
    Skips:   a prompt that was labelled, or made a task, before; one the chat template refuses, or
             longer than the model's context; an answer that broke off, or in which tools had a
             part; one whose verdict stays unreadable, up to `max_skip_rate`.
    Keeps:   tokens, log-probs, sampling and weights of every fresh sample.
    Again:   writes nothing until there are new flags.
    Killed:  labels are written every 32 prompts; the next call goes on from there.
    Stops:   ConfigError if the judge's newest audit failed, or the one a language model gets here
             does; UpstreamError if the judge's endpoint fails, or more than `max_skip_rate` of the
             verdicts are unreadable; labels so far are kept.
    Cost:    num_candidates - 1 samples a prompt; with `llm`, N(N-1) judge calls a prompt,
             and at most 120 once a judge for its audit.
    Next:    pair.run
    """
    known = {one.id for one in store.each(Label, annotator=EDITOR)}
    edits = [one for one in _edit_labels(store) if one.id not in known]
    store.add_all(edits)
    if config.judge == PEOPLE:
        _ask_people(store, config, champion)
        made = []
    else:
        made = _ask_judge(store, config, champion)
    return [*edits, *made, *settle(store, config).written]


def _ask_judge(store: Store, config: LabelConfig, champion: StoredModel) -> list[Label]:
    judge = resolve(config.judge, endpoint=config.endpoint, memory=store)
    waiting = _waiting(store, champion, config.max_tokens)[: config.max_prompts]
    if waiting:
        require(store, judge, config.audit)
    labels: list[Label] = []
    unreadable: list[UnreadableVerdict] = []
    with task("label", len(waiting)) as advance:
        for at in range(0, len(waiting), BATCH):
            batch = waiting[at : at + BATCH]
            made = _label(batch, judge, _fresh(batch, champion, config), unreadable)
            store.add_all(made)
            labels += made
            if _too_many(unreadable, at + len(batch), config):
                raise unreadable[-1]
            advance(len(batch))
    return labels


def _ask_people(store: Store, config: LabelConfig, champion: StoredModel) -> None:
    """Tasks for what was flagged, a transaction a batch. Where the champion says nothing but what
    was logged there is nothing to compare; it is not asked again before it is another champion."""
    waiting = _waiting(store, champion, config.max_tokens)
    keys = {one.id: f"nothing to compare {one.id} {champion.weights}" for one in waiting}
    known = store.remembered(list(keys.values()))
    waiting = [one for one in waiting if keys[one.id] not in known][: config.max_prompts]
    with task("label", len(waiting)) as advance:
        for at in range(0, len(waiting), BATCH):
            batch = waiting[at : at + BATCH]
            samples = _fresh(batch, champion, config)
            found = [
                comparisons(one, drawn, config.pairs_per_prompt)
                for one, drawn in zip(batch, samples, strict=True)
            ]
            store.add_all(one for tasks in found for one in tasks)
            silent = [one for one, tasks in zip(batch, found, strict=True) if not tasks]
            store.remember({keys[one.id]: "" for one in silent})
            advance(len(batch))


def _waiting(store: Store, champion: StoredModel, max_tokens: int) -> list[Interaction]:
    """Flagged interactions to label, the worst first, each prompt once. What people are asked about
    already is not asked of a judge, too, nor the other way round."""
    flags = sorted(store.each(Flag, raised=True), key=_turn)
    judged: list[Label | ReviewTask] = [
        *(one for one in store.each(Label) if one.annotator_kind != "human"),
        *(one for one in store.each(ReviewTask) if one.interaction_id),
    ]
    done = {one.interaction_id for one in judged}
    seen = {one.prompt for one in judged}
    waiting = []
    for interaction in store.get_all(Interaction, dict.fromkeys(f.interaction_id for f in flags)):
        if interaction.id in done or interaction.prompt in seen or not interaction.is_plain:
            continue
        seen.add(interaction.prompt)
        # what the model cannot read would stop every turn at the same place
        if champion.fits(interaction.prompt, max_tokens):
            waiting.append(interaction)
    return waiting


def _turn(flag: Flag) -> tuple[bool, str | float]:
    """Those drawn by chance come first, in the order of their hashes: a rate rests on them, and
    not on the worst of them where some are not labelled yet. Then the worst."""
    if "random" in flag.reasons:
        return False, flag.interaction_id
    return True, -flag.score


def _fresh(
    batch: Sequence[Interaction], champion: StoredModel, config: LabelConfig
) -> list[list[Completion]]:
    sampling = Sampling(
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,  # every prompt derives its own from it
    )
    return champion.complete(
        [i.prompt for i in batch], sampling, num_samples=config.num_candidates - 1
    )


def _label(
    batch: Sequence[Interaction],
    judge: Judge,
    fresh: Sequence[Sequence[Completion]],
    unreadable: list[UnreadableVerdict],
) -> list[Label]:
    """The batch's labels; a comparison the judge cannot decide readably is left out and kept
    account of in `unreadable`."""
    labels = []
    for interaction, samples in zip(batch, fresh, strict=True):
        candidates = (interaction.completion, *samples)
        try:
            ranking = judge.rank(interaction.prompt, candidates)
        except UnreadableVerdict as error:
            unreadable.append(error)
            continue
        labels.append(
            Label(
                prompt=interaction.prompt,
                candidates=candidates,
                scores=ranking.scores,
                reasons=ranking.reasons,
                annotator=judge.id,
                annotator_kind=judge.kind,
                interaction_id=interaction.id,
            )
        )
    return labels


def _too_many(unreadable: Sequence[UnreadableVerdict], num_asked: int, config: LabelConfig) -> bool:
    allowed = config.max_skip_rate and max(1.0, config.max_skip_rate * num_asked)
    return len(unreadable) > allowed


def _edit_labels(store: Store) -> list[Label]:
    """An edit is a person's own preference: the edited text over the logged one."""
    edited = [f for f in store.each(Feedback) if f.edit]
    labels = []
    for feedback in edited:
        for interaction in store.get_all(Interaction, [feedback.interaction_id]):
            better = Completion(text=feedback.edit or "", finish_reason="stop")
            if (
                not interaction.is_plain
                or better.text.strip() == interaction.completion.text.strip()
            ):
                continue
            labels.append(
                Label(
                    prompt=interaction.prompt,
                    candidates=(better, interaction.completion),
                    scores=(1.0, 0.0),
                    annotator=EDITOR,
                    annotator_kind="human",
                    interaction_id=interaction.id,
                )
            )
    return labels
