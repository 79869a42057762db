"""Embedders: unit vectors, each text encoded once, and every make by its settings."""

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from trueup.errors import ConfigError, ModelError, UpstreamError
from trueup.models.config import EmbedderConfig
from trueup.models.embedder import Embedder, lexical, resolve_embedder

TEXTS = ["a cat sat on the mat", "", "the cat sat on a mat", "stocks fell"]


def test_vectors_have_length_one_and_a_text_is_encoded_once() -> None:
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[3.0, 4.0 + len(t)] for t in texts])

    embed = Embedder("test/1", encode)
    first = embed(["x", "y", "x"])
    assert np.linalg.norm(first, axis=1) == pytest.approx(np.ones(3))
    assert (first[0] == first[2]).all()
    embed(["y", "x"])
    assert asked == ["x", "y"]
    assert embed([]).shape[0] == 0


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e39])
def test_a_vector_that_is_not_finite_is_refused(odd: float) -> None:
    broken = Embedder("broken/1", lambda texts: np.full((len(texts), 4), odd))
    with np.errstate(over="ignore"), pytest.raises(ModelError, match="broken/1"):
        broken(["a", "b"])


def test_the_lexical_make_finds_what_is_written_alike() -> None:
    x = lexical()(TEXTS)
    near = x @ x.T
    assert near[0, 2] > 0.8 and near[0, 3] < 0.3
    assert near[1, 1] == pytest.approx(1) and near[1, 0] == 0  # nothing said is like itself alone


def test_settings_name_the_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUEUP_HOME", str(tmp_path))
    assert resolve_embedder(EmbedderConfig(name="lexical")).id == "lexical:char-3-5/1"
    with pytest.raises(ModelError, match="not on the machine"):
        resolve_embedder(EmbedderConfig(name="no-such-model"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled weights are never read"):
        resolve_embedder(EmbedderConfig(name="pickled"), relative_to=tmp_path)


# --- a sentence-transformers folder ---------------------------------------------------------------


@pytest.fixture(scope="module")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT in the layout of sentence-transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("sentence") / "tiny-bert"
    words = sorted({w for t in TEXTS for w in t.split()})
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *words])}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


def test_a_batch_is_the_mean_over_each_texts_own_tokens(sentence_folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    embed = resolve_embedder(EmbedderConfig(name=str(sentence_folder)))
    texts = [one for one in TEXTS if one]
    tokenizer = AutoTokenizer.from_pretrained(sentence_folder)
    model = AutoModel.from_pretrained(sentence_folder).eval()
    for vector, text in zip(embed(texts), texts, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        expected = (mean / mean.norm()).numpy()
        assert vector == pytest.approx(expected, abs=1e-5)
    assert embed.id.startswith("sentence:tiny-bert:")


def test_another_kind_of_pooling_is_refused(sentence_folder: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(sentence_folder, other)
    (other / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ModelError, match="pools its tokens"):
        resolve_embedder(EmbedderConfig(name=str(other)))


# --- an address -----------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Answers each text with (its length, 1), the rows turned round. A strict one refuses a batch
    with an empty text or one of more than 1,000 characters."""

    mode = "well"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = [
            {"index": i, "embedding": [float(len(t)), 1.0]} for i, t in enumerate(body["input"])
        ]
        well = {"data": rows[::-1]}
        said = {"well": well, "strict": well, "short": {"data": rows[1:]}, "odd": {"no": 1}}
        is_bad = self.mode == "strict" and not all(0 < len(t) <= 1_000 for t in body["input"])
        code = 400 if is_bad or self.mode == "refuses" else 500 if self.mode == "down" else 200
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(said.get(self.mode, {})).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    Server.mode = "well"


def test_an_address_gives_vectors_in_the_texts_order(address: str) -> None:
    embed = resolve_embedder(EmbedderConfig(name=address, model="m"))
    texts = ["a" * (i % 70 + 1) for i in range(100)]
    expected = np.array([[len(t), 1.0] for t in texts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(embed(texts) - expected).max() < 1e-6
    assert embed.id == f"http:{address}/embeddings:m"


def test_a_text_that_a_server_refuses_does_not_hold_up_the_others(address: str) -> None:
    """An empty one goes as a space, and one too long is cut in half until it is taken."""
    Server.mode = "strict"
    embed = resolve_embedder(EmbedderConfig(name=address, max_retries=0))
    texts = ["a" * n for n in range(1, 150)]
    texts[70], texts[71], texts[100] = "", "a" * 1_000, "a" * 3_000
    sizes = [len(t) or 1 for t in texts]
    sizes[100] = 750
    found = embed(texts)
    assert np.abs(found[:, 0] / found[:, 1] - sizes).max() < 1e-2


@pytest.mark.parametrize("mode", ["short", "odd", "down", "refuses"])
def test_an_address_that_fails_says_so(address: str, mode: str) -> None:
    Server.mode = mode
    embed = resolve_embedder(EmbedderConfig(name=address, max_retries=1))
    with pytest.raises(UpstreamError, match="gave no vectors"):
        embed(["a", "b" * 5_000])


def test_a_password_in_an_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="password"):
        resolve_embedder(EmbedderConfig(name="http://me:secret@127.0.0.1:1/v1"))
