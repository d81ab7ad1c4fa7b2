"""What the loop can fit: learned numbers φ, a map from φ and γ to weights, and its transpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Fittable(Protocol):
    """``Learned`` for sets, ``Dense`` for all parameters."""

    phi: Tensor
    """φ, flat; the optimiser moves it in place."""
    n_tasks: int

    def build_(self, weights: Mapping[str, Tensor], gamma: Tensor) -> None:
        """Write θ(γ) into ``weights``, in place."""

    def pull_back(self, gradients: Mapping[str, Tensor | None], gamma: Tensor) -> Tensor:
        """∂S/∂φ, like φ, from ∂S/∂θ (None: zero)."""

    def penalty(self, gamma: Tensor) -> tuple[float, Tensor]:
        """R and ∂R/∂φ."""

    def view(self, name: str, of: Tensor | None = None) -> Tensor:
        """A part of φ, or of a vector like it."""
