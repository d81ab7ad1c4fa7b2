"""Measuring what a front was made of: its experts and the pretrained base, beside which its own numbers are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paretomerge.errors import UserError
from paretomerge.evaluation.evaluate import evaluate
from paretomerge.evaluation.results import Row
from paretomerge.evaluation.tasks import Task
from paretomerge.front import Front

EXPERT, PRETRAINED = "expert", "pretrained"
"""The methods of such rows; an expert's preference is ``only:TASK``, the base's ``equal``."""


def evaluate_sources(front: Front, tasks: Sequence[Task], **options: Any) -> list[Row]:
    """The metrics of the experts and of the pretrained base, read from where the front was made of them.

    Each expert is measured at every task, with that task's head. Tensors that were not merged are the base's.

    Args:
        front: its ``sources`` say the paths.
        tasks: what is measured on.
        **options: ``seed``, ``batch_size``, ``device`` and ``progress`` of ``evaluate``.

    Raises:
        UserError: a model is no longer at its path.
    """
    from paretomerge import api
    from paretomerge.front import front_of
    from paretomerge.sets.low_rank import LowRank
    from paretomerge.weights.experts import load_experts

    paths = {task: source["path"] for task, source in front.sources["experts"].items()}
    if "in memory" in (front.sources["base"]["path"], *paths.values()):
        raise UserError("the front was made of models in memory: there are no experts on disk to measure")
    experts = load_experts(front.sources["base"]["path"], paths)
    soup = api.fit(experts, "soup", hashes=False)  # its one-hot preferences are the experts
    base = front_of(LowRank(experts.tasks, api.merge(experts, "task_arithmetic", scale=0.0), {}), experts, hashes=False)
    return [
        *evaluate(base, tasks, ["equal"], method=PRETRAINED, **options),
        *evaluate(soup, tasks, [f"only:{task}" for task in experts.tasks], method=EXPERT, **options),
    ]
