"""Rows of an index with vectors whose neighbours brute force knows."""

import numpy as np

from trueup.vectors import Row


def some_rows(n: int, *, size: int = 32, seed: int = 0) -> tuple[list[Row], np.ndarray]:
    """Unit vectors in a few dozen groups, with columns that filters can tell apart."""
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(24, size))
    vectors = centres[chance.integers(24, size=n)] + 0.5 * chance.normal(size=(n, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        Row(
            id=f"interaction_{seed}_{i:06}",
            created_us=1_790_000_000_000_000 + i * 1_000_000,
            source=("gateway", "file:a.jsonl")[i % 2],
            user=f"user-{i % 50}",
            tenant=(None, "o'hara", 'say "hi" -- \\')[i % 3],
            model=("small", "large")[i % 5 == 0],
            raised=i % 7 == 0,
        )
        for i in range(n)
    ]
    return rows, vectors.astype(np.float32)
