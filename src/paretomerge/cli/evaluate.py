"""``paretomerge evaluate``: measure a front and record the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paretomerge.cli.flags import (
    Data,
    EvaluatorOf,
    Gpus,
    Json,
    Metrics,
    OptionValues,
    Quiet,
    Ray,
    RecipeData,
    Seed,
    Workers,
)
from paretomerge.cli.terminal import progress, say, show_json, show_rows
from paretomerge.errors import UserError

if TYPE_CHECKING:
    pass
from paretomerge.cli.inputs import _wanted


def evaluate(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    recipe: RecipeData = None,
    data: Data = None,
    evaluator: EvaluatorOf = None,
    metric: Metrics = None,
    option: OptionValues = None,
    preference: Annotated[
        list[str] | None, typer.Option("--preference", "-p", help="Instead of equal, priority and one-hot; may be repeated.")
    ] = None,
    sample: Annotated[int, typer.Option("--sample", help="Preferences drawn from the whole simplex beside these.")] = 0,
    seed: Seed = 0,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Inputs at a time [default: 64].")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Where the model runs [default: auto].")] = None,
    workers: Workers = 1,
    ray: Ray = None,
    gpus: Gpus = 0.0,
    experts: Annotated[
        bool, typer.Option("--experts", help="Measure the experts and the pretrained base, too, from their paths.")
    ] = False,
    dry: Annotated[bool, typer.Option("--dry", help="Do not record the numbers in the front.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a front on held-out inputs (--data, or a recipe's), or by an --evaluator, and record the numbers in it.

    pick --knee and pick --at-least choose among them. --option has the evaluator's options, timeout=600 for instance.
    """
    from paretomerge import api
    from paretomerge.evaluation.evaluate import evaluate_by, sampled, standard_preferences
    from paretomerge.evaluation.recording import check_recordable, record_or_keep
    from paretomerge.evaluation.resolve import EVALUATORS, evaluator_of, kind_of
    from paretomerge.front.folder import load_front
    from paretomerge.options import check_options
    from paretomerge.recipes.flag_values import option_values
    from paretomerge.recipes.reading import combined

    opened = load_front(front)
    plan = combined(recipe, data=data, evaluator=evaluator, metric=metric)
    evaluator = plan.evaluator
    options = option_values(option or [])
    tasks, names = {}, opened.tasks
    placed: dict[str, Any] = {"batch_size": batch_size or 64, "device": device or "auto"}
    if evaluator is None:
        labelled = bool(options.get("head_steps"))
        tasks = api.load_tasks(opened, _wanted(opened, plan.data, data), keep_labels=labelled, seed=seed)
        names, options = tuple(tasks), {**placed, **options}
        if not tasks:
            raise UserError("no inputs to measure on: name them with --data NAME=PATH or a recipe, or an --evaluator")
        for task in tasks.values():
            for line in task.said:
                say(f"{task.name}: {line}", quiet)
    elif plan.data:
        raise UserError("either --data or --evaluator, one of the two")
    elif batch_size or device:
        raise UserError("--batch-size and --device go with --data: an evaluator has options of its own (--option)")
    options = check_options(EVALUATORS[kind_of(evaluator)], options, "evaluate")
    task_evaluator = evaluator_of(evaluator, tasks=tasks, metrics=plan.metrics, names=names, scratch=None, options=options)
    if preference:
        wanted = [*preference, *sampled(opened.tasks, sample, seed)]
    else:
        wanted = standard_preferences(opened.tasks, sample, seed)
    if experts and not tasks:
        raise UserError("--experts goes with --data")
    sources = experts * (len(opened.tasks) + 1)
    if not dry:
        check_recordable(opened, (len(wanted) + sources) * len(names))
    with progress("measuring", (len(wanted) + sources) * len(names), 0, quiet) as tick:
        told = (lambda row: tick(row["task"], 0)) if tick else None
        rows = evaluate_by(
            opened, task_evaluator, wanted, splits={name: task.split for name, task in tasks.items()} or None, seed=seed,
            progress=told, workers=workers, ray=ray, gpus=gpus,
        )  # fmt: skip
        if experts:
            from paretomerge.evaluation.experts import evaluate_sources

            each = list(tasks.values())
            rows += evaluate_sources(opened, each, seed=seed, **placed, progress=told)
    lost = None if dry else record_or_keep(opened, rows)
    if as_json:
        show_json(rows)
    elif not quiet or lost:
        show_rows(rows)
    if lost:
        raise lost
