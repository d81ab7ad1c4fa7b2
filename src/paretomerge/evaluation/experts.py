"""Measuring what a front was made of: its experts and the pretrained base, beside which its own numbers are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.evaluation.measure import measure
from paretomerge.experts.experts import load_experts
from paretomerge.experts.heads import heads_of
from paretomerge.front.front import Front
from paretomerge.models.build import device_of
from paretomerge.models.shared import SharedModels, own_tensors
from paretomerge.results.metrics import METRICS, row_of
from paretomerge.results.objective import Objective
from paretomerge.results.rows import EXPERT, PRETRAINED, Row
from paretomerge.weights.unchanged import reading


@reading(replaced=True)
def evaluate_sources(
    front: Front,
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """The metrics of the experts and of the pretrained base, read from where the front was made of them.

    Each expert is measured at every task, with that task's head. What is not merged (statistics of batch norms, excluded
    tensors) is its own.

    Args:
        front: its ``sources`` say the paths.
        tasks: what is measured on.
        seed: for the rows.
        batch_size: inputs at a time.
        device: where the models run.
        progress: called with each row as it is measured.

    Raises:
        UserError: a model is no longer at its path.
    """
    paths = {task: source["path"] for task, source in front.sources["experts"].items()}
    if "in memory" in (front.sources["base"]["path"], *paths.values()):
        raise UserError("the front was made of models in memory: there are no experts on disk to measure")
    experts = load_experts(front.sources["base"]["path"], paths)
    shared = SharedModels(experts, heads_of(experts), experts.merged, device_of(device))
    rows: list[Row] = []

    def add(task: Task, method: str, preference: str) -> None:
        objective = Objective(task.name, task.metric, *METRICS[task.metric])
        value = measure(shared.models[task.name], task, batch_size)
        rows.append(row_of(objective, value, preference, method=method, split=task.split, seed=seed))
        if progress:
            progress(rows[-1])

    for task in tasks:
        add(task, PRETRAINED, "equal")
    for k, expert in enumerate(experts.experts):
        shared.become_(experts, k)
        for task in tasks:
            with own_tensors(expert, experts, shared.models[task.name]):
                add(task, EXPERT, f"only:{expert.task}")
    return rows
