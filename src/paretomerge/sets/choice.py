"""Which point of a front a preference asks for."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Choice = Literal["tchebycheff", "weighted-sum"]

_AUGMENTATION = 1e-3


def choose(losses: Matrix, weights: Matrix, choice: Choice = "tchebycheff") -> int:
    """The row of ``losses`` (P, K), all to be minimised, that weights w (K,) ask for.

    With f_k = (losses_k − ideal_k) / (nadir_k − ideal_k) ∈ [0, 1], ideal and nadir the best and worst values of the front,

        ``"tchebycheff"``:   argmin  max_k w_k f_k + 10⁻³ Σ_k f_k      (Steuer & Choo 1983, augmented)
        ``"weighted-sum"``:  argmin  Σ_k w_k f_k

    Tchebycheff is the default: every point of a front is the answer to some preference, in its non-convex parts as well;
    a weighted sum reaches only the points on its convex hull, and on a concave front only the ends. The small sum
    settles ties, so that no dominated point is chosen. A metric that is the same everywhere has no say.

    >>> concave = np.array([[0, 1], [0.7, 0.7], [1, 0]])
    >>> choose(concave, np.array([0.5, 0.5])), choose(concave, np.array([0.5, 0.5]), "weighted-sum")
    (1, 0)
    """
    f = normalised(losses)
    if choice == "tchebycheff":
        return int(np.argmin((weights * f).max(1) + _AUGMENTATION * f.sum(1)))
    return int(np.argmin(f @ weights))


def normalised(losses: Matrix) -> Matrix:
    """(losses − ideal) / (nadir − ideal), column by column; 0 where the two agree."""
    ideal, nadir = losses.min(0), losses.max(0)
    spread = np.where(nadir > ideal, nadir - ideal, 1.0)
    scaled: Matrix = (losses - ideal) / spread
    return scaled
