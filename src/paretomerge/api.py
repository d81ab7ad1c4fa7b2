"""The two verbs of the library: ``merge`` gives one model, ``fit`` a front with a model for every preference."""

from __future__ import annotations

from typing import Any

from paretomerge.errors import UserError
from paretomerge.fitting import FITS
from paretomerge.front import Front, front_of
from paretomerge.merges import MERGES
from paretomerge.options import check_options, unknown
from paretomerge.weights.experts import Experts
from paretomerge.weights.lazy import Weights


def merge(experts: Experts, method: str = "task_arithmetic", **options: Any) -> Weights:
    """One merged model, computed tensor by tensor as it is read.

    Args:
        experts: from ``load_experts``.
        method: average, task_arithmetic, ties, dare_linear, dare_ties, della, slerp, tsv or iso_c.
        **options: of that method; see ``paretomerge.merges``.

    Raises:
        UserError: no such method, or an option that it does not have.
    """
    function = _named(method, MERGES, "merge")
    return function(experts, **check_options(function, options, method))


def fit(
    experts: Experts,
    method: str = "pareto-merging",
    *,
    on: str | Weights | None = None,
    on_options: dict[str, Any] | None = None,
    hashes: bool = True,
    **options: Any,
) -> Front:
    """A Pareto set over the experts' tasks.

    Args:
        experts: from ``load_experts``.
        method: ``"pareto-merging"`` (data-free, closed form) or ``"soup"`` (Rewarded Soups and eq. 3).
        on: the merge at equal preference: a merge's name or its weights; None: Task Arithmetic with the set's λ.
        on_options: options of that merge.
        hashes: record the SHA-256 of every source file.
        **options: of the method; see ``paretomerge.fitting``.
    """
    function = _named(method, FITS, "set")
    options = check_options(function, options, method)
    base = merge(experts, on, **(on_options or {})) if isinstance(on, str) else on
    if on_options and not isinstance(on, str):
        raise UserError("on_options are given, but no merge they belong to (on)")
    pareto_set = function(experts, on=base, **options)
    if isinstance(on, str):
        pareto_set.settings["on"] = {"method": on, "options": on_options or {}}
    return front_of(pareto_set, experts, hashes=hashes)


def _named(name: str, known: dict[str, Any], what: str) -> Any:
    if name not in known:
        raise UserError(unknown(what, name, known))
    return known[name]
