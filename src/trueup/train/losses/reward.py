"""The loss of a reward model: scores whose differences explain the preferences."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["bradley_terry_loss"]


def bradley_terry_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margins: Tensor | None = None,
    *,
    centering: float = 0.0,
) -> Tensor:
    """Score the chosen answer above the rejected one, and keep scores around zero.

        loss = -log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected) ** 2

    Bradley and Terry 1952, as in Ouyang et al. 2022, arXiv:2203.02155, Eq. 1; the margin as in
    Touvron et al. 2023 (Llama 2), arXiv:2307.09288, Eq. 2; centring as in Eisenstein et al. 2023,
    arXiv:2312.09244.
    Departs from the papers: no mean over pairs or over the pairs of a prompt; the caller divides.

    Args:
        chosen_scores: the reward model's scalar for each chosen answer. Shape (B,), carries the
            gradient, as does the rejected one.
        margins: by how much chosen should win, in units of score, >= 0. Shape (B,), no gradient.
            None is 0 throughout.
        centering: weight of the pull of scores towards zero, >= 0. Usual 0.01: preferences alone
            leave the zero of a prompt's scores free.

    Returns:
        Losses, of shape (B,).

    Holds:
        Equal scores cost log 2 plus centring; without it, only the difference counts.
        centering > 0 leaves the gradient of the difference as it is, and pulls the sum to 0.
        A margin m costs what a difference smaller by m does.
        Swapping chosen and rejected raises the loss by chosen - rejected (no margin).

    Watch:
        A model is right on a pair if chosen > rejected, whatever the margin; report that.

    Worked example: scores 2 and 1, margin 0.5, centering 0.01: -log sigmoid(0.5) + 0.01 * 9 =
    0.474077 + 0.09 = 0.564077.
    """
    differences = chosen_scores - rejected_scores
    if margins is not None:
        differences = differences - margins
    return -F.logsigmoid(differences) + centering * (chosen_scores + rejected_scores) ** 2
