"""Pareto sets: each a map from a preference to merged weights; ``SETS`` names how each kind is read from a front's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from paretomerge.sets import pareto_set as pareto_set
from paretomerge.sets.choice import Choice as Choice
from paretomerge.sets.choice import choose as choose
from paretomerge.sets.choice import normalised as normalised
from paretomerge.sets.coefficients import Coefficients as Coefficients
from paretomerge.sets.coefficients import Kind as Kind
from paretomerge.sets.coefficients import Shared as Shared
from paretomerge.sets.coefficients import coefficient_shapes as coefficient_shapes
from paretomerge.sets.corrected import Corrected as Corrected
from paretomerge.sets.corrected import Side as Side
from paretomerge.sets.factors import Factors as Factors
from paretomerge.sets.factors import Structure as Structure
from paretomerge.sets.factors import folded as folded
from paretomerge.sets.modules import choose_modules as choose_modules
from paretomerge.sets.modules import depth as depth
from paretomerge.sets.pareto_set import METHODS as METHODS
from paretomerge.sets.pareto_set import ParetoSet as ParetoSet
from paretomerge.sets.pareto_set import Preference as Preference
from paretomerge.sets.searched import Metric as Metric
from paretomerge.sets.searched import Searched as Searched
from paretomerge.sets.searched import SearchedFront as SearchedFront
from paretomerge.sets.searched import pick as pick
from paretomerge.sets.targets import choose_targets as choose_targets
from paretomerge.sets.task_vectors import TaskVectors as TaskVectors
from paretomerge.sets.task_vectors import truncated_svd as truncated_svd
from paretomerge.weights.lazy import Weights as Weights

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
