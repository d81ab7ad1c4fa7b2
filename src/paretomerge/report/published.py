"""The papers' own figures (papers.csv), set beside those of a front.

A table is named ``pareto-merging/table-2``: the paper, less what is in brackets, and the table, in small letters and with
dashes; ``pareto-merging/table-2/adamerging-pm`` says which of its methods the front is to be compared with.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any, NamedTuple

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.options import unknown
from paretomerge.results.measured import Measured, Point
from paretomerge.results.rows import PRETRAINED
from paretomerge.sets.searched import Searched

_MEANS = ("average", "avg")
_EXPERTS = "the experts"
_NUMBERS = {"two": 2, "three": 3, "eight": 8}


class Figure(NamedTuple):
    """A line of papers.csv: one number of a paper, as it is printed there."""

    paper: str
    table: str
    model: str
    method: str
    preference: str
    """``equal``, ``priority`` or nothing."""
    column: str
    """A task, the mean of the table's tasks, or nothing."""
    metric: str
    value: str
    spread: str


class Beside(NamedTuple):
    """A table of theirs and ours."""

    title: str
    header: tuple[str, ...]
    ours: list[tuple[str, ...]]
    theirs: list[tuple[str, ...]]
    """Those of the method that the front is to be compared with come first ..."""
    counterparts: int
    """... and are so many."""


def figures_of(name: str) -> tuple[Figure, ...]:
    """The figures of a published table, all its models together.

    >>> len(figures_of("pareto-merging/table-2")), figures_of("pwe-moe/table-4")[0].value
    (171, '80.4')

    Raises:
        UserError: there is no such paper, table or method.
    """
    found = _all()
    known: Callable[[Figure], str]
    for part, (what, known) in zip(name.split("/"), _PARTS, strict=False):
        names = dict.fromkeys(known(figure) for figure in found)
        if part not in names:
            raise UserError(f"paper {name!r}: {unknown(what, part, names)}")
        if what != "method":
            found = tuple(figure for figure in found if known(figure) == part)
    if not 2 <= len(name.split("/")) <= 3:
        raise UserError(f"paper {name!r}: name a paper and its table, such as pareto-merging/table-2")
    return found


def beside(name: str, known: Measured, pareto_set: Any) -> Beside | None:
    """The published table with our numbers of the same tasks and metrics above it; None, if it is about other tasks.

    Args:
        name: of the table.
        known: what was measured.
        pareto_set: the front's; what a search says of itself is read from its settings.
    """
    found = [figure for figure in figures_of(name) if _fits(figure.model, known.tasks)]
    method = "".join(name.split("/")[2:])
    found.sort(key=lambda figure: slug(figure.method) != method)  # stable: the rest keeps the paper's order
    if not found:
        return None
    title = f"{found[0].paper}, {found[0].table}, {' and '.join(dict.fromkeys(figure.model for figure in found))}"
    columns = {task: next((f.column for f in found if slug(f.column) == slug(task)), "") for task in known.tasks}
    if all(columns.values()):
        return _by_task(title, found, columns, known, method)
    return _by_metric(title, found, known, pareto_set, method)


def slug(text: str) -> str:
    """A name as it is written in a recipe.

    >>> slug("Pareto Merging (arXiv 2408.12105)"), slug("Ours-LS (Attn+MLP)"), slug("SST-2")
    ('pareto-merging-arxiv-2408-12105', 'ours-ls-attn-mlp', 'sst-2')
    """
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")


@cache
def _all() -> tuple[Figure, ...]:
    with (files("paretomerge.report") / "papers.csv").open(encoding="utf-8") as file:
        return tuple(Figure(**row) for row in csv.DictReader(file))


_PARTS: Sequence[tuple[str, Callable[[Figure], str]]] = (
    ("paper", lambda figure: slug(figure.paper.split(" (")[0])),
    ("table", lambda figure: slug(figure.table)),
    ("method", lambda figure: slug(figure.method)),
)


def _fits(model: str, tasks: Sequence[str]) -> bool:
    """Whether figures of a model ("CLIP ViT-B/32, 4 tasks", "Llama-3-8B, Arabic+French") are about so many, or these, tasks."""
    _, _, what = model.partition(", ")
    if number := re.fullmatch(r"(\w+) tasks", what):
        return len(tasks) == (_NUMBERS.get(number[1]) or int(number[1]))
    return "+" not in what or {slug(task) for task in what.split("+")} == {slug(task) for task in tasks}


def _by_task(title: str, found: list[Figure], columns: Mapping[str, str], known: Measured, method: str) -> Beside:
    """A column for each task; at priority and one-hot preference, the model that prefers the column's task."""
    tasks = known.tasks
    theirs: dict[tuple[str, str], dict[str, str]] = {}
    for figure in found:
        theirs.setdefault((figure.method, figure.preference), {})[figure.column] = figure.value
    others = dict.fromkeys(f.column for f in found if f.column not in columns.values())  # in order, whatever the hashes
    mean = next((column for column in others if slug(column) in _MEANS), None)
    complete = mean is not None and len(others) == 1  # the paper's mean is of other tasks, too, if it has more of them

    def line(label: str, values: Mapping[str, str], whole: str) -> tuple[str, ...]:
        return (label, *(values.get(task) or "–" for task in tasks), whole or "–")

    def mean_of(values: Sequence[float]) -> str:
        return f"{fmean(values):.1f}" if len(values) == len(tasks) else ""

    ours = []
    for label, points in _ours(known).items():
        each = {
            t: known.metrics[t].number(p.values[t]) for t, p in points.items() if t in p.values and known.metrics[t].percent
        }
        if each:
            label = label if label in (PRETRAINED, _EXPERTS) else f"this front, {label}"
            ours.append(line(label, {task: f"{value:.1f}" for task, value in each.items()}, mean_of([*each.values()])))
    lines = []
    for (name, kind), values in theirs.items():
        shown = {task: values[column] for task, column in columns.items() if column in values}
        whole = values.get(mean or "", "") if complete else mean_of([float(value) for value in shown.values()])
        lines.append(line(f"{name} ({kind})" if kind else name, shown, whole))
    header = (found[0].metric, *tasks, "mean")
    return Beside(title, header, ours, lines, sum(slug(name) == method for name, _ in theirs))


def _ours(known: Measured) -> dict[str, dict[str, Point]]:
    """Kind of preference -> task -> the point that is shown for the task."""
    at = {point.gamma: point for point in known.points}
    found = {point.name: dict.fromkeys(known.tasks, point) for point in known.others}
    found[_EXPERTS] = {t: Point(t, (), known.experts[t]) for t in known.tasks if t in known.experts}
    if known.base:
        found["equal"] = dict.fromkeys(known.tasks, known.base)
    for label, kind in (("priority", "priority"), ("one-hot", "only")):
        asked = {task: preferences.parse(f"{kind}:{task}", known.tasks) for task in known.tasks}
        gammas = {task: tuple(round(share, 12) for share in gamma) for task, gamma in asked.items()}
        if known.base is None or known.base.gamma not in gammas.values():  # of one task all are the same
            found[label] = {task: at[gamma] for task, gamma in gammas.items() if gamma in at}
    return found


def _by_metric(title: str, found: list[Figure], known: Measured, pareto_set: Any, method: str) -> Beside:
    """A line for each number of a table that has no columns of tasks."""
    several = len({figure.model for figure in found}) > 1
    theirs: list[tuple[str, ...]] = [
        (
            f"{figure.method} ({figure.model})" if several else figure.method,
            f"{figure.metric} against {figure.column}" if figure.column else figure.metric,
            f"{figure.value} ± {figure.spread}" if figure.spread else figure.value,
        )
        for figure in found
    ]
    metrics = dict.fromkeys(figure.metric for figure in found)
    ours: list[tuple[str, ...]] = [
        ("this front", m, text) for m in metrics if m in _OF_A_FRONT and (text := _OF_A_FRONT[m](known, pareto_set))
    ]
    count = sum(slug(figure.method) == method for figure in found)
    return Beside(title, ("method", "metric", "value"), ours, theirs, count)


def _weighted_sum(known: Measured, _: Any) -> str:
    from paretomerge.results.quality import preference_weighted_sum  # moocore is slow to import

    points = known.complete
    if not points or known.shown != known.tasks or not all(metric.percent for metric in known.metrics.values()):
        return ""
    found = preference_weighted_sum(known.objectives(points))
    return f"{100 * found.mean:.2f} ± {100 * found.std:.2f}"


def _evaluations(_: Measured, pareto_set: Any) -> str:
    return str(pareto_set.settings.get("models_evaluated", "")) if isinstance(pareto_set, Searched) else ""


def _r_squared(_: Measured, pareto_set: Any) -> str:
    fits = pareto_set.settings.get("surrogates", {}) if isinstance(pareto_set, Searched) else {}
    each = [fit["r2_held_out"] for fit in fits.values() if fit["r2_held_out"] is not None]
    return f"{fmean(each):.3f}" if each else ""


_OF_A_FRONT: Mapping[str, Callable[[Measured, Any], str]] = {
    "preference-weighted sum of accuracies %": _weighted_sum,
    "evaluations of c": _evaluations,
    "R2 of the surrogates": _r_squared,
}
"""What can be said of one front by itself; distances and win rates are between two."""
