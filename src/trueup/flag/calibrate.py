"""From log-odds to chances that can be believed.

Platt's sigmoid (Platt 1999) where labels are few; isotonic regression, which can take any rising
form, where the rarer side has a thousand (Niculescu-Mizil & Caruana 2005 find it to overfit under
that).
"""

import numpy as np

from trueup.records import Value

__all__ = ["Calibration", "fit_calibration"]

ENOUGH_FOR_ISOTONIC = 1000


class Calibration(Value):
    """Points of a rising map from log-odds to chances, or a sigmoid's slope and offset."""

    slope: float = 1.0
    offset: float = 0.0
    margins: tuple[float, ...] = ()
    chances: tuple[float, ...] = ()

    def __call__(self, margins_N: np.ndarray) -> np.ndarray:
        """Chances, shape (N,)."""
        if self.margins:
            return np.interp(margins_N, self.margins, self.chances)
        return sigmoid(self.slope * margins_N + self.offset)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(x / 2))


def fit_calibration(margins_N: np.ndarray, y_N: np.ndarray) -> Calibration:
    """The map that fits rows which the margins were not learned from.

    Platt's targets, (n+ + 1) / (n+ + 2) and 1 / (n- + 2) in place of 1 and 0, keep a sigmoid that
    separates everything from being infinitely steep. A slope that would turn the order around is
    kept at 0.01: the scores said nothing.
    """
    from scipy.optimize import minimize

    positive = int(y_N.sum())
    negative = len(y_N) - positive
    if min(positive, negative) >= ENOUGH_FOR_ISOTONIC:
        return _isotonic(margins_N, y_N)
    target = np.where(y_N > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        z = point[0] * margins_N + point[1]
        gap = sigmoid(z) - target
        value = float((np.logaddexp(0, z) - target * z).sum())
        return value, np.array([gap @ margins_N, gap.sum()])

    base = np.log((positive + 1) / (negative + 1))
    found = minimize(
        loss, [1.0, base], jac=True, method="L-BFGS-B", bounds=[(0.01, None), (None, None)]
    )
    return Calibration(slope=float(found.x[0]), offset=float(found.x[1]))


def _isotonic(margins_N: np.ndarray, y_N: np.ndarray) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(margins_N, y_N)
    return Calibration(
        margins=tuple(map(float, fitted.X_thresholds_)),
        chances=tuple(map(float, fitted.y_thresholds_)),
    )
