"""The K objectives of a fit on data: inputs, models over shared weights, the experts' predictions, and collapse watched."""

from __future__ import annotations

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
from paretomerge.export.heads import heads_of
from paretomerge.fitting.loop import Part, Report, world
from paretomerge.fitting.objectives import OBJECTIVES, Predictions, marginal_entropy
from paretomerge.fitting.shared_models import SharedModels
from paretomerge.weights.experts import Experts

_IN_MEMORY = 1 << 29
"""Up to this many bytes a task's expert predictions are kept in memory, beyond that in a file of the run's folder."""
_HELD_OUT = 256
"""Held-out inputs a task that early stopping looks at."""
_COLLAPSE = 0.5
"""Marginal entropy below this share of its first value is reported."""


@dataclass
class _Expert:
    """One task as the fit sees it."""

    task: Task
    model: nn.Module
    teacher: Tensor | None = None
    teacher_held_out: Tensor | None = None
    text_head: Tensor | None = None
    """Of a zero-shot task: text features of the pretrained model, (classes, dim); they stay as they are."""


class Problem:
    """The K objectives: inputs, models, experts' predictions, and the watch over collapse."""

    def __init__(
        self, experts: Experts, tasks: Mapping[str, Task], objective: str, *, batch: int, micro_batch: int | None,
        precision: str, device: torch.device, folder: Path | None, say: Callable[[str], None], held_out: bool,
    ) -> None:  # fmt: skip
        for name in experts.tasks:
            inputs = tasks[name].fit if name in tasks else None
            if inputs is None or not len(inputs):
                raise UserError(f"task {name} has no inputs to fit on: name them with --data {name}=PATH")
            if held_out and tasks[name].held_out is None:
                raise UserError(f"task {name} has no held-out inputs: early stopping (patience) needs them")
        if objective not in OBJECTIVES:
            raise UserError(f"objective {objective!r}: choose one of {', '.join(OBJECTIVES)}")
        self.objective, self.batch, self.micro_batch, self.device, self.say = objective, batch, micro_batch, device, say
        self.autocast = precision == "bfloat16"
        self.models = SharedModels(experts, heads_of(experts), experts.merged, device)
        self.base = {name: weight.detach().clone() for name, weight in self.models.weights.items()}
        self.task_vectors = {name: experts.task_vectors(name).flatten(1).to(device, torch.float32) for name in experts.merged}
        self.experts = [_Expert(tasks[name], self.models.models[name]) for name in experts.tasks]
        with torch.no_grad():
            for expert in self.experts:
                if expert.task.prompts is not None:
                    expert.text_head = expert.task.prompts.features(expert.model)
        self._first: dict[int, list[float]] = {}
        self._warned: set[int] = set()
        if objective in ("distill", "features"):
            for k, expert in enumerate(self.experts):
                expert.teacher = self._predictions_of_expert(k, expert.task.fit, None, folder)
                if held_out:
                    expert.teacher_held_out = self._predictions_of_expert(k, expert.task.held_out, _HELD_OUT, folder)

    def losses(self, k: int, seed: int) -> Iterator[Part]:
        """S_k on a batch, this process's share of it, micro-batch by micro-batch."""
        inputs = self.experts[k].task.fit
        assert inputs is not None
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(inputs), generator=generator)[: self.batch].tolist()
        rank, size = world()
        mine = drawn[rank::size]
        step = self.micro_batch or max(1, len(mine))
        for start in range(0, len(mine), step):
            indices = mine[start : start + step]
            predictions = self._predict(k, indices)
            loss = OBJECTIVES[self.objective](predictions)
            watched = {}
            if self.objective != "features":
                watched["marginal"] = float(marginal_entropy(predictions.logits.detach()))
            yield Part(loss, len(indices) / len(drawn), watched)

    @torch.no_grad()
    def held_out(self) -> float:
        """Mean objective over the tasks on some held-out inputs each, without their labels, at the weights as they are."""
        total = 0.0
        for k, expert in enumerate(self.experts):
            assert expert.task.held_out is not None
            indices = range(min(_HELD_OUT, len(expert.task.held_out)))
            total += float(OBJECTIVES[self.objective](self._predict(k, indices, held_out=True)))
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

    def _predict(self, k: int, indices: Sequence[int], *, held_out: bool = False) -> Predictions:
        expert = self.experts[k]
        inputs = expert.task.held_out if held_out else expert.task.fit
        assert inputs is not None
        batch = {name: tensor.to(self.device) for name, tensor in inputs.batch(indices).items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self._outputs(expert, batch)
        rows = torch.as_tensor(indices)
        cached = expert.teacher_held_out if held_out else expert.teacher
        teacher = None if cached is None else cached[rows].to(self.device, torch.float32)
        labels = None if inputs.labels is None else inputs.labels[rows].to(self.device)
        if expert.task.kind != "language-modelling" or self.objective == "features":
            return Predictions(outputs.float(), teacher, labels)
        # position t predicts token t + 1
        tokens = batch["input_ids"]
        counts = batch.get("attention_mask", torch.ones_like(tokens))[:, 1:].bool()
        return Predictions(
            outputs[:, :-1][counts].float(), None if teacher is None else teacher[:, :-1][counts], tokens[:, 1:][counts]
        )

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
    def _predictions_of_expert(self, k: int, inputs: Inputs | None, limit: int | None, folder: Path | None) -> Tensor:
        """What expert k says of (the first ``limit`` of) its inputs: (n, …), fp32 (fp16 for language models)."""
        assert inputs is not None
        for name, weight in self.models.weights.items():
            weight.copy_(self.base[name] + self.task_vectors[name][k].view_as(weight))
        expert = self.experts[k]
        count = min(len(inputs), limit or len(inputs))
        dtype = torch.float16 if expert.task.kind == "language-modelling" else torch.float32
        kept = torch.empty(0)
        for start in range(0, count, 64):
            indices = list(range(start, min(start + 64, count)))
            batch = {name: tensor.to(self.device) for name, tensor in inputs.batch(indices).items()}
            part = self._outputs(expert, batch).to("cpu", dtype)
            if start == 0:
                kept = _room((count, *part.shape[1:]), dtype, folder, expert.task.name)
            kept[start : start + len(part)] = part
        return kept


def _room(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None, name: str) -> Tensor:
    """A tensor in memory, or in a file of the run's folder if it is large."""
    if torch.Size(shape).numel() * dtype.itemsize <= _IN_MEMORY or folder is None:
        return torch.empty(shape, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"teacher-{name}.npy"
    return torch.from_numpy(np.lib.format.open_memmap(file, "w+", np.dtype(str(dtype).removeprefix("torch.")), shape))
