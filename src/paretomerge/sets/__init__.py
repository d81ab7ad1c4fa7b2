"""Pareto sets: each a map from a preference to merged weights; ``SETS`` names how each kind is read from a front's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from paretomerge.sets import pareto_set
from paretomerge.sets.corrected import Corrected
from paretomerge.sets.pareto_set import METHODS, ParetoSet
from paretomerge.sets.searched import Searched
from paretomerge.weights.lazy import Weights

Restore = Callable[[Sequence[str], Weights, Mapping[str, Any], Weights, Mapping[str, Any]], ParetoSet]
"""(tasks, base, settings, tensors, facts) -> the set that ``stored`` describes with the last two."""


def restored(
    method: str,
    tasks: Sequence[str],
    base: Weights,
    settings: Mapping[str, Any],
    tensors: Weights,
    facts: Mapping[str, Any],
) -> ParetoSet:
    """The set of a method, from what a front's folder keeps of it.

    Raises:
        KeyError: an unknown method.
        ValueError, LookupError: tensors or facts that do not fit together, or not this base.
    """
    return SETS[method](tasks, base, settings, tensors, facts)


SETS: dict[str, Restore] = {
    **{method: partial(pareto_set.restored, kind) for kind, method in METHODS.items()},
    Searched.method: Searched.restored,
    Corrected.method: partial(Corrected.restored, restored),
}
