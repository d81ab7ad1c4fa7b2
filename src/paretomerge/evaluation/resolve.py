"""Which evaluator a user's words mean, and which of the options are its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.evaluation.evaluators import ByCommand, ByFunction, OnTasks
from paretomerge.evaluation.lm_eval import NAME, ByHarness
from paretomerge.evaluation.protocols import Evaluator
from paretomerge.options import check_options, option_names, unknown
from paretomerge.results.metrics import objectives_of
from paretomerge.results.objective import Objective

Given = Callable[..., Mapping[str, Any]] | str | None
"""What a user gives as evaluator; None: tasks with data."""

EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "data": OnTasks, "function": ByFunction, "command": ByCommand, "lm-eval": ByHarness,
}  # fmt: skip


def kind_of(evaluator: Given) -> str:
    """The key in ``EVALUATORS``."""
    if evaluator is None:
        return "data"
    if callable(evaluator):
        return "function"
    return "lm-eval" if evaluator.strip() == NAME else "command"


def divided(
    method: str, function: Callable[..., Any], evaluator: Given, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the search, and those of its evaluator, both checked.

    Raises:
        UserError: an option that neither has, or a value of the wrong kind.
    """
    kind = kind_of(evaluator)
    evaluator_class = EVALUATORS[kind]
    own, others = option_names(function), option_names(evaluator_class)
    if strangers := [name for name in options if name not in (*own, *others)]:
        raise UserError(f"{method}: {unknown('option', strangers[0], [*own, *others])}")
    mine = {name: value for name, value in options.items() if name in own}
    theirs = {name: value for name, value in options.items() if name not in own}
    return check_options(function, mine, method), check_options(evaluator_class, theirs, f"evaluator ({kind})")


def evaluator_of(
    evaluator: Given,
    *,
    tasks: Mapping[str, Task],
    metrics: Mapping[str, Objective | str],
    names: Sequence[str],
    scratch: Path | None,
    options: Mapping[str, Any],
) -> Evaluator:
    """The evaluator that a user means.

    Args:
        evaluator: what the user gave.
        tasks: with data, those to measure.
        metrics: without data, a metric for every task.
        names: of the tasks, in order.
        scratch: where a command's checkpoints are for the while.
        options: of the evaluator.

    Raises:
        UserError: metrics that are missing or wrong, and what an evaluator itself refuses.
    """
    kind = kind_of(evaluator)
    if kind == "data":
        if metrics:
            raise UserError("metrics belong to an evaluator; those of data are known")
        return OnTasks({name: tasks[name] for name in names}, **options)
    objectives = objectives_of(metrics, names)
    if kind == "command":
        return ByCommand(str(evaluator), objectives, scratch, **options)
    return EVALUATORS[kind](objectives, **options) if kind == NAME else ByFunction(evaluator, objectives, **options)  # type: ignore[arg-type]
