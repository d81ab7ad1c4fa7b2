"""``merge``: one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.experts.heads import heads_of
from paretomerge.experts.in_memory import companions_of, config_of
from paretomerge.fitting.options import FitRun as FitRun
from paretomerge.front.provenance import sources_of, versions
from paretomerge.front.saving import About
from paretomerge.merges import MERGES, MERGES_ON_DATA
from paretomerge.options import check_options, unknown
from paretomerge.recipes.writing import recipe_of
from paretomerge.weights.lazy import Weights
from paretomerge.weights.unchanged import reading

if TYPE_CHECKING:
    from paretomerge.data.tasks import DataSpec, Task
from paretomerge.api.tasks import load_tasks, tell


@reading()
def merge(
    experts: Experts,
    method: str = "task_arithmetic",
    *,
    data: Mapping[str, Task | DataSpec | str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Weights:
    """One merged model, computed tensor by tensor as it is read (fisher and regmean do their work at once).

    Args:
        experts: from ``load_experts``.
        method: average, task_arithmetic, ties, dare_linear, dare_ties, della, slerp, tsv or iso_c; with data fisher or regmean.
        data: task -> its inputs (a path will do), for the last two.
        say: is told what was found in the data and done with them, a line at a time.
        **options: of that method; see ``paretomerge.merges``.

    Returns:
        The merged model, a lazy mapping from names to tensors; ``save`` writes the folder that the command ``merge`` writes.

    Raises:
        UserError: no such method, or an option that it does not have; data that are missing, or not wanted.
    """
    function = named(method, {**MERGES, **MERGES_ON_DATA}, "merge")
    checked = check_options(function, options, method)
    about = partial(
        _about, experts, method, dict(options), recipe_of(function, method, {**options, **({"data": {}} if data else {})})
    )
    if method in MERGES:
        if data:
            raise UserError(f"data: the merge {method} looks at none; {' and '.join(MERGES_ON_DATA)} do")
        return cast(Weights, function(experts, **checked)).with_about(about)
    if not data:
        raise UserError(f"{method} looks at inputs of each task, and there are none: name them with --data NAME=PATH")
    tasks = load_tasks(experts, data, keep_labels=checked.get("predictions") == "labels", seed=checked.get("seed", 0))
    tell({name: task for name, task in tasks.items() if task is not data[name]}, say)
    return cast(Weights, function(experts, tasks, say=say, **checked)).with_about(about)


def _about(experts: Experts, method: str, options: dict[str, Any], recipe: dict[str, Any]) -> About:
    """How a merge came about."""
    provenance = {
        "method": method,
        "settings": options,
        "recipe": recipe,
        "sources": sources_of(experts, hashes=False),
        "versions": versions(),
    }
    base = experts.base.infos  # what ``stored_as`` has changed
    dtype = next((info.dtype for name, info in experts.infos.items() if info.dtype != base[name].dtype), None)
    return About(config_of(experts.base), companions_of(experts.base), provenance, heads_of(experts), experts.tasks, dtype)


def named(name: str, known: dict[str, Any], what: str) -> Any:
    """The function of that name; an unknown one is refused, with the nearest known one."""
    if name not in known:
        raise UserError(unknown(what, name, known))
    return known[name]
