"""Whether measured numbers come out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paretomerge.data.tasks import Task
from paretomerge.evaluation.evaluate import evaluate_by
from paretomerge.evaluation.evaluators import OnTasks
from paretomerge.front.front import Front
from paretomerge.front.verify import Check

TOLERANCE = 1e-6
"""Of metrics measured again: same machine, same libraries, same numbers; other kernels may move a prediction or two."""


def verify_measured(
    front: Front,
    tasks: Mapping[str, Task],
    points: int | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> list[Check]:
    """Measure recorded numbers again and compare.

    Args:
        front: the set, with its measured rows.
        tasks: the inputs of the tasks that are to be looked at; those that were measured on.
        points: how many preferences, evenly from all that are recorded; None: all.
        options: of ``OnTasks``, as they were when the numbers were measured.
        say: is told what is measured.
    """
    rows = [row for row in front.measured if row["task"] in tasks and row["method"] == front.pareto_set.method]
    recorded = list(dict.fromkeys(row["preference"] for row in rows))
    count = len(recorded) if points is None else min(points, len(recorded))
    chosen = [recorded[i * len(recorded) // count] for i in range(count)]
    checks = []
    for preference in chosen:
        say(preference)
        wanted = [row for row in rows if row["preference"] == preference]
        asked = [tasks[name] for name in dict.fromkeys(row["task"] for row in wanted)]
        evaluator = OnTasks({task.name: task for task in asked}, **(options or {}))
        again = {row["task"]: row["value"] for row in evaluate_by(front, evaluator, [preference])}
        for row in wanted:
            apart = abs(again[row["task"]] - row["value"])
            what = f"{row['metric']} of {row['task']} at {preference}"
            message = f"{row['value']:.6g} was recorded, {again[row['task']]:.6g} is measured"
            same = apart <= TOLERANCE * max(1.0, abs(row["value"]))
            checks.append(Check(what, "same" if same else "changed", "" if same else message))
    return checks
