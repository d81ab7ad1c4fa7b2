"""The one format of results: a row per number, for the demo, the evaluations and the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Literal, NotRequired, TypedDict


class Row(TypedDict):
    """One measured number."""

    method: str
    preference: str
    """As the command line takes it: ``equal``, ``priority:fashion``, ``only:fashion``, ``a=0.7,b=0.3``."""
    task: str
    metric: str
    value: float
    split: Literal["held-out", "transductive"]
    """held-out: inputs that nothing was fitted on; transductive: the inputs of the fit, without their labels, or those that
    a search chose by."""
    seed: int
    larger_is_better: NotRequired[bool]
    """Of a metric that is not in ``directions.METRICS``."""


def value(rows: Iterable[Row], method: str, preference: str, task: str) -> float:
    """The number of one row; the mean where several seeds were measured.

    Raises:
        KeyError: no such row.
    """
    found = [r["value"] for r in rows if (r["method"], r["preference"], r["task"]) == (method, preference, task)]
    if not found:
        raise KeyError((method, preference, task))
    return fmean(found)


EXPERT, PRETRAINED = "expert", "pretrained"
"""The methods of such rows; an expert's preference is ``only:TASK``, the base's ``equal``."""
