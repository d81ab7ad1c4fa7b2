"""Merge fine-tuned models into one for every preference over their tasks: γ -> θ(γ)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretomerge.api import fit, merge
    from paretomerge.errors import UserError
    from paretomerge.experts.experts import Experts, load_experts
    from paretomerge.front.folder import load_front
    from paretomerge.front.front import Front
    from paretomerge.sets.pareto_set import ParetoSet
    from paretomerge.weights.lazy import Weights

_HOMES = {
    "load_experts": "experts",
    "Experts": "experts",
    "Weights": "weights",
    "merge": "api",
    "fit": "api",
    "load_front": "front",
    "Front": "front",
    "ParetoSet": "sets",
    "UserError": "errors",
}
__all__ = ["Experts", "Front", "ParetoSet", "UserError", "Weights", "fit", "load_experts", "load_front", "merge"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes over a second to import: nothing is, until it is used
    if name not in _HOMES:
        raise AttributeError(f"module 'paretomerge' has no attribute {name!r}")
    return getattr(import_module(f"paretomerge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
