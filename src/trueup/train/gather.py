"""From a data set's records to rows of tokens, and what the checkpoint should say of them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trueup.errors import ConfigError, DataError, TrainingError
from trueup.models.stored import StoredModel
from trueup.records import Dataset, Label, Messages, PreferencePair, Record, TrainingRun
from trueup.store import Store
from trueup.train.config import TrainConfig

if TYPE_CHECKING:
    from trueup.train.data import Row
    from trueup.train.lint import Lint

__all__ = [
    "Records",
    "gather",
    "look",
    "need_held_out",
    "need_rows",
    "records_of",
    "served_template",
    "settled",
    "sides",
]


TURNS = ("loop", "command line", "rounds")
"""Data sets that the policy has learned from; one made of a file for a trial is none."""

USED_BY = {"label_smoothing": frozenset(("dpo", "robust_dpo")), "alpha": frozenset(("rdpo",))}
"""The methods that read a setting which may be `auto`."""


class Records(NamedTuple):
    """What a run reads."""

    pairs: list[PreferencePair]
    labels: list[Label]
    """Unpaired ones, for the methods that take them."""
    told: dict[str, Any]


def records_of(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    is_held_out: Callable[[Messages], bool],
    *,
    before: str = "~",
) -> Records:
    """The data set's records, with `replay_share` those of earlier turns among them.

    Args:
        before: what came into the store later plays no part, so that a resumed run is the same; by
            default nothing is too late (a tilde sorts behind every date).

    Raises:
        DataError: a record is no longer what its id says.
    """
    from trueup.train import quality

    pairs = store.get_all(PreferencePair, dataset.pair_ids)
    is_single = config.method in ("kto", "sft")
    labels = store.get_all(Label, dataset.label_ids) if is_single else []
    told: dict[str, Any] = {}
    if config.replay_share:
        earlier = [p for p in _earlier(store, dataset, before) if not is_held_out(p.prompt)]
        mix = quality.mix_replay(pairs, earlier, config.replay_share, config.seed)
        pairs = mix.pairs
        ids = {one for p in earlier for one in p.label_ids}
        told["replay"] = {
            "replayed": mix.num_replayed,
            "wanted": mix.num_wanted,
            "annotators": sorted({one.annotator for one in store.get_all(Label, ids)}),
        }
    _need_unchanged([dataset, *pairs, *labels])
    return Records(pairs, labels, told)


def look(store: Store, config: TrainConfig, champion: StoredModel, records: Records) -> "Lint":
    """What the linter says of the records."""
    from trueup.train.lint import lint

    return lint(
        champion.backbone,
        records.pairs,
        records.labels,
        max_tokens=config.max_tokens,
        allow=frozenset(config.allow),
        served_template=served_template(store, champion),
    )


def gather(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    champion: StoredModel,
    is_held_out: Callable[[Messages], bool],
    *,
    before: str,
) -> tuple[list["Row"], dict[str, Any]]:
    """The tokens to train on, and what the checkpoint should say of them.

    Raises:
        DataError: the linter finds what `allow` does not name, or a record was changed.
    """
    from trueup.train import quality
    from trueup.train.data import encode, encode_single

    records = records_of(store, config, dataset, is_held_out, before=before)
    look(store, config, champion, records).stop()
    pairs, told = records.pairs, records.told
    rows, skipped = encode(champion.backbone, pairs, max_tokens=config.max_tokens)
    single, skipped_single = encode_single(
        champion.backbone, records.labels, max_tokens=config.max_tokens
    )
    rows, skipped = rows + single, skipped + skipped_single
    if config.method == "sft":
        rows = [row for row in rows if any(row.desirable)]
    told |= {"num_usable": len(rows), "skipped": dict(skipped)}
    lengths = {row.id: row.lengths for row in rows}
    # all labels of these prompts: pairs keep one of several that agree, and noise is disagreement
    prompts = {p.prompt for p in pairs}
    labels = [
        one for one in store.each(Label) if one.prompt in prompts and one.created_at <= before
    ]
    usable = [p for p in pairs if p.id in lengths]
    if usable:
        found = quality.quality(usable, labels, lengths)
        told["quality"] = found.model_dump(mode="json")
        if found.length_coefficient:
            told["quality"]["length_coefficient"]["rdpo_alpha"] = (
                found.length_coefficient.rdpo_alpha
            )
    return rows, told


def sides(
    rows: Sequence["Row"], config: TrainConfig, share: float
) -> tuple[list["Row"], list["Row"]]:
    """Rows to train on, repeated as `short_share` says, and rows to measure on."""
    from trueup.train import quality
    from trueup.train.data import held_out

    train_rows, held_rows = held_out(rows, share)
    held_rows = list({row.id: row for row in held_rows}.values())  # repeats would count twice
    if config.short_share and train_rows:
        lengths = {row.id: row.lengths for row in train_rows}
        train_rows = quality.raise_short_share(train_rows, config.short_share, config.seed, lengths)
    return train_rows, held_rows


def _need_unchanged(records: Sequence[Record]) -> None:
    changed = [one.id for one in records if one.id != one.expected_id()]
    if changed:
        raise DataError(
            "The data set is not what it was when it was frozen",
            got=f"{len(changed)} changed records: {', '.join(changed[:5])}",
            expected="records whose contents give their ids",
            next="bring the store back from a backup, or import and pair the data again",
        )


def settled(config: TrainConfig, told: dict[str, Any]) -> TrainConfig:
    """The settings with every `auto` replaced by what the data says.

    Raises:
        ConfigError: the data does not say.
    """
    found, values, unused = told.get("quality", {}), {}, {}
    for name, source, figure in (
        ("label_smoothing", "label_noise", "estimate"),
        ("alpha", "length_coefficient", "rdpo_alpha"),
    ):
        if getattr(config, name) != "auto":
            continue
        if not USED_BY[name] & {config.method, *config.plus}:
            unused[name] = 0.0
            continue
        estimate = found.get(source)
        if estimate is None:
            raise ConfigError(
                f"train.{name} = 'auto' needs an estimate, and this data set gives none",
                got=source,
                expected="comparisons that were labelled more than once"
                if source == "label_noise"
                else "pairs of different lengths",
                next=f"set train.{name} to a number",
            )
        values[name] = min(0.49, float(estimate[figure]))
    told["settled"] = values
    return config.model_copy(update={**values, **unused})


def need_rows(rows: list["Row"], config: TrainConfig, told: dict[str, Any]) -> None:
    if not rows and told["num_usable"]:
        raise TrainingError(
            "Every prompt is held out, so there is none to train on",
            got=f"train.eval_share = {config.eval_share:g}, {told['num_usable']} usable records",
            expected="prompts on both sides",
            next="lower train.eval_share, or bring more prompts",
        )
    if not rows:
        raise TrainingError(
            "The data set has no pair to train on",
            got=told["skipped"] or "no pairs",
            expected=f"pairs of at most {config.max_tokens} tokens with two different completions",
            next="raise train.max_tokens, or look at the pairs",
        )


def need_held_out(rows: list["Row"], config: TrainConfig) -> None:
    """A line that nothing is measured against would never be crossed."""
    lines = [n for n in ("max_chosen_drop", "max_kl") if getattr(config, n) is not None]
    if lines and not rows:
        raise TrainingError(
            f"No prompt is held out, so train.{lines[0]} could not stop anything",
            got=f"train.eval_share = {config.eval_share:g}",
            expected="held-out prompts to measure on",
            next=f"raise train.eval_share, or unset train.{lines[0]}",
        )


def _earlier(store: Store, dataset: Dataset, before: str) -> list[PreferencePair]:
    """Pairs of earlier turns."""
    known = set(dataset.pair_ids)
    ids = [
        one
        for other in store.each(Dataset)
        if other.id != dataset.id and other.source in TURNS and other.created_at <= before
        for one in other.pair_ids
        if one not in known
    ]
    return store.get_all(PreferencePair, list(dict.fromkeys(ids)))


def served_template(store: Store, champion: StoredModel) -> str | None:
    """The template the champion was trained and has served with; None for a base."""
    if champion.checkpoint is None:
        return None
    return store.get(TrainingRun, champion.checkpoint.run_id).template
