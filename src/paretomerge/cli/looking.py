"""The commands that look at a front and measure it; cli.py registers them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paretomerge.cli.flags import (
    Data,
    EvaluatorOf,
    Gpus,
    HeadOf,
    Json,
    Metrics,
    OptionValues,
    Overwrite,
    Quiet,
    Ray,
    RecipeData,
    Seed,
    Workers,
)
from paretomerge.cli.terminal import cell, console, progress, say, show, show_json, show_rows
from paretomerge.errors import UserError

if TYPE_CHECKING:
    from paretomerge.data.spec import DataSpec
    from paretomerge.front.front import Front


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
    from paretomerge.recipes.recipe import combined, option_values

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


def _wanted(front: Front, found: Mapping[str, DataSpec | str], flags: Sequence[str] | None) -> dict[str, DataSpec | str]:
    """A recipe's data of the front's tasks, and all that the flags name."""
    from paretomerge.recipes.recipe import parse_pairs

    named = parse_pairs(flags or [], "--data", "math=data/math.jsonl")
    return {name: spec for name, spec in found.items() if name in front.tasks or name in named}


def select(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    unseen: Annotated[
        str,
        typer.Option("--unseen", metavar="PATH", help="Inputs of a task that no expert knows, or its name in the recipe."),
    ],
    recipe: RecipeData = None,
    head: HeadOf = None,
    classes: Annotated[str | None, typer.Option("--classes", help="cat,dog,…: a zero-shot head for models like CLIP.")] = None,
    sample: Annotated[int, typer.Option("--sample", help="Preferences to try.")] = 30,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Inputs at a time.")] = 64,
    device: Annotated[str, typer.Option("--device", help="Where the model runs.")] = "auto",
    as_json: Json = False,
) -> None:
    """Choose a preference for an unseen task: the one whose model is surest of its inputs; no labels are used.

    If the inputs have labels, the model's metric at that preference is said, too.
    """
    import torch

    from paretomerge.data.spec import DataSpec
    from paretomerge.data.tasks import load_task
    from paretomerge.evaluation.evaluate import measure, select_unseen
    from paretomerge.front.folder import load_front
    from paretomerge.models.build import device_of
    from paretomerge.recipes.recipe import combined

    opened = load_front(front)
    known = combined(recipe).data.get(unseen, unseen)
    spec = DataSpec(path=known) if isinstance(known, str) else known
    if classes:
        spec = spec.model_copy(update={"classes": classes.split(",")})
    config = opened.head(head).config if head else opened.config
    task = load_task("unseen", spec, companions=opened.companions, config=config, seed=seed)
    inputs = task.fit or task.held_out
    if inputs is None:
        raise UserError(f"{unseen}: no inputs in it")
    found = select_unseen(
        opened, inputs, head=head, prompts=task.prompts, sample=sample, seed=seed, batch_size=batch_size, device=device
    )
    value = None
    if task.held_out is not None:
        value = measure(opened.model(found.preference, head=head, dtype=torch.float32).to(device_of(device)), task, batch_size)
    if as_json:
        measured = {} if value is None else {task.metric: value}
        show_json(found._asdict() | measured)
    else:
        show(
            f"{found.preference}: mean entropy {found.entropies[found.preference]:.4f}, the smallest of {len(found.entropies)}"
            + ("" if value is None else f"; {task.metric} there {value:.4f}")
        )


def info(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    routing: Annotated[
        Path | None,
        typer.Option(
            "--routing", metavar="FILE", help="Of pwe-moe and steered: draw their coefficients over depth; .json: the numbers."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a front holds: tasks, method, settings, what it stores, where it comes from."""
    from paretomerge.front.folder import load_front

    opened = load_front(front)
    facts = opened.summary()
    if routing:
        from paretomerge.report.plots import routing_figure
        from paretomerge.report.routing import routing as routing_of
        from paretomerge.weights.writing import write_json

        found = routing_of(opened.pareto_set)
        if routing.suffix == ".json":
            write_json(routing, {**found._asdict(), "weights": found.weights.tolist()})
        else:
            routing_figure(routing, found)
    if as_json:
        show_json(facts)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in facts.items():
        for number, line in enumerate(value.items() if isinstance(value, dict) else [("", value)]):
            name, shown = line
            text = ", ".join(map(str, shown)) or "none" if isinstance(shown, list) else str(shown)
            table.add_row(cell(key.replace("_", " ") if number == 0 else ""), cell(name), cell(text))
    console().print(table)


def relocate(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    base: Annotated[str | None, typer.Option("--base", metavar="PATH", help="Where the base is now.")] = None,
    expert: Annotated[
        list[str] | None, typer.Option("--expert", metavar="NAME=PATH", help="Where an expert is now; may be repeated.")
    ] = None,
) -> None:
    """Tell a front where its base and experts are now; the files must be the same.

    A front of LoRA experts refers to its base and opens on it; others need their sources for verify and evaluate --experts.
    What lies in the front's folder or beside it is found without this when all move together.
    """
    from paretomerge.front.verify import relocate as moved
    from paretomerge.recipes.recipe import parse_pairs

    if base is None and not expert:
        raise UserError("what has moved? Name it: --base PATH, --expert NAME=PATH")
    moved(front, base, parse_pairs(expert or [], "--expert", "math=models/math"))


def verify(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    recipe: RecipeData = None,
    data: Data = None,
    points: Annotated[
        int | None, typer.Option("--points", min=1, help="With --data: recorded preferences to measure again (default: all).")
    ] = None,
    option: OptionValues = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Hash a front's files and its sources again, measure recorded numbers again (--data); exit 2 if something changed.

    --option: as they were given to evaluate.
    """
    from paretomerge import api
    from paretomerge.evaluation.evaluators import OnTasks
    from paretomerge.front.folder import load_front
    from paretomerge.front.verify import failed, verify_files, verify_measured
    from paretomerge.options import check_options
    from paretomerge.recipes.recipe import combined, option_values

    opened = load_front(front)
    checks = verify_files(opened)
    if recipe or data:
        wanted = _wanted(opened, combined(recipe, data=data).data, data)
        options = check_options(OnTasks, option_values(option or []), "verify")
        tasks = api.load_tasks(opened, wanted, keep_labels=bool(options.get("head_steps")), seed=seed)
        measured = verify_measured(opened, tasks, points, options, say=lambda line: say(f"measuring at {line}", quiet))
        if not measured:
            raise UserError(f"{front}: no number of these tasks is recorded: run paretomerge evaluate first")
        checks += measured
    elif points is not None:
        raise UserError("--points goes with --data: on which inputs?")
    bad = failed(checks)
    if as_json:
        show_json({"ok": not bad, "checks": [check._asdict() for check in checks]})
    elif not quiet or bad:
        for check in checks:
            if check.state != "same":
                show(f"{check.state}: {check.what}: {check.message}")
        show(f"{len(checks) - len(bad)} of {len(checks)} as recorded" + (f", {len(bad)} not" if bad else ""))
    if bad:
        raise typer.Exit(2)


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its options.")] = None, as_json: Json = False
) -> None:
    """List the methods: what each needs and stores, and its paper; or one with its options, their defaults and meanings."""
    from paretomerge.methods import describe_methods

    rows = describe_methods(name)
    if as_json:
        show_json(rows)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    to = console(width=None if sys.stdout.isatty() else 160)
    if name is None:
        table = Table("method", "command", "needs, beside the models", "stores", "paper", box=SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*(row[key] for key in ("name", "command", "needs", "stores", "paper")))
        to.print(table)
        to.print("Options of one: paretomerge methods NAME")
        return
    for row in rows:
        command, *rest = row["command"].split(" ", 1)
        with_data = {"--data": " --data TASK=PATH …", "by evaluations": " (--data TASK=PATH … | --evaluator COMMAND)"}
        to.print(f"paretomerge {command} --method {row['name']}{with_data[rest[0]] if rest else ''}", style="bold")
        to.print(row["summary"])
        table = Table.grid(padding=(0, 2))
        for key in ("needs", "stores", "paper"):
            table.add_row(key, row[key])
        to.print(table)
        for heading, options in {"": row["options"], **row.get("evaluators", {})}.items():
            if heading:
                to.print(f"and with {heading}")
            table = Table.grid(padding=(0, 2))
            for option, facts in options.items():
                table.add_row(f"  {option}", str(facts["default"]), facts["meaning"])
            to.print(table)
        to.print()


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the front and its picture.")] = Path(
        "paretomerge-demo"
    ),
    fit: Annotated[bool, typer.Option("--fit", help="Fit on unlabelled images, too, with three seeds (minutes).")] = False,
    seed: Annotated[int, typer.Option(help="Of the closed form's random start.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do the whole job on a small vision transformer and its experts, which come with the package."""
    from paretomerge.demo.run import run

    run(output, fit=fit, seed=seed, overwrite=overwrite, quiet=quiet, as_json=as_json)
