"""MAP's tables as markdown, and its paper's claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from benchmarks.claims import papers
from benchmarks.claims.cells import Results
from benchmarks.claims.searches import PREFERENCES
from benchmarks.claims.table import Table
from paretomerge import preferences
from paretomerge.evaluation import sampled
from paretomerge.results import generational_distance, inverted_generational_distance, win_rate

MAP, DIRECT = "MAP", "direct search"
Found = dict[str, Any]


class Comparison(NamedTuple):
    """A claim of the paper, its numbers and ours."""

    text: str
    where: str
    theirs: str
    ours: str
    gain: float
    """How much better what is claimed to be better is."""
    noise: float
    """Two standard errors of it."""
    use: str = "held-out"


def points(found: Found, split: str = "transductive") -> np.ndarray:
    """The measured points of a front (P, K); of language models the loss."""
    rows = [row for row in found["rows"] if row["preference"].startswith("point") and row["split"] == split]
    values = np.array([row["value"] for row in rows]).reshape(-1, len(found["tasks"]))
    return np.log(values) if rows[0]["metric"] == "perplexity" else values


def _maximise(found: Found) -> bool:
    return not any(row["metric"] == "perplexity" for row in found["rows"])


def _facts(found: Found, metric: str) -> list[float]:
    return [row["value"] for row in found["rows"] if row["metric"] == metric]


def _against(table: Table, results: Results) -> Iterator[tuple[Found, str, list[Found]]]:
    """Direct search of some tasks, and the runs of every other search of them."""
    for names in dict.fromkeys(cell.names for cell in table.cells):
        cells = [cell for cell in table.cells if cell.names == names and cell.how != "chosen"]
        direct = [one for cell in cells if cell.method.name == DIRECT and (one := results.of(cell))]
        for method in dict.fromkeys(cell.method.name for cell in cells if cell.method.name != DIRECT):
            runs = [one for cell in cells if cell.method.name == method and (one := results.of(cell))]
            if direct and runs:
                yield direct[0], method, runs


def rates(table: Table, results: Results, split: str = "transductive", ties: float = 0.5) -> dict[int, list[float]]:
    """Number of tasks -> win rates of MAP's runs over direct search."""
    rates: dict[int, list[float]] = {}
    for direct, method, runs in _against(table, results):
        if method == MAP:
            rates.setdefault(len(direct["tasks"]), []).extend(
                win_rate(points(run, split), points(direct, split), maximise=_maximise(direct), ties=ties) for run in runs
            )
    return rates


def shown(values: Sequence[float], scale: float = 1, digits: int = 3) -> str:
    """Mean ± standard deviation."""
    spread = f" ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * fmean(values):.{digits}f}{spread}"


def wins(table: Table, results: Results) -> Iterator[str]:
    """A row per number of tasks, beside the paper's."""
    yield "| tasks | c, direct search | c, MAP | win rate | ties lost | on unseen inputs | R² | the paper's win rate | R² |"
    yield "|---" * 9 + "|"
    seen, lost, unseen = rates(table, results), rates(table, results, ties=0), rates(table, results, "held-out")
    of_map = [(direct, runs) for direct, method, runs in _against(table, results) if method == MAP]
    for n in sorted(seen):
        direct = next(direct for direct, _ in of_map if len(direct["tasks"]) == n)
        runs = [run for direct, runs in of_map if len(direct["tasks"]) == n for run in runs]
        r2 = [value for run in runs for value in _facts(run, "R2")]
        theirs = [papers.of_map(f"table {2 if n < 4 else 3}", f"CLIP ViT-B/32, {n} tasks", "LocMAP", metric)
                  for metric in ("win rate %", "R2 of the surrogates")]  # fmt: skip
        counts = [f"{_facts(found, 'evaluations')[0]:.0f}" for found in (direct, runs[0])]
        cells = [*counts, *(shown(each[n], 100, 1) for each in (seen, lost, unseen)), shown(r2, digits=3), *theirs]
        yield f"| {' | '.join([str(n), *cells])} |"


def distances(table: Table, results: Results) -> Iterator[str]:
    """GD and IGD to direct search's front, a row per search; of languages a row per pair, beside the paper's."""
    apart = table.name == "h"
    last = " the paper's, of Llama-3 |" if apart else ""
    yield f"| search | evaluations | GD | IGD | GD + IGD | points of the front | extent |{last}"
    yield "|---" * (7 + apart) + "|"
    found: dict[str, list[tuple[Found, Found]]] = {}
    for direct, method, runs in _against(table, results):
        name = f"{method}: {' and '.join(direct['tasks'])}" if apart else method
        found.setdefault(name, []).extend((direct, run) for run in runs)
    for number, (name, pairs) in enumerate(found.items()):
        both = [gd_igd(direct, run) for direct, run in pairs]
        values = [shown(each) for each in ([gd for gd, _ in both], [igd for _, igd in both], [gd + igd for gd, igd in both])]
        of_direct = sorted({f"{_facts(direct, 'points')[0]:.0f}" for direct, _ in pairs})
        extent = fmean(float(np.ptp(points(direct), axis=0).mean()) for direct, _ in pairs)
        pair = ("Arabic+French", "Chinese+Japanese")[number % 2]
        theirs = [papers.of_map("table 7", f"Llama-3-8B, {pair}", "LocMAP", metric) for metric in ("GD", "IGD", "GD+IGD")]
        last = f" {pair}: {', '.join(theirs)} |" if apart else ""
        evaluations = f"{_facts(pairs[0][1], 'evaluations')[0]:.0f}"
        yield f"| {' | '.join([name, evaluations, *values, ', '.join(of_direct), f'{extent:.3f}'])} |{last}"


def gd_igd(direct: Found, run: Found) -> tuple[float, float]:
    truth, mine = points(direct), points(run)
    return generational_distance(mine, truth), inverted_generational_distance(mine, truth)


NAMES = {
    "the experts": "Single task models", "weight averaging": "Model soups", "Task Arithmetic, λ 0.3": "Task Arithmetic",
    "TIES, λ 1": "TIES-merging", "DARE + TA, λ 0.3": "DARE-TA", "DARE + TIES, λ 0.3": "DARE-TIES",
    "DELLA, λ 0.3": "DELLA-Merging", "Rewarded Soups": "TA with preference as weights",
    "AdaMerging + TIES": "Ada-Merging +  + ", "multi-task training (labels)": "MTL", "MAP": "LocMAP",
}  # fmt: skip
"""Our row -> that of MAP's table 4."""
NESTED = {MAP: "LocMAP-plain", "nested MAP": "LocMAP-nested", "Task Arithmetic, λ 0.3": "Task Arithmetic (TA)"}
"""The same for its table 9, where that has another name."""


class Sums:
    """Preference-weighted sums of one method on some tasks."""

    def __init__(self, runs: Sequence[Found]) -> None:
        names = runs[0]["tasks"]
        self.inputs = sum(runs[0]["inputs"][task] for task in names)
        each: dict[str, list[float]] = {}
        for run in runs:
            metrics: dict[str, dict[str, float]] = {}
            for row in run["rows"]:
                if row["task"] and row["metric"] == "accuracy" and not row["preference"].startswith("point"):
                    metrics.setdefault(row["preference"], {})[row["task"]] = row["value"]
            own = {task: metrics[f"only:{task}"][task] for task in names if f"only:{task}" in metrics}
            one = metrics.get("equal") or own or None
            for text in sampled(names, PREFERENCES[run["mode"]]) if one else metrics:
                gamma = preferences.parse(text, names)
                values = one or metrics[text]
                each.setdefault(text, []).append(sum(g * values[task] for g, task in zip(gamma, names, strict=True)))
        self.of = {text: fmean(values) for text, values in each.items()}
        """Preference -> the sum, mean over the seeds."""
        complete = [values for values in each.values() if len(values) == len(runs) > 1]
        self.seeds = stdev(map(fmean, zip(*complete, strict=True))) ** 2 / len(runs) if complete else 0.0
        """Variance of the mean over the seeds."""

    def mean(self, of: Sequence[str] | None = None) -> float:
        return fmean(self.of[text] for text in of or self.of)

    @property
    def variance(self) -> float:
        """Of the mean, by its seeds and its finite sample of inputs."""
        return self.seeds + self.mean() * (1 - self.mean()) / self.inputs

    def over(self, other: Sums) -> tuple[float, float]:
        """By how much it is better, at the preferences that both were asked for, and two standard errors of that."""
        both = [text for text in self.of if text in other.of]
        gains = [self.of[text] - other.of[text] for text in both]
        spread = stdev(gains) ** 2 / len(gains) if len(gains) > 1 else 0.0
        return fmean(gains), 2 * math.sqrt(spread + self.variance + other.variance)

    def __str__(self) -> str:
        return shown(list(self.of.values()), 100, 1)


def sums(table: Table, results: Results) -> dict[tuple[str, int], Sums]:
    """(method, number of tasks) -> its sums."""
    cells = [cell for cell in table.cells if cell.how in ("chosen", "searched")]
    runs: dict[tuple[str, int], list[Found]] = {}
    for cell in cells:
        if found := results.of(cell):
            runs.setdefault((cell.method.name, len(cell.names)), []).append(found)
    return {key: Sums(found) for key, found in runs.items()}


def weighed(table: Table, results: Results) -> Iterator[str]:
    """A row per method, a column per number of tasks, beside the paper's."""
    found = sums(table, results)
    sizes = sorted({n for _, n in found})
    yield f"| method | {' | '.join(f'{n} tasks' for n in sizes)} | {' | '.join(f'the paper, {n}' for n in sizes)} |"
    yield "|---" * (1 + 2 * len(sizes)) + "|"
    order = ["the experts", *NAMES, *dict.fromkeys(name for name, _ in found)]
    best = {}
    for n in sizes:  # bold: beyond the noise of the next
        column = [name for name, size in found if size == n and name not in ("the experts", "nested MAP")]
        first, *rest = sorted(column, key=lambda name: -found[name, n].mean())
        if rest and all((lead := found[first, n].over(found[name, n]))[0] > lead[1] for name in rest):
            best[n] = first
    for name in dict.fromkeys(name for name in order if any((name, n) in found for n in sizes)):
        texts = [str(found[name, n]) if (name, n) in found else "" for n in sizes]
        texts = [f"**{text}**" if best.get(n) == name else text for n, text in zip(sizes, texts, strict=True)]
        theirs = [_theirs(name, n) if (name, n) in found else "" for n in sizes]
        yield f"| {' | '.join([name, *texts, *theirs])} |"


def _theirs(name: str, n: int, table: str = "") -> str:
    names = NAMES
    if table == "table 9" or name == "nested MAP":
        table, names = "table 9", NAMES | NESTED
    metric = "preference-weighted sum of accuracies %"
    return papers.of_map(table or "table 4", f"CLIP ViT-B/32, {n} tasks", names.get(name, ""), metric)


BETTER = [
    (MAP, "Task Arithmetic, λ 0.3", 8), (MAP, "TIES, λ 1", 8), (MAP, "DARE + TIES, λ 0.3", 8), (MAP, "DELLA, λ 0.3", 8),
    (MAP, "AdaMerging + TIES", 8), (MAP, "Rewarded Soups", 8), (MAP, "TIES, λ 1", 4), (MAP, "Rewarded Soups", 4),
    (MAP, "Rewarded Soups", 2), ("nested MAP", "Task Arithmetic, λ 0.3", 8), ("nested MAP", "DARE + TA, λ 0.3", 8),
    (MAP, "nested MAP", 8),
]  # fmt: skip
"""(method, another, number of tasks): the first's sum is larger in the paper's table 4, with nested MAP in its table 9."""


def comparisons(tables: Mapping[str, Table], results: Results) -> Iterator[Comparison]:
    """The paper's claims whose numbers are measured."""
    if "f" in tables:
        for split, use in (("transductive", "seen inputs"), ("held-out", "held-out")):
            for n, values in sorted(rates(tables["f"], results, split).items()):
                where = f"table {2 if n < 4 else 3}"
                floor, claim = (0.45, "is nearly level with") if n < 4 else (0.5, "is better than")
                theirs = papers.of_map(where, f"CLIP ViT-B/32, {n} tasks", "LocMAP", "win rate %")
                yield Comparison(
                    f"{n} tasks: MAP's front {claim} direct search's (win rate above {100 * floor:.0f} %)", f"MAP, {where}",
                    f"{theirs} %", f"{shown(values, 100, 1)} %", fmean(values) - floor, _noise(values), use,
                )  # fmt: skip
    if "f2" in tables:
        totals: dict[str, list[float]] = {}
        for direct, method, runs in _against(tables["f2"], results):
            totals.setdefault(method, []).extend(sum(gd_igd(direct, run)) for run in runs)
        bayesian = next((name for name in totals if "Bayesian" in name), "")
        for name in totals if bayesian else ():
            if name in (MAP, bayesian) or len(totals[name]) != len(totals[bayesian]) or len(totals[name]) < 2:
                continue
            gains = [b - a for a, b in zip(totals[bayesian], totals[name], strict=True)]
            yield Comparison(
                f"Bayesian sampling is better than {name.removeprefix('MAP, ')} (GD + IGD)", "MAP, figure 13", "a figure",
                f"{shown(totals[bayesian])} against {shown(totals[name])}", fmean(gains), _noise(gains), "seen inputs",
            )  # fmt: skip
    if "f3" in tables:
        found = sums(tables["f3"], results)
        for one, other, n in BETTER:
            if (one, n) not in found or (other, n) not in found:
                continue
            where = "MAP, table 9" if "nested MAP" in (one, other) else "MAP, table 4"
            gain, noise = found[one, n].over(found[other, n])
            both = [text for text in found[one, n].of if text in found[other, n].of]
            ours = [f"{100 * found[name, n].mean(both):.1f}" for name in (one, other)]
            theirs = [_theirs(name, n, where.removeprefix("MAP, ")) for name in (one, other)]
            yield Comparison(
                f"{n} tasks, preference-weighted sum: {one} is better than {other}", where, " against ".join(theirs),
                " against ".join(ours), gain, noise,
            )  # fmt: skip


def _noise(values: Sequence[float]) -> float:
    """Two standard errors of the mean."""
    return 2 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
