"""A reward model's files: what is read, what it is named by, and what is refused.

A member's folder holds an ordinary PEFT adapter, the head, and a card with the base and template
it belongs to and the scale of its scores. Its name is a hash of everything that decides a score,
and only files that the card names are used.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from trueup.errors import ModelError
from trueup.models.backbone import Backbone, adapter_weights
from trueup.records import content_hash

__all__ = [
    "CARD_FILE",
    "HEAD_FILE",
    "HEAD_KEY",
    "Scale",
    "check_member",
    "check_weights",
    "ensemble_weights",
    "joint_weights",
    "member_weights",
    "read_card",
    "read_head",
    "read_scale",
]

HEAD_FILE = "reward_head.safetensors"
HEAD_KEY = "score.weight"  # transformers' name in its sequence classifiers
CARD_FILE = "card.json"


class Scale(NamedTuple):
    """Mean and standard deviation of a model's raw scores on held-out answers."""

    mean: float = 0.0
    std: float = 1.0

    def of(self, raw: float) -> float:
        """A raw score in standard deviations from the mean."""
        return (raw - self.mean) / self.std


def ensemble_weights(base: str, folder: Path) -> str:
    """`weights_` and 20 hex digits over what decides a score in a reward checkpoint: the base's
    name and every member's adapter, head and scale.

    Raises:
        ModelError: a member's card or files are missing or cannot be read.
    """
    found = []
    for place in _members(folder):
        card = read_card(place)
        found.append(member_weights(base, place, read_scale(place, card)))
    return joint_weights(found)


def _members(folder: Path) -> list[Path]:
    """The members' folders in their order."""
    return sorted(folder.glob("member-*"), key=lambda one: int(one.name.removeprefix("member-")))


def joint_weights(members: Sequence[str]) -> str:
    """The name of an ensemble of these members, in this order."""
    return f"weights_{content_hash(['reward', *members])}"


def member_weights(base: str, folder: Path, scale: Scale) -> str:
    """The name of one member: a hash of the base's name, the adapter, the head and the scale.

    Raises:
        ModelError: a file is missing.
    """
    try:
        digest = hashlib.sha256(adapter_weights(base, folder).encode())
        digest.update((folder / HEAD_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(folder, str(error)) from error
    digest.update(json.dumps(list(scale)).encode())
    return f"weights_{digest.hexdigest()[:20]}"


def read_card(folder: Path) -> dict[str, Any]:
    """What a member's or a checkpoint's card says.

    Raises:
        ModelError: there is no card, or it is not one of a reward model.
    """
    try:
        card = json.loads((folder / CARD_FILE).read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(folder, str(error)) from error
    if not isinstance(card, dict) or card.get("kind") != "reward":
        raise _unreadable(folder, f"a {CARD_FILE} of another kind")
    return card


def read_scale(folder: Path, card: dict[str, Any]) -> Scale:
    """The scale on a member's card.

    Raises:
        ModelError: there is none, or nothing could be divided by it.
    """
    try:
        scale = Scale(**{name: float(value) for name, value in card["scale"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(folder, f"no scale in {CARD_FILE}: {error}") from error
    if not all(map(math.isfinite, scale)) or scale.std <= 0:
        raise _unreadable(folder, f"the scale {scale}")
    return scale


def read_head(folder: Path, hidden_size: int) -> Tensor:
    """A head's weights, of shape (1, hidden size).

    Raises:
        ModelError: the file is missing, pickled or damaged, or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weight = load_file(folder / HEAD_FILE)[HEAD_KEY]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise ModelError(
            f"{folder} has no reward head that this program reads",
            got=found,
            expected=f"{HEAD_FILE} with '{HEAD_KEY}' (pickled files are refused)",
            next="restore the folder from a backup, or train again",
        ) from error
    if weight.shape != (1, hidden_size) or not bool(weight.isfinite().all()):
        raise ModelError(
            f"The reward head in {folder} does not fit this base model",
            got=tuple(weight.shape),
            expected=f"finite weights of shape (1, {hidden_size})",
            next="set model.base to the model it was trained on",
        )
    return weight


def check_member(folder: Path, card: dict[str, Any], backbone: Backbone, scale: Scale) -> None:
    """See that the files are those the card names, and were trained on this base and template.

    Raises:
        ModelError: they are not.
    """
    ours = {
        "base_weights": (backbone.base_weights, "another base model"),
        "template": (backbone.template, "another chat template"),
    }
    for key, (expected, what) in ours.items():
        if card.get(key) != expected:
            raise ModelError(
                f"The reward model in {folder} belongs to {what}",
                got=card.get(key),
                expected=expected,
                next="set model.base to the model it was trained on",
            )
    weights = member_weights(backbone.base_weights, folder, scale)
    check_weights(folder, weights, card.get("weights"))


def check_weights(folder: Path, got: object, expected: object) -> None:
    """See that a member has the name it should have.

    Raises:
        ModelError: it has another.
    """
    if got != expected:
        raise ModelError(
            f"The reward model in {folder} is not the one that was written",
            got=got,
            expected=str(expected),
            next="restore the folder from a backup, or train again",
        )


def _unreadable(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"{folder} is not a reward model that this program reads",
        got=why,
        expected=f"adapter_model.safetensors, adapter_config.json, {HEAD_FILE} and {CARD_FILE} "
        "(pickled files are refused)",
        next="restore the folder from a backup, or train again",
    )
