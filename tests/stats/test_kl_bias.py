"""What the three estimates of a KL divergence do on samples: bias and spread, N(0,1) to N(mu,1)."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the estimates are tensors")


@pytest.mark.parametrize(
    ("kl", "bias", "spread"),
    [
        (0.005, (0.0, 0.0, 0.0), (20.0, 1.4, 1.4)),
        (0.125, (0.0, 0.06, 0.0), (4.0, None, None)),
        (0.5, (0.0, 0.25, 0.0), (2.0, 1.7, 1.7)),
    ],
)
def test_k2_is_biased_where_the_models_are_far_apart_and_k3_is_not(
    kl: float, bias: tuple, spread: tuple
) -> None:
    """Samples of N(0, 1) against N(mu, 1), KL = mu^2 / 2: biases and spreads in units of the KL.

    In closed form k2 has mean KL (1 + KL / 2) and k1 has spread sqrt(2 / KL).
    """
    from trueup.train.losses import kl_estimate

    x = torch.tensor(np.random.default_rng(0).normal(size=2_000_000))
    mu = (2 * kl) ** 0.5
    for name, wrong, wide in zip(("k1", "k2", "k3"), bias, spread, strict=True):
        found = kl_estimate(-x.square() / 2, -(x - mu).square() / 2, name) / kl
        error = float(found.std()) / len(x) ** 0.5
        assert float(found.mean()) - 1 == pytest.approx(wrong, abs=0.005 + 4 * error)
        if wide:
            assert float(found.std()) == pytest.approx(wide, rel=0.05)
