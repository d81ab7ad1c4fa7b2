"""Cells: a method on a suite with a seed, measured in one way; each is computed once and kept as a line of a file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.claims import searches
from benchmarks.claims.methods import Bench, Method, bench, identity, made, with_heads
from benchmarks.claims.scores import packed, scores, summary
from benchmarks.claims.suite import Suite, Use
from benchmarks.claims.vit import fast_maths
from paretomerge import preferences
from paretomerge.evaluation import evaluate, sampled, select_unseen
from paretomerge.front import Front
from paretomerge.report import routers_of, routing
from paretomerge.results import Row

How = Literal["standard", "line", "spread", "unseen", "points", "seen points", "chosen", "searched"]
"""standard: equal at every task, priority and one-hot at the task preferred; line: 11 preferences between two tasks;
spread: equal, one-hot and 20 preferences from all of the simplex, every task, fewer inputs;
unseen: for tasks that are not merged, equal and the preference chosen by entropy; the others: see ``searches``."""
SAMPLE = {"full": 20, "quick": 6}
BATCH = 250


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    suite: Suite
    method: Method
    use: Use = "held-out"
    seed: int = 0
    how: How = "standard"
    mode: str = "full"
    tasks: tuple[str, ...] = ()
    """Those that are merged; none: all of the suite's."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.tasks or self.suite.tasks

    @property
    def key(self) -> str:
        """Changes with everything that the numbers depend on, but the library's code."""
        return identity(self.method, self.suite.only(*self.names), self.use, self.seed, self.mode, self.how)

    def __str__(self) -> str:
        return f"{self.suite.name} · {self.method.name} · {self.use} · {self.how} · seed {self.seed}"


def run(cell: Cell) -> dict[str, Any]:
    """Compute a cell: its rows, and what making the front cost."""
    started = time.process_time()
    on = bench(cell.suite.only(*cell.names), cell.use, cell.mode)
    front, cost = made(cell.method, on, cell.seed)
    parameters = front.summary()["parameters"]
    with fast_maths(cache=False):
        rows = list(_MEASURES[cell.how](cell, on, front))
    return {
        "key": cell.key, "suite": cell.suite.name, "method": cell.method.name, "use": cell.use, "seed": cell.seed,
        "how": cell.how, "mode": cell.mode, "tasks": list(cell.names), "cost": cost,
        "took_cpu_s": round(time.process_time() - started, 1),
        "stored": {"base": parameters["base"], "added": parameters["added"]}, "inputs": _measured_on(cell), "rows": rows,
        **_routers(front),
    }  # fmt: skip


def _routers(front: Front) -> dict[str, Any]:
    """Of PWE-MoE: how many numbers were trained, and what the routers answer at one-hot preferences."""
    found = front.pareto_set
    routers = routers_of(found) if found.method == "pwe-moe" else None
    if routers is None:
        return {}
    answers = routing(found)
    weights = [[[round(c, 4) for c in module] for module in at] for at in answers.weights.tolist()]
    trained = sum(part.numel() for part in routers.parts.values())
    return {"trained": trained, "routing": {"modules": answers.modules, "weights": weights}}


def _measured_on(cell: Cell) -> dict[str, int]:
    """How many inputs of each task of the suite the metric is of."""
    if cell.how in searches.MEASURES:
        return dict.fromkeys(cell.names, searches.CHOSEN[cell.mode])
    whole = bench(cell.suite if cell.how == "unseen" else cell.suite.only(*cell.names), cell.use, cell.mode)
    measured = whole.few if cell.how == "spread" else whole.inputs
    return {name: len(task.held_out or ()) for name, task in measured.items()}


def _standard(cell: Cell, on: Bench, front: Front) -> Iterator[dict[str, Any]]:
    for task in cell.names:
        model = front.model("equal", head=_head(front, task), dtype=torch.float32)
        for text in ("equal", f"priority:{task}", f"only:{task}") if cell.method.front else ("equal",):
            yield _row(cell, on, front, model, text, task)


def _row(cell: Cell, on: Bench, front: Front, model: torch.nn.Module, text: str, task: str) -> dict[str, Any]:
    given = on.inputs[task]
    each = scores(front.apply_(model, text), given, BATCH)
    return {
        "method": cell.method.name, "preference": text, "task": task, "metric": given.metric,
        "value": summary(each, given.metric), "scores": packed(each, given.metric),
        "split": "transductive" if cell.use == "transductive" else "held-out", "seed": cell.seed,
    }  # fmt: skip


def _line(cell: Cell, on: Bench, front: Front) -> Iterator[Row]:
    shares = [step / 10 for step in range(11)] if cell.method.front else [0.5]
    texts = [preferences.format((share, 1 - share), cell.names) for share in shares]
    yield from evaluate(front, list(on.inputs.values()), texts, seed=cell.seed, batch_size=BATCH, method=cell.method.name)


def _spread(cell: Cell, on: Bench, front: Front) -> Iterator[Row]:
    corners = [f"only:{task}" for task in cell.names]
    texts = ["equal", *corners, *sampled(cell.names, SAMPLE[cell.mode])] if cell.method.front else ["equal"]
    yield from evaluate(front, list(on.few.values()), texts, seed=cell.seed, batch_size=BATCH, method=cell.method.name)


def _unseen(cell: Cell, on: Bench, front: Front) -> Iterator[dict[str, Any]]:
    """Of each task of the suite that was not merged: the accuracy at the preference whose model is surest of its inputs."""
    others = [task for task in cell.suite.tasks if task not in cell.names]
    whole = bench(cell.suite, cell.use, cell.mode)
    front = with_heads(front, whole.experts)
    for task in others:
        model = front.model("equal", head=task, dtype=torch.float32)
        texts = ["equal"]
        if cell.method.front:
            fit = whole.few[task].fit
            assert fit is not None
            found = select_unseen(front, fit, head=task, sample=SAMPLE[cell.mode], seed=cell.seed, batch_size=BATCH)
            texts.append(found.preference)
        for text in texts:
            yield _row(cell, whole, front, model, text, task)


_MEASURES = {"standard": _standard, "line": _line, "spread": _spread, "unseen": _unseen, **searches.MEASURES}


def _head(front: Front, task: str) -> str | None:
    return task if task in front.heads else None


class Results:
    """The file of finished cells; a cell that is in it is not computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.cells: dict[str, dict[str, Any]] = {}
        for line in lines:
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed
            self.cells[found["key"]] = found

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for key, cell in {cell.key: cell for cell in cells}.items() if key not in self.cells]

    def add(self, found: dict[str, Any]) -> None:
        self.cells[found["key"]] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(found, ensure_ascii=False) + "\n")

    def of(self, cell: Cell) -> dict[str, Any] | None:
        return self.cells.get(cell.key)
