"""ReACT: the merged model's last features corrected towards each expert's, in closed form, on unlabelled inputs.

    T_t = Z^ind_t Z^mtl_tᵀ + β W_t^orth,   C_t = Z^mtl_t Z^mtl_tᵀ + βI        (METHOD §6; ``sets.corrected`` for W_γ)

Z^mtl and Z^ind (d, n): features of the merged model and of expert t on the same inputs. Only their d × d Gram matrices are
kept, in fp64, and the features of some thousand inputs at a time; of the models, the merged one and one expert.

Ours where METHOD leaves it open: Gram matrices are means over the inputs, so that tasks of different sizes count alike; β is
relative to the mean square of a feature, tr Σ_t C_t / (K d); W^orth is the rotation nearest to the identity where the inputs
do not determine it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from paretomerge.data.tasks import Task
from paretomerge.decompositions import solve_from_right, svd
from paretomerge.errors import UserError
from paretomerge.experts.architecture import live_names
from paretomerge.experts.experts import Experts
from paretomerge.experts.heads import Head, heads_of
from paretomerge.fitting.features import FeaturePoint, feature_point
from paretomerge.fitting.sampling import seed_of
from paretomerge.merges.linear import task_arithmetic
from paretomerge.models.build import device_of
from paretomerge.models.shared import SharedModels, own_tensors
from paretomerge.sets.corrected import Corrected, Side
from paretomerge.sets.pareto_set import ParetoSet, Preference
from paretomerge.weights.lazy import Weights

_ROWS = 4096
"""Features are kept until there are so many; then their products are added up."""
_BETAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_APART = 5
"""Every so manyth feature vector chooses β among these."""


@dataclass
class _Grams:
    """Sums over inputs of z zᵀ, y zᵀ and ‖y‖² (z: the merged model's features, y: the expert's), fp64."""

    merged: Tensor
    cross: Tensor
    square: float = 0.0
    count: int = 0

    @staticmethod
    def empty(d: int, device: torch.device) -> _Grams:
        wide = torch.float32 if device.type == "mps" else torch.float64
        return _Grams(torch.zeros(d, d, dtype=wide, device=device), torch.zeros(d, d, dtype=wide, device=device))

    def add(self, z: Tensor, y: Tensor) -> None:
        z, y = z.to(self.merged), y.to(self.merged)
        self.merged.addmm_(z.T, z)
        self.cross.addmm_(y.T, z)
        self.square += float(y.square().sum())
        self.count += len(z)

    def __add__(self, other: _Grams) -> _Grams:
        return _Grams(
            self.merged + other.merged, self.cross + other.cross, self.square + other.square, self.count + other.count
        )

    def means(self) -> tuple[Tensor, Tensor]:
        """(z zᵀ, y zᵀ), means over the inputs, fp64 on the processor."""
        return self.merged.double().cpu() / self.count, self.cross.double().cpu() / self.count

    def relative(self) -> tuple[Tensor, Tensor]:
        """(z zᵀ, y zᵀ), sums over the inputs relative to Σ ‖y‖², fp64 on the processor."""
        return self.merged.double().cpu() / self.square, self.cross.double().cpu() / self.square


def react(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    on: Weights | ParetoSet | None = None,
    beta: float | None = None,
    statistics: Literal["corners", "equal"] = "corners",
    inputs: int | None = 2000,
    batch_size: int = 64,
    precision: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Corrected:
    """W_γ z, the last features of any merge or set corrected in closed form (ReACT); needs inputs, no labels, no steps.

    Args:
        experts: base and experts.
        tasks: task -> its inputs.
        on: what is corrected: a merge, a set made without data, or a front's folder; None: Task Arithmetic.
        beta: Strength of the pull towards the rotations, relative to the mean square of a feature; null chooses it among
            1e-4 … 10 by how well a fifth of the features at equal preference is reconstructed from the others.
        statistics: Preferences at which the features of a set that varies are collected. corners: the equal one and each
            one-hot one. equal: only the equal one.
        inputs: Largest number of inputs per task; null uses all.
        batch_size: Number of inputs per forward pass.
        precision: Precision of the forward passes.
        seed: Random seed of the choice of inputs.
        device: Device of the models: cpu, cuda or mps; auto uses the best one available.
        say: is told what the user should know.

    Raises:
        UserError: a task without inputs, a model without a linear map to fold the correction into.

    Needs: inputs.
    Stores: what it corrects, and 2 K Gram matrices of its last features (twice, where it varies).
    Paper: Wu et al. 2026, arXiv 2511.10943 (ReACT).
    """
    if beta is not None and beta < 0:
        raise UserError("beta must not be negative")
    if batch_size < 1 or (inputs is not None and inputs < 1):
        raise UserError("batch_size and inputs must be at least 1")
    inner = _inner(experts, on)
    place = device_of(device)
    heads = heads_of(experts)
    models = SharedModels(experts, heads, experts.merged, place)
    live = _Live(experts, models, inner, place, torch.bfloat16 if precision == "bfloat16" else None)
    anchors = ["equal"]
    if statistics == "corners" and inner.varying and len(experts) > 1:
        anchors.append("only")
    points, grams = [], []
    for k, name in enumerate(experts.tasks):
        task = _ready(tasks, name)
        point, found = live.grams(k, task, _chosen(task, inputs, seed_of(seed, k)), batch_size, anchors)
        points.append(point)
        grams.append(found)
        whole = found[0][0] + found[0][1]
        say(f"{name}: {whole.count} features of width {len(whole.merged)}")
    if len({found[0][0].merged.shape for found in grams}) > 1:
        raise UserError("the tasks' features are of different widths: one correction cannot serve them all")
    means = [[(most + few).means() for most, few in found] for found in grams]  # [task][anchor]
    if beta is None:  # W^orth, too, of the features that β is not chosen on
        turns = [[rotation(most.means()[1]) for most, _ in found] for found in grams]
        kept_apart = _KeptApart(grams, turns)
        errors = {candidate: kept_apart.missed(candidate) for candidate in _BETAS}
        beta = min(errors, key=lambda candidate: errors[candidate])
        say(f"beta {beta:g}: at equal preference {errors[beta]:.1%} is missed of features kept apart, "
            f"{kept_apart.missed(None):.1%} without a correction")  # fmt: skip
    else:
        turns = [[rotation(cross) for _, cross in found] for found in means]
    targets, cs = _statistics(means, turns, beta)
    tensors = Weights.of({"targets": targets.float(), "grams": cs.float()})
    shared, own = _places(experts, heads, models, points)
    settings = {
        "beta": beta, "statistics": statistics, "inputs": inputs, "batch_size": batch_size, "precision": precision,
        "seed": seed, "inner": {"method": inner.method, **inner.settings},
    }  # fmt: skip
    return Corrected(experts.tasks, inner, tensors, shared, own, settings)


class _Live:
    """The live models, and the weights that are put into them in turn."""

    def __init__(
        self, experts: Experts, models: SharedModels, inner: ParetoSet, place: torch.device, autocast: torch.dtype | None
    ) -> None:
        self.experts, self.models, self.inner, self.place, self.autocast = experts, models, inner, place, autocast
        self.merged = self._read("equal")

    @torch.no_grad()
    def grams(
        self, k: int, task: Task, indices: Sequence[int], batch_size: int, anchors: Sequence[str]
    ) -> tuple[FeaturePoint, list[tuple[_Grams, _Grams]]]:
        """Task k's Gram matrices at each anchor: of most features, and of those kept apart."""
        own, model = self.experts.experts[k], self.models.models[task.name]
        assert task.fit is not None
        versions: list[dict[nn.Parameter | Tensor, Tensor]] = [self.merged]
        if "only" in anchors:
            versions.append(self._read(f"only:{own.task}"))
        self._point(self.merged)
        point = feature_point(model, task, task.fit.batch(list(indices[:1])))
        expert = self._expert(k, model)
        back = {tensor: tensor.data for tensor in expert}  # what is the expert's own is put back after each batch
        kept: list[list[Tensor]] = []
        found: list[tuple[_Grams, _Grams]] = []

        def add() -> None:
            *zs, y = (torch.cat(features) for features in zip(*kept, strict=True))
            apart = torch.arange(len(y), device=y.device) % _APART == 0
            for z, (most, few) in zip(zs, found, strict=True):
                most.add(z[~apart], y[~apart])
                few.add(z[apart], y[apart])
            kept.clear()

        for start in range(0, len(indices), batch_size):
            inputs = task.fit.batch(list(indices[start : start + batch_size]))
            row = []
            for version in [*versions, expert]:
                self._point(version)
                with torch.autocast(self.place.type, self.autocast, enabled=self.autocast is not None):
                    row.append(point.of(model, inputs).float())
            self._point(back)
            kept.append(row)
            if not found:
                found = [
                    (_Grams.empty(row[0].shape[1], self.place), _Grams.empty(row[0].shape[1], self.place)) for _ in versions
                ]
            if sum(len(each[-1]) for each in kept) >= _ROWS:
                add()
        if kept:
            add()
        self._point(self.merged)
        return point, found

    def _read(self, preference: Preference) -> dict[nn.Parameter | Tensor, Tensor]:
        """The shared weights at a preference of the inner set."""
        gamma, varying = self.inner.preference(preference), frozenset(self.inner.varying)
        moved, shift = not torch.equal(gamma, self.inner.equal), self.inner.shift(gamma)
        version: dict[nn.Parameter | Tensor, Tensor] = {}
        for name, weight in self.models.weights.items():
            info = self.inner.base.infos[name]
            if not moved or info.dtype == torch.float64:
                tensor = self.inner.at(gamma)[name]
            elif name not in varying:
                version[weight] = self.merged[weight]
                continue
            else:  # what ``at`` would give, without computing the base once more
                base = self.merged[weight].cpu().view(info.shape)
                tensor = shift.add_(name, base.to(torch.float32, copy=True)).to(info.dtype)
            version[weight] = tensor.to(self.place, torch.float32, copy=True).view_as(weight)
        return version

    def _expert(self, k: int, model: nn.Module) -> dict[nn.Parameter | Tensor, Tensor]:
        """θ_k, with what is not merged but the expert's own (running statistics, excluded tensors)."""
        theirs: dict[nn.Parameter | Tensor, Tensor] = {p: torch.empty_like(p) for p in self.models.weights.values()}
        self._point(theirs)
        self.models.become_(self.experts, k)
        others = [t for t in (*model.parameters(), *model.buffers()) if t not in theirs]
        before = [tensor.clone() for tensor in others]
        with own_tensors(self.experts.experts[k], self.experts, model):
            for tensor, old in zip(others, before, strict=True):
                if not torch.equal(tensor, old):
                    theirs[tensor] = tensor.detach().clone()
        return theirs

    @staticmethod
    def _point(version: Mapping[nn.Parameter | Tensor, Tensor]) -> None:
        for tensor, data in version.items():
            tensor.data = data


def _statistics(
    means: Sequence[Sequence[tuple[Tensor, Tensor]]], turns: Sequence[Sequence[Tensor]], beta: float
) -> tuple[Tensor, Tensor]:
    """T and C, (anchors, K, d, d) fp64, from [task][anchor]; β relative to the mean square of a feature."""
    d = len(means[0][0][0])
    scale = beta * sum(float(found[0][0].trace()) for found in means) / (len(means) * d)
    eye = torch.eye(d, dtype=torch.float64)
    targets = [[cross + scale * turn for (_, cross), turn in zip(*of, strict=True)] for of in zip(means, turns, strict=True)]
    cs = [[merged + scale * eye for merged, _ in found] for found in means]
    return _stacked(targets), _stacked(cs)


def _stacked(of: Sequence[Sequence[Tensor]]) -> Tensor:
    """[task][anchor] (d, d) -> (anchors, K, d, d)."""
    return torch.stack([torch.stack(list(each)) for each in zip(*of, strict=True)])


def rotation(cross: Tensor) -> Tensor:
    """W^orth = argmin ‖W Z^mtl − Z^ind‖ over orthogonal W (Procrustes), from Z^ind Z^mtlᵀ = U S Vᵀ: U Vᵀ.

    Directions that the inputs leave open turn as little as they can: a small multiple of the identity is added.
    """
    eye = torch.eye(len(cross), dtype=cross.dtype)
    u, _, vh = svd(cross + 1e-9 * torch.linalg.matrix_norm(cross) * eye)
    return u @ vh


class _KeptApart:
    """How well W at equal preference does on the features kept apart: sums over the tasks, so that a β costs one solution."""

    def __init__(self, grams: Sequence[Sequence[tuple[_Grams, _Grams]]], turns: Sequence[Sequence[Tensor]]) -> None:
        most, few = zip(*(found[0] for found in grams), strict=True)
        means = [each.means() for each in most]
        self.c, self.t = (_sum(each) for each in zip(*means, strict=True))
        self.turn = _sum(turn[0] for turn in turns)
        self.eye = torch.eye(len(self.c), dtype=torch.float64)
        self.scale = float(self.c.trace()) / (len(means) * len(self.c))
        self.merged, self.cross = (_sum(each) for each in zip(*(each.relative() for each in few), strict=True))
        self.n_tasks = len(few)

    def missed(self, beta: float | None) -> float:
        """Mean over the tasks of Σ ‖W z − y‖² / Σ ‖y‖²; β None: W is the identity."""
        w = self.eye
        if beta is not None:
            scale = beta * self.scale
            w = solve_from_right(self.c + scale * self.n_tasks * self.eye, self.t + scale * self.turn)  # of sums over the tasks
        return 1 + float(((w @ self.merged) * w).sum() - 2 * (w * self.cross).sum()) / self.n_tasks


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """Σ of tensors of one shape, in memory of its own."""
    first, *others = tensors
    total = first.clone()
    for other in others:
        total += other
    return total


def _places(
    experts: Experts, heads: Mapping[str, Head], models: SharedModels, points: Sequence[FeaturePoint]
) -> tuple[dict[str, Side], dict[str, dict[str, Side]]]:
    """Where the correction is folded: tensors of the base, and of each task's head."""
    shared: dict[str, Side] = {}
    own: dict[str, dict[str, Side]] = {}
    for task, point in zip(experts.tasks, points, strict=True):
        model = models.models[task]
        wanted = [f"{point.module}.weight", *([f"{point.module}.bias"] if point.side == "output" else [])]
        head = live_names(heads[task].tensors.infos, model) if task in heads else {}
        base = live_names([*experts.infos, *experts.aliases], model)
        for live in wanted:
            if live not in model.state_dict():
                continue
            in_head = [name for name, place in head.items() if place == live]
            in_base = [name for name, place in base.items() if place == live and name in experts.infos]
            if in_head:
                own.setdefault(task, {})[in_head[0]] = point.side
            elif in_base:
                shared[in_base[0]] = point.side
            else:
                raise UserError(f"task {task}: {live}: no tensor of the base or of the head, so nothing to fold into")
    return shared, own


def _inner(experts: Experts, on: Weights | ParetoSet | None) -> ParetoSet:
    """What is corrected, as a set."""
    if isinstance(on, Corrected):
        raise UserError("the set is a corrected one already: correct what it was made of")
    if isinstance(on, ParetoSet):
        if on.tasks != experts.tasks:
            raise UserError(f"the set to correct has the tasks {', '.join(on.tasks)}, the experts {', '.join(experts.tasks)}")
        if lacking := [name for name in experts.infos if name not in on.base]:
            raise UserError(f"the set to correct has no tensor {lacking[0]}: was it made of this base?")
        return on
    return ParetoSet(experts.tasks, task_arithmetic(experts) if on is None else on)


def _ready(tasks: Mapping[str, Task], name: str) -> Task:
    task = tasks.get(name)
    if task is None or task.fit is None or not len(task.fit):
        raise UserError(f"task {name} has no inputs to fit on: name them with --data {name}=PATH")
    return task


def _chosen(task: Task, count: int | None, seed: int) -> list[int]:
    """At most ``count`` inputs, by chance."""
    assert task.fit is not None
    drawn = torch.randperm(len(task.fit), generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(drawn[:count])
