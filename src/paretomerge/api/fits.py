"""``fit``: a front, made of the weights alone, fitted on data, or searched by evaluations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.fitting import FITS
from paretomerge.fitting.options import FitRun as FitRun
from paretomerge.front.folder import load_front
from paretomerge.front.front import Front, front_of
from paretomerge.merges import MERGES, MERGES_ON_DATA
from paretomerge.options import arguments, check_options, parameters_of, unknown
from paretomerge.recipes.writing import recipe_of
from paretomerge.search.methods import SEARCHES
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.lazy import Weights
from paretomerge.weights.unchanged import reading

if TYPE_CHECKING:
    from paretomerge.data.tasks import DataSpec, Task
    from paretomerge.results.objective import Objective
    from paretomerge.sets.searched import Searched
from paretomerge.api.merges import merge, named
from paretomerge.api.tasks import load_tasks, tell


@reading()
def fit(
    experts: Experts,
    method: str = "pareto-merging",
    *,
    on: str | Weights | ParetoSet | None = None,
    on_options: Mapping[str, Any] | None = None,
    data: Mapping[str, Task | DataSpec | str] | None = None,
    closed_form: bool = False,
    evaluator: Callable[..., Mapping[str, Any]] | str | None = None,
    metrics: Mapping[str, Objective | str] | None = None,
    preset: Literal["recommended", "paper"] = "recommended",
    run: FitRun | None = None,
    hashes: bool = True,
    paper: str | None = None,
    **options: Any,
) -> Front:
    """A Pareto set over the experts' tasks.

    Args:
        experts: from ``load_experts``.
        method: ``"pareto-merging"`` or ``"soup"`` (Rewarded Soups and eq. 3); with ``data`` ``"pareto-merging"``,
            ``"steered"``, ``"pwe-moe"``, ``"adamerging"``, ``"react"`` or ``"training"``; with labelled ``data`` or an
            ``evaluator`` a search: ``"map"``, ``"map-nested"``, ``"map-bayesian"``, ``"direct-search"`` or ``"moead"``.
        on: the base merge, which stays as it is: a merge's name or its weights; None: Task Arithmetic with the set's λ, or
            what a fit on data learns for itself. For react what is corrected: a merge, a set made without data, or a front's
            folder.
        on_options: options of that merge or set.
        data: task -> its inputs (a path will do): the set is fitted on them, and a base merge that looks at data gets them.
        closed_form: the data are for the base merge only.
        evaluator: of a search: a function from a merged model to task -> metric (a live model; with ``gets="models"`` a map
            from task to model, with ``gets="weights"`` one from name to tensor), a shell command with ``{model}`` in it that
            prints such a map as JSON, or ``"lm-eval …"``.
        metrics: with an evaluator: task -> its metric, ``"accuracy"`` or ``"score:max:0:100"`` (see ``directions.objective``).
        preset: of a fit on data: ``"recommended"``, or ``"paper"`` for the settings of the paper's experiments.
        run: with data or an evaluator: the run's folder, whether to resume, who is told of the progress, the workers.
        hashes: record the SHA-256 of every source file.
        paper: a published table, such as ``pareto-merging/table-2``, beside which the front's report shows its numbers.
        **options: of the method; see ``paretomerge.fitting``.
    """
    if paper is not None:
        from paretomerge.report.published import figures_of

        figures_of(paper)  # a wrong name is said before the work
        front = fit(
            experts, method, on=on, on_options=on_options, data=data, closed_form=closed_form, evaluator=evaluator,
            metrics=metrics, preset=preset, run=run, hashes=hashes, **options,
        )  # fmt: skip
        front.pareto_set.settings["paper"] = paper
        return front
    if method in SEARCHES:
        if on is not None or preset != "recommended" or closed_form:
            raise UserError(f"{method}: on and preset belong to other methods; the merge inside a search is its option inside")
        return _search(experts, method, data, evaluator, metrics, run or FitRun(), hashes, options)
    if evaluator is not None or metrics:
        raise UserError(f"evaluator and metrics belong to a search: choose one of the methods {', '.join(SEARCHES)}")
    if data and not closed_form:
        return _fit_on_data(experts, method, on, on_options, data, preset, run or FitRun(), hashes, options)
    return _closed_form(experts, method, on, on_options, data, preset, run, hashes, options)


def _closed_form(
    experts: Experts,
    method: str,
    on: str | Weights | ParetoSet | None,
    on_options: Mapping[str, Any] | None,
    data: Mapping[str, Task | DataSpec | str] | None,
    preset: str,
    run: FitRun | None,
    hashes: bool,
    options: Mapping[str, Any],
) -> Front:
    """A set made of the weights alone, on a base merge that may have looked at data."""
    if preset != "recommended" or (run is not None and (not data or run.folder or run.resume)):
        raise UserError("preset and run belong to a fit on data: name the inputs (data)")
    if data and not isinstance(on, str):
        raise UserError("closed_form: the data are for a base merge that looks at them: name it (on: fisher or regmean)")
    function = named(method, FITS, "set")
    options = check_options(function, options, method)
    if isinstance(on, ParetoSet):
        raise UserError("on: a set made without data is built on a merge, not on another set")
    base = _base_merge(experts, on, on_options, data, (run or FitRun()).say)
    pareto_set = function(experts, on=base, **options)
    if isinstance(on, str):
        pareto_set.settings["on"] = {"method": on, "options": dict(on_options or {})}
    return replace(front_of(pareto_set, experts, hashes=hashes), recipe=recipe_of(function, method, pareto_set.settings))


def _fit_on_data(
    experts: Experts,
    method: str,
    on: str | Weights | ParetoSet | None,
    on_options: Mapping[str, Any] | None,
    data: Mapping[str, Task | DataSpec | str],
    preset: str,
    run: FitRun,
    hashes: bool,
    options: Mapping[str, Any],
) -> Front:
    from paretomerge.fitting.distributed import world
    from paretomerge.fitting.on_data import FITS_ON_DATA, OF_COEFFICIENTS, PRESETS
    from paretomerge.fitting.tensorboard import events
    from paretomerge.io.locking import run_folder

    if method in FITS and method not in FITS_ON_DATA:
        raise UserError(f"{method} is made in closed form: if the data are for its base merge (on), say so with closed_form")
    function = named(method, FITS_ON_DATA, "set fitted on data")
    presets = named(preset, PRESETS, "preset")
    if method not in presets:
        raise UserError(f"preset {preset}: {method} has no settings of a {preset}: leave the preset out")
    settings = {**presets[method], **options}
    settings = check_options(function, settings, method)
    known = inspect.signature(function).parameters
    if run.resume and "run" not in known:
        raise UserError(f"{method}: there is nothing to resume: it is one pass over the inputs")
    if run.tensorboard and "run" not in known:
        raise UserError(f"{method}: there are no steps to log: leave tensorboard out")
    if on is not None and "on" not in known:
        raise UserError(f"on: {method} learns its own coefficients of the task vectors, and takes no base merge")
    if on is not None and (wrong := [name for name in OF_COEFFICIENTS if name in options]):
        raise UserError(f"{wrong[0]}: a base merge (on) has none to learn: leave out {wrong[0]}, or on")
    defaults = {name: parameter.default for name, parameter in parameters_of(function)}
    labels = (defaults | settings).get("objective") == "cross-entropy" or (on_options or {}).get("predictions") == "labels"
    alone = run_folder(run.folder if world()[0] == 0 else None)
    with alone, events(run.folder, experts.tasks, run.report) if run.tensorboard else nullcontext(run.report) as report:
        tasks = load_tasks(experts, data, keep_labels=labels, seed=settings.get("seed", 0))
        tell(tasks, run.say)
        of_run: dict[str, Any] = {"run": replace(run, report=report)} if "run" in known else {"say": run.say}
        if on is not None:
            of_run["on"] = _on(experts, on, on_options, tasks, run.say, correcting=method == "react")
        pareto_set = function(experts, tasks, **arguments(function, settings), **of_run)
    pareto_set.settings |= {"fitted": method, "preset": preset}
    if isinstance(on, str):
        pareto_set.settings["on"] = {"method": on, "options": dict(on_options or {})}
    pareto_set.settings["data"] = {name: _described(spec, tasks[name]) for name, spec in data.items()}
    return replace(front_of(pareto_set, experts, hashes=hashes), recipe=recipe_of(function, method, pareto_set.settings))


def _search(
    experts: Experts,
    method: str,
    data: Mapping[str, Task | DataSpec | str] | None,
    evaluator: Callable[..., Mapping[str, Any]] | str | None,
    metrics: Mapping[str, Objective | str] | None,
    run: FitRun,
    hashes: bool,
    options: Mapping[str, Any],
) -> Front:
    from paretomerge.evaluation.evaluators import for_search
    from paretomerge.evaluation.resolve import divided, evaluator_of
    from paretomerge.search.run import evaluator_for, facts_of, measured_rows

    function: Callable[..., Searched] = SEARCHES[method]
    if (data is None) == (evaluator is None):
        raise UserError(f"{method}: either data with labels (--data) or an evaluator (--evaluator) is needed, one of the two")
    own, theirs = divided(method, function, evaluator, options)
    tasks: dict[str, Task] = {}
    if data is not None:
        tasks = load_tasks(experts, data, keep_labels=True, seed=own.get("seed", 0))
        tell(tasks, run.say)
        tasks = for_search(tasks, experts.tasks, run.say)
    task_evaluator = evaluator_of(
        evaluator,
        tasks=tasks,
        metrics=metrics or {},
        names=experts.tasks,
        scratch=run.folder and run.folder.absolute(),
        options=theirs,
    )
    identity = task_evaluator.identity()
    vectors = {name: own.get(name) for name in ("inside", "density", "seed")}  # that determine them
    facts = {"evaluator": identity, **facts_of(experts, hashes=hashes), **vectors}
    with evaluator_for(experts, task_evaluator, facts, run) as made_for:
        pareto_set = function(experts, made_for, say=run.say, **arguments(function, own))
    pareto_set.settings |= {"fitted": method, "evaluator": identity}
    if data is not None:
        pareto_set.settings["data"] = {name: _described(spec, tasks[name]) for name, spec in data.items()}
    rows = measured_rows(pareto_set, task_evaluator.objectives, own.get("seed", 0))
    recipe = recipe_of(function, method, pareto_set.settings)
    if isinstance(evaluator, str):
        recipe |= {"evaluator": evaluator, "metrics": {task: m for task, m in (metrics or {}).items() if isinstance(m, str)}}
    return replace(front_of(pareto_set, experts, hashes=hashes), measured=tuple(rows), recipe=recipe)


def _base_merge(
    experts: Experts,
    on: str | Weights | None,
    options: Mapping[str, Any] | None,
    data: Mapping[str, Task | DataSpec | str] | None,
    say: Callable[[str], None],
) -> Weights | None:
    """The merge that a set is built on."""
    if isinstance(on, str):
        return merge(experts, on, data=data, say=say, **(options or {}))
    if options:
        raise UserError("on_options are given, but no merge they belong to (on)")
    return on


def _on(
    experts: Experts,
    on: str | Weights | ParetoSet,
    options: Mapping[str, Any] | None,
    tasks: Mapping[str, Task],
    say: Callable[[str], None],
    *,
    correcting: bool,
) -> Weights | ParetoSet | None:
    """What a fit on data stands on: a merge; what a correction is made on may also be a set made without data, or a front's."""
    if isinstance(on, str) and correcting and on not in MERGES and on not in MERGES_ON_DATA:
        if on in FITS:
            function: Any = FITS[on]
            return function(experts, **check_options(function, options or {}, on))
        if Path(on).is_dir():
            if options:
                raise UserError(f"on_options: {on} is a front's folder, and is taken as it is")
            return load_front(on).pareto_set
        raise UserError(unknown("merge, set or front's folder in on", on, [*MERGES, *MERGES_ON_DATA, *FITS]))
    if isinstance(on, ParetoSet):
        if not correcting:
            raise UserError("on: a low-rank term is learned on a merge, not on another set")
        return on
    return _base_merge(experts, on, options, tasks if on in MERGES_ON_DATA else None, say)


def _described(spec: Task | DataSpec | str, task: Task) -> dict[str, Any]:
    """What a front remembers of the inputs it was fitted on."""
    facts = (
        spec.model_dump(exclude_defaults=True)
        if isinstance(spec, BaseModel)
        else {"path": str(spec)}
        if isinstance(spec, str)
        else {}
    )
    return {**facts, "split": task.split}
