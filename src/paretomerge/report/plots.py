"""Figures: fronts of two tasks, what raising a task's share buys, and where a set routes its preferences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretomerge.errors import UserError
from paretomerge.io.plain_text import printable

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
_LOOK: Any = {
    "text.parse_math": False,  # names may hold a $
    "svg.hashsalt": "paretomerge",  # else each run names an SVG's parts anew
}
_DATES = {".pdf": "CreationDate", ".svg": "Date", ".svgz": "Date", ".ps": "CreationDate", ".eps": "CreationDate"}


def undated(path: Path) -> dict[str, Any]:
    """Metadata without the time, so that the same numbers give the same bytes."""
    name = _DATES.get(path.suffix.lower())
    return {} if name is None else {name: None}


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
        fronts: method -> accuracies on the two tasks, in order of the share of the first; the first method's ends are named.
        marks: name -> the two accuracies of a single model.
        curves: method -> (γ_k, accuracy on task k, mean over k).
        ideal: the experts' accuracies on the two tasks, drawn as lines.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({**_LOOK, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        offset: Any = {"textcoords": "offset points", "color": "0.35"}
        if ideal:
            left.axvline(100 * ideal[0], color="0.8", linewidth=1, zorder=0)
            left.axhline(100 * ideal[1], color="0.8", linewidth=1, zorder=0)
            left.annotate("the experts", (100 * ideal[0], 100 * ideal[1]), (-4, 4), **offset, ha="right")
        for (method, points), style in zip(fronts.items(), STYLES, strict=False):
            left.plot(*_percent(points), label=method, markersize=5, linewidth=1.2, **style)
        for (name, (x, y)), marker in zip(marks.items(), "*XPv", strict=False):
            left.plot(100 * x, 100 * y, marker=marker, markersize=11, color="0.2", linestyle="none")
            left.annotate(name, (100 * x, 100 * y), (0, -9), **offset, ha="center", va="top")
        widest = next(iter(fronts.values()), ())
        for task, (x, y), at in zip(tasks[::-1], (*widest[:1], *widest[-1:]), ((4, -8), (-7, 0)), strict=False):
            ways = {"va": "top", "ha": "left"} if at[0] > 0 else {"va": "center", "ha": "right"}
            left.annotate(f"all {task}", (100 * x, 100 * y), at, **offset, **ways)
        left.set_xlabel(f"{tasks[0]}: held-out accuracy, %")
        left.set_ylabel(f"{tasks[1]}: held-out accuracy, %")
        left.set_title(f"One point is one model; along a line the\npreference goes from {tasks[1]} to {tasks[0]}", fontsize=10)
        for (method, points), style in zip(curves.items(), STYLES, strict=False):
            right.plot(
                [100 * x for x, _ in points], [100 * y for _, y in points], label=method, markersize=5, linewidth=1.2, **style
            )
        right.set_xlabel("share of the preference that a task gets, %")
        right.set_ylabel("held-out accuracy on that task, mean over tasks, %")
        right.set_title("What a larger share buys a task", fontsize=10)
        right.legend(frameon=False, loc="lower right")
        figure.savefig(path, dpi=150, metadata=undated(path))
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
    tasks, modules = routing.tasks, [printable(name) for name in routing.modules]
    largest = float(routing.weights.abs().max()) or 1.0
    columns = len(tasks) if len(tasks) < 6 else 4
    rows = -(-len(tasks) // columns)
    tallest = min(6.0, 12 / rows)  # of a heat map, in inches
    longest, widest = (max(map(len, names)) for names in (tasks, modules))  # a letter of this size is 0.06 inches wide
    panel = max(0.4 + 0.22 * len(tasks), 0.4 + 0.07 * longest), 0.5 + min(tallest, max(0.5, 0.16 * len(modules)))
    labelled = 1 + (len(tasks) % columns > 0)  # rows with names below them
    size = (1.4 + 0.065 * widest + columns * panel[0], labelled * (0.5 + 0.06 * longest) + rows * panel[1])
    with pyplot.rc_context({**_LOOK, "font.size": 8}):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
        )
        for axis in axes.flat[len(tasks) :]:
            axis.remove()
        for k, (task, weights) in enumerate(zip(tasks, routing.weights, strict=True)):
            axis = axes.flat[k]
            # white is none of a task vector; the colours tell apart for all common kinds of colour blindness
            image = axis.imshow(weights.numpy(), cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
            axis.set_title(f"only:{task}")
            axis.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right")
            if k + columns >= len(tasks):
                axis.set_xlabel("task vector")
                axis.tick_params(labelbottom=True)  # where nothing is below it
        every = math.ceil(len(modules) / (6 * tallest))
        for axis in axes[:, 0]:
            axis.set_yticks(range(0, len(modules), every), modules[::every])
            axis.set_ylabel("depth")
        figure.colorbar(image, ax=figure.axes, label="coefficient", shrink=0.8, aspect=30)
        figure.savefig(path, dpi=150, metadata=undated(path))
        pyplot.close(figure)


def _percent(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [100 * x for x, _ in points], [100 * y for _, y in points]
