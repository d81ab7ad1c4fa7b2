"""Merged models as a search asks for them, θ(c) = θ₀ + Σ_n c_n v_n: written to be read, or live and moved from c to c'."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paretomerge.experts.experts import Expert, Experts
from paretomerge.experts.heads import Head, heads_of
from paretomerge.experts.in_memory import companions_of, config_of
from paretomerge.models.shared import SharedModels
from paretomerge.weights.lazy import TensorInfo, Weights
from paretomerge.weights.vectors import added


@dataclass(frozen=True)
class Ingredients:
    """What merged models are made of, without a word on how the task vectors came about."""

    tasks: tuple[str, ...]
    base: Weights
    """θ₀ as it is stored, with second copies of tied weights where they have to be written."""
    dtypes: Mapping[str, torch.dtype]
    """Of merged models, name by name."""
    vectors: Weights
    """Name -> (N, *shape): of every tensor that varies, the v_n."""
    aliases: Mapping[str, str]
    config: Mapping[str, Any]
    heads: Mapping[str, Head]
    companions: Path | None = None

    @property
    def varying(self) -> Collection[str]:
        return self.vectors.infos.keys()

    def at(self, c: Sequence[float], dtype: torch.dtype | None = None) -> Weights:
        """θ(c), lazily; computed in fp32 (fp64 for a base in fp64)."""
        coefficients = torch.tensor(list(c), dtype=torch.float64)
        infos = {name: TensorInfo(info.shape, self.dtypes[name]) for name, info in self.base.infos.items()}

        def read(name: str) -> Tensor:
            first = self.aliases.get(name, name)
            base = self.base[first]
            if first not in self.vectors:
                return base.to(infos[name].dtype)
            wide = torch.float64 if base.dtype == torch.float64 else torch.float32
            out = torch.empty(infos[name].shape, dtype=wide)
            return added(base, self.vectors[first], coefficients, out).to(infos[name].dtype)

        return Weights(infos, read).cast(dtype)

    def live(self, device: torch.device, store: torch.dtype = torch.float32) -> LiveModels:
        """The tasks' live models."""
        return LiveModels(self, device=device, store=store)

    def weights(self) -> Mapping[str, Weights]:
        return {"base": self.base, "vectors": self.vectors, **packed_heads(self.heads)}

    def without_weights(self) -> Ingredients:
        return self.with_weights({})

    def with_weights(self, weights: Mapping[str, Weights]) -> Ingredients:
        base, vectors = (weights.get(name, Weights.of({})) for name in ("base", "vectors"))
        return replace(self, base=base, vectors=vectors, heads=unpacked_heads(self.heads, weights))


def packed_heads(heads: Mapping[str, Head]) -> dict[str, Weights]:
    """The heads' tensors, by a name for each."""
    return {f"head {task}": head.tensors for task, head in heads.items()}


def unpacked_heads(heads: Mapping[str, Head], weights: Mapping[str, Weights]) -> dict[str, Head]:
    """The heads with these tensors, or without any."""
    return {task: replace(head, tensors=weights.get(f"head {task}", Weights.of({}))) for task, head in heads.items()}


def ingredients_of(experts: Experts, vectors: Weights) -> Ingredients:
    """Base, heads and files of some experts, with these task vectors: theirs, or what TIES, DARE or TSV made of them."""
    first = {name: experts.aliases.get(name, name) for name in experts.infos}
    base = Weights({name: experts.base.infos[first[name]] for name in first}, lambda name: experts.base[first[name]])
    return Ingredients(
        experts.tasks, base, {name: info.dtype for name, info in experts.infos.items()}, vectors, dict(experts.aliases),
        config_of(experts.base), heads_of(experts), companions_of(experts.base),
    )  # fmt: skip


class LiveModels:
    """The tasks' live models, over one set of weights that ``move_`` brings from one c to the next."""

    def __init__(self, ingredients: Ingredients, *, device: torch.device, store: torch.dtype = torch.float32) -> None:
        """Build the models, and keep base and task vectors beside them.

        Args:
            ingredients: of the merged models.
            device: where they run; base and task vectors are kept there, too.
            store: dtype of the task vectors; bfloat16 halves their memory.
        """
        found = shared_models(ingredients, ingredients.vectors, device)
        self.models: Mapping[str, nn.Module] = found.models
        self._weights = found.weights
        self._base = {name: ingredients.base[name].to(device, torch.float32) for name in self._weights}
        self._vectors = {name: ingredients.vectors[name].to(device, store) for name in self._weights}
        self.at: tuple[float, ...] | None = None

    @torch.no_grad()
    def move_(self, c: Sequence[float]) -> None:
        """Write θ(c) into the models: each tensor is touched once."""
        if self.at == tuple(c):
            return
        coefficients = torch.tensor(list(c), dtype=torch.float64)
        for name, parameter in self._weights.items():
            added(self._base[name], self._vectors[name], coefficients, parameter.data)
        self.at = tuple(c)


class _Parts(Protocol):
    """``Ingredients``, or what a front has of them."""

    @property
    def tasks(self) -> tuple[str, ...]: ...
    @property
    def base(self) -> Weights: ...
    @property
    def aliases(self) -> Mapping[str, str]: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def heads(self) -> Mapping[str, Head]: ...


def shared_models(
    parts: _Parts, varying: Collection[str], device: torch.device, dtype: torch.dtype | None = torch.float32
) -> SharedModels:
    """The tasks' models over the base's weights, of which the varying ones are shared."""
    empty = Weights.of({})
    experts = Experts(
        _Configured(parts.base, parts.config), tuple(Expert(task, empty, {}) for task in parts.tasks), tuple(varying),
        parts.base.infos, parts.aliases,
    )  # fmt: skip
    return SharedModels(experts, parts.heads, list(varying), device, dtype)


class _Configured(Weights):
    """Weights that know their configuration, as a checkpoint does."""

    def __init__(self, weights: Weights, config: Mapping[str, Any]) -> None:
        super().__init__(weights.infos, weights.__getitem__)
        self.config = dict(config)
