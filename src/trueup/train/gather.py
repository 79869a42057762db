"""From a data set's records to rows of tokens, and what the checkpoint should say of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trueup.errors import ConfigError, TrainingError
from trueup.models.stored import StoredModel
from trueup.records import Dataset, Label, Messages, PreferencePair, TrainingRun
from trueup.store import Store
from trueup.train.config import TrainConfig

if TYPE_CHECKING:
    from trueup.train.data import Row

__all__ = ["gather", "need_held_out", "need_rows", "served_template", "settled"]


def gather(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    champion: StoredModel,
    is_held_out: Callable[[Messages], bool],
) -> tuple[list["Row"], dict[str, Any]]:
    """The tokens to train on, and what the checkpoint should say of them."""
    from trueup.train import quality
    from trueup.train.data import encode, encode_single
    from trueup.train.lint import lint

    pairs = store.get_all(PreferencePair, dataset.pair_ids)
    told: dict[str, Any] = {}
    if config.replay_share:
        earlier = [p for p in _earlier(store, dataset) if not is_held_out(p.prompt)]
        mix = quality.mix_replay(pairs, earlier, config.replay_share, config.seed)
        pairs = mix.pairs
        told["replay"] = {"replayed": mix.num_replayed, "wanted": mix.num_wanted}
    lint(
        champion.backbone,
        pairs,
        max_tokens=config.max_tokens,
        allow=frozenset(config.allow),
        served_template=served_template(store, champion),
    ).stop()
    rows, skipped = encode(champion.backbone, pairs, max_tokens=config.max_tokens)
    if config.method in ("kto", "sft") and dataset.label_ids:
        single, skipped_single = encode_single(
            champion.backbone, store.get_all(Label, dataset.label_ids), max_tokens=config.max_tokens
        )
        rows, skipped = rows + single, skipped + skipped_single
    if config.method == "sft":
        rows = [row for row in rows if any(row.desirable)]
    told |= {"num_usable": len(rows), "skipped": dict(skipped)}
    lengths = {row.id: row.lengths for row in rows}
    # all labels of these prompts: pairs keep one of several that agree, and noise is disagreement
    prompts = {p.prompt for p in pairs}
    labels = [one for one in store.each(Label) if one.prompt in prompts]
    usable = [p for p in pairs if p.id in lengths]
    if usable:
        found = quality.quality(usable, labels, lengths)
        told["quality"] = found.model_dump(mode="json")
        if found.length_coefficient:
            told["quality"]["length_coefficient"]["rdpo_alpha"] = (
                found.length_coefficient.rdpo_alpha
            )
    if config.short_share:
        rows = quality.raise_short_share(rows, config.short_share, config.seed, lengths)
    return rows, told


def settled(config: TrainConfig, told: dict[str, Any]) -> TrainConfig:
    """The settings with every `auto` replaced by what the data says.

    Raises:
        ConfigError: the data does not say.
    """
    found, values = told.get("quality", {}), {}
    for name, source, figure in (
        ("label_smoothing", "label_noise", "estimate"),
        ("alpha", "length_coefficient", "rdpo_alpha"),
    ):
        if getattr(config, name) != "auto":
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
    return config.model_copy(update=values)


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


def _earlier(store: Store, dataset: Dataset) -> list[PreferencePair]:
    """Pairs of earlier turns."""
    known = set(dataset.pair_ids)
    ids = [
        one
        for other in store.each(Dataset)
        if other.id != dataset.id and other.source == "loop"
        for one in other.pair_ids
        if one not in known
    ]
    return store.get_all(PreferencePair, list(dict.fromkeys(ids)))


def served_template(store: Store, champion: StoredModel) -> str | None:
    """The template the champion was trained and has served with; None for a base."""
    if champion.checkpoint is None:
        return None
    return store.get(TrainingRun, champion.checkpoint.run_id).template
