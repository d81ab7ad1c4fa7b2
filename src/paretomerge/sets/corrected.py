"""ReACT's set: any other set, with its last features corrected by a linear map that depends on the preference."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from paretomerge.decompositions import solve_from_right
from paretomerge.errors import UserError
from paretomerge.sets.pareto_set import ParetoSet, Shift
from paretomerge.weights.lazy import Weights

if TYPE_CHECKING:
    from collections.abc import Callable

Side = Literal["input", "output"]
"""Of a linear map the features go into (H becomes H W), or come out of (P becomes W P)."""
_INNER, _BEFORE = "inner.", "before."
_KEPT = 4
"""Preferences whose correction is remembered: a model and its heads are asked for one after the other."""


class Corrected(ParetoSet):
    """Features z of θ(γ), corrected to W_γ z (ReACT, Wu et al. 2026, arXiv 2511.10943):

        W_γ = (Σ_t γ_t T_t) (Σ_t γ_t C_t)⁻¹,   T_t = Z^ind_t Z^mtl_tᵀ + β W_t^orth,   C_t = Z^mtl_t Z^mtl_tᵀ + βI.

    W_γ is the best map, in squared error weighted by γ, from the merged model's features of the tasks' inputs to each
    expert's, drawn towards the best rotations. It is folded into the linear map next to the features, so a picked model
    costs nothing more: into the head they enter (of each task, or the model's), or into the projection they come out of.

    Where the inner set varies, so do its features Z^mtl. T and C are then kept at equal preference and at each one-hot, and
    T_t(γ) and C_t(γ) lie on the line between these two, from γ_t = 1/K (and below) to 1.
    """

    method = "react"
    low_rank = False  # heads are corrected, too, and a LoRA would not bring them along

    def __init__(
        self,
        tasks: Sequence[str],
        inner: ParetoSet,
        statistics: Weights,
        shared: Mapping[str, Side],
        heads: Mapping[str, Mapping[str, Side]],
        settings: Mapping[str, Any] | None = None,
        base: Weights | None = None,
    ) -> None:
        """Set it up.

        Args:
            tasks: K names.
            inner: the set whose features are corrected.
            statistics: ``targets`` and ``grams``, T and C as (1 or 2, K, d, d): at equal preference, and at the one-hot one.
            shared: name of a tensor of the base -> where the features are.
            heads: task -> name of a tensor of its own head -> where the features are.
            settings: of the fit.
            base: the corrected model at equal preference; None: computed as it is read.
        """
        self.inner = inner
        self.statistics = statistics
        self.shared = dict(shared)
        self.heads = {task: dict(names) for task, names in heads.items()}
        self._point = lru_cache(maxsize=_KEPT)(partial(_Point, inner, statistics, self.shared))

        def read(name: str) -> Tensor:
            return self.point(self.equal).folded(name).to(inner.base.infos[name].dtype)

        corrected = inner.base.replacing({name: inner.base.infos[name] for name in self.shared}, read)
        super().__init__(tasks, base or corrected, settings=settings)

    def point(self, gamma: Tensor) -> _Point:
        """The correction at γ."""
        return self._point(tuple(gamma.tolist()))

    def correction(self, gamma: Tensor) -> Tensor:
        """W_γ, (d, d) fp64."""
        return self.point(gamma).correction

    @cached_property
    def varying(self) -> Collection[str]:
        return dict.fromkeys([*self.inner.varying, *self.shared])

    def shift(self, to: Tensor, since: Tensor | None = None) -> Shift:
        return _CorrectedShift(self, to, self.equal if since is None else since)

    def varying_of_head(self, task: str) -> Collection[str]:
        return self.heads.get(task, {}).keys()

    def stored(self) -> tuple[Weights, dict[str, Any]]:
        tensors, facts = self.inner.stored()
        before = self.inner.base.without(frozenset(self.inner.base) - self.shared.keys()).renamed(_BEFORE.__add__)
        together = tensors.renamed(_INNER.__add__)
        for more in (before, self.statistics):
            together = together.replacing(more.infos, more.__getitem__)
        inner = {"method": self.inner.method, "settings": self.inner.settings, "set": facts}
        return together, {"inner": inner, "shared": self.shared, "heads": self.heads}

    @classmethod
    def restored(
        cls,
        restore: Callable[..., ParetoSet],
        tasks: Sequence[str],
        base: Weights,
        settings: Mapping[str, Any],
        tensors: Weights,
        facts: Mapping[str, Any],
    ) -> Corrected:
        """The set that ``stored`` describes; ``restore`` is ``sets.restored``, for the set in it.

        Raises:
            ValueError, LookupError: tensors or facts that do not fit together, or not this base.
        """

        def part(prefix: str) -> Weights:
            others = frozenset(name for name in tensors if not name.startswith(prefix))
            return tensors.without(others).renamed(lambda name: name.removeprefix(prefix))

        inner, before = facts["inner"], part(_BEFORE)
        if inner["method"] == cls.method:
            raise ValueError("a correction of a correction")
        if any(base.infos[name].shape != info.shape for name, info in before.infos.items()):
            raise ValueError("the tensors before the correction do not fit this base")
        uncorrected = base.replacing(before.infos, before.__getitem__)
        own = restore(inner["method"], tasks, uncorrected, inner["settings"], part(_INNER), inner["set"])
        shape, (shared, heads) = tensors.infos["targets"].shape, (dict(facts["shared"]), dict(facts["heads"]))
        d = shape[-1]
        if shape not in ((1, len(tasks), d, d), (2, len(tasks), d, d)) or tensors.infos["grams"].shape != shape:
            raise ValueError(f"targets: of shape {shape} for {len(tasks)} tasks")
        if shared.keys() != before.infos.keys() or not heads.keys() <= set(tasks):
            raise ValueError("the correction is folded into tensors that are not there")
        for name, side in shared.items():
            if not _fits(before.infos[name].shape, d, side):
                raise ValueError(f"{name}: the correction does not fit it")
        statistics = tensors.without(frozenset(tensors) - {"targets", "grams"})
        return cls(tasks, own, statistics, shared, heads, settings, base)


class _Point:
    """A preference γ of the inner set, and its correction."""

    def __init__(self, inner: ParetoSet, statistics: Weights, shared: Mapping[str, Side], gamma: tuple[float, ...]) -> None:
        self._inner, self._statistics, self._shared = inner, statistics, shared
        self._gamma = torch.tensor(gamma, dtype=torch.float64)

    @cached_property
    def correction(self) -> Tensor:
        """W_γ, (d, d) fp64."""
        shares, kept = self._shares().flatten(), self._statistics
        t, c = (torch.tensordot(shares, kept[name].double().flatten(0, 1), 1) for name in ("targets", "grams"))
        return solve_from_right(c, t)

    @cached_property
    def _shift(self) -> Shift:
        return self._inner.shift(self._gamma)

    def _shares(self) -> Tensor:
        """What each kept T_t counts at γ, (1 or 2, K): γ_t, divided between equal preference and one-hot."""
        gamma, n_tasks = self._gamma, len(self._gamma)
        if self._statistics.infos["targets"].shape[0] == 1:
            return gamma[None]
        alone = (n_tasks * gamma - 1).clamp(min=0) / max(1, n_tasks - 1)
        return torch.stack([gamma * (1 - alone), gamma * alone])

    def folded(self, name: str) -> Tensor:
        """The inner set's tensor with the correction folded in, fp64."""
        tensor = self._inner.base[name].to(torch.float64, copy=True)
        if name in self._inner.varying:
            tensor = self._shift.add_(name, tensor)
        return _beside(tensor, self.correction, self._shared[name])


class _CorrectedShift(Shift):
    """The inner set's shift, with the tensors and heads that the correction is folded into."""

    def __init__(self, of: Corrected, to: Tensor, since: Tensor) -> None:
        self._set, self._to, self._since = of, of.point(to), of.point(since)
        self._inner = of.inner.shift(to, since)

    def add_(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._set.shared:
            return self._inner.add_(name, tensor)
        return tensor.add_((self._to.folded(name) - self._since.folded(name)).to(tensor))

    def on_head(self, task: str, head: Weights) -> Weights:
        sides = self._set.heads.get(task, {})
        width = self._set.statistics.infos["targets"].shape[-1]
        for name, side in sides.items():
            if name not in head or not _fits(head.infos[name].shape, width, side):
                raise UserError(f"the head of task {task}: the correction does not fit {name}: fit the front again")

        def read(name: str) -> Tensor:
            tensor = head[name]
            return _beside(tensor.double(), self._to.correction, sides[name]).to(tensor.dtype)

        return head.replacing({name: head.infos[name] for name in sides}, read)


def _beside(tensor: Tensor, correction: Tensor, side: Side) -> Tensor:
    """H W, or W P; a bias of P is a vector."""
    return tensor @ correction if side == "input" else correction @ tensor


def _fits(shape: tuple[int, ...], d: int, side: str) -> bool:
    if side == "input":
        return len(shape) == 2 and shape[1] == d
    return side == "output" and len(shape) in (1, 2) and shape[0] == d
