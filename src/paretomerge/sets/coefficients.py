"""How much of each task vector a tensor gets, c(γ) (K,): functions of the preference with few parameters.

    proportional   c = Kλ γ                       Rewarded Soups (Rame et al. 2023) and eq. 3 of Pareto Merging
    constant       c = λ                              Task Arithmetic, AdaMerging, the base of Pareto Merging
    affine         c = M γ + b                        steered
    routed         c = W₂ relu(W₁ γ + b₁) + b₂        the routers of PWE-MoE (Tang et al. 2024)

Tensors of one group share a row of coefficients; R, the number of groups, is the first dimension of every parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from paretomerge.weights.lazy import Weights

Kind = Literal["proportional", "constant", "affine", "routed"]
_KEY = "coefficients."
_GROUPS = {"constant": "groups", "affine": "groups", "routed": "modules"}
"""What a front's JSON file calls the groups."""


def coefficient_shapes(kind: Kind, n_groups: int, n_tasks: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of R groups: λ, one or K; M and b; or W₁, b₁, W₂ and b₂ (2K hidden units)."""
    r, k = n_groups, n_tasks
    if kind == "proportional":
        return {"scale": (r,)}
    if kind == "constant":
        return {"lambda": (r, k)}
    if kind == "affine":
        return {"M": (r, k, k), "b": (r, k)}
    return {"W1": (r, 2 * k, k), "b1": (r, 2 * k), "W2": (r, k, 2 * k), "b2": (r, k)}


@dataclass(frozen=True)
class Coefficients:
    """c(γ) of R groups of tensors: ``parts`` are the parameters by name, ``groups`` the tensors of each row, in order."""

    kind: Kind
    parts: Mapping[str, Tensor]
    groups: Mapping[str, tuple[str, ...]]

    @cached_property
    def row(self) -> dict[str, int]:
        """tensor's name -> its row."""
        return {name: row for row, names in enumerate(self.groups.values()) for name in names}

    def at(self, gamma: Tensor) -> Tensor:
        """c(γ) (R, K), for γ (K,)."""
        p = self.parts
        if self.kind == "proportional":
            return len(gamma) * p["scale"][:, None] * gamma
        if self.kind == "constant":
            return p["lambda"]
        if self.kind == "affine":
            return p["M"] @ gamma.to(p["M"]) + p["b"]
        return (p["W2"] @ self._hidden(gamma)[..., None])[..., 0] + p["b2"]

    def pulled_back(self, gamma: Tensor, d: Tensor) -> dict[str, Tensor]:
        """Gradients of the parameters from d = ∂S/∂c (R, K)."""
        if self.kind == "constant":
            return {"lambda": d}
        of_gamma = gamma.to(d)
        if self.kind == "affine":
            return {"M": d[..., None] * of_gamma, "b": d}
        hidden = self._hidden(gamma)
        d_hidden = (d[:, None] @ self.parts["W2"])[:, 0] * (hidden > 0)
        return {"W1": d_hidden[..., None] * of_gamma, "b1": d_hidden, "W2": d[..., None] * hidden[:, None], "b2": d}

    def _hidden(self, gamma: Tensor) -> Tensor:
        """relu(W₁ γ + b₁), (R, 2K)."""
        return torch.relu(self.parts["W1"] @ gamma.to(self.parts["W1"]) + self.parts["b1"])

    def between(self, to: Tensor, since: Tensor) -> Tensor:
        """c(to) − c(since), (R, K) in fp64."""
        wide = Coefficients(self.kind, {part: tensor.double() for part, tensor in self.parts.items()}, {})
        if self.kind == "proportional":  # without the rounding of two products
            return wide.at(to.double() - since.double())
        return wide.at(to.double()) - wide.at(since.double())

    def stored(self) -> tuple[Weights, dict[str, Any]]:
        """What a front folder keeps: the parameters, and which tensors share which row."""
        if self.kind == "proportional":
            return Weights.of({}), {"scale": float(self.parts["scale"])}
        facts = {_GROUPS[self.kind]: {group: list(names) for group, names in self.groups.items()}}
        return Weights.of({_KEY + part: tensor.contiguous() for part, tensor in self.parts.items()}), facts

    @classmethod
    def proportional(cls, scale: float, names: Collection[str]) -> Coefficients:
        """c = Kλ γ for all tensors."""
        return cls("proportional", {"scale": torch.tensor([scale], dtype=torch.float64)}, {"all": tuple(names)})

    @classmethod
    def restored(
        cls, kind: Kind, tensors: Weights, facts: Mapping[str, Any], n_tasks: int, names: Collection[str]
    ) -> Coefficients:
        """What ``stored`` describes, among other tensors; ``names`` are the tensors that must have a row.

        Raises:
            ValueError: parameters of other shapes, or tensors without a row, or with two.
        """
        if kind == "proportional":
            if not math.isfinite(scale := float(facts["scale"])):
                raise ValueError(f"scale {scale}")
            return cls.proportional(scale, names)
        groups = {group: tuple(members) for group, members in facts[_GROUPS[kind]].items()}
        expected = coefficient_shapes(kind, len(groups), n_tasks)
        found = cls(kind, {part: tensors[_KEY + part] for part in expected}, groups)
        if any(
            found.parts[part].shape != shape or not found.parts[part].is_floating_point() for part, shape in expected.items()
        ):
            raise ValueError(f"coefficients that do not fit {len(groups)} groups and {n_tasks} tasks")
        if sorted(name for members in groups.values() for name in members) != sorted(names):
            raise ValueError("the groups of the coefficients are not the tensors that vary")
        return found


@dataclass(frozen=True)
class Shared:
    """One c(γ) (N,) for all of some tensors: any function of γ (K,) in fp64."""

    function: Callable[[Tensor], Tensor]
    names: Collection[str]

    @cached_property
    def row(self) -> dict[str, int]:
        """tensor's name -> its row: there is one."""
        return dict.fromkeys(self.names, 0)

    def between(self, to: Tensor, since: Tensor) -> Tensor:
        """c(to) − c(since), (1, N) in fp64."""
        return (self.function(to) - self.function(since))[None].double()
