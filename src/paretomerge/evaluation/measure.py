"""A live model's metric on a task's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretomerge.data.inputs import Inputs
from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.models.predict import predict


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
    for indices, logits in batches(model, inputs, batch_size, text_head):
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


def batches(model: nn.Module, inputs: Inputs, size: int, text_head: Tensor | None) -> Iterator[tuple[list[int], Tensor]]:
    """(indices, logits) of all inputs, ``size`` at a time."""
    for start in range(0, len(inputs), size):
        indices = list(range(start, min(start + size, len(inputs))))
        yield indices, predict(model, inputs.batch(indices), text_head)
