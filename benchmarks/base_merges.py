"""Held-out accuracy of base merges, and of data-free Pareto Merging on each: python benchmarks/base_merges.py RESULTS.json

The demo's models and data. Fisher and RegMean look at 256 unlabelled images a task.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import fmean

import torch

from paretomerge import api
from paretomerge.demo import Demo, load
from paretomerge.evaluation import measure
from paretomerge.front import Front

BASES = {
    "average": ("average", {}),
    "task_arithmetic 0.3": ("task_arithmetic", {"scale": 0.3}),
    "ties": ("ties", {}),
    "ties 0.3, sum": ("ties", {"scale": 0.3, "normalize": False}),
    "fisher": ("fisher", {}),
    "fisher normalized": ("fisher", {"normalize": True}),
    "regmean 0.9": ("regmean", {}),
    "regmean 0.95": ("regmean", {"off_diagonal": 0.95}),
}


def accuracies(front: Front, shipped: Demo, preference: str) -> list[float]:
    """Of each task, in %, at the preference with the task's name in it."""
    found = []
    for task, data in shipped.tasks.items():
        model = front.model(preference.format(task), head=task, dtype=torch.float32)
        found.append(round(100 * measure(model, data, 256), 2))
    return found


def main(output: Path) -> None:
    """Measure and write."""
    shipped, rows = load(), []
    facts = {"tasks": list(shipped.tasks), "images_a_task": 500, "rank": 16, "targets": "all", "torch": torch.__version__}
    for name, (method, options) in BASES.items():
        on_data = method in ("fisher", "regmean")
        started = time.process_time()
        weights = api.merge(shipped.experts, method, data=shipped.tasks if on_data else None, **options)
        seconds = time.process_time() - started
        front = api.fit(shipped.experts, on=weights, rank=16, targets="all", hashes=False)
        row = {"base": name, "merge_cpu_seconds": round(seconds, 1)}
        for key, preference in (("equal", "equal"), ("priority", "priority:{}"), ("one_hot", "only:{}")):
            row[key] = accuracies(front, shipped, preference)
            row[f"{key}_mean"] = round(fmean(row[key]), 2)
        rows.append(row)
        print(
            f"{name:20s} equal {row['equal_mean']:.2f}  priority {row['priority_mean']:.2f}  one-hot {row['one_hot_mean']:.2f}"
        )
        output.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
