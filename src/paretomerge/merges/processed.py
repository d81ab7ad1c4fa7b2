"""Task vectors as TIES, DARE and TSV leave them, one per task: Σ_n c_n ṽ_n is then that merge with a coefficient a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from paretomerge.decompositions import of_tensor
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.random_drop import dropout
from paretomerge.merges.spectral import orthogonal_triplets
from paretomerge.merges.threshold import Threshold, magnitude_thresholds
from paretomerge.merges.ties import trimmer
from paretomerge.weights.lazy import TensorInfo, Weights, matrix_shape
from paretomerge.weights.roles import is_matrix
from paretomerge.weights.vectors import add_, weighted_sum

Inside = Literal["task_arithmetic", "ties", "dare", "tsv"]


def processed(experts: Experts, inside: Inside = "task_arithmetic", *, density: float | None = None, seed: int = 0) -> Weights:
    """The ṽ_n of a merge: name of each merged tensor -> (N, *shape), in the dtype of the model; read tensor by tensor.

    With c = 1 for all tasks, θ₀ + Σ_n ṽ_n is Task Arithmetic with λ = 1; TIES with λ = 1 and the plain sum of the entries
    that agree (``normalize=False``); DARE with λ = 1 and this seed; TSV-Merging with λ = 1.

    Args:
        experts: base and experts.
        inside: ``"ties"``: each v_n trimmed over the whole model, and zero where its sign lost the election; ``"dare"``:
            entries dropped at random, the rest rescaled; ``"tsv"``: the leading singular triplets of each matrix, made
            orthogonal to those of the other tasks, and v_n / N for tensors that are no matrices.
        density: share of entries that TIES (None: 0.2) or DARE (None: 0.1) keep.
        seed: of DARE's masks.

    Raises:
        UserError: a density that is no share, or one for a merge that has none.
    """
    if density is not None and inside in ("task_arithmetic", "tsv"):
        raise UserError(f"density: {inside} keeps every entry; it belongs to ties and dare")
    if density is not None and not 0 < density <= 1:
        raise UserError("density must be in (0, 1]: the share of entries that is kept")
    read = {"task_arithmetic": _plain, "ties": _ties, "dare": _dare, "tsv": _tsv}[inside](experts, density, seed)
    infos = {name: TensorInfo((len(experts), *experts.infos[name].shape), experts.infos[name].dtype) for name in experts.merged}

    def checked(name: str) -> Tensor:
        vectors = read(name).to(infos[name].dtype)
        if not torch.isfinite(vectors).all():
            raise experts.not_finite(name)
        return vectors

    return Weights(infos, checked)


def with_coefficients(experts: Experts, vectors: Weights, c: list[float]) -> Weights:
    """θ₀ + Σ_n c_n ṽ_n, tensor by tensor, summed in fp32 (fp64 for a model in fp64).

    Args:
        experts: base and experts.
        vectors: from ``processed``.
        c: (N,).
    """

    coefficients = torch.tensor(c, dtype=torch.float64)

    def read(name: str) -> Tensor:
        first, info = experts.aliases.get(name, name), experts.infos[name]
        base = experts.base[first]
        if first not in vectors:
            return base.to(info.dtype)
        merged = add_(base.to(experts.wide(first), copy=True), vectors[first], coefficients).to(info.dtype)
        if not torch.isfinite(merged).all():
            raise experts.not_finite(first)
        return merged

    return Weights(experts.infos, read)


def for_every_name(experts: Experts, vectors: Weights) -> Weights:
    """The same vectors under second names of tied weights as well, for a set that stores them."""
    first = {name: experts.aliases.get(name, name) for name in experts.infos}
    infos = {name: vectors.infos[first[name]] for name in experts.infos if first[name] in vectors}
    return Weights(infos, lambda name: vectors[first[name]])


_Read = Callable[[str], Tensor]


def _plain(experts: Experts, density: float | None, seed: int) -> _Read:
    return experts.task_vectors


def _ties(experts: Experts, density: float | None, seed: int) -> _Read:
    thresholds: list[Threshold] = []

    def read(name: str) -> Tensor:
        if not thresholds:  # a pass over the whole model, when it is first needed
            kept = 0.2 if density is None else density
            thresholds.extend(magnitude_thresholds(experts, experts.merged, [kept] * len(experts)))
        v = trimmer(thresholds, name)(experts.task_vectors(name))
        if not v.numel():
            return v
        elected = weighted_sum(v, torch.ones(len(v))).sign_()
        return v.mul_(v.sign() == elected)

    return read


def _dare(experts: Experts, density: float | None, seed: int) -> _Read:
    keep, drop = dropout(experts, 0.1 if density is None else density, seed)

    def read(name: str) -> Tensor:
        shape = experts.infos[name].shape
        vectors = torch.empty((len(experts), *matrix_shape(shape)), dtype=experts.wide(name))
        drop_ = drop(name)
        for rows, _, v in experts.chunks(name):
            vectors[:, rows] = drop_(v).div_(keep)
        return vectors.view(len(experts), *shape)

    return read


def _tsv(experts: Experts, density: float | None, seed: int) -> _Read:
    def read(name: str) -> Tensor:
        v = experts.task_vectors(name)
        if not torch.isfinite(v).all():  # a decomposition would fail without saying where
            raise experts.not_finite(name)
        if not is_matrix(name, v.shape[1:]):
            return v / len(v)
        with of_tensor(name):
            u, s, v_t = orthogonal_triplets(v)
        kept = len(s) // len(v)
        parts = [slice(k * kept, (k + 1) * kept) for k in range(len(v))]
        return torch.stack([(u[:, part] * s[part]) @ v_t[part] for part in parts])

    return read
