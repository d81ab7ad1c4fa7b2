"""The merges and the closed form written a second time, straight from the papers' definitions (METHOD.md, sections 2 and 3).

Whole tensors, double precision, loops and sorting: slow, and simple enough to be believed. Nothing is imported from the
package. Task vectors alone are rounded to fp32 before they become doubles (fp64 models: not), because that rounding is part
of the definition of a threshold: two entries that are equal in fp32 are equally large.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def task_vectors(base: State, experts: Sequence[State]) -> list[State]:
    """v_k = θ_k − θ₀, for the floating-point tensors."""
    return [
        {name: (wide(expert[name]) - wide(base[name])).double() for name in base if base[name].is_floating_point()}
        for expert in experts
    ]


def added(base: State, v: State) -> State:
    """θ₀ + v; what has no v is θ₀'s."""
    return {name: base[name].double() + v[name] if name in v else base[name] for name in base}


def per_tensor(combine: Callable[[list[Tensor]], Tensor], vs: list[State]) -> State:
    return {name: combine([v[name] for v in vs]) for name in vs[0]}


def average(base: State, experts: Sequence[State], weights: Sequence[float], normalize: bool = True) -> State:
    total = sum(weights) if normalize else 1.0
    return {
        name: sum(w * expert[name].double() for w, expert in zip(weights, experts, strict=True)) / total
        if base[name].is_floating_point()
        else base[name]
        for name in base
    }


def task_arithmetic(base: State, experts: Sequence[State], scale: Sequence[float]) -> State:
    def combine(v: list[Tensor]) -> Tensor:
        return sum(s * v_k for s, v_k in zip(scale, v, strict=True))

    return added(base, per_tensor(combine, task_vectors(base, experts)))


def largest(magnitudes: Tensor, density: float) -> Tensor:
    """Where the ⌊density · N⌋ largest of N magnitudes are, at least one; of equal ones the first."""
    count = min(magnitudes.numel(), max(math.floor(density * magnitudes.numel()), int(density > 0)))
    kept = torch.zeros(magnitudes.numel(), dtype=torch.bool)
    kept[magnitudes.flatten().sort(descending=True, stable=True).indices[:count]] = True
    return kept.view(magnitudes.shape)


def trim(v: State, density: float, scope: str) -> State:
    """Keep the largest share of the entries, of the model or of each tensor; of equal entries the first."""
    if scope == "tensor":
        return {name: t * largest(t.abs(), density) for name, t in v.items()}
    kept = largest(torch.cat([tensor.flatten() for tensor in v.values()]).abs(), density)
    parts = kept.split([t.numel() for t in v.values()])
    return {name: t * part.view(t.shape) for (name, t), part in zip(v.items(), parts, strict=True)}


def disjoint_mean(v: list[Tensor], weights: Sequence[float], normalize: bool = True) -> Tensor:
    """Elect the sign of Σ w_k v_k; mean (or sum) of the terms that have it."""
    terms = [w * v_k for w, v_k in zip(weights, v, strict=True)]
    sign = torch.sign(sum(terms))
    total, voters = torch.zeros_like(v[0]), torch.zeros_like(v[0])
    for term, w in zip(terms, weights, strict=True):
        agrees = (torch.sign(term) == sign) & (term != 0)
        total += term * agrees.double()
        voters += abs(w) * agrees.double()
    return torch.where(voters > 0, total / voters, 0.0) if normalize else total


def ties(
    base: State,
    experts: Sequence[State],
    *,
    density: Sequence[float],
    scale: float,
    scope: str,
    weights: Sequence[float],
    normalize: bool = True,
) -> State:
    trimmed = [trim(v, d, scope) for v, d in zip(task_vectors(base, experts), density, strict=True)]
    merged = per_tensor(lambda v: disjoint_mean(v, weights, normalize), trimmed)
    return added(base, {name: scale * tensor for name, tensor in merged.items()})


def dropped(
    base: State, experts: Sequence[State], masks: Sequence[State], keep: Sequence[float | State], rescale: bool
) -> list[State]:
    """m_k v_k / keep probability, for given masks; the probability is one number, or one per entry."""
    result = []
    for v, mask, probability in zip(task_vectors(base, experts), masks, keep, strict=True):
        of = probability if isinstance(probability, dict) else dict.fromkeys(v, probability)
        result.append({name: v[name] * mask[name] / (of[name] if rescale else 1.0) for name in v})
    return result


def dare_linear(
    base: State,
    experts: Sequence[State],
    masks: Sequence[State],
    *,
    density: Sequence[float],
    scale: Sequence[float],
    rescale: bool = True,
) -> State:
    def combine(v: list[Tensor]) -> Tensor:
        return sum(s * v_k for s, v_k in zip(scale, v, strict=True))

    return added(base, per_tensor(combine, dropped(base, experts, masks, density, rescale)))


def dare_ties(
    base: State,
    experts: Sequence[State],
    masks: Sequence[State],
    *,
    density: Sequence[float],
    scale: float,
    weights: Sequence[float],
    normalize: bool = True,
    rescale: bool = True,
) -> State:
    vs = dropped(base, experts, masks, density, rescale)
    merged = per_tensor(lambda v: disjoint_mean(v, weights, normalize), vs)
    return added(base, {name: scale * tensor for name, tensor in merged.items()})


def della_probabilities(v: Tensor, density: float, epsilon: float) -> Tensor:
    """Keep probability by rank of magnitude within each row: density − ε/2 for the smallest, density + ε/2 for the largest.

    Rounded to multiples of 2⁻¹⁶, the package's choice: what is drawn is what is divided by.
    """
    rows = v.reshape(1, -1) if v.ndim < 2 else v.reshape(v.shape[0], -1)
    result = torch.empty_like(rows)
    n = rows.shape[1]
    for i, row in enumerate(rows):
        # positions in order of magnitude; among equals the earlier one ranks lower
        order = sorted(range(n), key=lambda j: (abs(float(row[j])), j))
        for rank, j in enumerate(order):
            result[i, j] = density - epsilon / 2 + epsilon * rank / (n - 1) if n > 1 else density
    return (result * 65536).round().reshape(v.shape) / 65536


def della(
    base: State,
    experts: Sequence[State],
    masks: Sequence[State],
    *,
    density: Sequence[float],
    epsilon: float,
    scale: float,
    weights: Sequence[float],
    normalize: bool = True,
    rescale: bool = True,
    elect: bool = True,
) -> State:
    keep = [
        {name: della_probabilities(tensor, d, epsilon) for name, tensor in v.items()}
        for v, d in zip(task_vectors(base, experts), density, strict=True)
    ]
    vs = dropped(base, experts, masks, keep, rescale)

    def combine(v: list[Tensor]) -> Tensor:
        if elect:
            return disjoint_mean(v, weights, normalize)
        return sum(w * v_k for w, v_k in zip(weights, v, strict=True)) / (sum(weights) if normalize else 1.0)

    return added(base, {name: scale * tensor for name, tensor in per_tensor(combine, vs).items()})


def slerp(base: State, experts: Sequence[State], t: float) -> State:
    merged = {}
    for name in base:
        if not base[name].is_floating_point():
            merged[name] = base[name]
            continue
        p, q = (expert[name].double() for expert in experts)
        norms = float(p.norm() * q.norm())
        cosine = float((p * q).sum()) / norms if norms else 1.0
        if abs(cosine) > 0.9995:
            merged[name] = (1 - t) * p + t * q
        else:
            angle = math.acos(cosine)
            merged[name] = (math.sin((1 - t) * angle) * p + math.sin(t * angle) * q) / math.sin(angle)
    return merged


def tsv(v: list[Tensor]) -> Tensor:
    """TSV-Merging of the task matrices: whiten the stacked top ⌊q/K⌋ singular vectors of each."""
    kept = max(1, min(v[0].shape) // len(v))
    triplets = [torch.linalg.svd(matrix, full_matrices=False) for matrix in v]
    u = torch.cat([u_k[:, :kept] for u_k, _, _ in triplets], 1)
    s = torch.cat([s_k[:kept] for _, s_k, _ in triplets])
    v_t = torch.cat([v_k[:kept] for _, _, v_k in triplets], 0)
    return whitened(u) @ torch.diag(s) @ whitened(v_t)


def whitened(matrix: Tensor) -> Tensor:
    p, _, q_t = torch.linalg.svd(matrix, full_matrices=False)
    return p @ q_t


def iso_c(v: list[Tensor]) -> Tensor:
    u, s, v_t = torch.linalg.svd(sum(v), full_matrices=False)
    return u @ torch.diag(torch.full_like(s, float(s.mean()))) @ v_t


def spectral(
    base: State, experts: Sequence[State], rule: Callable[[list[Tensor]], Tensor], matrices: set[str], scale: float
) -> State:
    """A rule for the named matrices, the mean task vector for all else."""
    vs = task_vectors(base, experts)
    merged = {name: rule([v[name] for v in vs]) if name in matrices else sum(v[name] for v in vs) / len(vs) for name in vs[0]}
    return added(base, {name: scale * tensor for name, tensor in merged.items()})


def deviations(v: Tensor, scale: float) -> Tensor:
    """D_k = Kλ (v_k − v̄): v (K, m, n) -> (K, m, n)."""
    return len(v) * scale * (v.double() - v.double().mean(0))


def tucker2(d: Tensor, rank: int, sweeps: int = 50) -> tuple[Tensor, Tensor]:
    """Truncated Tucker-2 of (K, m, n) by full SVDs: HOSVD, then HOOI until it stands still. A (m, r), B (r, n)."""
    a = torch.linalg.svd(torch.cat(list(d), 1), full_matrices=False)[0][:, :rank]
    b = torch.linalg.svd(torch.cat(list(d), 0), full_matrices=False)[2][:rank]
    for _ in range(sweeps):
        a = torch.linalg.svd(torch.cat([d_k @ b.T for d_k in d], 1), full_matrices=False)[0][:, :rank]
        b = torch.linalg.svd(torch.cat([a.T @ d_k for d_k in d], 0), full_matrices=False)[2][:rank]
    return a, b


def smooth_tchebycheff(g: Tensor, p: Tensor, constants: Tensor, gammas: Tensor, mu: float, beta: float) -> Tensor:
    """E_γ[μ log Σ_k exp(γ_k S_k / μ)] + β E_γ[‖G_γ‖²] with S_k = ‖G_γ − P_k‖² + c_k and G_γ = Σ_j γ_j G_j."""
    total = torch.zeros((), dtype=torch.float64)
    for gamma in gammas:
        g_gamma = sum(weight * g_j for weight, g_j in zip(gamma, g, strict=True))
        s = torch.stack([(g_gamma - p_k).square().sum() + c for p_k, c in zip(p, constants, strict=True)])
        total = total + mu * torch.log(torch.exp(gamma * s / mu).sum()) + beta * g_gamma.square().sum()
    return total / len(gammas)
