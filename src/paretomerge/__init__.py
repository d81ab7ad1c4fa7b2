"""Merge fine-tuned models into one for every preference over their tasks: γ -> θ(γ)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretomerge.api import evaluate, fit, load_tasks, merge
    from paretomerge.data import DataSpec, Task
    from paretomerge.errors import UserError
    from paretomerge.experts import Experts, load_experts
    from paretomerge.fitting import FitRun, TrainingOptions
    from paretomerge.front import Front, load_front, save
    from paretomerge.results import quality as metrics
    from paretomerge.sets import ParetoSet
    from paretomerge.weights import Weights

_HOMES = {
    "api": ("evaluate", "fit", "load_tasks", "merge"),
    "data": ("DataSpec", "Task"),
    "errors": ("UserError",),
    "experts": ("Experts", "load_experts"),
    "fitting": ("FitRun", "TrainingOptions"),
    "front": ("Front", "load_front", "save"),
    "sets": ("ParetoSet",),
    "weights": ("Weights",),
}
"""Room -> what the package offers of it."""
_HOME_OF = {name: room for room, names in _HOMES.items() for name in names}
__all__ = [
    "DataSpec",
    "Experts",
    "FitRun",
    "Front",
    "ParetoSet",
    "Task",
    "TrainingOptions",
    "UserError",
    "Weights",
    "evaluate",
    "fit",
    "load_experts",
    "load_front",
    "load_tasks",
    "merge",
    "metrics",
    "save",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes over a second to import: nothing is, until it is used
    if name == "metrics":
        return import_module("paretomerge.results.quality")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'paretomerge' has no attribute {name!r}")
    return getattr(import_module(f"paretomerge.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
