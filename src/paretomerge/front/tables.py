"""A front's measured numbers as its model card shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from paretomerge.front.card import metrics_table
from paretomerge.results.interpolation import SAME
from paretomerge.results.measured import Measured, Point, measured
from paretomerge.results.rows import Row


def card_table(rows: Iterable[Row], tasks: Sequence[str], method: str) -> list[str]:
    """Of a front's model card: the named preferences, experts and other models, a line each."""
    known = measured(rows, tasks, method)
    models = [p for p in known.points if "=" not in p.name] or list(known.points)
    models += [*known.others, *(Point(f"expert {task}", (), values) for task, values in known.experts.items())]
    cells = [(p.name, [known.metrics[t].text(p.values[t]) if t in p.values else "–" for t in known.shown]) for p in models]
    return metrics_table({task: f"{known.metrics[task].name}, {known.metrics[task].split}" for task in known.shown}, cells)


def metrics_of(known: Measured, gamma: Sequence[float]) -> list[dict[str, Any]]:
    """What was measured of θ(γ), as ``export.card.model_card`` takes it: task, metric, value, and how. No estimates."""
    return [
        {
            "task": task,
            "metric": known.metrics[task].name,
            "value": point.values[task],
            "how": f"measured, {known.metrics[task].split}",
        }
        for point in known.points
        if max(abs(ours - theirs) for ours, theirs in zip(point.gamma, gamma, strict=True)) <= SAME
        for task in known.shown
        if task in point.values
    ]
