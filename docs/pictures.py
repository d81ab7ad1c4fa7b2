"""The pictures of the documentation, from a run of the demo.

    paretomerge demo --fit -o demo
    python docs/pictures.py demo

Writes docs/demo-front.png and docs/pictures/*.svg; every point is read from demo/demo.json.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import matplotlib

from paretomerge.demo import ADA, NAMES, PM_ALL, PM_ATTENTION, PM_FITTED, SOUPS, TA, between, draw
from paretomerge.preferences import parse
from paretomerge.report import BASE, CURRENT, GRID, INK, OTHER, PALE, POINT
from paretomerge.report import EXPERT as GREEN
from paretomerge.results import EXPERT, PRETRAINED, value

matplotlib.use("Agg")
from matplotlib import pyplot

THERE = Path(__file__).parent
LOOK = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": PALE, "text.color": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "paretomerge", "legend.frameon": False,
}  # fmt: skip


def save(figure, name):
    """As SVG, with the same bytes each time."""
    figure.savefig(THERE / "pictures" / f"{name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def beaten(rows, tasks):
    """What "better" means for two tasks: the models around one of them."""
    x, y = tasks[:2]
    points = [[100 * value(rows, PM_ALL, spec, task) for task in (x, y)] for spec in between(tasks)]
    one = [100 * value(rows, TA, "equal", task) for task in (x, y)]
    figure, panel = pyplot.subplots(figsize=(5.2, 3.8), layout="constrained")
    panel.plot(*zip(*points, strict=True), "o-", color=POINT, markersize=6, linewidth=1.2)
    panel.plot(*one, "*", color=BASE, markersize=14)
    low_x, low_y = min(*(p[0] for p in points), one[0]) - 2, min(*(p[1] for p in points), one[1]) - 2
    high_x, high_y = max(p[0] for p in points) + 1, max(p[1] for p in points) + 2
    panel.fill_between([one[0], high_x], one[1], high_y, color=GREEN, alpha=0.12, linewidth=0)
    panel.fill_between([low_x, one[0]], low_y, one[1], color=OTHER, alpha=0.14, linewidth=0)
    panel.annotate("one merged model", one, (-8, -14), textcoords="offset points", ha="right")
    panel.text(low_x + 0.2, low_y + 0.6, "worse than it at both", color=PALE)
    panel.text(high_x - 0.1, high_y - 0.6, "better than it at both", color="#00664b", ha="right", va="top")
    panel.annotate(f"all {y}", points[0], (-2, 8), textcoords="offset points", color=POINT, ha="center")
    panel.annotate(f"all {x}", points[-1], (-8, -3), textcoords="offset points", color=POINT, ha="right")
    panel.set_xlim(low_x, high_x)
    panel.set_ylim(low_y, high_y)
    panel.set_xlabel(f"{x}: accuracy, %")
    panel.set_ylabel(f"{y}: accuracy, %")
    save(figure, "beaten")


def shares(rows, tasks):
    """The same front against the share of the preference."""
    figure, panel = pyplot.subplots(figsize=(5.2, 3.0), layout="constrained")
    specs = between(tasks)
    at = [100 * parse(spec, tasks)[0] for spec in specs]
    for task, colour, look in zip(tasks[:2], (POINT, CURRENT), ("o-", "s--"), strict=True):
        heights = [100 * value(rows, PM_ALL, spec, task) for spec in specs]
        panel.plot(at, heights, look, color=colour, markersize=5, linewidth=1.4)
        panel.annotate(task, (at[3], heights[3]), (0, 7 if task == tasks[0] else -15), textcoords="offset points",
                       color=colour, ha="center")  # fmt: skip
    panel.set_xlabel(f"share of {tasks[0]} in the preference, % (the rest is for {tasks[1]})")
    panel.set_ylabel("accuracy, %")
    panel.grid(color=GRID)
    save(figure, "shares")


def simplex():
    """Preferences over three tasks as points of a triangle."""
    names = ("math", "code", "law")
    corners = ((0, 0), (1, 0), (0.5, 3**0.5 / 2))
    figure, panel = pyplot.subplots(figsize=(4.6, 3.3), layout="constrained")
    panel.fill(*zip(*corners, strict=True), facecolor="#f3f6fa", edgecolor=PALE)
    labels = {
        "only:math": (-4, -14), "only:code": (4, -14), "only:law": (0, 8), "equal": (8, 4), "priority:math": (8, -4),
        "math=2,law=1,code=0": (-8, 2),
    }  # fmt: skip
    for spec, at in labels.items():
        gamma = parse(spec, names)
        place = [sum(g * corner[i] for g, corner in zip(gamma, corners, strict=True)) for i in (0, 1)]
        panel.plot(*place, "o", color=POINT, markersize=7)
        ways = "center" if spec.startswith("only") else "right" if at[0] < 0 else "left"
        panel.annotate(spec, place, at, textcoords="offset points", ha=ways, family="monospace")
    panel.set_xlim(-0.25, 1.25)
    panel.set_ylim(-0.12, 1.0)
    panel.set_aspect("equal")
    panel.axis("off")
    save(figure, "simplex")


def storage(rows, tasks, stores):
    """Mean accuracy of each set against what it stores."""

    def mean(method, spec):
        return 100 * fmean(value(rows, method, spec.format(task), task) for task in tasks)

    figure, panel = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    kinds = {"equal": ("o", POINT, "equal: one model for all"), "priority:{}": ("s", CURRENT, "priority: half for the task"),
             "only:{}": ("^", GREEN, "one-hot: all for the task")}  # fmt: skip
    places = {PM_ATTENTION: 1, PM_ALL: 2, PM_FITTED: 3, SOUPS: 4}
    names = {
        PM_FITTED: "Pareto Merging,\nfitted on inputs",
        **{name: text.replace(", ", ",\n") for name, text in NAMES.items()},
    }
    for spec, (marker, colour, label) in kinds.items():
        heights = [mean(method, spec) for method in places]
        panel.plot(list(places.values()), heights, marker, color=colour, markersize=8, label=label)
    for method, place in places.items():
        panel.plot([place] * 2, [mean(method, "equal"), mean(method, "only:{}")], color=GRID, zorder=0, linewidth=3)
    panel.plot([0, 0], [mean(TA, "equal"), mean(ADA, "equal")], "o", color=POINT, markersize=8)
    panel.annotate("task arithmetic", (0, mean(TA, "equal")), (0, -14), textcoords="offset points", ha="center")
    panel.annotate("AdaMerging", (0, mean(ADA, "equal")), (0, 8), textcoords="offset points", ha="center")
    for label, height in (("experts", mean(EXPERT, "only:{}")), ("pretrained", mean(PRETRAINED, "equal"))):
        panel.axhline(height, color=PALE, linewidth=1, linestyle=":", zorder=0)
        panel.annotate(label, (-0.55, height), (0, 3), textcoords="offset points", color=PALE)
    ticks = [f"{names[method]}\n+{100 * stores[method]:.0f} %" for method in places]
    panel.set_xticks([0, *places.values()], ["one model\n\n+0 %", *ticks])
    panel.set_xlim(-0.6, 4.6)
    panel.set_ylabel("held-out accuracy, mean over tasks, %")
    panel.legend(loc="lower right", bbox_to_anchor=(1, 0.06))
    save(figure, "storage")


def main(folder: Path) -> None:
    """All of them."""
    found = json.loads((folder / "demo.json").read_text())
    rows, stores = found["results"], found["stores"]
    tasks = tuple(json.loads((folder / "front" / "pareto_set.json").read_text())["tasks"])
    draw(THERE / "demo-front.png", rows, tasks, stores)
    with pyplot.rc_context(LOOK):
        beaten(rows, tasks)
        shares(rows, tasks)
        simplex()
        if any(row["method"] == PM_FITTED for row in rows):
            storage(rows, tasks, {**stores, PM_FITTED: stores[PM_ALL]})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
