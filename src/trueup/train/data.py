"""From pairs to the exact tokens that carry loss."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from trueup.errors import ModelError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.logprobs import Branches
from trueup.records import Completion, PreferencePair

__all__ = ["TokenPair", "encode", "order", "split"]


class TokenPair(NamedTuple):
    """One pair as token ids: the prompt carries no loss, the completions do, end token included."""

    pair_id: str
    branches: Branches
    """The prompt, and the completions (chosen, rejected)."""
    chosen: Completion
    rejected: Completion

    @property
    def num_tokens(self) -> int:
        return len(self.branches.prompt_ids) + sum(len(c) for c in self.branches.completions)


def encode(
    backbone: Backbone, pairs: Sequence[PreferencePair], *, max_tokens: int
) -> tuple[list[TokenPair], Counter[str]]:
    """Pairs as tokens, and those left out counted by reason. Nothing is ever truncated."""
    encoded, skipped = [], Counter[str]()
    for pair in pairs:
        try:
            prompt = chat.prompt_ids(backbone.tokenizer, pair.prompt)
        except ModelError:
            skipped["refused by the chat template"] += 1
            continue
        sides = [chat.completion_ids(backbone.tokenizer, c) for c in (pair.chosen, pair.rejected)]
        one = TokenPair(pair.id, Branches(prompt, sides), pair.chosen, pair.rejected)
        if not all(sides):
            skipped["empty completion"] += 1
        elif sides[0] == sides[1]:
            skipped["chosen equals rejected"] += 1
        elif one.num_tokens > max_tokens:
            skipped["longer than train.max_tokens"] += 1
        else:
            encoded.append(one)
    return encoded, skipped


def order(num_pairs: int, *, epoch: int, seed: int) -> list[int]:
    """The order of the pairs in an epoch: a function of the seed, so a resumed run knows it."""
    import torch

    random = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_pairs, generator=random).tolist()


def split(rows: Sequence[TokenPair], *, tokens_per_batch: int) -> list[list[TokenPair]]:
    """Rows in groups of like length, each within the budget of padded tokens (at least one row)."""
    groups: list[list[TokenPair]] = []
    for row in sorted(rows, key=lambda r: -r.num_tokens):
        # sorted longest first: a group's width is its first row's
        if groups and (len(groups[-1]) + 1) * groups[-1][0].num_tokens <= tokens_per_batch:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
