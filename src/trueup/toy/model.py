"""The toy model: an ordinary transformers folder of 62,000 weights, taught in half a minute.

A Llama of two layers with a tokenizer of whole words and a chat template, so that every part that
loads, samples, trains or serves a model takes it for any other. It is taught what the base writer
says, and to copy, by maximum likelihood on the answers alone; every step draws new answers, so
there is nothing to memorise. The first lessons are the clear writer's: a prompt's topics show so
faintly in the base writer's answers that without them 400 steps went by unnoticed (gold -0.4; with
them 0.4).
"""

import fcntl
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trueup.progress import task
from trueup.records import Messages
from trueup.toy.language import (
    VOCABULARY,
    Writer,
    base_writer,
    clear_writer,
    copy_prompts,
    prompts,
    words,
)

__all__ = ["STEPS", "VERSION", "save_toy", "toy_folder"]

VERSION = 1
"""Counts up when the language, the model or its training changes: old folders are not reused."""

STEPS = 800
PROMPTS, ANSWERS, COPIES = 16, 2, 10  # of one step: topic prompts, answers to each, copies
CLEAR_SHARE = 0.25  # of the steps, the first ones, learn from the clear writer
COPY_WEIGHT = 0.5
PEAK_RATE = 5e-3

END, UNKNOWN = "<end>", "<unknown>"
MARKERS = (END, "<user>", "<assistant>", "<system>", UNKNOWN)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def toy_folder(cache: Path, *, seed: int = 0, steps: int = STEPS) -> Path:
    """The base model's folder below `cache`, made on first use and returned at once later.

    Safe among processes: one makes it while the others wait, and what was killed half-way leaves
    nothing that could be taken for a model.
    """
    folder = cache / f"toy-{VERSION}-seed-{seed}-steps-{steps}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f"{folder.name}.lock"):
            if not folder.is_dir():
                _make(folder, seed, steps)
    return folder


def save_toy(
    folder: Path, *, seed: int = 0, steps: int = STEPS, writer: Writer = base_writer
) -> Path:
    """Write a toy model that was taught `writer`'s answers; 0 steps leave random weights.

    The same arguments write the same bytes on a CPU: one thread, one order of everything.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # it draws over ours, and is over in a second
    tokenizer = _tokenizer()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster, too, at this size
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = _network(tokenizer)
        _teach(model, tokenizer, writer, steps=steps, seed=seed)
    finally:
        torch.set_num_threads(num_threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach(model: Any, tokenizer: Any, writer: Writer, *, steps: int, seed: int) -> None:
    """Maximum likelihood on answers: the mean over tokens, topics and copies apart."""
    import torch

    from trueup.models.logprobs import completion_logprobs

    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 1 - step / max(1, steps))
    )
    lessons = _Lessons(tokenizer, seed)
    model.train()
    with task("teach the toy model", steps) as advance:
        for step in range(steps):
            teacher = clear_writer if step < CLEAR_SHARE * steps else writer
            loss = torch.zeros(())
            for weight, rows in ((1.0, lessons.topics(teacher)), (COPY_WEIGHT, lessons.copies())):
                logprobs = completion_logprobs(model, rows)
                loss = loss - weight * torch.cat([b for row in logprobs for b in row]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance(1)
    model.eval()


class _Lessons:
    """New prompts and new answers for every step, as token ids."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._tokenizer, self._known = tokenizer, tokenizer.get_vocab()
        self._random = random.Random(seed)
        self._topics = self._encoded(prompts(2000, seed))
        self._copies = self._encoded(copy_prompts(1000, seed))

    def topics(self, writer: Writer) -> list[Any]:
        return self._drawn(self._topics, writer, PROMPTS, ANSWERS)

    def copies(self) -> list[Any]:
        return self._drawn(self._copies, base_writer, COPIES, 1)

    def _encoded(self, asked: Sequence[Messages]) -> list[tuple[Messages, list[int]]]:
        from trueup.models.chat import prompt_ids

        return [(prompt, prompt_ids(self._tokenizer, prompt)) for prompt in asked]

    def _drawn(
        self,
        asked: Sequence[tuple[Messages, list[int]]],
        writer: Writer,
        num_prompts: int,
        num_answers: int,
    ) -> list[Any]:
        from trueup.models.logprobs import Branches

        return [
            Branches(ids, [self._answer(writer(prompt, self._random)) for _ in range(num_answers)])
            for prompt, ids in self._random.choices(asked, k=num_prompts)
        ]

    def _answer(self, text: str) -> list[int]:
        return [self._known[word] for word in (*words(text), END)]


def _network(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=144,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            initializer_range=0.1,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )


def _tokenizer() -> Any:
    """One token a word; the pad token is the end-of-turn token, as in many real models."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*MARKERS, *VOCABULARY))}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _make(folder: Path, seed: int, steps: int) -> None:
    """Make a model beside its place and move it there in one step."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        save_toy(scratch / "model", seed=seed, steps=steps).rename(folder)
    finally:
        shutil.rmtree(scratch)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file; the kernel gives it back even after kill -9."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
