"""A whole language model in a megabyte, for tests and for trying things out in seconds.

A byte-level Llama with random weights, a chat template, and the one trap real models share: its
pad token is its end-of-turn token. `fit` teaches it a handful of texts on the CPU, so that
sampling, training and every gate can be exercised on a model that says something.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trueup.records import Message, Messages

__all__ = ["fit", "save_tiny"]

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny(
    folder: Path,
    *,
    seed: int,
    hidden_size: int = 64,
    num_layers: int = 2,
    examples: Sequence[tuple[str, str]] = (),
    steps: int = 300,
) -> Path:
    """Write a tiny model folder; with `examples` (user text, answer) it is first taught those."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden_size,
                intermediate_size=4 * hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=1024,
                tie_word_embeddings=True,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
            )
        )
        if examples:
            fit(model, tokenizer, examples, steps=steps, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fit(
    model: Any, tokenizer: Any, examples: Sequence[tuple[str, str]], *, steps: int, seed: int
) -> float:
    """Teach a model to answer by maximum likelihood on the answers alone; returns the last loss."""
    import torch

    from trueup.models.chat import prompt_ids
    from trueup.models.logprobs import Branches, completion_logprobs

    rows = []
    for user, answer in examples:
        prompt: Messages = (Message(role="user", content=user),)
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows.append(Branches(prompt_ids(tokenizer, prompt), [ids]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    random = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    model.train()
    for _ in range(steps):
        picked = torch.randint(len(rows), (16,), generator=random).tolist()
        logprobs = completion_logprobs(model, [rows[i] for i in picked])
        loss = -torch.cat([branch for row in logprobs for branch in row]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return float(loss.detach())


def _byte_tokenizer() -> Any:
    """One token a byte, two markers; the pad token is the end-of-turn token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
