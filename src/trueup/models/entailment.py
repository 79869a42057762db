"""Does one text follow from another? A small model of natural language inference, on this machine.

Any transformers folder for sequence classification of pairs whose config names a label with
`entail` in it (two labels or three); safetensors only, nothing is unpickled.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trueup.errors import ModelError

__all__ = ["Entailment"]

BATCH = 16  # pairs of like length in one pass
MAX_TOKENS = 512


class Entailment:
    """P(the second text follows from the first), each pair once."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ModelError: no such folder, no safetensors, or no label that means entailment.
        """
        self.folder = folder
        self._known: dict[tuple[str, str], float] = {}
        if not folder.is_dir() or not any(folder.glob("*.safetensors")):
            raise _unusable(folder, "no safetensors in that folder")
        _ = self._parts

    @cached_property
    def id(self) -> str:
        """Name and a digest of the weights, for reports."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            digest.update(path.read_bytes())
        return f"nli:{self.folder.name}:{digest.hexdigest()[:8]}"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The chance for each (premise, hypothesis), shape (N,). A premise that is too long loses
        its end."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        missing.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        for at in range(0, len(missing), BATCH):
            batch = missing[at : at + BATCH]
            self._known.update(zip(batch, self._ask(batch), strict=True))
        return np.array([self._known[pair] for pair in pairs], float)

    def _ask(self, batch: Sequence[tuple[str, str]]) -> list[float]:
        import torch

        tokenizer, model, place = self._parts
        limit = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
        given = tokenizer(
            [first for first, _ in batch],
            [second for _, second in batch],
            padding=True,
            truncation="longest_first",
            max_length=limit,
            return_tensors="pt",
        )
        with torch.no_grad():
            chances = model(**given).logits.float().softmax(-1)[:, place]
        return chances.tolist()

    @cached_property
    def _parts(self) -> tuple[Any, Any, int]:
        """Tokenizer, network, and which of its labels is entailment."""
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                self.folder, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise _unusable(self.folder, str(error).splitlines()[0]) from error
        names = {int(n): str(name).lower() for n, name in model.config.id2label.items()}
        found = [n for n, name in names.items() if "entail" in name and "not" not in name]
        if len(found) != 1:
            raise _unusable(self.folder, sorted(names.values()))
        return tokenizer, model.eval(), found[0]


def _unusable(folder: Path, got: object) -> ModelError:
    return ModelError(
        f"The model of natural language inference in {folder} cannot be used",
        got=got,
        expected="a sequence classifier with safetensors and one label 'entailment'",
        next="name another folder in flag.nli_model, or leave it out",
    )
