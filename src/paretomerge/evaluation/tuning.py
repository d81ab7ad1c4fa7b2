"""What a merged classifier needs beside merged weights: a head that fits its features, and statistics of its normalisation.

A head was trained on its expert's features, and those of a merged model are others; MAP fine-tunes the heads of merged ResNets
(Li et al. 2025, app. D.5). Batch norms normalise by running means and variances, which a merge does not merge: they are the
base's. Both are made anew from a task's own inputs, while all that is merged stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from paretomerge.data.inputs import Inputs, Rows
from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.experts.architecture import live_names
from paretomerge.fitting.features import feature_point
from paretomerge.models.build import device_of
from paretomerge.models.predict import on_model

if TYPE_CHECKING:
    from paretomerge.front.front import Front
    from paretomerge.sets.pareto_set import Preference

_BATCH = 256
"""Features that a step looks at."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is made anew."""

    head_steps: int = 0
    """Steps of Adam on the head; 0: it stays the expert's."""
    head_lr: float = 1e-3
    norm_statistics: bool = False
    """Of batch norms: the mean over all inputs, batch by batch."""

    def __post_init__(self) -> None:
        if self.head_steps < 0 or self.head_lr <= 0:
            raise UserError("head_steps must not be negative, and head_lr must be positive")

    def __bool__(self) -> bool:
        return self.head_steps > 0 or self.norm_statistics


def tuning_inputs(task: Task) -> tuple[Inputs, Inputs]:
    """(what a task's model is tuned on, what it is measured on): never the same inputs.

    Where a search measures on the inputs to fit on, or the two are transductive, every other one is for tuning.

    Raises:
        UserError: nothing that is measured on, or no inputs for tuning.
    """
    fit, held_out = task.fit, task.held_out
    if held_out is None or len(held_out) < 2:
        raise UserError(f"task {task.name}: too few inputs to tune a head on some and to measure on others")
    if fit is None or fit is held_out or task.split == "transductive":
        every = torch.arange(len(held_out))
        return Rows(held_out, every[::2]), Rows(held_out, every[1::2])
    return fit, held_out


@contextmanager
def tuned(model: nn.Module, task: Task, inputs: Inputs, tuning: Tuning, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """For a while a live model has a head and statistics of its own, made from ``inputs``; afterwards it is as before.

    Args:
        model: of the task, in evaluation mode.
        task: whose it is.
        inputs: with labels, if the head is tuned.
        tuning: what is made anew.
        batch_size: inputs at a time.

    Yields:
        The tensors that are now others, by their names in the model.

    Raises:
        UserError: a zero-shot task, no labels, no linear head; statistics of a model without batch norms.
    """
    names = []
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
    if tuning.norm_statistics:
        if not norms:
            raise UserError(f"norm_statistics: {type(model).__name__} has no batch norms")
        names += [f"{name}.{leaf}" for name in norms for leaf in ("running_mean", "running_var", "num_batches_tracked")]
    if tuning.head_steps:
        if task.prompts is not None:
            raise UserError(f"task {task.name} has a zero-shot head, which is made of its prompts: leave head_steps out")
        if inputs.labels is None:
            raise UserError(f"task {task.name}: tuning a head needs labels, and the inputs to fit on have none")
        first = inputs.batch(range(min(2, len(inputs))))
        point = feature_point(model, task, first)
        head = model.get_submodule(point.module)
        names += [f"{point.module}.{leaf}" for leaf, _ in head.named_parameters()]
    state = model.state_dict()
    before = {name: state[name].clone() for name in names}
    outside = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    try:
        with outside:
            if tuning.norm_statistics:
                _estimate_(model, [*norms.values()], inputs, batch_size)
            if tuning.head_steps:
                features = [point.of(model, inputs.batch(i.tolist())) for i in torch.arange(len(inputs)).split(batch_size)]
                _train_(head, torch.cat(features).float().clone(), inputs.labels, tuning)
        yield {name: state[name].detach() for name in names}
    finally:
        for name, tensor in before.items():
            state[name].copy_(tensor)


def tuned_tensors(
    front: Front, preference: Preference, task: Task, tuning: Tuning, *, batch_size: int = 64, device: str = "auto"
) -> dict[str, Tensor]:
    """What tuning makes of a front's model for a task's inputs to fit on, under the names of the task's checkpoint.

    Args:
        front: the set.
        preference: γ.
        task: with the name of one of its heads, or of a task without one, and with labelled inputs to fit on.
        tuning: what is made anew.
        batch_size: inputs at a time.
        device: where the model runs.

    Raises:
        UserError: no inputs to fit on, and what ``tuned`` raises.
    """
    if task.fit is None or not len(task.fit):
        raise UserError(f"task {task.name} has no inputs to tune on: name them with --data {task.name}=PATH")
    head = task.name if task.name in front.heads else None
    model = front.model(preference, head=head, dtype=torch.float32).to(device_of(device))
    file_names = {live: name for name, live in live_names(front.at(preference, head=head), model).items()}
    with tuned(model, task, task.fit, tuning, batch_size) as found:
        return {file_names[name]: tensor.cpu().clone() for name, tensor in found.items()}


@torch.no_grad()
def _estimate_(model: nn.Module, norms: list[_BatchNorm], inputs: Inputs, batch_size: int) -> None:
    """Running statistics: means over the batches of all inputs."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    try:
        for indices in torch.arange(len(inputs)).split(batch_size):
            model(**on_model(inputs.batch(indices.tolist()), model))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


@torch.enable_grad()
def _train_(head: nn.Module, features: Tensor, labels: Tensor | None, tuning: Tuning) -> None:
    """Cross-entropy of head(features) by Adam from where the head is; always the same order."""
    assert labels is not None
    labels = labels.to(features.device)
    parameters = {name: p.detach().float().clone().requires_grad_() for name, p in head.named_parameters()}
    adam = torch.optim.Adam(parameters.values(), lr=tuning.head_lr)
    draw = torch.Generator().manual_seed(0)
    for _ in range(tuning.head_steps):
        chosen = torch.randint(len(features), (min(_BATCH, len(features)),), generator=draw).to(features.device)
        adam.zero_grad()
        F.cross_entropy(torch.func.functional_call(head, parameters, features[chosen]), labels[chosen]).backward()
        adam.step()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(parameters[name])
