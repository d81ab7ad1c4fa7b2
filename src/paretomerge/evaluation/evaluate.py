"""Measuring a front: its tasks' metrics at many preferences, and choosing a preference for a task nobody fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretomerge import preferences as simplex
from paretomerge.errors import UserError
from paretomerge.evaluation.inputs import Inputs
from paretomerge.evaluation.logits import Prompts, predict
from paretomerge.evaluation.queries import best_with, knee, record
from paretomerge.evaluation.results import Row
from paretomerge.evaluation.tasks import Task
from paretomerge.fitting.objectives import Predictions, entropy
from paretomerge.front import Front

__all__ = [
    "Selection",
    "best_with",
    "evaluate",
    "knee",
    "measure",
    "record",
    "sampled",
    "select_unseen",
    "standard_preferences",
]


class Selection(NamedTuple):
    """A preference chosen without labels."""

    preference: str
    entropies: dict[str, float]
    """Preference -> mean entropy of its predictions, in the order sampled."""


@torch.inference_mode()
def measure(model: nn.Module, task: Task, batch_size: int = 64, text_head: Tensor | None = None) -> float:
    """A live model's metric on the task's held-out inputs.

    Args:
        model: in evaluation mode.
        task: accuracy: share of inputs whose largest logit is the label; perplexity: exp of the mean loss of all tokens but
            each block's first.
        batch_size: inputs at a time.
        text_head: of a zero-shot task, (classes, dim); None: made of the task's prompts by this model.

    Raises:
        UserError: the task has nothing held out, or the model does not fit it.
    """
    inputs = task.held_out
    if inputs is None:
        raise UserError(f"task {task.name} has nothing to measure on: name labelled data with evaluate")
    if task.prompts is not None and text_head is None:
        text_head = task.prompts.features(model)
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for indices, logits in _batches(model, inputs, batch_size, text_head):
        if task.metric == "perplexity":
            tokens = inputs.batch(indices)["input_ids"][:, 1:].to(logits.device)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens.flatten(), reduction="sum")
            total, count = total + loss.double().cpu(), count + tokens.numel()
        else:
            labels = inputs.labels
            if labels is None:
                raise UserError(f"task {task.name}: accuracy needs labels, and the held-out inputs have none")
            if int(labels.max()) >= logits.shape[-1]:
                raise UserError(f"task {task.name}: has the label {int(labels.max())}, the model {logits.shape[-1]} classes")
            right = logits.argmax(-1).cpu() == labels[indices]
            total, count = total + right.sum(), count + len(right)
    mean = float(total) / count
    return (math.exp(mean) if mean < 700 else math.inf) if task.metric == "perplexity" else mean


def evaluate(
    front: Front,
    tasks: Sequence[Task],
    preferences: Sequence[str],
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    method: str | None = None,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """The metric of every task at every preference; preferences that come to the same γ are measured once.

    Args:
        front: the set; one live model at a time is built for each head, and moved from preference to preference.
        tasks: with the front's names where they have heads in it.
        preferences: as the command line takes them: ``equal``, ``only:a``, ``a=0.7,b=0.3``.
        seed: for the rows.
        batch_size: inputs at a time.
        device: where the models run.
        dtype: of their weights; None: as the front stores them.
        method: for the rows; None: the set's.
        progress: called with each row as it is measured.

    Returns:
        Rows in the order of the preferences, then of the tasks.

    Raises:
        UserError: a preference that cannot be read; what ``measure`` raises.
    """
    gammas = {text: simplex.parse(text, front.tasks) for text in preferences}
    text_varies = any("text" in name for name in front.pareto_set.varying)
    rows: dict[tuple[str, int], Row] = {}
    for head in dict.fromkeys(_head(front, task.name) for task in tasks):
        model: nn.Module | None = None
        text_heads: dict[int, Tensor | None] = {}
        values: dict[tuple[simplex.Preference, int], float] = {}
        for text, gamma in gammas.items():
            for k, task in enumerate(tasks):
                if _head(front, task.name) != head:
                    continue
                if (gamma, k) not in values:
                    model = front.apply_(model, gamma) if model else front.model(gamma, head=head, dtype=dtype).to(device)
                    if task.prompts and (text_varies or k not in text_heads):
                        with torch.no_grad():
                            text_heads[k] = task.prompts.features(model)
                    values[gamma, k] = measure(model, task, batch_size, text_heads.get(k))
                rows[text, k] = {
                    "method": method or front.pareto_set.method, "preference": text, "task": task.name, "metric": task.metric,
                    "value": values[gamma, k], "split": task.split, "seed": seed,
                }  # fmt: skip
                if progress:
                    progress(rows[text, k])
    return [rows[text, k] for text in gammas for k in range(len(tasks))]


def standard_preferences(tasks: Sequence[str], sample: int = 0, seed: int = 0) -> list[str]:
    """Equal, the priority and the one-hot preference of each task, and ``sample`` others drawn from the whole simplex.

    >>> standard_preferences(["a", "b", "c"], sample=1)
    ['equal', 'priority:a', 'priority:b', 'priority:c', 'only:a', 'only:b', 'only:c', 'a=0.522,b=0.044,c=0.434']
    """
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
    device: str | torch.device = "cpu",
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
        device: where the model runs.
    """
    entropies: dict[str, float] = {}
    model: nn.Module | None = None
    for text in sampled(front.tasks, sample, seed):
        model = front.apply_(model, text) if model else front.model(text, head=head, dtype=torch.float32).to(device)
        text_head = prompts.features(model) if prompts else None
        total, count = 0.0, 0
        for _, logits in _batches(model, inputs, batch_size, text_head):
            each = logits.flatten(0, -2).float()
            total, count = total + float(entropy(Predictions(each))) * len(each), count + len(each)
        entropies[text] = total / count
    return Selection(min(entropies, key=lambda text: entropies[text]), entropies)


def _batches(model: nn.Module, inputs: Inputs, size: int, text_head: Tensor | None) -> Iterator[tuple[list[int], Tensor]]:
    for start in range(0, len(inputs), size):
        indices = list(range(start, min(start + size, len(inputs))))
        yield indices, predict(model, inputs.batch(indices), text_head)


def _head(front: Front, task: str) -> str | None:
    return task if task in front.heads else None
