"""Tiny fronts in folders with measured rows whose values are known: the metric of task k is 0.5 + 0.4 γ_k."""

from collections.abc import Sequence
from pathlib import Path

import torch

import task_data
import tiny
from paretomerge import api, preferences
from paretomerge.evaluation import standard_preferences
from paretomerge.experts import load_experts
from paretomerge.front import Front, load_front, record
from paretomerge.results import Row


def value(gamma: Sequence[float], k: int) -> float:
    return 0.5 + 0.4 * gamma[k]


def rows(tasks: Sequence[str], specs: Sequence[str], method: str = "pareto-merging", metric: str = "accuracy") -> list[Row]:
    return [
        {
            "method": method, "preference": spec, "task": task, "metric": metric, "split": "held-out", "seed": 0,
            "value": value(preferences.parse(spec, tasks), k),
        }
        for spec in specs
        for k, task in enumerate(tasks)
    ]  # fmt: skip


def expert_rows(tasks: Sequence[str]) -> list[Row]:
    return [
        row | {"value": 0.95} for row in rows(tasks, [f"only:{t}" for t in tasks], "expert") if row["task"] in row["preference"]
    ]


def front(
    folder: Path,
    tasks: Sequence[str] = ("a", "b"),
    *,
    kind: str = "llama",
    method: str = "pareto-merging",
    measured: bool = True,
) -> Front:
    """A front on disk of models of a kind, with tokenizer and image processor."""
    base = tiny.save(tiny.model(kind), folder / "base")
    experts = {t: tiny.save(tiny.perturb(tiny.model(kind), i + 1), folder / f"expert-{i}") for i, t in enumerate(tasks)}
    task_data.companions(base)
    options = {"rank": 4, "targets": "all"} if method == "pareto-merging" else {}
    api.fit(load_experts(base, experts), method, **options).save(folder / "front")
    if measured:
        record(folder / "front", rows(tasks, standard_preferences(tasks, 4), method) + expert_rows(tasks))
    return load_front(folder / "front")


def logits(front: Front, gamma: Sequence[float], ids: torch.Tensor) -> torch.Tensor:
    """By a fresh model: nothing is switched."""
    with torch.no_grad():
        return front.model(gamma, dtype=torch.float32)(input_ids=ids).logits
