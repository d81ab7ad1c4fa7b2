"""What an evaluation costs beside the model: 1 000 evaluations that do nothing, stored on disk, then read again.

python benchmarks/search_overhead.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paretomerge.api import FitRun
from paretomerge.experts import load_experts
from paretomerge.merges import processed
from paretomerge.results import Objective
from paretomerge.search import evaluator_for, facts_of

N, COUNT = 8, 1000
OBJECTIVES = [Objective(f"task{k}", "score", True, 0.0, 1.0) for k in range(N)]


class Nothing:
    """An evaluator that needs no model."""

    objectives = OBJECTIVES

    def identity(self) -> dict[str, Any]:
        return {"kind": "nothing"}

    def opened(self, models: object) -> Any:
        def measured(c: Sequence[float], tasks: Sequence[str]) -> Mapping[str, float]:
            return dict.fromkeys(tasks, 0.5)

        return measured


def main() -> None:
    base = {"w": torch.zeros(2, 2)}
    experts = load_experts(base, {o.task: {"w": torch.full((2, 2), 1.0 + k)} for k, o in enumerate(OBJECTIVES)})
    c = np.random.default_rng(0).random((COUNT, N))
    with tempfile.TemporaryDirectory() as folder:
        for what in ("evaluated, one call", "read again"):
            started = time.perf_counter()
            with evaluator_for(experts, Nothing(), facts_of(experts, hashes=True), FitRun(Path(folder))) as made_for:
                made_for(processed(experts))(c)
            print(f"{COUNT} evaluations of {N} tasks, {what}: {1e3 * (time.perf_counter() - started) / COUNT:.3f} ms each")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with evaluator_for(experts, Nothing(), facts_of(experts, hashes=True), FitRun(Path(folder))) as made_for:
            evaluator = made_for(processed(experts))
            for each in c:
                evaluator(each[None])
        print(f"{COUNT} evaluations of {N} tasks, a call each: {1e3 * (time.perf_counter() - started) / COUNT:.3f} ms each")


if __name__ == "__main__":
    main()
