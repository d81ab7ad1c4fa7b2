"""``paretomerge fit``: a front."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

import typer

from paretomerge.cli.flags import (  # fmt: skip
    Base,
    Data,
    Dtype,
    EvaluatorOf,
    Exclude,
    ExpertPaths,
    Gpus,
    Json,
    Method,
    Metrics,
    Missing,
    On,
    OnOptions,
    OptionValues,
    Output,
    Overwrite,
    Preset,
    Quiet,
    Ray,
    RecipeFile,
    Resume,
    RunFolder,
    ShardSize,
    TaskTensors,
    Vocab,
    Workers,
)
from paretomerge.cli.sources import loaded, target
from paretomerge.cli.terminal import done, fitting_bar, progress, say, searching_bar, status
from paretomerge.errors import UserError


def fit(
    recipe: RecipeFile = None,
    base: Base = None,
    expert: ExpertPaths = None,
    method: Method = None,
    option: OptionValues = None,
    on: On = None,
    on_option: OnOptions = None,
    data: Data = None,
    closed_form: Annotated[
        bool | None, typer.Option("--closed-form", help="With --data: they are for the base merge only (--on fisher, regmean).")
    ] = None,
    evaluator: EvaluatorOf = None,
    metric: Metrics = None,
    preset: Preset = None,
    run_folder: RunFolder = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="With --data: also log for TensorBoard in the run's folder.")
    ] = False,
    resume: Resume = False,
    workers: Workers = 1,
    ray: Ray = None,
    gpus: Gpus = 0.0,
    output: Output = None,
    copy_base: Annotated[
        bool, typer.Option("--copy-base", help="Write the whole model, though LoRA experts need a reference to the base only.")
    ] = False,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    vocab: Vocab = None,
    missing: Missing = None,
    exclude: Exclude = None,
    task_tensors: TaskTensors = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a front, a model for every preference: pareto-merging (in closed form, or on --data) or soup.

    With --data also steered, pwe-moe, adamerging, react (corrects the features of what --on names), training (all parameters).

    map, map-nested, map-bayesian, direct-search and moead search by evaluations alone, of labelled --data or an --evaluator.

    The front's folder is itself the model at equal preference; paretomerge pick writes the others.
    """
    from paretomerge.recipes.reading import combined

    started = time.perf_counter()
    plan = combined(
        recipe, base=base, expert=expert, method=method, option=option, on=on, on_option=on_option, data=data,
        closed_form=closed_form, evaluator=evaluator, metric=metric, preset=preset, output=output, dtype=dtype,
        shard_size=shard_size, vocab=vocab, missing=missing, exclude=exclude, task_tensors=task_tensors,
    )  # fmt: skip
    folder = target(plan, overwrite, "pareto_set.json")
    from paretomerge import api
    from paretomerge.search.methods import SEARCHES

    searched = plan.method in SEARCHES
    if searched and plan.closed_form:
        raise UserError(f"--closed-form: {plan.method} looks at data by itself, and has no base merge: leave it out")
    on_data = bool(plan.data) and not plan.closed_form and not searched
    if (not (on_data or searched) and (run_folder or resume)) or (not on_data and tensorboard):
        words = "--run, --resume and --tensorboard belong to a fit on data"
        raise UserError(f"{words}: name the inputs with --data, and leave out --closed-form")
    if not searched and (workers > 1 or ray or gpus):
        raise UserError(f"--workers, --ray and --gpus belong to a search: {', '.join(SEARCHES)}")
    states = run_folder or folder.with_name(folder.name + ".run")
    experts = loaded(plan, quiet)
    named = {"method": plan.method or "pareto-merging", "preset": plan.preset, "paper": plan.paper}
    arguments: dict[str, Any] = {**named, **plan.options}
    if plan.on:
        arguments |= {"on": plan.on.method, "on_options": plan.on.options}
    if searched or plan.evaluator or plan.metrics:
        arguments |= {"data": plan.data or None, "evaluator": plan.evaluator, "metrics": plan.metrics}
        with searching_bar(quiet) as report:
            run = api.FitRun(states, resume, report, partial(say, quiet=quiet), workers=workers, ray=ray, gpus=gpus)
            front = api.fit(experts, run=run if searched else None, **arguments)
    elif on_data:
        from paretomerge.fitting.distributed import joined

        with joined() as first, fitting_bar(experts.tasks, quiet or not first) as report:
            run = api.FitRun(states, resume, report, partial(say, quiet=quiet or not first), tensorboard)
            front = api.fit(experts, data=plan.data, run=run, **arguments)
        if not first:  # of several processes one writes
            return
    else:
        told = api.FitRun(say=partial(say, quiet=quiet)) if plan.data else None
        with status("fitting", quiet):
            front = api.fit(experts, data=plan.data, closed_form=plan.closed_form, run=told, **arguments)
    tensors, _ = front.pareto_set.stored()
    written = front.pareto_set.base
    with progress("writing", len(written) + len(tensors), written.nbytes + tensors.nbytes, quiet) as tick:
        front.save(folder, overwrite=overwrite, copy_base=copy_base, shard_bytes=plan.shard_bytes, progress=tick)
    done(folder, written, started, quiet, as_json, front.summary())
