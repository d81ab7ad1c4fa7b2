"""What an evaluation gives: numbers that are metrics as they were declared, or the reason why there are none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from paretomerge.errors import UserError
from paretomerge.evaluation.protocols import Measure, Point
from paretomerge.results.objective import Objective

_TRIES = 2
_LONGEST = 400
"""Characters of a message."""


class Failed(Exception):
    """An evaluation that gave no metrics."""


class Outcome(NamedTuple):
    """Of one evaluation, which was tried again if it failed."""

    metrics: Mapping[str, float]
    """Empty: it failed twice."""
    message: str = ""
    """Why it failed."""
    seconds: float = 0.0
    mistake: bool = False
    """``message`` is a user's mistake, which another try will not heal."""


def tried(measure: Callable[[], Measure], point: Point, tasks: Sequence[str]) -> Outcome:
    """Measure once, and if that fails once more."""
    started = time.perf_counter()
    message = ""
    for _ in range(_TRIES):
        try:
            metrics = dict(measure()(point, tasks))
            return Outcome(metrics, "", time.perf_counter() - started)
        except UserError as error:
            return Outcome({}, str(error), time.perf_counter() - started, mistake=True)
        except Exception as error:  # whatever a user's function or command does wrong
            told = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            message = " ".join(told.split())
            message = message if len(message) <= _LONGEST else f"{message[:100]} … {message[100 - _LONGEST :]}"
    return Outcome({}, message, time.perf_counter() - started)


def checked(given: Any, objectives: Sequence[Objective], tasks: Sequence[str]) -> dict[str, float]:
    """The metrics in what a function or a command gave: task -> a number, or task -> {metric: number}.

    Args:
        given: anything.
        objectives: what is declared.
        tasks: those that are wanted; what is there of others is taken along.

    Raises:
        Failed: a task is missing, or has no finite number.
    """
    if not isinstance(given, Mapping):
        raise Failed(f"gave {_shown(given)}, where a map from task to metric is expected")
    found = {}
    for objective in objectives:
        task, metric = objective.task, objective.metric
        value: Any = given.get(task)
        if isinstance(value, Mapping):
            value = value.get(metric)
        if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1:
            value = value.item()  # a number of numpy or torch
        fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if fine:
            found[task] = float(value)
        elif task in tasks:
            wrong = "there is none" if value is None else f"there is {_shown(value)}"
            raise Failed(f"no number for {metric} of task {task}: {wrong} (it gave {_shown(dict(given))})")
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
