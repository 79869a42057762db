"""Log-probs kept between runs: found by what determines them, and never half written."""

from pathlib import Path

import pytest

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


def test_a_damaged_file_is_begun_afresh(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"not a database" * 100)
    cache = LogprobCache(file)
    assert cache.get([KEY]) == {}
    cache.put({KEY: [1.0]})
    assert LogprobCache(file).get([KEY]) == {KEY: [1.0]}
