"""The K task vectors that a set keeps: whole, or each matrix as the product of two thin ones.

v_k ≈ L_k R_k,   L_k (m, R), R_k (R, n)      its truncated singular value decomposition, √S on either side;
                                             of LoRA experts their own factors, exactly
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paretomerge.decompositions import qr, svd
from paretomerge.weights.lazy import TensorInfo, Weights, matrix_shape
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.vectors import Vectors, add_

_WHOLE, _LEFT, _RIGHT = "task_vectors.", "task_vectors_left.", "task_vectors_right."
_OVERSAMPLING = 8
_SWEEPS = 4
"""Of the subspace iteration: the singular values of task vectors fall slowly."""


class TaskVectors:
    """name -> the K task vectors of a tensor: (K, *shape), or (K, m, R) and (K, R, n)."""

    def __init__(self, whole: Weights | None = None, left: Weights | None = None, right: Weights | None = None) -> None:
        """``left`` and ``right`` name the same tensors, none of ``whole``."""
        self.whole = whole or Weights.of({})
        self.left = left or Weights.of({})
        self.right = right or Weights.of({})
        self.names = (*self.whole, *self.left)

    def add_(self, name: str, tensor: Tensor, coefficients: Tensor) -> Tensor:
        """Add Σ_k c_k v_k to ``tensor`` (a floating-point one, of the shape of v_k), in place; c (K,) in fp64."""
        return add_(tensor, self[name], coefficients) if coefficients.any() else tensor

    def pair(self, name: str, coefficients: Tensor) -> LowRank | None:
        """Σ_k c_k v_k as a thin product in fp32; None: it is kept whole."""
        vectors = self[name] if name in self.left else None
        return vectors.fp32().weighted(coefficients) if isinstance(vectors, LowRank) else None

    def __getitem__(self, name: str) -> Vectors:
        """As they are stored."""
        return LowRank.of_stacked(self.left[name], self.right[name]) if name in self.left else self.whole[name]

    def with_copies(self, aliases: Mapping[str, str]) -> TaskVectors:
        """The same, with second copies of tied tensors (copy -> first) that move along."""

        def more(vectors: Weights) -> Weights:
            infos = {copy: vectors.infos[first] for copy, first in aliases.items() if first in vectors.infos}
            return vectors.replacing(infos, lambda copy: vectors[aliases[copy]])

        return TaskVectors(more(self.whole), more(self.left), more(self.right))

    def stored(self) -> Weights:
        """What a front folder keeps."""
        every = {
            **{_WHOLE + name: (self.whole, name) for name in self.whole},
            **{_LEFT + name: (self.left, name) for name in self.left},
            **{_RIGHT + name: (self.right, name) for name in self.right},
        }
        infos = {key: source.infos[name] for key, (source, name) in every.items()}
        return Weights(infos, lambda key: every[key][0][every[key][1]], lambda key: every[key][0].parts(every[key][1]))

    @classmethod
    def restored(cls, tensors: Weights, n_tasks: int, infos: Mapping[str, TensorInfo]) -> TaskVectors:
        """What ``stored`` describes, among other tensors; ``infos`` are the base's.

        Raises:
            ValueError: task vectors that do not fit this base.
        """

        def under(prefix: str) -> Weights:
            named = {key: key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
            return tensors.without(set(tensors) - set(named)).renamed(lambda key: named[key])

        whole, left, right = under(_WHOLE), under(_LEFT), under(_RIGHT)
        if strangers := set(left) ^ set(right) | set(left) & set(whole):
            raise ValueError(f"{min(strangers)}: half of its task vectors, or two of each")
        for name in (*whole, *left):
            if name not in infos or not infos[name].dtype.is_floating_point:
                raise ValueError(f"{name}: its task vectors do not fit this base")
            m, n = matrix_shape(infos[name].shape)
            if name in whole:
                fits = whole.infos[name].shape == (n_tasks, *infos[name].shape)
            else:
                rank = left.infos[name].shape[-1] if left.infos[name].shape else 0
                fits = left.infos[name].shape == (n_tasks, m, rank) and right.infos[name].shape == (n_tasks, rank, n)
            if not fits:
                raise ValueError(f"{name}: its task vectors do not fit this base")
        return cls(whole, left, right)


def truncated_svd(matrices: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The best products of rank R for matrices (K, m, n): L (K, m, R) and R (K, R, n), R ≤ m, n; both carry √S.

    Small ones are decomposed exactly; for large ones a randomised range finder with power iterations (Halko et al. 2011)
    multiplies only, and comes close to the best.
    """
    wide = rank + _OVERSAMPLING
    if 4 * wide >= min(matrices.shape[1:]):
        u, s, v_t = svd(matrices)
    else:
        found = torch.randn(matrices.shape[0], matrices.shape[2], wide, generator=generator).to(matrices)
        for _ in range(_SWEEPS):
            q = qr(matrices @ found)[0]
            found = qr(matrices.mT @ q)[0]
        q = qr(matrices @ found)[0]
        u, s, v_t = svd(q.mT @ matrices)
        u = q @ u
    root = s[:, :rank].sqrt()
    return u[..., :rank] * root[:, None], root[..., None] * v_t[:, :rank]
