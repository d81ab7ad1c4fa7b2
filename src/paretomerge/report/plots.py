"""Figures: fronts of two tasks, and what raising a task's share buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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


def _percent(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [100 * x for x, _ in points], [100 * y for _, y in points]
