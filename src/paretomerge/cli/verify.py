"""``paretomerge verify``: whether files and numbers are as recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretomerge.cli.flags import (
    Data,
    Json,
    OptionValues,
    Quiet,
    RecipeData,
    Seed,
)
from paretomerge.cli.inputs import wanted
from paretomerge.cli.terminal import say, show, show_json
from paretomerge.errors import UserError


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
    from paretomerge.evaluation.verify import verify_measured
    from paretomerge.front.folder import load_front
    from paretomerge.front.verify import failed, verify_files
    from paretomerge.options import check_options
    from paretomerge.recipes.flag_values import option_values
    from paretomerge.recipes.reading import combined

    opened = load_front(front)
    checks = verify_files(opened)
    if recipe or data:
        inputs = wanted(opened, combined(recipe, data=data).data, data)
        options = check_options(OnTasks, option_values(option or []), "verify")
        tasks = api.load_tasks(opened, inputs, keep_labels=bool(options.get("head_steps")), seed=seed)
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
