"""The page of a distribution shift: are pairs such as the champion writes, and are the prompts
still the same?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.records import PreferencePair, content_hash
from trueup.store import Store
from trueup.web.page import excerpt, plain, write_page

if TYPE_CHECKING:
    from trueup.shift import PromptDrift, Shift, ShiftConfig

__all__ = ["shift_data", "write_shift"]


def write_shift(
    store: Store,
    found: "Shift | None",
    moved: "PromptDrift | None",
    config: "ShiftConfig",
    *,
    pairs: Sequence[PreferencePair],
    source: str,
) -> Path:
    """Write the page of a measurement, and its figures as JSON, to `reports/` in the store's
    folder. It is named by its figures: the same ones write the same page.

    Args:
        found: what was measured of the pairs.
        moved: of the prompts.
        pairs: all that could have been looked at, for the texts of those furthest away.
        source: where they are from: a data set's id, a file, or words.

    Raises:
        StorageError: it cannot be written there.
    """
    data = shift_data(found, moved, config, pairs=pairs, source=source)
    return write_page(
        store.folder / "reports" / f"shift_{content_hash(data)}.html",
        "shift.html",
        data,
        "The page {page} could not be written",
    )


def shift_data(
    found: "Shift | None",
    moved: "PromptDrift | None",
    config: "ShiftConfig",
    *,
    pairs: Sequence[PreferencePair],
    source: str,
) -> dict[str, Any]:
    """Every figure of the page, as plain JSON values. Arguments as in `write_shift`."""
    from trueup.shift import advice, warning

    warned = warning(found, config)
    dataset = source if source.startswith("dataset_") else ""
    return plain(
        {
            "source": source,
            "pairs": len(pairs),
            "warning": warned,
            "advice": [line.split("    ", 1) for line in advice(dataset)] if warned else [],
            "measured": found is not None,
            "champion": found and found.champion,
            "looked_at": found and found.num_pairs,
            "weighed": found and found.num_weighed,
            "own_rate": found and found.own_rate,
            "embedder": found and found.embedder,
            "figures": _figures(found, config) if found else [],
            "scores": {
                "pairs": found.foreign if found else (),
                "champion": found.foreign_own if found else (),
            },
            "log_ratios": found.log_ratios if found else (),
            "furthest": _furthest(found, pairs) if found else [],
            "prompts": moved and moved.model_dump(),
            "prompt_figures": _prompt_figures(moved) if moved else [],
            "config": config.model_dump(mode="json"),
        }
    )


def _figures(found: "Shift", config: "ShiftConfig") -> list[dict[str, Any]]:
    """What was measured, each with its line; what the champion drew itself needs no asking."""
    asked = "not asked" if found.own_rate == 1 else "unknown"
    return [
        _figure("drawn by the champion itself", found.own_rate),
        _figure("effective share (ESS/n)", found.ess, line=config.min_ess, side="least"),
        _figure("effective share, per token", found.ess_per_token),
        _figure("effective share, clipped", found.ess_clipped),
        _figure("overlap of the two writers", found.overlap, line=config.min_overlap, side="least"),
        _figure(
            "told apart (classifier AUC)",
            found.auc,
            (found.auc_low, found.auc_high),
            line=config.max_auc,
            side="most",
            without=asked,
        ),
        _figure("MMD, squared", found.mmd_squared, is_share=False, without=asked),
        _figure("MMD, p-value", found.mmd_p_value, is_share=False, without=asked),
        _figure("log-prob a token, nats", found.mean_logprob, is_share=False),
    ]


def _prompt_figures(moved: "PromptDrift") -> list[dict[str, Any]]:
    return [
        _figure("told apart (classifier AUC)", moved.auc, (moved.auc_low, moved.auc_high)),
        _figure("MMD, p-value", moved.mmd_p_value, is_share=False),
    ]


def _figure(
    name: str,
    figure: float | None,
    limits: tuple[float | None, float | None] = (None, None),
    *,
    line: float | None = None,
    side: str = "",
    is_share: bool = True,
    without: str = "unknown",
) -> dict[str, Any]:
    """
    Args:
        side: the line is the `least` or the `most` that does not warn.
        without: how to say that there is no figure.
    """
    if figure is None:
        status = without
    elif line is None:
        status = "no line"
    else:
        status = "outside" if (figure < line if side == "least" else figure > line) else "inside"
    return {
        "name": name,
        "figure": figure,
        "low": limits[0],
        "high": limits[1],
        "line": line,
        "side": side,
        "status": status,
        "is_share": is_share,
    }


def _furthest(found: "Shift", pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
    """The pairs the champion is least likely to have written, to be read."""
    by_id = {one.id: one for one in pairs}
    shown = [(one, by_id[one.pair_id]) for one in found.furthest if one.pair_id in by_id]
    return [
        {
            "id": pair.id,
            "prompt": excerpt(pair.prompt[-1].content if pair.prompt else ""),
            **{
                side: {
                    **excerpt(getattr(pair, side).text),
                    "foreign": one.foreign[at],
                    "log_ratio": one.log_ratios[at],
                }
                for at, side in enumerate(("chosen", "rejected"))
            },
        }
        for one, pair in shown
    ]
