"""``paretomerge evaluate``: measure a front and record the numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from paretomerge.cli.inputs import wanted
from paretomerge.cli.terminal import progress, say, show_json, show_rows

if TYPE_CHECKING:
    from paretomerge.results.rows import Row


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
    from paretomerge.evaluation.recording import NotRecordedError
    from paretomerge.fitting.options import FitRun
    from paretomerge.front.folder import load_front
    from paretomerge.recipes.flag_values import option_values
    from paretomerge.recipes.reading import combined

    opened = load_front(front)
    plan = combined(recipe, data=data, evaluator=evaluator, metric=metric)
    with ExitStack() as stack:

        def bar(total: int) -> Callable[[Row], None] | None:
            tick = stack.enter_context(progress("measuring", total, 0, quiet))
            return (lambda row: tick(row["task"], 0)) if tick else None

        try:
            rows = api.evaluate(
                opened, wanted(opened, plan.data, data), evaluator=plan.evaluator, metrics=plan.metrics, preferences=preference,
                sample=sample, experts=experts, record=not dry, seed=seed, batch_size=batch_size, device=device,
                run=FitRun(say=partial(say, quiet=quiet), workers=workers, ray=ray, gpus=gpus), progress=bar,
                **option_values(option or []),
            )  # fmt: skip
        except NotRecordedError as error:
            stack.close()
            (show_json if as_json else show_rows)(error.rows)
            raise
    if as_json:
        show_json(rows)
    elif not quiet:
        show_rows(rows)
