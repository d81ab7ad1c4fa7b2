"""Numbers of the tables: means over seeds, and whether one is better than another beyond the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np

from benchmarks.claims.scores import unpacked

KINDS = {"equal": "equal", "priority": "priority", "only": "one-hot"}


@dataclass(frozen=True)
class Number:
    """A mean over seeds."""

    mean: float
    std: float | None
    """Over seeds; None where there is one, or where the seed does not matter."""
    seeds: int
    inputs: int
    """Held-out inputs behind it, whose choice is noise, too."""
    metric: str
    scores: tuple[np.ndarray, ...] | None = field(default=None, repr=False, compare=False)
    """Of each task behind it the inputs' scores (``scores.scores``), mean over seeds; None: not kept."""

    def __str__(self) -> str:
        scale = 1 if self.metric == "perplexity" else 100
        digits = 2 if self.metric == "perplexity" else 1
        spread = "" if self.std is None else f" ± {scale * self.std:.{digits}f}"
        return f"{scale * self.mean:.{digits}f}{spread}"

    @property
    def goodness(self) -> float:
        """Accuracy, or less the logarithm of perplexity."""
        return -math.log(self.mean) if self.metric == "perplexity" else self.mean

    @property
    def of_seeds(self) -> float:
        """Variance of the mean's goodness over seeds."""
        if self.std is None:
            return 0.0
        return (self.std / (self.mean if self.metric == "perplexity" else 1)) ** 2 / self.seeds

    @property
    def of_sample(self) -> float:
        """Variance of an accuracy of so many inputs; of perplexity, nothing is known."""
        return 0.0 if self.metric == "perplexity" else self.mean * (1 - self.mean) / max(self.inputs, 1)


def kind_of(preference: str) -> str:
    return preference.partition(":")[0] if ":" in preference or preference == "equal" else "other"


def numbers(found: Sequence[dict[str, Any]], tasks: Sequence[str], kind: str) -> list[Number] | None:
    """Of the cells of one method (its seeds): per task and, last, of their mean, at one kind of preference."""
    each: list[list[dict[str, Any]]] = []
    for cell in found:
        rows = {row["task"]: row for row in cell["rows"] if kind_of(row["preference"]) == kind}
        if not all(task in rows for task in tasks):
            return None
        each.append([rows[task] for task in tasks])
    if not each:
        return None
    metric, counts = each[0][0]["metric"], [found[0]["inputs"][task] for task in tasks]
    values = [[row["value"] for row in rows] for rows in each]
    kept = [_scores([rows[k] for rows in each], counts[k]) for k in range(len(tasks))]
    singles = [(one,) if one is not None else None for one in kept]
    whole = None if any(one is None for one in kept) else tuple(one for one in kept if one is not None)
    return [
        Number(fmean(column), stdev(column) if len(column) > 1 else None, len(column), count, metric, scores)
        for column, count, scores in zip(
            [*zip(*values, strict=True), [fmean(line) for line in values]], [*counts, sum(counts)], [*singles, whole],
            strict=True,
        )
    ]  # fmt: skip


def _scores(rows: Sequence[dict[str, Any]], n: int) -> np.ndarray | None:
    if not all("scores" in row for row in rows):
        return None
    return np.mean([unpacked(row["scores"], row["metric"], n) for row in rows], axis=0)


def lead(one: Number, other: Number) -> tuple[float, float]:
    """By how much one is better than the other, and two standard errors of that: of the seeds, and of the sample of inputs.

    Inputs are compared pair by pair, where both were measured on the same: d_i of them, with variance var(d) / n. Else the
    two samples count as independent, which is rather too much.
    """
    seeds = one.of_seeds + other.of_seeds
    if one.scores and other.scores and [len(a) for a in one.scores] == [len(b) for b in other.scores]:
        gains = [a - b for a, b in zip(one.scores, other.scores, strict=True)]
        sample = sum(float(gain.var(ddof=1)) / len(gain) for gain in gains) / len(gains) ** 2
        return fmean(float(gain.mean()) for gain in gains), 2 * math.sqrt(seeds + sample)
    return one.goodness - other.goodness, 2 * math.sqrt(seeds + one.of_sample + other.of_sample)


def bold(column: Sequence[Number]) -> int | None:
    """The place of the best number, if it is better than the next beyond the noise."""
    order = sorted(range(len(column)), key=lambda i: -column[i].goodness)
    if len(order) < 2:
        return None
    best, next_best = column[order[0]], column[order[1]]
    if best.metric == "perplexity" and not best.scores and best.std is None and next_best.std is None:
        return None  # nothing tells how large the noise is
    gain, noise = lead(best, next_best)
    return order[0] if gain > noise else None
