"""Markdown and figures from measured cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import moocore
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.claims import papers
from benchmarks.claims.cells import Results
from benchmarks.claims.numbers import KINDS, Number, bold, kind_of, lead, numbers
from benchmarks.claims.table import Table
from paretomerge import preferences
from paretomerge.report import Routing
from paretomerge.report import routing_figure as draw_routing


def accuracy(table: Table, results: Results) -> Iterator[str]:
    """A row per method and kind of preference, a column per task, held-out and transductive apart."""
    tasks = table.cells[0].names
    for use in dict.fromkeys(cell.use for cell in table.cells):
        rows: list[tuple[str, str, list[Number]]] = []
        missing = 0
        for method in dict.fromkeys(cell.method for cell in table.cells):
            cells = [cell for cell in table.cells if cell.method == method and cell.use == use]
            found = [results.of(cell) for cell in cells]
            missing += sum(one is None for one in found)
            for kind in KINDS:
                if method.models < 0 and method.name == "the experts" and kind != "only":
                    continue
                if (line := numbers([one for one in found if one], tasks, kind)) is not None:
                    rows.append((method.name, kind if method.front else "", line))
        yield f"\n**{use}**" + (f" ({missing} cells not measured)" if missing else "") + "\n"
        if not rows:
            continue
        marks = set()
        for kind in ("equal", "priority", "only"):
            among = [i for i, row in enumerate(rows) if (row[1] or "equal") == kind and row[0] != "the experts"]
            for column in range(len(tasks) + 1):
                place = bold([rows[i][2][column] for i in among])
                marks |= {(among[place], column)} if place is not None else set()
        theirs = [papers.average(name, kind or "equal", table.name) for name, kind, _ in rows]
        last = " | the paper's" if any(theirs) else ""
        yield f"| method | preference | {' | '.join(tasks)} | mean{last} |"
        yield "|---" * (len(tasks) + 3 + bool(last)) + "|"
        for i, (name, kind, line) in enumerate(rows):
            shown = [f"**{number}**" if (i, column) in marks else str(number) for column, number in enumerate(line)]
            shown += [theirs[i]] if last else []
            yield f"| {name} | {KINDS.get(kind, '')} | {' | '.join(shown)} |"


def cost(table: Table, results: Results) -> Iterator[str]:
    """CPU seconds to make, parameters stored and models to be had; the accuracy beside them."""
    tasks = table.cells[0].names
    yield "| method | CPU seconds | parameters stored | of one model | models | mean at equal | at priority | at one-hot |"
    yield "|---" * 8 + "|"
    for method in dict.fromkeys(cell.method for cell in table.cells):
        found = [one for cell in table.cells if cell.method == method and (one := results.of(cell))]
        if not found:
            continue
        means = [line[-1] if (line := numbers(found, tasks, kind)) else "" for kind in KINDS]
        base = found[0]["stored"]["base"]
        whole = base + found[0]["stored"]["added"]
        seconds = fmean(cell["cost"]["cpu_s"] for cell in found)
        shown = f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"
        yield (
            f"| {method.name} | {shown} | {whole / 1e6:.2f} M | {100 * whole / base:.0f} % | "
            f"{'infinite' if method.front else 1} | {' | '.join(map(str, means))} |"
        )


def unseen(table: Table, results: Results) -> Iterator[str]:
    """Accuracy on the tasks that were left out, at equal preference and at the one chosen by entropy."""
    for merged in dict.fromkeys(cell.names for cell in table.cells):
        left = [task for task in table.cells[0].suite.tasks if task not in merged]
        yield f"\n{' and '.join(left)} left out\n"
        yield f"| method | preference | {' | '.join(left)} | mean |"
        yield "|---" * (len(left) + 3) + "|"
        for method in dict.fromkeys(cell.method for cell in table.cells):
            cells = [cell for cell in table.cells if cell.method == method and cell.names == merged]
            found = [one for cell in cells if (one := results.of(cell))]
            for kind, name in (("equal", "equal" if method.front else ""), ("other", "by entropy")):
                if line := numbers(found, left, kind):
                    yield f"| {method.name} | {name} | {' | '.join(map(str, line))} |"


def line(table: Table, results: Results) -> Iterator[str]:
    """Both accuracies at the ends and in the middle, the hypervolume, and a figure."""
    tasks = table.cells[0].names
    yield f"| method | {tasks[0]} first | equal | {tasks[1]} first | hypervolume | best mean of the two |"
    yield "|---" * 6 + "|"
    for method in dict.fromkeys(cell.method for cell in table.cells):
        found = [one for cell in table.cells if cell.method == method and (one := results.of(cell))]
        curves = [points(one, tasks) for one in found]
        if not curves:
            continue
        ends = [curve[place] for curve in curves[:1] for place in (-1, len(curve) // 2, 0)]
        shown = [f"{100 * x:.1f} / {100 * y:.1f}" for x, y in ends]
        areas = [hypervolume(curve) for curve in curves]
        means = [max(fmean(point) for point in curve) for curve in curves]
        spread = [f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "" for values in (areas, means)]
        last = [f"{100 * fmean(values):.1f}{more}" for values, more in zip((areas, means), spread, strict=True)]
        yield f"| {' | '.join([method.name, *shown, *last])} |"


def spread(table: Table, results: Results) -> Iterator[str]:
    """What a set offers over the whole simplex."""
    tasks = table.cells[0].names
    yield "| method | weighted | control | hypervolume | non-dominated | parameters stored, of one model |"
    yield "|---" * 6 + "|"
    best = np.ones(len(tasks))
    for cell in table.cells:  # at λ = 1/K the soup's one-hot preferences are the experts
        found = results.of(cell)
        if cell.method.name == "Rewarded Soups" and found:
            best = np.array([row["value"] for task in tasks for row in found["rows"] if row["preference"] == f"only:{task}"
                             and row["task"] == task])  # fmt: skip
    for cell in table.cells:
        if not (found := results.of(cell)):
            continue
        texts = list(dict.fromkeys(row["preference"] for row in found["rows"]))
        values = np.array(points(found, tasks))
        gammas = np.array([preferences.parse(text, tasks) for text in texts])
        drawn = [i for i, text in enumerate(texts) if kind_of(text) == "other"] if len(texts) > 1 else [0]
        weights = gammas[drawn] if len(texts) > 1 else np.array([preferences.equal(len(tasks))])
        shares = [spearmanr(gammas[:, k], values[:, k]).statistic for k in range(len(tasks))] if len(texts) > 1 else []
        control = f"{np.nanmean(shares):.2f}" if np.isfinite(shares).any() else ""
        kept = moocore.is_nondominated(-values, keep_weakly=True).mean() if len(texts) > 1 else 1.0
        stored = 1 + found["stored"]["added"] / found["stored"]["base"]
        yield (
            f"| {cell.method.name} | {100 * (weights * values[drawn]).sum(1).mean():.1f} | {control} | "
            f"{hypervolume(values / best):.3f} | {100 * kept:.0f} % | {100 * stored:.0f} % |"
        )


def training(table: Table, results: Results) -> Iterator[str]:
    """What is trained and stored, and the CPU seconds, beside PWE-MoE's table 8."""
    yield "| method | tasks | trained | stored | CPU seconds | the paper's: trained / stored | minutes |"
    yield "|---" * 7 + "|"
    for method, names in dict.fromkeys((cell.method, cell.names) for cell in table.cells):
        cells = [cell for cell in table.cells if (cell.method, cell.names) == (method, names)]
        if not (found := [one for cell in cells if (one := results.of(cell))]):
            continue
        stored = found[0]["stored"]
        trained = found[0].get("trained", stored["base"])
        seconds = fmean(one["cost"]["cpu_s"] for one in found)
        theirs = papers.training(method.name, len(names))
        whole = (stored["base"] + stored["added"]) / 1e6
        yield f"| {method.name} | {len(names)} | {trained:,} | {whole:.2f} M | {seconds:.0f} | {' | '.join(theirs)} |"


def routing(table: Table, results: Results) -> Iterator[str]:
    """How far the routers tell the tasks apart; a figure draws all their weights."""
    yield "| method | modules | own, first half | second half | others, first half | second half |"
    yield "|---" * 6 + "|"
    for cell in table.cells:
        if not (found := results.of(cell)) or "routing" not in found:
            continue
        weights = np.array(found["routing"]["weights"])  # (one-hot preferences, modules, task vectors)
        own = np.einsum("kmk->mk", weights).mean(1)
        others = (weights.sum((0, 2)) / len(weights) - own) / (len(weights) - 1)
        halves = [f"{part.mean():.2f}" for each in (own, others) for part in np.array_split(each, 2)]
        yield f"| {' | '.join([cell.method.name, str(len(own)), *halves])} |"


def points(found: dict[str, Any], tasks: Sequence[str]) -> list[tuple[float, ...]]:
    """The tasks' values at each preference, in the order measured; of two tasks from the second's to the first's."""
    rows = found["rows"]
    each = {text: {} for text in dict.fromkeys(row["preference"] for row in rows)}
    for row in rows:
        each[row["preference"]][row["task"]] = row["value"]
    return [tuple(values[task] for task in tasks) for values in each.values()]


def hypervolume(curve: Sequence[Sequence[float]]) -> float:
    """Of accuracies, against (0, 0)."""
    return float(moocore.hypervolume(-np.asarray(curve), ref=np.zeros(len(curve[0]))))


def line_figure(table: Table, results: Results, path: Path) -> bool:
    """Accuracy on one task against accuracy on the other; a line per method, seed 0."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = table.cells[0].names
    drawn, number = False, 0
    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
        for cell in table.cells:
            found = results.of(cell)
            if cell.seed or not found:
                continue
            drawn = True
            curve = [(100 * x, 100 * y) for x, y in points(found, tasks)]
            if cell.method.name == "the experts":
                axes.axvline(curve[-1][0], color="0.8", linewidth=1, zorder=0)
                axes.axhline(curve[0][1], color="0.8", linewidth=1, zorder=0)
                continue
            marker, colour = MARKERS[number % len(MARKERS)], f"C{number % 10}"  # for eyes that see fewer colours, too
            number += 1
            single = {"markersize": 10, "linestyle": "none", "markeredgecolor": "black"}
            style = single if len(curve) == 1 else {"markersize": 4, "linewidth": 1.2}
            axes.plot(*zip(*curve, strict=True), marker=marker, color=colour, label=cell.method.name, **style)
        axes.set_xlabel(f"{tasks[0]}: held-out accuracy, %")
        axes.set_ylabel(f"{tasks[1]}: held-out accuracy, %")
        axes.set_title("eleven preferences; grey: the experts")
        axes.legend(frameon=False)
        if drawn:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=130)
        pyplot.close(figure)
    return drawn


def routing_figures(table: Table, results: Results, folder: Path) -> Iterator[str]:
    """A heat map over depth for each method."""
    for number, cell in enumerate(table.cells, 1):
        if (found := results.of(cell)) and "routing" in found:
            drawn = found["routing"]
            path = folder / "results" / f"{table.name}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_routing(path, Routing(cell.names, tuple(drawn["modules"]), torch.tensor(drawn["weights"])))
            yield f"![{cell.method.name}: {table.title}](results/{path.name})\n"


MARKERS = "osD^vP*X<>ph"
LAYOUTS = {
    "accuracy": accuracy, "cost": cost, "unseen": unseen, "line": line, "spread": spread, "training": training,
    "routing": routing,
}  # fmt: skip
LADDER = ("pretrained", "Task Arithmetic", "the experts")


def ladder(tables: Sequence[Table], results: Results) -> Iterator[str]:
    """Whether task arithmetic works on a suite: pretrained < the better λ < experts, each step beyond the noise."""
    seen: set[str] = set()
    for table in tables:
        if table.layout != "accuracy" or (name := table.cells[0].suite.name) in seen:
            continue
        steps: list[Number] = []
        for start in LADDER:
            cells = [cell for cell in table.cells if cell.method.name.startswith(start)]
            kind = "only" if start == "the experts" else "equal"
            lines = [numbers([found], cell.names, kind) for cell in cells if (found := results.of(cell))]
            if lines:
                steps.append(max((line[-1] for line in lines if line), key=lambda number: number.goodness))
        if len(steps) < len(LADDER):
            continue
        seen.add(name)
        apart = all(gain > noise for gain, noise in (lead(other, one) for one, other in pairwise(steps)))
        shown = ", ".join(f"{start} {number}" for start, number in zip(LADDER, steps, strict=True))
        yield f"- {name}: {shown}: {'yes' if apart else '**no, or not clearly**'}."


def write(folder: Path, every: Sequence[Table], results: Results, claims: str = "") -> None:
    """results.md and its figures under a folder; the tables on the terminal, too."""
    cells = {cell.key for table in every for cell in table.cells} & results.cells.keys()
    took = sum(results.cells[key].get("took_cpu_s", 0) for key in cells) / 60
    parts = [f"{INTRODUCTION}\n{len(cells)} cells took {took:.0f} CPU minutes, from experts that were trained before.\n"]
    if claims:
        parts.append(f"## Claims\n\nThose that do not hold come first.\n\n{claims}\n")
    if steps := list(ladder(every, results)):
        parts.append("## Does task arithmetic work here, as it does on CLIP?\n\n" + "\n".join(steps) + "\n")
    for table in every:
        if not any(results.of(cell) for cell in table.cells):
            continue
        text = "\n".join((LAYOUTS[table.layout] if isinstance(table.layout, str) else table.layout)(table, results))
        parts.append(f"## {table.name}. {table.title}\n\nIn the papers: {table.paper}. {table.note}\n\n{text}\n")
        if table.layout == "line" and line_figure(table, results, folder / "results" / f"{table.name}.png"):
            parts.append(f"![{table.title}](results/{table.name}.png)\n")
        if table.layout == "routing":
            parts += routing_figures(table, results, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text("\n".join(parts))
    print("\n".join(parts[1:]))
    print(f"written: {folder / 'results.md'}")


INTRODUCTION = """# The papers' claims, on tasks that run offline

Made by `make claims`; every number is from a file of measured cells, none is typed in.
Accuracies in %, mean ± standard deviation over seeds of merging and fitting; one training of the experts.
*held-out*: nothing was fitted on these inputs. *transductive*: fitted on these very inputs, without their labels, as in
AdaMerging's and Pareto Merging's papers.
At priority and one-hot preference a column is the model that prefers the column's task.
**Bold**: best of its column and kind of preference beyond the noise. Noise: two standard errors of the difference, of the
seeds and of the sample of test inputs, which are compared pair by pair where both models were measured on the same.
"""
