"""The K objectives of a fit on data: inputs, models over shared weights, the experts' predictions, and collapse watched."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paretomerge.errors import UserError
from paretomerge.evaluation.inputs import Inputs
from paretomerge.evaluation.logits import predict
from paretomerge.evaluation.tasks import Task
from paretomerge.fitting.loop import Part, Report, world
from paretomerge.fitting.objectives import OBJECTIVES, Predictions, shannon
from paretomerge.weights.experts import Experts
from paretomerge.weights.heads import heads_of
from paretomerge.weights.shared_models import SharedModels, own_tensors

_IN_MEMORY = 1 << 29
"""Up to this many bytes a task's expert predictions are kept in memory, beyond that in a file of the run's folder."""
_HELD_OUT = 256
"""Held-out inputs a task that early stopping looks at."""
_WATCHED = 1 << 22
"""About so many probabilities of a micro-batch are looked at for it; of a large vocabulary, those of some tokens."""
_COLLAPSE = 0.5
"""Marginal entropy below this share of its first value is reported."""


@dataclass
class _Source:
    """Inputs, and what the expert says of them (None where the objective does not ask)."""

    inputs: Inputs
    teacher: Tensor | None = None


@dataclass
class _Expert:
    """One task as the fit sees it."""

    task: Task
    model: nn.Module
    fit: _Source
    held_out: _Source | None
    text_head: Tensor | None = None
    """Of a zero-shot task: text features of the pretrained model, (classes, dim); they stay as they are."""


class _Spread:
    """At most n of some inputs, from the first to the last: files are often sorted by class."""

    def __init__(self, inputs: Inputs, n: int) -> None:
        self._inputs = inputs
        self._chosen = torch.linspace(0, len(inputs) - 1, min(n, len(inputs)), dtype=torch.float64).round().long()

    @property
    def labels(self) -> Tensor | None:
        labels = self._inputs.labels
        return None if labels is None else labels[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self._inputs.batch(self._chosen[torch.as_tensor(indices)].tolist())


class Problem:
    """The K objectives: inputs, models, experts' predictions, and the watch over collapse."""

    def __init__(
        self, experts: Experts, tasks: Mapping[str, Task], objective: str, *, batch: int, micro_batch: int | None,
        precision: str, device: torch.device, folder: Path | None, say: Callable[[str], None], held_out: bool,
    ) -> None:  # fmt: skip
        if batch < 1 or (micro_batch is not None and micro_batch < 1):
            raise UserError("batch and micro_batch must be at least 1")
        if objective not in OBJECTIVES:
            raise UserError(f"objective {objective!r}: choose one of {', '.join(OBJECTIVES)}")
        if objective == "infomax" and micro_batch is not None and micro_batch < batch:
            raise UserError("objective infomax compares the inputs of a batch with each other: leave micro_batch out")
        self.objective, self.batch, self.micro_batch, self.device, self.say = objective, batch, micro_batch, device, say
        self.autocast = precision == "bfloat16"
        sources = {name: _sources(name, tasks.get(name), objective, held_out=held_out) for name in experts.tasks}
        self.models = SharedModels(experts, heads_of(experts), experts.merged, device)
        gc.collect()  # reference cycles hold the weights that loading made and sharing replaced: up to K models
        # read again and not cloned: an fp32 file on a processor stays mapped, and takes no memory of its own
        self.base = {name: experts.base[name].to(device, torch.float32) for name in self.models.weights}
        self.task_vectors = {
            name: experts.task_vectors(name).reshape(len(experts), experts.infos[name].numel).to(device, torch.float32)
            for name in experts.merged
        }
        self.experts = [_Expert(tasks[name], self.models.models[name], *sources[name]) for name in experts.tasks]
        with torch.no_grad():
            for expert in self.experts:
                if expert.task.prompts is not None:
                    expert.text_head = expert.task.prompts.features(expert.model)
        self._first: dict[int, list[float]] = {}
        self._warned: set[int] = set()
        if objective in ("distill", "features"):
            for k, own in enumerate(experts.experts):
                self._write_expert(k)
                with own_tensors(own, experts, self.experts[k].model):
                    self._ask_expert(self.experts[k], folder)

    @property
    def sizes(self) -> list[int]:
        """How many inputs each task is fitted on."""
        return [len(expert.fit.inputs) for expert in self.experts]

    def losses(self, k: int, seed: int) -> Iterator[Part]:
        """S_k on a batch, this process's share of it, micro-batch by micro-batch."""
        expert = self.experts[k]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(expert.fit.inputs), generator=generator)[: self.batch].tolist()
        rank, size = world()
        mine = drawn[rank::size]
        step = self.micro_batch or max(1, len(mine))
        total, count = torch.zeros(()), 0  # of the predictions so far
        for start in range(0, len(mine), step):
            indices = mine[start : start + step]
            predictions = self._predict(expert, expert.fit, indices)
            loss = OBJECTIVES[self.objective](predictions)
            watched = {}
            if self.objective != "features":
                shares = predictions.logits.detach()[:: 1 + predictions.logits.numel() // _WATCHED].softmax(-1)
                total, count = total.to(shares) + shares.sum(0), count + len(shares)
                watched["marginal"] = float(shannon(total / count))
            yield Part(loss, len(indices) / len(drawn), watched)

    @torch.no_grad()
    def held_out(self) -> float:
        """Mean objective over the tasks on some held-out inputs each, without their labels, at the weights as they are."""
        total = 0.0
        for expert in self.experts:
            assert expert.held_out is not None
            count = len(expert.held_out.inputs)
            batches = -(-count // (self.micro_batch or self.batch))
            for first in range(batches):  # each from all over the inputs
                indices = range(first, count, batches)
                value = OBJECTIVES[self.objective](self._predict(expert, expert.held_out, indices))
                total += float(value) * len(indices) / count
        return total / len(self.experts)

    def watching(self, report: Report | None) -> Report:
        """A report that tells the user when the predictions of a task collapse to few classes."""

        def watch(done: int, logged: Mapping[str, Any]) -> None:
            for key, each in logged["watched"].items():
                k, value = int(key), each.get("marginal")
                if value is None:
                    continue
                task = self.experts[k].task.name
                first = self._first.setdefault(k, [])
                if len(first) < 5:
                    first.append(value)
                elif value < _COLLAPSE * float(np.median(first)) and k not in self._warned:
                    self._warned.add(k)
                    self.say(
                        f"warning: step {done}: the predictions of task {task} collapse to few classes (marginal entropy "
                        f"{value:.2f}, at first {float(np.median(first)):.2f}): use objective=distill or infomax"
                    )
            if report:
                report(done, logged)

        return watch

    def _predict(self, expert: _Expert, source: _Source, indices: Sequence[int]) -> Predictions:
        batch = {name: tensor.to(self.device) for name, tensor in source.inputs.batch(indices).items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self._outputs(expert, batch)
        rows = torch.as_tensor(indices)
        teacher = None if source.teacher is None else source.teacher[rows].to(self.device, torch.float32)
        labels = None if source.inputs.labels is None else source.inputs.labels[rows].to(self.device)
        if expert.task.kind != "language-modelling" or self.objective == "features":
            return Predictions(outputs.float(), teacher, labels)
        # position t predicts token t + 1
        tokens = batch["input_ids"][:, 1:]
        mask = batch["attention_mask"][:, 1:].bool() if "attention_mask" in batch else None
        if teacher is not None:
            teacher = _counted(teacher[:, : tokens.shape[1]], mask)
        return Predictions(_counted(outputs[:, :-1], mask).float(), teacher, _counted(tokens, mask))

    def _outputs(self, expert: _Expert, batch: dict[str, Tensor]) -> Tensor:
        """Logits, or for feature matching the mean over tokens of the last hidden state."""
        if self.objective != "features":
            return predict(expert.model, batch, expert.text_head)
        last: Tensor = expert.model(**batch, output_hidden_states=True).hidden_states[-1]
        if last.ndim != 3:
            return last.flatten(1)
        mask = batch.get("attention_mask", torch.ones(last.shape[:2], device=last.device))[..., None].to(last.dtype)
        return (last * mask).sum(1) / mask.sum(1)

    @torch.no_grad()
    def _write_expert(self, k: int) -> None:
        """θ_k into the shared weights."""
        for name, weight in self.models.weights.items():
            weight.copy_(self.base[name] + self.task_vectors[name][k].view_as(weight))

    @torch.no_grad()
    def _ask_expert(self, expert: _Expert, folder: Path | None) -> None:
        """Keep what the expert, whose weights are in the models, says of its inputs: fp32 (fp16 for language models)."""
        running = expert.task.kind == "language-modelling" and self.objective != "features"
        for what, source in (("fit", expert.fit), ("held-out", expert.held_out)):
            if source is None:
                continue
            batches = torch.arange(len(source.inputs)).split(64)
            for indices in batches:
                batch = {name: tensor.to(self.device) for name, tensor in source.inputs.batch(indices.tolist()).items()}
                part = self._outputs(expert, batch).to("cpu", torch.float16 if running else torch.float32)
                if source.teacher is None:
                    shape = list(part.shape)
                    shape[0] = len(source.inputs)
                    if running:  # texts of different lengths: as long as the longest
                        shape[1] = max(source.inputs.batch(i.tolist())["input_ids"].shape[1] for i in batches)
                    source.teacher = _room(shape, part.dtype, folder, f"{expert.task.name}-{what}")
                source.teacher[indices, : part.shape[1]] = part


def _sources(name: str, task: Task | None, objective: str, *, held_out: bool) -> tuple[_Source, _Source | None]:
    """A task's inputs to fit on, and those for early stopping if it is wanted.

    Raises:
        UserError: there are none.
    """
    if task is None or task.fit is None or not len(task.fit):
        raise UserError(f"task {name} has no inputs to fit on: name them with --data {name}=PATH")
    if objective == "features" and task.prompts is not None:
        raise UserError(f"task {name} has a zero-shot head: objective features needs a model of one tower; use distill")
    if not held_out:
        return _Source(task.fit), None
    if task.held_out is None:
        raise UserError(f"task {name} has no held-out inputs: early stopping (patience) needs them")
    return _Source(task.fit), _Source(_Spread(task.held_out, _HELD_OUT))


def _counted(each: Tensor, mask: Tensor | None) -> Tensor:
    """(inputs, tokens, …) -> (n, …), the tokens that count; all of them by a view, whose gradient is far cheaper."""
    return each.flatten(0, 1) if mask is None or bool(mask.all()) else each[mask]


def _room(shape: Sequence[int], dtype: torch.dtype, folder: Path | None, name: str) -> Tensor:
    """A tensor in memory, or in a file of the run's folder if it is large."""
    if torch.Size(shape).numel() * dtype.itemsize <= _IN_MEMORY or folder is None:
        return torch.empty(*shape, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"teacher-{name}-{world()[0]}.npy"  # each process its own
    return torch.from_numpy(np.lib.format.open_memmap(file, "w+", np.dtype(str(dtype).removeprefix("torch.")), tuple(shape)))
