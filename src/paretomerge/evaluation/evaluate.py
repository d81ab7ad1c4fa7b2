"""Measuring a front: its tasks' metrics at many preferences, and choosing a preference for a task nobody fitted."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from paretomerge import preferences as simplex
from paretomerge.data.inputs import Inputs
from paretomerge.data.prompts import Prompts
from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.evaluation.evaluators import OnTasks
from paretomerge.evaluation.front_models import FrontModels
from paretomerge.evaluation.measure import batches
from paretomerge.evaluation.protocols import Evaluator, Work
from paretomerge.evaluation.workers import pool_of
from paretomerge.fitting.objectives import Predictions, entropy
from paretomerge.front.front import Front
from paretomerge.models.build import device_of
from paretomerge.results.metrics import row_of
from paretomerge.results.rows import Row
from paretomerge.weights.unchanged import reading, touched


class Selection(NamedTuple):
    """A preference chosen without labels."""

    preference: str
    entropies: dict[str, float]
    """Preference -> mean entropy of its predictions, in the order sampled."""


def evaluate(
    front: Front,
    tasks: Sequence[Task],
    preferences: Sequence[str],
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = torch.float32,
    method: str | None = None,
    progress: Callable[[Row], None] | None = None,
    workers: int = 1,
    ray: str | None = None,
    gpus: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> list[Row]:
    """The metric of every task at every preference; preferences that come to the same model are measured once.

    Args:
        front: the set; the tasks' live models share their weights, and are moved from preference to preference.
        tasks: with the front's names where they have heads in it.
        preferences: as the command line takes them: ``equal``, ``only:a``, ``a=0.7,b=0.3``.
        seed: for the rows.
        batch_size: inputs at a time.
        device: where the models run; auto: the best device available.
        dtype: of their weights; None: as the front stores them.
        method: for the rows; None: the set's.
        progress: called with each row as it is measured.
        workers: how many evaluate at a time, on Ray if there are several; each has live models of its own.
        ray: address of a Ray cluster; None: a local one.
        gpus: GPUs a worker has, if only in part.
        options: more of ``OnTasks``: ``head_steps``, ``norm_statistics`` …

    Returns:
        Rows in the order of the preferences, then of the tasks.

    Raises:
        UserError: a preference that cannot be read; what ``measure`` raises.
    """
    evaluator = OnTasks({task.name: task for task in tasks}, batch_size=batch_size, device=str(device), **(options or {}))
    return evaluate_by(
        front, evaluator, preferences, splits={task.name: task.split for task in tasks}, seed=seed, dtype=dtype, method=method,
        progress=progress, workers=workers, ray=ray, gpus=gpus,
    )  # fmt: skip


def evaluate_by(
    front: Front,
    evaluator: Evaluator,
    preferences: Sequence[str],
    *,
    splits: Mapping[str, Literal["held-out", "transductive"]] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = torch.float32,
    method: str | None = None,
    progress: Callable[[Row], None] | None = None,
    workers: int = 1,
    ray: str | None = None,
    gpus: float = 0.0,
) -> list[Row]:
    """The rows of ``evaluate``, measured by any evaluator: labelled tasks, a function, a command or a harness.

    Args:
        front: the set; preferences that come to the same model are measured once.
        evaluator: what measures the models.
        preferences: as the command line takes them.
        splits: of the evaluator's tasks; None: held out.
        seed: for the rows.
        dtype: of live models; None: as the front stores them.
        method: for the rows; None: the set's.
        progress: called with each row as it is measured.
        workers: see ``pool_of``.
        ray: see ``pool_of``.
        gpus: see ``pool_of``.

    Raises:
        UserError: a preference that cannot be read, an evaluation that failed twice, and what the evaluator itself refuses.
    """
    gammas = {text: simplex.parse(text, front.tasks) for text in preferences}
    same: dict[Hashable, list[str]] = {}
    for text, gamma in gammas.items():
        same.setdefault(front.pareto_set.key(front.pareto_set.preference(gamma)), []).append(text)
    groups = list(same.values())
    names = tuple(objective.task for objective in evaluator.objectives)
    models = FrontModels(front.pareto_set, names, front.config, front.heads, front.companions, dtype)
    rows: dict[tuple[str, int], Row] = {}
    with reading(replaced=True), pool_of(Work(evaluator, models), workers=workers, ray=ray, gpus=gpus) as pool:
        touched(front.states)
        for number, outcome in pool([(gammas[group[0]], names) for group in groups]):
            if outcome.mistake:
                raise UserError(outcome.message)
            if not outcome.metrics:
                raise UserError(f"the evaluation at {groups[number][0]} failed twice: {outcome.message}")
            for text in groups[number]:
                for k, objective in enumerate(evaluator.objectives):
                    rows[text, k] = row_of(
                        objective, outcome.metrics[objective.task], text, method=method or front.pareto_set.method,
                        split=splits[objective.task] if splits else "held-out", seed=seed,
                    )  # fmt: skip
                    if progress:
                        progress(rows[text, k])
    return [rows[text, k] for text in gammas for k in range(len(names))]


def standard_preferences(tasks: Sequence[str], sample: int = 0, seed: int = 0) -> list[str]:
    """Equal, the priority and the one-hot preference of each task, and ``sample`` others drawn from the whole simplex.

    >>> standard_preferences(["a", "b", "c"], sample=1)
    ['equal', 'priority:a', 'priority:b', 'priority:c', 'only:a', 'only:b', 'only:c', 'a=0.522,b=0.044,c=0.434']
    >>> standard_preferences(["a"])  # of one task all are the same
    ['equal']
    """
    if len(tasks) == 1:
        return ["equal"]
    named = [f"{kind}:{task}" for kind in ("priority", "only") for task in tasks]
    return ["equal", *named, *sampled(tasks, sample, seed)]


def sampled(tasks: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """n different preferences from Dirichlet(1), uniform on the simplex, in steps of 0.001 so that people can type them."""
    found: dict[str, None] = {}
    for gamma in simplex.dirichlet(len(tasks), 2 * n + 10, seed=seed):
        cuts = [round(1000 * total) for total in [0.0, *gamma.cumsum()]]
        steps = [right - left for left, right in pairwise(cuts)]
        found[simplex.format([step / 1000 for step in steps], tasks)] = None
    return list(found)[:n]


@reading(replaced=True)
@torch.inference_mode()
def select_unseen(
    front: Front,
    inputs: Inputs,
    *,
    head: str | None = None,
    prompts: Prompts | None = None,
    sample: int = 30,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "auto",
) -> Selection:
    """The preference for a task that no expert knows: of ``sample`` ones, the one whose model is surest of the inputs.

    Smallest mean entropy of the predictions wins (Pareto Merging, §4.2.3); no labels are used.

    Args:
        front: the set.
        inputs: of the unseen task.
        head: the task whose head answers; None: the base's class.
        prompts: a zero-shot head of the unseen task instead.
        sample: how many preferences.
        seed: of the sample.
        batch_size: inputs at a time.
        device: where the model runs; auto: the best device available.
    """
    entropies: dict[str, float] = {}
    model: nn.Module | None = None
    place = device_of(str(device))
    for text in sampled(front.tasks, sample, seed):
        model = front.apply_(model, text) if model else front.model(text, head=head, dtype=torch.float32).to(place)
        text_head = prompts.features(model) if prompts else None
        total, count = 0.0, 0
        for _, logits in batches(model, inputs, batch_size, text_head):
            each = logits.flatten(0, -2).float()
            total, count = total + float(entropy(Predictions(each))) * len(each), count + len(each)
        entropies[text] = total / count
    return Selection(min(entropies, key=lambda text: entropies[text]), entropies)
