"""The log of a fit on data, for its curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from paretomerge.io.strict_json import parsed_json

_POINTS = 400
"""Of a curve: more than a screen shows."""


class RunLog(NamedTuple):
    """What a run's folder says."""

    losses: dict[str, tuple[list[float], list[float]]]
    """Task -> (steps, losses); a step at which the task was skipped is not there."""
    settings: dict[str, Any]
    steps: int


def read_run(folder: Path) -> RunLog | None:
    """The run of ``folder`` (``metrics.jsonl``, ``config.json``); None where there is no log, or nothing readable in it.

    Each task's losses are averages over windows of steps, so that a curve has at most 400 points: single ones vary with the
    preference that the step drew.
    """
    log = folder / "metrics.jsonl"
    if not log.is_file():
        return None
    try:
        settings = parsed_json((folder / "config.json").read_text(encoding="utf-8"))
        lines = [parsed_json(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        tasks = [str(task) for task in settings["tasks"]]
        each: dict[str, list[tuple[int, float]]] = {task: [] for task in tasks}
        for line in lines:
            for k, loss in line["losses"].items():
                if math.isfinite(float(loss)):
                    each[tasks[int(k)]].append((int(line["step"]), float(loss)))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    if not any(each.values()):
        return None
    steps = max(step for points in each.values() for step, _ in points)
    window = max(1, math.ceil(steps / _POINTS), steps // 40)
    return RunLog({task: _averaged(points, window) for task, points in each.items() if points}, settings, steps)


def _averaged(points: list[tuple[int, float]], window: int) -> tuple[list[float], list[float]]:
    bins: dict[int, list[tuple[int, float]]] = {}
    for step, loss in points:
        bins.setdefault((step - 1) // window, []).append((step, loss))
    groups = [bins[key] for key in sorted(bins)]
    return [sum(s for s, _ in g) / len(g) for g in groups], [sum(loss for _, loss in g) / len(g) for g in groups]
