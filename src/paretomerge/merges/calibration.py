"""What merges on data share: one expert after the other live, some of its task's inputs, and room for large sums."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from paretomerge.data.inputs import Inputs
from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.experts.heads import heads_of
from paretomerge.models.predict import predict
from paretomerge.models.shared import SharedModels, own_tensors
from paretomerge.weights.lazy import Weights

_BATCH = 32
_GIB = 2**30


@dataclass(frozen=True)
class Turn:
    """One expert while its weights are in the live model."""

    k: int
    task: Task
    alone: Experts
    """The base and this expert: its task vector is ``alone.task_vectors(name)[0]``."""
    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    """Base's name -> the live parameter, for the tensors that are merged."""
    inputs: Inputs
    chosen: tuple[int, ...]
    """The inputs that are looked at."""

    def batches(self, size: int = _BATCH) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """(indices, batch) of the chosen inputs."""
        for start in range(0, len(self.chosen), size):
            indices = list(self.chosen[start : start + size])
            yield indices, self.inputs.batch(indices)

    def logits(self, batch: Mapping[str, Tensor], text_head: Tensor | None = None) -> Tensor:
        """The expert's logits, fp32; of a language model (n, tokens, vocabulary)."""
        return predict(self.model, batch, text_head).float()

    def text_head(self, batch_size: int = 256) -> Tensor | None:
        """The zero-shot head that the expert makes of the task's prompts; None where the model has a head."""
        return None if self.task.prompts is None else self.task.prompts.features(self.model, batch_size)


def in_turn(experts: Experts, tasks: Mapping[str, Task], inputs: int, seed: int, device: torch.device) -> Iterator[Turn]:
    """Each expert in turn in one live model (fp32), with at most ``inputs`` of its task's inputs, chosen by chance.

    Memory: one model and the heads, whatever the number of experts.

    Raises:
        UserError: a task without inputs, a base that no model can be built of.
    """
    if inputs < 1:
        raise UserError("inputs must be at least 1: how many of each task are looked at")
    of_task = {name: _inputs(name, tasks.get(name)) for name in experts.tasks}
    models = SharedModels(experts, heads_of(experts), experts.merged, device)
    for k, own in enumerate(experts.experts):
        models.become_(experts, k)
        model, available = models.models[own.task], of_task[own.task]
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(available), generator=generator)[:inputs].sort().values.tolist()
        with own_tensors(own, experts, model):
            alone = replace(experts, experts=(own,))
            yield Turn(k, tasks[own.task], alone, model, models.weights, available, tuple(chosen))


def _inputs(name: str, task: Task | None) -> Inputs:
    if task is None or task.fit is None or not len(task.fit):
        raise UserError(f"task {name} has no inputs for the merge: name them with --data {name}=PATH")
    return task.fit


def not_finite(turn: Turn) -> UserError:
    """Why an expert's forward or backward pass gives NaN or infinity: an entry of its weights, or their size."""
    for name in turn.alone.merged:
        if not torch.isfinite(turn.alone.task_vectors(name)).all():
            return turn.alone.not_finite(name)
    return UserError(f"expert {turn.task.name}: its activations or gradients on the task's inputs overflow: are they its own?")


class Room:
    """Zeroed tensors: in memory as long as ``gib`` last, then in temporary files that vanish by themselves."""

    def __init__(self, gib: float) -> None:
        if not gib >= 0:
            raise UserError("memory must not be negative: GiB for sums, beyond which they are in temporary files")
        self._left = int(gib * _GIB)

    def zeros(self, shape: Sequence[int]) -> Tensor:
        """fp32."""
        size = 4 * int(np.prod(shape, dtype=np.int64))
        if size <= self._left or not size:
            self._left -= size
            return torch.zeros(tuple(shape))
        reserved = hasattr(os, "posix_fallocate")
        with tempfile.TemporaryFile(prefix="paretomerge-") as file:  # the map outlives the handle, and nothing else does
            if reserved:  # a full disk is an error here, not a crash later
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, np.float32, "r+" if reserved else "w+", shape=tuple(shape)))


def moved(experts: Experts, deltas: Mapping[str, Tensor], rest: Weights) -> Weights:
    """The model θ₀ + Δ for the tensors in ``deltas`` (fp32), and ``rest`` for the others."""

    def read(name: str) -> Tensor:
        first = experts.aliases.get(name, name)
        if first not in deltas:
            return rest[name]
        info = experts.infos[first]
        merged = (experts.base[first].to(torch.float32) + deltas[first]).to(info.dtype)
        if not torch.isfinite(merged).all():
            raise experts.not_finite(first)
        return merged

    return Weights(experts.infos, read)
