"""RegMean (Jin et al. 2023): each linear layer's weights by least squares on the experts' own inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paretomerge.data.tasks import Task
from paretomerge.decompositions import cholesky, of_tensor
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.calibration import Room, Turn, in_turn, moved, not_finite
from paretomerge.merges.linear import average
from paretomerge.merges.streaming import PerTask, per_task
from paretomerge.models.build import device_of
from paretomerge.weights.lazy import Weights

_WORST = 1e-13
"""Smallest reciprocal condition, as Cholesky's diagonal tells it, that is solved without a ridge."""
_RIDGE = 1e-8
"""The first ridge that is tried, on a diagonal of ones."""


@dataclass
class _Layers:
    """The linear layers seen so far, and which of them read the same tensor."""

    leader: dict[str, str] = field(default_factory=dict)
    """Base's name of a weight -> the name under which its inputs' Gram matrix is kept."""
    width: dict[str, int] = field(default_factory=dict)
    """Leader -> d, the length of an input."""
    transposed: set[str] = field(default_factory=set)
    """Weights that are (in, out): transformers' Conv1D."""


def regmean(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    off_diagonal: float = 0.9,
    inputs: int = 256,
    batch_size: int = 32,
    weights: PerTask = 1.0,
    seed: int = 0,
    memory: float = 8.0,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Weights:
    """For each linear layer W = (Σ_k G'_k)⁻¹ Σ_k G'_k W_k; all other tensors are averaged.

    G_k = X_kᵀ X_k / n is of the n inputs (tokens) X_k that reach the layer in expert k, padding left out, and G'_k is G_k
    with its off-diagonal entries scaled; W_k is (in, out) here. ``Linear`` and transformers' ``Conv1D`` count, unless their
    weight serves as something else, too (a tied embedding). Written W₀ + (Σ G'_k)⁻¹ Σ G'_k V_k with V_k = W_k − W₀, and
    solved by Cholesky in fp64 after scaling the diagonal to ones. Where Σ G'_k is singular, a ridge draws towards the
    average: (S + εI)⁻¹ (Σ G'_k V_k + ε V̄); how often is said.

    Memory: one model; for each distinct layer input 2 d² numbers (Σ G'_k and the expert's own), for each layer its size; all
    fp32. Layers that read the same tensor (q, k and v) have one Gram matrix.

    Args:
        experts: base and experts.
        tasks: task -> its inputs.
        off_diagonal: Factor on the off-diagonal entries of the Gram matrices; the paper uses 0.9, and 0.1 for some
            encoder-decoders.
        inputs: Largest number of inputs per task.
        batch_size: Number of inputs per forward pass.
        weights: Weight of each expert's Gram matrices. One number for all tasks, or one per task.
        seed: Random seed of the choice of inputs.
        memory: Memory in GiB for the sums; the rest goes to temporary files.
        device: Device of the models: cpu, cuda or mps; auto uses the best one available.
        say: is told what the user should know, a line at a time.

    Raises:
        UserError: a task without inputs, an option out of its range.

    Needs: inputs.
    Stores: one model.
    Paper: Jin et al. 2023, arXiv 2212.09849.
    """
    w = per_task(weights, experts.tasks, "weights").flatten().tolist()
    if min(w) < 0 or sum(w) == 0:
        raise UserError("weights must not be negative, and not all zero")
    if not 0 <= off_diagonal <= 1:
        raise UserError("off_diagonal must be in [0, 1]: 1 leaves the Gram matrices as they are, 0 keeps their diagonals")
    if batch_size < 1:
        raise UserError("batch_size must be at least 1")
    room, layers = Room(memory), _Layers()
    own: dict[str, Tensor] = {}  # G_k of the expert at hand, by leader
    gram: dict[str, Tensor] = {}  # Σ G'_k, by leader
    right: dict[str, Tensor] = {}  # Σ G'_k V_k, by weight and in its shape
    where = device_of(device)
    for turn in in_turn(experts, tasks, inputs, seed, where):
        linear = _linear(turn)
        _find_shared_inputs(turn, linear, layers)
        for name, d in layers.width.items():
            if name not in own:
                own[name], gram[name] = room.zeros((d, d)), room.zeros((d, d))
        for name in layers.leader:
            if name not in right:
                right[name] = room.zeros(experts.infos[name].shape)
        rows = _add_grams(turn, linear, layers, own, batch_size)
        for name, g in own.items():
            if not torch.isfinite(g).all():
                raise not_finite(turn)
            if not rows.get(name):
                continue  # this expert's model does not use the layer
            diagonal = g.diagonal().clone()
            g.mul_(off_diagonal).diagonal().copy_(diagonal)
            gram[name] += g.mul_(w[turn.k] / rows[name])
        for name, leader in layers.leader.items():
            v, g = turn.alone.task_vectors(name)[0].to(where, torch.float32), own[leader].to(where)
            right[name] += (g @ v if name in layers.transposed else v @ g).to(right[name])
        for g in own.values():
            g.zero_()
        sums = 8 * sum(d * d for d in layers.width.values()) + 4 * sum(r.numel() for r in right.values())
        say(
            f"{turn.task.name}: {len(layers.width)} Gram matrices for {len(layers.leader)} layers, "
            f"of {len(turn.chosen)} inputs; the sums take {sums / 2**30:.2g} GiB"
        )
    _solve(experts, layers, gram, right, w, where, say)
    return moved(experts, right, average(experts, weights=weights))


def _linear(turn: Turn) -> dict[nn.Module, tuple[str, bool]]:
    """The model's linear layers with a merged weight of their own: module -> (weight's name, whether it is (in, out))."""
    from transformers.pytorch_utils import Conv1D

    names = {weight: name for name, weight in turn.weights.items()}
    users: dict[str, list[nn.Module]] = {}
    for module in turn.model.modules():
        for parameter in module.parameters(recurse=False):
            if (name := names.get(parameter)) is not None:
                users.setdefault(name, []).append(module)
    return {
        module: (name, isinstance(module, Conv1D))
        for name, modules in users.items()
        if all(isinstance(module, nn.Linear | Conv1D) and module.weight is turn.weights[name] for module in modules)
        and len({type(module) for module in modules}) == 1
        for module in modules
    }


@contextmanager
def _reading(linear: Mapping[nn.Module, Any], see: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """For a while ``see`` is shown what each layer reads."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        see(module, arguments[0] if arguments else next(iter(named.values())))

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in linear]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _find_shared_inputs(turn: Turn, linear: Mapping[nn.Module, tuple[str, bool]], layers: _Layers) -> None:
    """Fill ``layers`` by a pass of one input, in which all that the layers read is kept and compared."""
    read: list[tuple[Tensor, str]] = []

    def see(module: nn.Module, x: Tensor) -> None:
        name, transposed = linear[module]
        if name in layers.leader:
            return
        layers.leader[name] = next((first for other, first in read if other is x), name)
        if layers.leader[name] == name:
            layers.width[name] = x.shape[-1]
        if transposed:
            layers.transposed.add(name)
        read.append((x, layers.leader[name]))

    with _reading(linear, see):
        text_head = turn.text_head(1)
        for _, batch in turn.batches(1):
            turn.logits(batch, text_head)
            break


@torch.no_grad()
def _add_grams(
    turn: Turn, linear: Mapping[nn.Module, tuple[str, bool]], layers: _Layers, into: Mapping[str, Tensor], size: int
) -> dict[str, int]:
    """Add X_kᵀ X_k to ``into``, by leader; the number of rows of each X_k."""
    rows: dict[str, int] = {}
    mask: Tensor | None = None
    last: dict[str, Tensor] = {}

    def see(module: nn.Module, x: Tensor) -> None:
        name, _ = linear[module]
        leader = layers.leader.get(name)
        if leader is None:
            return
        if leader != name:
            if last.get(leader) is not x:
                raise UserError(f"{name}: reads the same as {leader} for one input and not for others: exclude it")
            return
        last[name] = x
        each = _counted(x, mask).float()
        into[name].add_((each.T @ each).to(into[name]))
        rows[name] = rows.get(name, 0) + len(each)

    with _reading(linear, see):
        text_head = turn.text_head(1)  # one prompt at a time has no padding
        for _, batch in turn.batches(size):
            mask = batch.get("attention_mask")
            turn.logits(batch, text_head)
    return rows


def _counted(x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows (n, d) of what a layer reads, (…, d), that are no padding: mask (inputs, tokens) is 0 there."""
    flat = x.reshape(-1, x.shape[-1])
    if mask is None or bool(mask.all()):
        return flat
    mask = mask.bool().to(x.device)
    # (inputs, tokens, d), or flattened as some models do; a pooled input, (inputs, d), has no padding
    return flat[mask.flatten()] if x.shape[:2] == mask.shape or (x.ndim == 2 and len(x) == mask.numel()) else flat


def _solve(
    experts: Experts, layers: _Layers, gram: dict[str, Tensor], right: dict[str, Tensor], w: list[float],
    device: torch.device, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Replace each Σ G'_k V_k by (Σ G'_k)⁻¹ Σ G'_k V_k, in place; the Gram matrices are used up."""
    shares = torch.tensor(w, dtype=torch.float64)
    drawn = []
    for leader in layers.width:
        s = gram.pop(leader).to(device).double()
        scale = s.diagonal().sqrt()
        scale = torch.where(scale > 0, scale, 1.0)  # an input that is always zero: its row of W is left to the ridge
        s /= scale[:, None] * scale
        ridge = 0.0
        while True:
            with of_tensor(leader):
                factor, definite = cholesky(s)
            if definite and float((factor.diagonal().min() / factor.diagonal().max()) ** 2) > _WORST:
                break
            s.diagonal().add_((10 * ridge or _RIDGE) - ridge)
            ridge = 10 * ridge or _RIDGE
        for name in (name for name, first in layers.leader.items() if first == leader):
            transposed = name in layers.transposed
            r = (right[name] if transposed else right[name].T).to(device).double()  # (in, out)
            if ridge:
                drawn.append(name)
                mean = (torch.tensordot(shares, experts.task_vectors(name).double(), dims=1) / shares.sum()).to(device)
                r = r + ridge * scale.square()[:, None] * (mean if transposed else mean.T)
            x = torch.cholesky_solve(r / scale[:, None], factor) / scale[:, None]
            right[name].copy_(x if transposed else x.T)
    if drawn:
        shown = ", ".join(drawn[:2]) + (", …" if drawn[2:] else "")
        say(f"{len(drawn)} of {len(right)} layers had too few different inputs; a ridge draws them to the average: {shown}")
