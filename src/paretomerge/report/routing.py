"""Routing analysis: how much of each task vector the modules of a set get when one task is all that counts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.sets.coefficients import Coefficients
from paretomerge.sets.modules import depth
from paretomerge.sets.pareto_set import ParetoSet


class Routing(NamedTuple):
    """c_m(e_k), the coefficients of module m at the one-hot preference for task k (PWE-MoE, fig. 8)."""

    tasks: tuple[str, ...]
    modules: tuple[str, ...]
    """In order of depth; a steered set has one for each tensor."""
    weights: Tensor
    """(K one-hot preferences, modules, K task vectors), fp64."""


def routers_of(pareto_set: ParetoSet) -> Coefficients | None:
    """The coefficients of a set, if they depend on the module."""
    c = pareto_set.coefficients
    return c if isinstance(c, Coefficients) and c.kind in ("affine", "routed") else None


def routing(pareto_set: ParetoSet) -> Routing:
    """The routing weights of a set.

    Raises:
        UserError: a set whose coefficients do not depend on the module.
    """
    if (coefficients := routers_of(pareto_set)) is None:
        raise UserError(f"a {pareto_set.method} has no routing: fit pwe-moe or steered")
    modules = sorted(coefficients.groups, key=depth)
    rows = [list(coefficients.groups).index(module) for module in modules]
    corners = torch.eye(len(pareto_set.tasks), dtype=torch.float64)
    return Routing(pareto_set.tasks, tuple(modules), torch.stack([coefficients.at(e).double()[rows] for e in corners]))
