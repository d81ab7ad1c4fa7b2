"""The models of a front, as evaluations want them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretomerge.experts.architecture import live_names
from paretomerge.experts.heads import Head
from paretomerge.models.merged import packed_heads, shared_models, unpacked_heads
from paretomerge.sets import restored
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.finite import check_finite
from paretomerge.weights.lazy import Weights


@dataclass(frozen=True)
class FrontModels:
    """θ(γ) of a set; points are preferences."""

    pareto_set: ParetoSet | None
    """None only on the way to another process."""
    tasks: tuple[str, ...]
    """Whose models are wanted: the front's, or others, which are then measured without a head."""
    config: Mapping[str, Any]
    heads: Mapping[str, Head]
    companions: Path | None = None
    dtype: torch.dtype | None = torch.float32
    """Of live models; None: as the front stores them."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """None: a front stores second copies of tied weights and their changes."""
    _facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Weights:
        assert self.pareto_set is not None
        return self.pareto_set.base

    @property
    def varying(self) -> Collection[str]:
        assert self.pareto_set is not None
        return self.pareto_set.varying

    def at(self, point: Sequence[float], dtype: torch.dtype | None = None) -> Weights:
        """θ(γ), lazily."""
        assert self.pareto_set is not None
        return self.pareto_set.at(list(point), dtype)

    def live(self, device: torch.device, store: torch.dtype = torch.float32) -> LiveFront:
        """The tasks' live models; of the set nothing is kept beside them, so ``store`` has nothing to do."""
        assert self.pareto_set is not None
        found = shared_models(self, self.varying, device, self.dtype)
        return LiveFront(self.pareto_set, found.models, found.weights, self.heads)

    def weights(self) -> Mapping[str, Weights]:
        assert self.pareto_set is not None
        return {"base": self.base, "set": self.pareto_set.stored()[0], **packed_heads(self.heads)}

    def without_weights(self) -> FrontModels:
        own = self.pareto_set
        assert own is not None
        facts = {"method": own.method, "tasks": own.tasks, "settings": own.settings, "set": own.stored()[1]}
        return replace(self, pareto_set=None, heads=unpacked_heads(self.heads, {}), _facts=facts)

    def with_weights(self, weights: Mapping[str, Weights]) -> FrontModels:
        own = self._facts
        pareto_set = restored(own["method"], own["tasks"], weights["base"], own["settings"], weights["set"], own["set"])
        return replace(self, pareto_set=pareto_set, heads=unpacked_heads(self.heads, weights), _facts={})


class LiveFront:
    """Live models that are brought from one preference to another."""

    def __init__(
        self,
        pareto_set: ParetoSet,
        models: Mapping[str, nn.Module],
        parameters: Mapping[str, nn.Parameter],
        heads: Mapping[str, Head],
    ) -> None:
        self.models = models
        self._set, self._parameters = pareto_set, parameters
        self._heads = {task: heads[task].tensors for task in models if task in heads and pareto_set.varying_of_head(task)}
        self._at: tuple[float, ...] | None = None

    @torch.no_grad()
    def move_(self, point: Sequence[float]) -> None:
        """Write θ(γ) into the models, each tensor from the base: no rounding error is carried from point to point."""
        if self._at == tuple(point):
            return
        shift, base = self._set.shift(self._set.preference(list(point))), self._set.base
        for name, parameter in self._parameters.items():
            wide = torch.float64 if base.infos[name].dtype == torch.float64 else torch.float32
            if parameter.dtype == wide:
                parameter.copy_(base[name])
                shift.add_(name, parameter.data)
            else:
                tensor = base[name].to(parameter.device, wide, copy=True)
                parameter.copy_(shift.add_(name, tensor))
            check_finite(name, parameter)  # a metric of such a model would be a number like any other
        for task, stored in self._heads.items():  # a correction that is folded into heads moves them, too
            parameters = dict(self.models[task].named_parameters())
            names = live_names(stored.infos, self.models[task])
            moved = shift.on_head(task, stored)
            for name in self._set.varying_of_head(task):
                parameters[names[name]].copy_(moved[name])
        self._at = tuple(point)
