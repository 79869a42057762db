"""Hidden states of completions, each prompt run once: exact ways to the same numbers.

A row is a prompt with its branches: two for a pair, N for a group. In the *tree* they stand in one
sequence, and a mask lets every branch see the prompt and itself:

    prompt ─┬─ chosen          p p p c c c r r
            └─ rejected        every c sees p and earlier c; every r sees p and earlier r

In the *cache* the prompt runs first and its keys and values, still differentiable, are repeated
for its branches. The tree is one pass over fewer, longer rows, and the cheaper one with our own
attention, which leaves out what never meets (`tree_attention`); any other would compute the square
of the whole length, so that long completions go through the cache. A branch's last token predicts
nothing and is not run, unless a reward wants to stand on it.

Neither will do where a layer looks back over a window, and counts its padding, or where it is
checkpointed and keeps no cache: there every branch runs *alone* behind its own copy of the prompt.
So it does in networks of a few thousand weights, where looking after rows is most of the work.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trueup.models.kv_cache import ATTENTION
from trueup.models.tree_attention import Tree

__all__ = ["Branches", "Path", "branch_hidden", "cheaper_path", "decoder", "looks_back"]

Path = Literal["tree", "cache", "alone"]

TREE_FAMILIES = frozenset(
    ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
)
"""Model types whose positions come from `position_ids` and whose attention takes a 4-D mask."""

ATTENTION_COST = 3.0  # measured: attention takes this many times its share of the operations
SECOND_PASS = 1.15  # measured: what splitting one pass into prompt and branches costs
ROW_COST = 5e6  # measured: operations that a row's own attention in the tree costs a layer


class Branches(NamedTuple):
    """One prompt and the completions that follow it, as token ids."""

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]


def branch_hidden(
    model: Any, rows: Sequence[Branches], *, with_last: bool = False, path: Path | None = None
) -> Tensor:
    """The last layer's states that predict each completion token, branch after branch.

    Args:
        model: a transformers causal model, peft's wrapper or not.
        with_last: also the state on each branch's last token, which predicts nothing.
        path: by default the cheaper one of those the architecture allows.

    Returns:
        Shape (N, hidden size): for each row and branch one state a token, the first of them on
        the prompt's last token; one more a branch with `with_last`.
    """
    chosen = path or cheaper_path(model, rows)
    run = {"tree": _through_tree, "cache": _through_cache, "alone": _each_alone}[chosen]
    return run(model, rows, with_last)


def cheaper_path(model: Any, rows: Sequence[Branches]) -> Path:
    """The path with fewer operations, of those that are exact for this model and these rows."""
    config = model.config
    if looks_back(config) < _width(rows):
        return "alone"
    takes_tree = _takes_tree(config) and all(row.prompt_ids for row in rows)
    if _checkpoints(model):
        return "tree" if takes_tree else "alone"
    if not takes_tree:
        return "cache"
    prompts = [len(row.prompt_ids) for row in rows]
    branches = [len(c) for row in rows for c in row.completions]
    width = max(len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows)
    prompt, branch = max(prompts), max(branches, default=0)
    # per token 2 operations a weight; per query and key 4 a channel
    hidden, depth = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    token = 2.0 * depth * (4 * hidden**2 + 3 * hidden * inner)
    look = 4.0 * depth * hidden * ATTENTION_COST
    met = sum(len(row.prompt_ids) ** 2 / 2 for row in rows) + sum(
        len(c) * (len(row.prompt_ids) + len(c)) for row in rows for c in row.completions
    )
    if config._attn_implementation != ATTENTION:
        met = len(rows) * width**2  # another attention computes the whole square
    tree = len(rows) * width * token + met * look
    if depth * len(rows) * ROW_COST > tree:
        return "alone"  # so small a network that looping over its rows costs more than it
    cache = len(rows) * (prompt * token + prompt**2 * look)
    cache += len(branches) * (branch * token + branch * (prompt + branch) * look)
    return "tree" if tree <= SECOND_PASS * cache else "cache"


def decoder(model: Any) -> Any:
    """The network without its head; peft's wrapper is looked through, its layers stay."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_decoder()


def _takes_tree(config: Any) -> bool:
    return config.model_type in TREE_FAMILIES and looks_back(config) == math.inf


def looks_back(config: Any) -> float:
    """Places, padding included, over which every layer sees all that was before."""
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        return 0  # chunked or recurrent: what padding does to it is not known
    window = getattr(config, "sliding_window", None)
    if kinds == {"full_attention"} or not getattr(config, "use_sliding_window", True):
        window = None
    elif kinds and window is None:
        return 0
    return math.inf if window is None else window


def _width(rows: Sequence[Branches]) -> int:
    """Places of the widest row in the cache: padded prompt and padded branch."""
    prompt = max((len(row.prompt_ids) for row in rows), default=0)
    return prompt + max((len(c) for row in rows for c in row.completions), default=0)


def _checkpoints(model: Any) -> bool:
    """True where layers drop the cache they are given; they do so without a gradient, too."""
    return any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules())


# --- tree ---------------------------------------------------------------------------------------


def _through_tree(model: Any, rows: Sequence[Branches], with_last: bool) -> Tensor:
    ids_BT, positions_BT, mask_B1TT, sources, trees = _lay_out(rows, with_last)
    device = model.device
    # the mask is right for any attention; ours reads the trees and leaves out what never meets
    mask_B1TT = mask_B1TT.to(device)
    if model.config._attn_implementation == "eager":  # it adds its mask
        dtype = model.get_output_embeddings().weight.dtype
        mask_B1TT = (~mask_B1TT).to(dtype) * torch.finfo(dtype).min
    mask_B1TT.trees = trees  # type: ignore[attr-defined]
    hidden_BTD = decoder(model)(
        input_ids=ids_BT.to(device),
        position_ids=positions_BT.to(device),
        attention_mask=mask_B1TT,
        use_cache=False,
    ).last_hidden_state
    return hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[sources.to(device)]


def _lay_out(
    rows: Sequence[Branches], with_last: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tree]]:
    """Token ids and positions, both (B, T); who may see whom, (B, 1, T, T), True for "may see";
    the flat index into B*T of every state asked for; and where each row's parts stand."""
    pieces = [
        [row.prompt_ids, *(_run_tokens(c, with_last) for c in row.completions)] for row in rows
    ]
    width = max(sum(map(len, one)) for one in pieces)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    # a padded query must see something or softmax is NaN: it sees itself
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    sources: list[int] = []
    trees = []
    for b, (row, parts) in enumerate(zip(rows, pieces, strict=True)):
        prompt, start, branches = len(row.prompt_ids), 0, []
        for place, piece in enumerate(parts):
            size, end = len(piece), start + len(piece)
            first = prompt if place else 0
            ids[b, start:end] = torch.as_tensor(piece)
            positions[b, start:end] = torch.arange(first, first + size)
            mask[b, start:end, :first] = True
            mask[b, start:end, start:end] = torch.ones(size, size, dtype=torch.bool).tril()
            if place and (with_last or len(row.completions[place - 1])):
                # the prompt's last token predicts every branch's first
                sources += [b * width + at for at in (prompt - 1, *range(start, end))]
            if place:
                branches.append((start, end))
            start = end
        trees.append(Tree(prompt, tuple(branches)))
    return ids, positions, mask[:, None], torch.tensor(sources, dtype=torch.long), trees


def _run_tokens(completion: Sequence[int], with_last: bool) -> Sequence[int]:
    return completion if with_last else completion[:-1]


# --- cache --------------------------------------------------------------------------------------


def _through_cache(model: Any, rows: Sequence[Branches], with_last: bool) -> Tensor:
    from transformers import DynamicCache

    device, network = model.device, decoder(model)
    prompt_BP, seen_BP = _padded([row.prompt_ids for row in rows], device)
    cache = DynamicCache(config=model.config)
    before_BPD = network(
        input_ids=prompt_BP,
        attention_mask=seen_BP,
        position_ids=(seen_BP.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    of_row = torch.tensor([b for b, row in enumerate(rows) for _ in row.completions], device=device)
    lengths = seen_BP.sum(1)[of_row]
    last_ND = before_BPD[of_row, lengths - 1]
    completions = [c for row in rows for c in row.completions]
    branches = [_run_tokens(c, with_last) for c in completions]
    if max(map(len, branches), default=0) == 0:
        kept = [n for n, c in enumerate(completions) if with_last or len(c)]
        return last_ND[kept]
    branch_NC, real_NC = _padded(branches, device)
    cache.batch_select_indices(of_row)
    after_NCD = network(
        input_ids=branch_NC,
        attention_mask=torch.cat([seen_BP[of_row], real_NC], dim=1),
        position_ids=(lengths[:, None] + real_NC.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    states = []
    for n, branch in enumerate(branches):
        if with_last or len(completions[n]):
            states += [last_ND[n : n + 1], after_NCD[n, : len(branch)]]
    return torch.cat(states)


# --- alone --------------------------------------------------------------------------------------


def _each_alone(model: Any, rows: Sequence[Branches], with_last: bool) -> Tensor:
    device = model.device
    branches = [(row.prompt_ids, c) for row in rows for c in row.completions]
    ids_NT, seen_NT = _padded([[*p, *_run_tokens(c, with_last)] for p, c in branches], device)
    hidden_NTD = decoder(model)(
        input_ids=ids_NT,
        attention_mask=seen_NT,
        position_ids=(seen_NT.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    return torch.cat(
        [
            hidden_NTD[n, len(prompt) - 1 : len(prompt) + len(_run_tokens(c, with_last))]
            for n, (prompt, c) in enumerate(branches)
            if with_last or len(c)
        ]
    )


def _padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and what is real of them, both (B, T), padded on the right."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        real[b, : len(row)] = 1
    return ids.to(device), real.to(device)
