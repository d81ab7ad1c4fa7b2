"""What is known of metrics: which way is better, and what values they can have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from paretomerge.errors import UserError
from paretomerge.results.objective import Objective
from paretomerge.results.rows import Row

_SHARE = (True, 0.0, 1.0)
_ERROR = (False, 0.0, None)

METRICS: dict[str, tuple[bool, float | None, float | None]] = {
    **dict.fromkeys(("accuracy", "acc", "acc_norm", "exact_match", "f1", "precision", "recall", "pass@1", "auc"), _SHARE),
    **dict.fromkeys(("mcc", "pearson", "spearman"), (True, -1.0, 1.0)),
    "bleu": (True, 0.0, 100.0),
    **dict.fromkeys(("loss", "mse", "mae", "rmse", "bits_per_byte", "ter", "wer", "cer"), _ERROR),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), (False, 1.0, None)),
}
"""Metric -> (larger is better, smallest value, largest value); None: no bound."""


def larger_is_better(metric: str) -> bool:
    """The direction of a metric; of one that is not known, up.

    >>> larger_is_better("perplexity"), larger_is_better("exact_match,strict-match"), larger_is_better("my-score")
    (False, True, True)
    """
    return METRICS.get(_name(metric), (True,))[0]


def objective(task: str, text: str) -> Objective:
    """A task's metric as people declare it: ``name``, if it is in ``METRICS``, or ``name:max|min[:low[:high]]``.

    >>> objective("math", "exact_match")
    Objective(task='math', metric='exact_match', larger_is_better=True, low=0.0, high=1.0)
    >>> objective("code", "tokens:min:0")
    Objective(task='code', metric='tokens', larger_is_better=False, low=0.0, high=None)

    Raises:
        UserError: a metric that is not known without its direction, bounds that are no numbers or in the wrong order.
    """
    metric, *declared = (part.strip() for part in text.split(":"))
    place = f"metric of {task}: {text}"
    if not metric:
        raise UserError(f"{place}: no name of a metric: write accuracy, or NAME:max:0:1")
    known = METRICS.get(_name(metric))
    if not declared:
        if known is None:
            raise UserError(f"{place}: which way is better? Write {metric}:max or {metric}:min, with its range if it has one")
        return Objective(task, metric, *known)
    direction, *bounds = declared
    if direction not in ("max", "min") or len(bounds) > 2:
        raise UserError(f"{place}: write NAME:max or NAME:min, then its smallest and its largest value, e.g. {metric}:max:0:1")
    if known is not None and known[0] != (direction == "max"):
        raise UserError(f"{place}: of {metric}, {'more' if known[0] else 'less'} is better: write {metric} alone")
    low, high = (_bound(bound, place) for bound in (*bounds, "", "")[:2])
    if low is not None and high is not None and low >= high:
        raise UserError(f"{place}: the smallest value {low:g} is not below the largest, {high:g}")
    return Objective(task, metric, direction == "max", low, high)


def objectives_of(metrics: Mapping[str, str | Objective], tasks: Sequence[str]) -> tuple[Objective, ...]:
    """The declared metrics in the order of the tasks, one each.

    Raises:
        UserError: a task without a metric, or a metric for an unknown task; what ``objective`` raises.
    """
    if strangers := [task for task in metrics if task not in tasks]:
        raise UserError(f"metric of {strangers[0]}: no task is called so (tasks: {', '.join(tasks)})")
    if missing := [task for task in tasks if task not in metrics]:
        raise UserError(f"no metric for task {missing[0]}: declare what is measured with --metric {missing[0]}=NAME:max:0:1")
    found = []
    for task in tasks:
        given = metrics[task]
        found.append(given._replace(task=task) if isinstance(given, Objective) else objective(task, given))
    return tuple(found)


def check_range(objective: Objective, value: float) -> None:
    """Refuse a value that a metric as it is declared cannot have.

    Raises:
        UserError: the declaration is wrong.
    """
    low, high = objective.low, objective.high
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"[{'-∞' if low is None else f'{low:g}'}, {'∞' if high is None else f'{high:g}'}]"
        way = "max" if objective.larger_is_better else "min"
        raise UserError(
            f"task {objective.task}: {objective.metric} was {value:g}, outside of {bounds}: declare its range "
            f"(--metric {objective.task}={objective.metric}:{way}:LOW:HIGH); what was measured is kept"
        )


def row_of(
    objective: Objective, value: float, preference: str, *, method: str, split: Literal["held-out", "transductive"], seed: int
) -> Row:
    """A measured number; of a metric that is not known, the row says which way is better."""
    row: Row = {
        "method": method, "preference": preference, "task": objective.task, "metric": objective.metric, "value": value,
        "split": split, "seed": seed,
    }  # fmt: skip
    if _name(objective.metric) not in METRICS:
        row["larger_is_better"] = objective.larger_is_better
    return row


def _name(metric: str) -> str:
    """A metric's own name: harnesses append a filter to it (``acc,none``), or put a task before it (``gsm8k/acc``)."""
    return metric.rpartition("/")[2].partition(",")[0]


def _bound(text: str, place: str) -> float | None:
    if text in ("", "inf", "-inf"):
        return None
    try:
        bound = float(text)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise UserError(f"{place}: {text!r} is not a number")
    return bound
