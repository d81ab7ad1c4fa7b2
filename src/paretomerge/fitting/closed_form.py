"""Data-free Pareto Merging in closed form: a truncated Tucker-2 decomposition, and K² numbers for smooth Tchebycheff.

The objectives are S_k(θ) = ‖θ − (θ₀ + Kλ v_k)‖² (Chen & Kwok 2025, eq. 2). Around a base merge with equal shares, expert k
asks for the deviation D_k = Kλ (v_k − v̄), v̄ the mean task vector, so Σ_k D_k = 0.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from paretomerge import preferences
from paretomerge.decompositions import eigh, of_tensor, qr
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.linear import task_arithmetic
from paretomerge.sets.factors import Factors, folded
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.sets.targets import choose_targets
from paretomerge.weights.lazy import Weights, matrix_shape
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.writing import one_thread_each

Members = Sequence[tuple[str, int]]
"""The stacked matrices of a target, by name, with their rows."""

V = TypeVar("V")

Slices = Callable[[], Iterator[tuple[slice, Tensor]]]
"""A pass over D of one target: (rows, D[:, rows] (K, m', n) in fp32), all rows in order."""

_IN_MEMORY = 1 << 26
"""Up to this many entries (256 MiB) D is kept for all passes; a larger one is read anew in slices."""
_OVERSAMPLING = 8


def pareto_merging(
    experts: Experts,
    *,
    on: Weights | None = None,
    rank: int = 16,
    targets: str | Sequence[str] = "attention",
    fuse_qkv: bool = False,
    scale: float | None = None,
    scalarization: Literal["linear", "smooth-tchebycheff"] = "linear",
    mu: float = 0.1,
    alpha: float = 0.1,
    beta: float = 0.0,
    sweeps: int = 3,
    seed: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> ParetoSet:
    """The Pareto set W(γ) = W_base + A (Σ_k γ_k G_k) B that approximates eq. 3 best, without data and without training.

    A and B are orthonormal, from a truncated Tucker-2 decomposition of D; the best cores are then the projections
    P_k = Aᵀ D_k Bᵀ for linear scalarisation, G_k = P_k / (1 + β). For smooth Tchebycheff see ``tchebycheff_mixing``.

    Args:
        experts: base and experts.
        on: the base merge W_base; None: Task Arithmetic with λ.
        rank: Rank r of the low-rank terms, at most the smaller side of each matrix; the paper uses 16.
        targets: Matrices that get a low-rank term: attention (query, key and value, as in the paper), all, or globs of tensor
            names.
        fuse_qkv: Use one low-rank term for the query, key and value matrices of a block together.
        scale: Coefficient λ of the task vectors; null means 1/K for K experts, where one-hot preferences aim at the experts.
        scalarization: How the distances to the experts are weighed at a preference: linear, or smooth-tchebycheff (eq. 9),
            where the distances are divided by their mean, so that mu does not depend on the model.
        mu: Smoothing of smooth-tchebycheff; the paper does not give its value.
        alpha: Concentration of the Dirichlet distribution of preferences; the paper uses 0.1. Only smooth-tchebycheff depends
            on it.
        beta: Weight of the penalty on the size of the low-rank term; 0 gives eq. 3, and the paper uses 0.1 when fitting on
            data.
        sweeps: Number of alternations of the decomposition.
        seed: Random seed of the decomposition's start and of the sampled preferences.
        progress: called with each target's name and the number of its entries.

    Needs: no data.
    Stores: one model; A, B and K cores of r × r for each target.
    Paper: Chen & Kwok 2025, arXiv 2408.12105.
    """
    if rank < 1:
        raise UserError(f"rank {rank}: must be at least 1")
    if mu <= 0 or alpha <= 0 or beta < 0 or sweeps < 1:
        raise UserError("mu and alpha must be positive, beta not negative, sweeps at least 1")
    n_tasks = len(experts)
    lam = 1 / n_tasks if scale is None else float(scale)
    base = task_arithmetic(experts, scale=lam) if on is None else on
    chosen = choose_targets(experts.infos, experts.merged, targets, fuse_qkv=fuse_qkv)
    for second, first in experts.aliases.items():
        if any(first == name for members in chosen.values() for name, _ in members):
            raise UserError(f"{first}: is stored again as {second}, which would not follow: take it out of the targets")

    factors: dict[str, Factors] = {}
    gram = torch.zeros(n_tasks, n_tasks, dtype=torch.float64)
    energy = torch.zeros(n_tasks, dtype=torch.float64)  # ‖D_k‖² over the targets
    kept = threading.local()

    def decomposed(number: int, members: Members) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        with of_tensor(members[0][0]):
            if (found := thin(experts, members)) is not None:
                return _tucker2_of_products(found, n_tasks * lam, rank, sweeps, generator)
            slices = _deviations(experts, members, n_tasks * lam, kept)
            return tucker2(slices, n_tasks, _shape(experts, members), rank, sweeps, generator)

    for (target, members), (a, cores, b, norms) in zip(chosen.items(), _side_by_side(experts, chosen, decomposed), strict=True):
        factors[target] = Factors(a, cores.float(), b, members)
        flat = cores.flatten(1)
        gram += flat @ flat.T
        energy += norms
        if progress:
            progress(target, n_tasks * math.prod(_shape(experts, members)))

    rest = torch.zeros_like(energy)
    if scalarization == "smooth-tchebycheff":
        # what the targets cannot reach is part of S_k too: the other tensors, and D outside the subspace
        varying = {name for members in chosen.values() for name, _ in members}
        for name in (name for name in experts.merged if name not in varying):
            rest += sum(d.double().square().sum((1, 2)) for _, d in _read(experts, ((name, 0),), n_tasks * lam))
        unit = float((energy + rest).mean()) or 1.0
        mixing = tchebycheff_mixing(gram / unit, (energy + rest - gram.diagonal()) / unit, mu, alpha, beta, seed=seed)
        base, factors = folded(base, {name: _mixed(f, mixing) for name, f in factors.items()})
    elif scalarization == "linear":
        factors = {name: _mixed(f, torch.eye(n_tasks, dtype=torch.float64) / (1 + beta)) for name, f in factors.items()}
    else:
        raise UserError(f"scalarization {scalarization!r}: choose linear or smooth-tchebycheff")
    settings = {
        "rank": rank, "targets": targets, "fuse_qkv": fuse_qkv, "scale": lam, "scalarization": scalarization,
        "mu": mu, "alpha": alpha, "beta": beta, "sweeps": sweeps, "seed": seed,
        "captured": round(float(gram.trace() / energy.sum()), 6) if float(energy.sum()) else 1.0,
    }  # fmt: skip
    return ParetoSet(experts.tasks, base, factors=factors, settings=settings)


def tucker2(
    slices: Slices, n_tasks: int, shape: tuple[int, int], rank: int, sweeps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Truncated Tucker-2 of D (K, m, n): orthonormal A (m, r) and B (r, n) that maximise Σ_k ‖Aᵀ D_k Bᵀ‖².

    Higher-order orthogonal iteration (De Lathauwer et al. 2000) from a randomised range finder (Halko et al. 2011): with B
    fixed, the best A spans the leading left singular vectors of [D_1 Bᵀ … D_K Bᵀ], and the other way round. D is only
    multiplied, slice by slice.

    Returns:
        A, cores P_k = Aᵀ D_k Bᵀ (K, r, r) in fp64, B, and ‖D_k‖² (K,) in fp64.
    """
    m, n = shape
    r = min(rank, m, n)
    wide = min(r + _OVERSAMPLING, m, n)
    norms = torch.zeros(n_tasks, dtype=torch.float64)
    for _, d in slices():
        length = torch.linalg.vector_norm(d, dim=2)
        if not torch.isfinite(length.sum()):  # entries whose squares fp32 does not hold
            length = torch.linalg.vector_norm(d, dim=2, dtype=torch.float64)
        norms += length.double().square().sum(1)

    def times_b(b: Tensor) -> Tensor:  # [D_1 Bᵀ … D_K Bᵀ]: (m, K·s)
        out = torch.empty(m, n_tasks * b.shape[0])
        for rows, d in slices():
            out[rows] = (d @ b.T).transpose(0, 1).flatten(1)
        return out

    def a_times(a: Tensor) -> Tensor:  # Aᵀ D_k: (K, s, n)
        out = torch.zeros(n_tasks, a.shape[1], n)
        for rows, d in slices():
            out += a[rows].T @ d
        return out

    b = torch.randn(wide, n, generator=generator)
    for sweep in range(sweeps + 1):
        size = r if sweep else wide  # oversampled once; cut to r only at the end, a few per cent of the energy are lost
        a = _leading(times_b(b), size)
        product = a_times(a)
        b = _leading(product.transpose(1, 2).transpose(0, 1).flatten(1), size).T
    return a, product.double() @ b.T.double(), b.contiguous(), norms


def tchebycheff_mixing(
    gram: Tensor, constants: Tensor, mu: float, alpha: float, beta: float = 0.0, *, samples: int = 2048, seed: int = 0
) -> Tensor:
    """H (K, K) such that the cores G_j = Σ_k H_jk P_k minimise E_γ[smooth Tchebycheff] + β E_γ[R]; γ ~ Dirichlet(α).

    In an orthonormal subspace S_k(γ) = ‖Σ_j γ_j G_j − P_k‖² + c_k sees the cores only through their distances to the P_k,
    so the best cores lie in the span of the P_k: of K·r² unknowns per target, K² for the whole model are left. With
    x = Hᵀγ and Q the Gram matrix of the P_k, S_k = (x − e_k)ᵀ Q (x − e_k) + c_k, and

        g_γ = μ log Σ_k exp(γ_k S_k / μ)        (eq. 9 with z = 0)

    is convex in H: a convex, non-decreasing function of convex quadratics. L-BFGS finds its minimum.

    Args:
        gram: Q_jk = ⟨P_j, P_k⟩ summed over all targets, (K, K) fp64.
        constants: c_k, the part of S_k that the cores cannot change, (K,) fp64.
        mu, alpha, beta: as in ``pareto_merging``.
        samples: preferences that stand for the expectation.
        seed: of that sample.
    """
    n_tasks = len(gram)
    gammas = torch.from_numpy(preferences.dirichlet(n_tasks, samples, alpha, seed % 2**63))
    mixing = torch.eye(n_tasks, dtype=torch.float64, requires_grad=True)  # linear scalarisation's solution
    optimizer = torch.optim.LBFGS(
        [mixing],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        x = gammas @ mixing
        qx = x @ gram
        size = (x * qx).sum(1, keepdim=True)
        distances = size - 2 * qx + gram.diagonal() + constants
        value = (mu * torch.logsumexp(gammas * distances / mu, 1)).mean() + beta * size.mean()
        value.backward()
        return value

    optimizer.step(loss)
    return mixing.detach()


def thin(experts: Experts, members: Sequence[tuple[str, int]]) -> LowRank | None:
    """The K task vectors of the stacked members as products; None: some are whole.

    NaN is found here: a decomposition hides it.
    """
    products = []
    for name, _ in members:
        if (pairs := experts.pairs(name)) is None:
            return None
        products.append(LowRank.beside(pairs))
        if not products[-1].finite():
            raise experts.not_finite(name)
    return LowRank.below(products)


def _tucker2_of_products(
    vectors: LowRank, factor: float, rank: int, sweeps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``tucker2`` of D_k = Kλ (v_k − v̄) for task vectors that are thin products: no D is formed.

    With L = Q S and Rᵀ = P T (QR), v_k = Q (S[:, c_k] T[:, c_k]ᵀ) Pᵀ: everything happens between Q and Pᵀ, in s × s.
    """
    columns = vectors.columns()
    q, s = qr(vectors.left.double())
    p, t = qr(vectors.right.double().T)
    inner = torch.stack([s[:, c] @ t[:, c].T for c in columns])
    inner = (inner - inner.mean(0)) * factor
    shape = (inner.shape[1], inner.shape[2])
    slices = [(slice(0, shape[0]), inner.float())]
    a, cores, b, norms = tucker2(lambda: iter(slices), len(columns), shape, rank, sweeps, generator)
    return (q @ a.double()).float(), cores, (b.double() @ p.T).float(), norms


def _shape(experts: Experts, members: Members) -> tuple[int, int]:
    """Of the stacked members."""
    return sum(rows for _, rows in members), experts.infos[members[0][0]].shape[1]


def at_a_time(experts: Experts, chosen: Mapping[str, Members]) -> tuple[int, int]:
    """How many targets are decomposed at a time, and how many bytes of their D are kept, together."""
    largest = max((len(experts) * math.prod(_shape(experts, members)) for members in chosen.values()), default=0)
    workers = max(1, min(torch.get_num_threads(), len(chosen), 2 * _IN_MEMORY // max(1, largest)))
    return workers, 4 * largest * workers if largest <= _IN_MEMORY else 0


def _side_by_side(experts: Experts, chosen: Mapping[str, Members], of: Callable[[int, Members], V]) -> Iterator[V]:
    """``of`` each target, in order: several at a time on a core each, as many as may be kept; large ones share all cores."""
    workers, _ = at_a_time(experts, chosen)
    if workers < 2:
        yield from (of(number, members) for number, members in enumerate(chosen.values()))
        return
    with one_thread_each(workers) as pool:
        yield from pool.map(of, range(len(chosen)), chosen.values())


def _deviations(experts: Experts, members: Members, factor: float, kept: threading.local) -> Slices:
    """Passes over D of the stacked members (``_read``), and over what a thread has ``kept`` of it if that is not too large."""
    m, n = _shape(experts, members)
    entries = len(experts) * m * n
    if entries > _IN_MEMORY:
        return lambda: _read(experts, members, factor)
    room: Tensor | None = getattr(kept, "room", None)
    if room is None or len(room) < entries:  # fresh memory for each target would cost as much as a pass over it
        kept.room = room = torch.empty(entries)
    whole = room[:entries].view(len(experts), m, n)
    for rows, d in _read(experts, members, factor):
        whole[:, rows] = d
    return lambda: iter([(slice(0, m), whole)])


def _read(experts: Experts, members: Members, factor: float) -> Iterator[tuple[slice, Tensor]]:
    """D_k = Kλ (v_k − v̄) of the stacked members in slices, valid until the next is asked for; ``factor`` is Kλ."""
    start = 0
    for name, _ in members:
        for rows, _, v in experts.chunks(name, entries=1 << 20):
            d = v.sub_(v.mean(0)).mul_(factor).float()
            if not torch.isfinite(d.sum()) and not torch.isfinite(d).all():  # no decomposition would say where
                raise experts.not_finite(name)
            yield slice(start + rows.start, start + rows.stop), d
        start += matrix_shape(experts.infos[name].shape)[0]


def _leading(matrix: Tensor, count: int) -> Tensor:
    """The ``count`` leading left singular vectors of (m, c), orthonormal even where the matrix has lower rank."""
    wide = matrix.double()
    if matrix.shape[1] > matrix.shape[0]:
        vectors = eigh(wide @ wide.T)[1].flip(1)[:, :count]
    else:
        vectors = wide @ eigh(wide.T @ wide)[1].flip(1)[:, :count]
    if vectors.shape[1] < count:  # fewer columns than vectors asked for: any orthonormal completion will do
        generator = torch.Generator().manual_seed(0)
        extra = torch.randn(len(vectors), count - vectors.shape[1], generator=generator, dtype=torch.float64)
        vectors = torch.cat([vectors, extra * vectors.norm() * 1e-12], 1)
    return qr(vectors)[0].float()


def _mixed(factors: Factors, mixing: Tensor) -> Factors:
    """G_j = Σ_k H_jk P_k."""
    return factors.of(torch.tensordot(mixing, factors.varying.double(), dims=1).float())
