"""From records to the exact tokens that carry loss."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from trueup.errors import ModelError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.shared_prompt import Branches
from trueup.records import Completion, Label, PreferencePair

__all__ = ["Row", "encode", "encode_single", "held_out", "order", "split"]

WASTE = 1.25
"""A group's padded tokens may be this many times its real ones; beyond it a group of its own is
cheaper than the padding."""


class Row(NamedTuple):
    """One prompt and its completions as token ids: the prompt carries no loss, the completions
    do, end token included."""

    id: str
    """Of the pair or label."""
    branches: Branches
    completions: tuple[Completion, ...]
    """For a pair (chosen, rejected); one for an unpaired label."""
    desirable: tuple[bool, ...]
    """Which completions to raise."""
    margin: float
    """Difference of the two scores, in the label's unit; of a single answer, its score."""
    prompt_hash: str

    @property
    def num_tokens(self) -> int:
        return len(self.branches.prompt_ids) + sum(len(c) for c in self.branches.completions)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each completion."""
        return tuple(len(c) for c in self.branches.completions)


def encode(
    backbone: Backbone, pairs: Sequence[PreferencePair], *, max_tokens: int
) -> tuple[list[Row], Counter[str]]:
    """Pairs as tokens, and those left out counted by reason. Nothing is ever truncated."""
    rows, skipped = [], Counter[str]()
    for pair in pairs:
        sides = (pair.chosen, pair.rejected)
        row = _row(backbone, pair.id, pair, sides, (True, False), pair.margin, max_tokens)
        if isinstance(row, str):
            skipped[row] += 1
        elif row.branches.completions[0] == row.branches.completions[1]:
            skipped["chosen equals rejected"] += 1
        else:
            rows.append(row)
    return rows, skipped


def encode_single(
    backbone: Backbone, labels: Sequence[Label], *, max_tokens: int
) -> tuple[list[Row], Counter[str]]:
    """Unpaired labels as tokens: a score above zero is desirable, below zero is not."""
    rows, skipped = [], Counter[str]()
    for label in labels:
        score = label.scores[0]
        if score == 0:
            skipped["neither desirable nor undesirable"] += 1
            continue
        row = _row(backbone, label.id, label, label.candidates[:1], (score > 0,), score, max_tokens)
        if isinstance(row, str):
            skipped[row] += 1
        else:
            rows.append(row)
    return rows, skipped


def held_out(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and rows to measure on. A function of the prompt's hash: a prompt stays
    on its side whatever else is in the data set."""
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        place = int(row.prompt_hash[:8] or "0", 16) / 16**8
        sides[place < share].append(row)
    return sides


def order(num_rows: int, *, epoch: int, seed: int) -> list[int]:
    """The order of the rows in an epoch: a function of the seed, so a resumed run knows it."""
    import torch

    random = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_rows, generator=random).tolist()


def split(rows: Sequence[Row], *, tokens_per_batch: int) -> list[list[Row]]:
    """Rows in groups of like length, each within the budget of padded tokens (at least one row)."""
    groups: list[list[Row]] = []
    real = 0
    for row in sorted(rows, key=lambda r: -r.num_tokens):
        # sorted longest first: a group's width is its first row's
        padded = (len(groups[-1]) + 1) * groups[-1][0].num_tokens if groups else 0
        if groups and padded <= min(tokens_per_batch, WASTE * (real + row.num_tokens)):
            groups[-1].append(row)
            real += row.num_tokens
        else:
            groups.append([row])
            real = row.num_tokens
    return groups


def _row(
    backbone: Backbone,
    record_id: str,
    record: PreferencePair | Label,
    completions: tuple[Completion, ...],
    desirable: tuple[bool, ...],
    margin: float,
    max_tokens: int,
) -> Row | str:
    """The record's tokens, or why there are none."""
    from trueup.records import content_hash

    try:
        prompt = chat.prompt_ids(backbone.tokenizer, record.prompt)
    except ModelError:
        return "refused by the chat template"
    ids = [chat.completion_ids(backbone.tokenizer, c) for c in completions]
    known = record.prompt_hash if isinstance(record, PreferencePair) else ""
    prompt_hash = known or content_hash([m.model_dump() for m in record.prompt])
    row = Row(record_id, Branches(prompt, ids), completions, desirable, margin, prompt_hash)
    ends = chat.eos_ids(backbone.tokenizer)
    if not all(set(one) - ends for one in ids):
        return "empty completion"
    if not all(min(one) >= 0 and max(one) < backbone.num_tokens for one in ids):
        return "tokens that the model does not have"
    if row.num_tokens > max_tokens:
        return "longer than train.max_tokens"
    if len(prompt) + max(row.lengths) > backbone.context:
        return "longer than the model's context"
    return row
