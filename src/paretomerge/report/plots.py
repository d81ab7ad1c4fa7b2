"""Figures: fronts of two tasks, what raising a task's share buys, and where a set routes its preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paretomerge.errors import UserError

if TYPE_CHECKING:
    from paretomerge.report.routing import Routing

Point = tuple[float, float]

# Okabe & Ito's colours tell apart for all common kinds of colour blindness; markers and line styles do so in grey
STYLES = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
)


def front_figure(
    path: Path,
    tasks: tuple[str, str],
    fronts: Mapping[str, Sequence[Point]],
    marks: Mapping[str, Point],
    curves: Mapping[str, Sequence[Point]],
    ideal: Point | None = None,
) -> None:
    """Two panels: the fronts of two tasks, and accuracy on a task against the share of the preference it gets.

    Args:
        path: file to write; its ending says the format.
        tasks: of the first panel's axes.
        fronts: method -> accuracies on the two tasks, in order of the preference.
        marks: name -> the two accuracies of a single model.
        curves: method -> (γ_k, accuracy on task k, mean over k).
        ideal: the experts' accuracies on the two tasks, drawn as lines.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
        if ideal:
            left.axvline(100 * ideal[0], color="0.8", linewidth=1, zorder=0)
            left.axhline(100 * ideal[1], color="0.8", linewidth=1, zorder=0)
            left.annotate("experts", (100 * ideal[0], 100 * ideal[1]), (-3, 3), textcoords="offset points", ha="right",
                          color="0.4")  # fmt: skip
        for (method, points), style in zip(fronts.items(), STYLES, strict=False):
            left.plot(*_percent(points), label=method, markersize=5, linewidth=1.2, **style)
        for (name, point), marker in zip(marks.items(), "*XPv", strict=False):
            left.plot(*_percent([point]), marker=marker, markersize=11, color="0.2", linestyle="none", label=name)
        left.set_xlabel(f"{tasks[0]}: held-out accuracy, %")
        left.set_ylabel(f"{tasks[1]}: held-out accuracy, %")
        left.set_title(f"every preference between {tasks[0]} and {tasks[1]}")
        left.legend(frameon=False)
        for (method, points), style in zip(curves.items(), STYLES, strict=False):
            right.plot([x for x, _ in points], [100 * y for _, y in points], label=method, markersize=5, linewidth=1.2, **style)
        right.set_xlabel("share of a task (the others share the rest)")
        right.set_ylabel("held-out accuracy on it, mean over tasks, %")
        right.set_title("what a larger share buys")
        right.legend(frameon=False)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def routing_figure(path: Path, routing: Routing) -> None:
    """Heat maps over depth, one for each one-hot preference: how much of each task vector every module gets.

    Args:
        path: file to write; its ending says the format.
        routing: from ``report.routing``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix.lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"{path}: a figure cannot be written in that format: name a .png, .svg or .pdf")
    tasks, modules = routing.tasks, routing.modules
    largest = float(routing.weights.abs().max()) or 1.0
    size = (1.5 + len(tasks) * (0.6 + 0.45 * len(tasks)), 1.4 + min(12.0, 0.22 * len(modules)))
    with pyplot.rc_context({"font.size": 8}):
        figure, axes = pyplot.subplots(1, len(tasks), figsize=size, layout="constrained", sharey=True, squeeze=False)
        for task, axis, weights in zip(tasks, axes[0], routing.weights, strict=True):
            # white is none of a task vector; the colours tell apart for all common kinds of colour blindness
            image = axis.imshow(weights.numpy(), cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
            axis.set_title(f"only:{task}")
            axis.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right")
            axis.set_xlabel("task vector")
        every = -(-len(modules) // 60)
        axes[0][0].set_yticks(range(0, len(modules), every), modules[::every])
        axes[0][0].set_ylabel("depth")
        figure.colorbar(image, ax=axes[0][-1], label="coefficient")
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def _percent(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [100 * x for x, _ in points], [100 * y for _, y in points]
