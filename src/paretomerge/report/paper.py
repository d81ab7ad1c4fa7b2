"""The report's figures for papers: PNG and PDF by matplotlib, in the same colours, markers and dashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paretomerge.errors import UserError
from paretomerge.io.plain_text import line
from paretomerge.report.style import BASE, EXPERT, GRID, INK, OTHER, PALE, POINT, style
from paretomerge.results.measured import Measured, Point, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from paretomerge.report.page import Content

_LOOK: Any = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": PALE, "axes.labelcolor": INK,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "text.color": INK, "xtick.color": PALE, "ytick.color": PALE, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "pdf.fonttype": 42,  # letters stay letters: journals refuse type 3
    "text.parse_math": False,  # a task may be called $x_1$
}  # fmt: skip
_MATRIX = 8


def write_figures(content: Content, folder: Path) -> list[Path]:
    """Write every figure that there is something for, as NAME.png (300 dpi) and NAME.pdf; returns the files.

    Raises:
        UserError: the folder cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with pyplot.rc_context(_LOOK):
            for name, draw in _wanted(content):
                figure = draw()
                for ending, options in (("png", {"dpi": 300}), ("pdf", {"metadata": {"CreationDate": None}})):
                    file = folder / f"{name}.{ending}"
                    figure.savefig(file, **options)
                    written.append(file)
                pyplot.close(figure)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from error
    return written


def _wanted(content: Content) -> Iterator[tuple[str, Callable[[], Figure]]]:
    known = content.measured
    if len(known.shown) >= 2 and known.points:
        if len(known.shown) <= _MATRIX:
            yield "front", lambda: pairs(known)
        yield "parallel", lambda: parallel(known)
    if len(known.shown) >= 3 and content.named:
        for label, start in (("priority", "priority"), ("one-hot", "only")):
            chosen = [p for p in content.named if p.name in ("equal", "knee") or p.name.startswith(start)]
            yield f"radar-{label}", lambda chosen=chosen: radar(known, chosen)  # type: ignore[misc]
    if found := content.changes:
        layers = found.by_layer
        values = [[layers[c][k] for c in layers] for k in range(len(found.tasks))]
        yield "layers", lambda: heat(found.tasks, list(layers), values, "layer")
        yield "kinds", lambda: heat(list(found.by_kind), found.tasks, list(found.by_kind.values()), "")
    if run := content.run:
        yield "training", lambda: curves(run.losses, f"loss ({run.settings.get('objective', 'objective')})")


def pairs(known: Measured) -> Figure:
    """The fronts of every two tasks, a lower triangle of panels; for two tasks, one."""
    from matplotlib import pyplot

    tasks = known.shown
    n = len(tasks) - 1
    inches = 3.6 if n == 1 else min(2.4, 11 / n)
    figure, axes = pyplot.subplots(
        n, n, figsize=(n * inches + 0.4, n * inches + 0.5), sharex="col", sharey="row", squeeze=False, layout="constrained"
    )
    labels: dict[str, Any] = {}
    for row in range(n):
        for column in range(n):
            panel = axes[row][column]
            if column > row:
                panel.set_visible(False)
                continue
            _panel(panel, known, tasks[column], tasks[row + 1], small=n > 2)
            labels |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
            if row == n - 1:
                panel.set_xlabel(
                    f"{tasks[column]}: {known.metrics[tasks[column]].label}" if n == 1 else _axis(known, tasks[column])
                )
            if column == 0:
                panel.set_ylabel(
                    f"{tasks[row + 1]}: {known.metrics[tasks[row + 1]].label}" if n == 1 else _axis(known, tasks[row + 1])
                )
    _turned(axes, known)
    if n == 1:
        axes[0][0].legend(labels.values(), labels.keys())
    else:
        figure.legend(labels.values(), labels.keys(), loc="upper right")
    return figure


def _axis(known: Measured, task: str) -> str:
    metric = known.metrics[task]
    return f"{task}\n{metric.name}" + (", %" if metric.percent else "")


def _turned(axes: Any, known: Measured) -> None:
    """Better is up and to the right; panels share their axes, so each is turned once."""
    tasks = known.shown
    n = len(tasks) - 1
    for column in range(n):
        if known.metrics[tasks[column]].sign < 0:
            axes[n - 1][column].invert_xaxis()
    for row in range(n):
        if known.metrics[tasks[row + 1]].sign < 0:
            axes[row][0].invert_yaxis()


def _panel(panel: Axes, known: Measured, x: str, y: str, *, small: bool) -> None:
    points = [p for p in known.points if x in p.values and y in p.values]
    two = Measured((x, y), {t: known.metrics[t] for t in (x, y)}, tuple(points), {})
    best = sorted(two.best(points), key=lambda p: p.values[x])
    beaten = [p for p in points if p not in best]
    size = 3 if small else 5

    def put(chosen: Sequence[Point], label: str, **look: Any) -> None:
        if chosen:
            xs = [known.metrics[x].number(p.values[x]) for p in chosen]
            ys = [known.metrics[y].number(p.values[y]) for p in chosen]
            panel.plot(xs, ys, label=label, **{"linestyle": "none", "markersize": size, **look})

    put(beaten, "other measured", marker="o", markerfacecolor="none", color=POINT, markeredgewidth=0.8)
    put(best, "best trade-offs", marker="o", color=POINT, linestyle="-", linewidth=0.9)
    base = known.base
    if base and x in base.values and y in base.values:
        put([base], "base merge (equal)", marker="s", color=BASE, markersize=1.4 * size)
    for number, other in enumerate(known.others):
        if x in other.values and y in other.values:
            put([other], other.name, marker="XP*"[number % 3], color=OTHER, markersize=1.6 * size)
    own = [Point(task, (), each) for task, each in known.experts.items() if task in (x, y) and x in each and y in each]
    put(own, "experts", marker="^", color=EXPERT, markersize=1.6 * size)
    for task, draw in ((x, panel.axvline), (y, panel.axhline)):
        each = known.experts.get(task, {})
        if task in each and not own and points:  # measured at its own task alone
            draw(known.metrics[task].number(each[task]), color=EXPERT, linestyle=":", linewidth=1, label="experts", zorder=1)


def parallel(known: Measured) -> Figure:
    """A line per measured preference across the tasks."""
    from matplotlib import pyplot

    tasks = known.shown
    same = len({known.metrics[task].label for task in tasks}) == 1
    scale = _scale(known)
    figure, panel = pyplot.subplots(figsize=(max(4.5, 0.9 * len(tasks) + 2.4), 3.4), layout="constrained")
    places = range(len(tasks))

    def heights(values: Mapping[str, float]) -> list[float]:
        return [
            np.nan if t not in values else known.metrics[t].number(values[t]) if same else scale(t, values[t]) for t in tasks
        ]

    for number, point in enumerate(p for p in known.points if p is not known.base):
        panel.plot(places, heights(point.values), color=POINT, linewidth=0.6, alpha=0.55, label="" if number else "measured")
    if base := known.base:
        panel.plot(
            places, heights(base.values), color=BASE, linestyle="--", marker="s", markersize=4, label="base merge (equal)"
        )
    own = {task: each[task] for task, each in known.experts.items() if task in each}
    if own:
        panel.plot(places, heights(own), color=EXPERT, linestyle=":", marker="^", markersize=5, label="each task's expert")
    panel.set_xticks(list(places), tasks, rotation=0 if len(tasks) <= 6 else 35, ha="center" if len(tasks) <= 6 else "right")
    panel.set_ylabel(known.metrics[tasks[0]].label if same else "worst … best measured")
    if same and known.metrics[tasks[0]].sign < 0:
        panel.invert_yaxis()
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def radar(known: Measured, points: Sequence[Point]) -> Figure:
    """A polygon per preference; accuracies in %, other metrics from the worst to the best that is measured."""
    from matplotlib import pyplot

    tasks = known.shown
    percent = all(known.metrics[task].percent for task in tasks)
    scale = _scale(known)
    angles = [*np.linspace(0, 2 * np.pi, len(tasks), endpoint=False), 0.0]
    figure, panel = pyplot.subplots(figsize=(6, 3.8), subplot_kw={"projection": "polar"}, layout="constrained")
    for number, point in enumerate(points):
        look = style(number)
        radii = [known.metrics[t].number(point.values[t]) if percent else scale(t, point.values[t]) for t in (*tasks, tasks[0])]
        panel.plot(
            angles, radii, color=look.colour, linestyle=look.line, marker=look.marker, markersize=4, linewidth=1.2,
            label=short(point.name, known.tasks),
        )  # fmt: skip
    panel.set_xticks(angles[:-1], tasks)
    panel.set_theta_zero_location("N")  # type: ignore[attr-defined]
    panel.set_theta_direction(-1)  # type: ignore[attr-defined]
    lowest = min(p.values[t] for p in points for t in tasks)
    panel.set_ylim((max(0.0, 100 * lowest - 8), 100) if percent else (-0.1, 1.02))
    panel.set_rlabel_position(180 / len(tasks))  # type: ignore[attr-defined]
    panel.tick_params(axis="y", labelsize=7, labelcolor=PALE)
    panel.legend(loc="upper left", bbox_to_anchor=(1.12, 1.05), title="accuracy, %" if percent else None, alignment="left")
    return figure


def heat(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], title: str) -> Figure:
    """A heat map of rms changes."""
    from matplotlib import pyplot

    rows, columns = ([line(name, 60) for name in names] for names in (rows, columns))  # whatever tensors are called
    width, height = min(10, 0.24 * len(columns) + 2.6), min(10, 0.24 * len(rows) + 1.4)
    every = max(1, len(columns) // 40)
    turned: Any = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, columns)) > 12 * width else {}
    # a letter is 0.06 inches wide; the names of columns that are turned need room below
    size = max(3.4, width + 0.06 * max(map(len, rows))), height + (0.06 * max(map(len, columns)) if turned else 0)
    figure, panel = pyplot.subplots(figsize=size, layout="constrained")
    picture = panel.imshow(np.array(values), cmap="cividis", aspect="auto", interpolation="nearest")
    panel.grid(visible=False)
    panel.set_xticks(range(0, len(columns), every), columns[::every], **turned)
    panel.set_yticks(range(len(rows)), rows)
    panel.set_xlabel(title)
    figure.colorbar(picture, ax=panel, label="rms change of the weights", pad=0.02)
    return figure


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str) -> Figure:
    """Losses over steps."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(5.2, 3.2), layout="constrained")
    for number, (name, (steps, losses)) in enumerate(series.items()):
        look = style(number)
        panel.plot(steps, losses, color=look.colour, linestyle=look.line, linewidth=1.2, label=name)
    panel.set_xlabel("step")
    panel.set_ylabel(label)
    panel.legend()
    return figure


def _scale(known: Measured) -> Callable[[str, float], float]:
    """Task, value -> 0 for the worst that is measured, 1 for the best."""
    models = [*known.points, *known.others, *(Point(task, (), each) for task, each in known.experts.items())]

    def scaled(task: str, value: float) -> float:
        sign = known.metrics[task].sign
        each = [sign * p.values[task] for p in models if task in p.values]
        return (sign * value - min(each)) / ((max(each) - min(each)) or 1)

    return scaled
