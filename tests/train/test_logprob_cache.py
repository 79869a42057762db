"""Log-probs kept between runs: found by what determines them, and never half written."""

import sqlite3
from pathlib import Path

import pytest

from trueup.errors import StorageError
from trueup.train.logprob_cache import AT_ONCE, LogprobCache

KEY = LogprobCache.key("weights_1", "float32", [1, 2], [3])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "logprobs.sqlite"


def test_what_was_put_is_found_by_the_next_who_opens_the_file(file: Path) -> None:
    first = LogprobCache(file)
    first.put({KEY: [-0.5, -1.25]})
    first.close()
    assert LogprobCache(file).get([KEY, KEY, b"unknown"]) == {KEY: [-0.5, -1.25]}


def test_other_weights_formats_and_tokens_are_other_keys() -> None:
    others = [
        ("weights_2", "float32", [1, 2], [3]),
        ("weights_1", "bfloat16", [1, 2], [3]),
        ("weights_1", "float32", [1], [2, 3]),
        ("weights_1", "float32", [12], [3]),
        ("weights_1", "float32", [1, 2], [4]),
    ]
    assert len({KEY, *(LogprobCache.key(*other) for other in others)}) == 1 + len(others)


def test_more_keys_than_a_query_may_hold_are_all_found(file: Path) -> None:
    cache = LogprobCache(file)
    known = {str(n).encode(): [float(n)] for n in range(2 * AT_ONCE + 1)}
    cache.put(known)
    assert cache.get(known) == known


def test_a_batch_that_cannot_be_kept_leaves_nothing_and_the_next_one_is_kept(file: Path) -> None:
    cache = LogprobCache(file)
    with sqlite3.connect(file) as other:
        other.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON logprobs WHEN NEW.key = CAST('bad' AS BLOB) "
            "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        )
    other.close()
    with pytest.raises(StorageError, match="refused by the test"):
        cache.put({b"good": [1.0], b"bad": [2.0]})
    assert cache.get([b"good", b"bad"]) == {}
    cache.put({b"good": [1.0]})
    assert cache.get([b"good", b"bad"]) == {b"good": [1.0]}


def test_a_damaged_file_is_an_error_that_says_it_may_be_deleted(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"logprobs\.sqlite.*delete it: that loses nothing"):
        LogprobCache(file)
    file.unlink()
    assert LogprobCache(file).get([KEY]) == {}
