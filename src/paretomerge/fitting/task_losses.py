"""The K objectives of a fit on data: inputs, models over shared weights, the experts' predictions, and collapse watched."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from paretomerge.data.inputs import Inputs, Rows
from paretomerge.data.prompts import Prompts
from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.experts.heads import heads_of
from paretomerge.fitting import teacher_cache as teachers
from paretomerge.fitting.distributed import world
from paretomerge.fitting.gradients import Part
from paretomerge.fitting.objectives import OBJECTIVES, Predictions, shannon
from paretomerge.fitting.options import FitRun, Report, TrainingOptions
from paretomerge.fitting.teacher_cache import Kept
from paretomerge.models.build import device_of
from paretomerge.models.predict import predict
from paretomerge.models.shared import SharedModels, own_tensors
from paretomerge.weights.lazy import Weights
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.vectors import Vectors, varies

_HELD_OUT = 256
"""Held-out inputs a task that early stopping looks at."""
_WATCHED = 1 << 22
"""About so many probabilities of a micro-batch are looked at for it; of a large vocabulary, those of some tokens."""
_COLLAPSE = 0.5
"""Marginal entropy below this share of its first value is reported."""
_SHORT = 128
"""Tokens up to which attention step by step is faster than the fused kernel, in bfloat16 on a processor (17: 5 times)."""


@dataclass
class _Source:
    """Inputs, and what the expert says of them (None where the objective does not ask)."""

    inputs: Inputs
    teacher: Kept | None = None


@dataclass
class _Expert:
    """One task as the fit sees it."""

    task: Task
    model: nn.Module
    fit: _Source
    held_out: _Source | None
    text_head: Tensor | None = None
    """Of a zero-shot task whose text tower stays as it is: its text features, (classes, dim)."""

    def head(self) -> Tensor | None:
        """The text features of a zero-shot task, with the model's gradient if experts differ in the text tower."""
        if self.task.prompts is None or self.text_head is not None:
            return self.text_head
        return self.task.prompts.features(self.model)


def _spread(inputs: Inputs, n: int) -> Rows:
    """At most n of some inputs, from the first to the last: files are often sorted by class."""
    return Rows(inputs, torch.linspace(0, len(inputs) - 1, min(n, len(inputs)), dtype=torch.float64).round().long())


class Problem:
    """The K objectives: inputs, models, experts' predictions, and the watch over collapse."""

    def __init__(
        self, experts: Experts, tasks: Mapping[str, Task], options: TrainingOptions, run: FitRun, *,
        task_vectors: bool = True, thin: bool = True,
    ) -> None:  # fmt: skip
        """``task_vectors``: whether they and the base are kept; ``thin``: those of LoRA experts as their factors."""
        self.options, self.device, self.say = options, device_of(options.device), run.say
        self.autocast = options.precision == "bfloat16"
        sources = sources_of(experts.tasks, tasks, options)
        self.models = SharedModels(experts, heads_of(experts), experts.merged, self.device)
        gc.collect()  # reference cycles hold the weights that loading made and sharing replaced: up to K models
        self.base: dict[str, Tensor] = {}
        if options.checkpointing:
            self.models.checkpoint_activations()
        self.task_vectors: dict[str, Vectors] = {}
        if task_vectors:
            # read again and not cloned: an fp32 file on a processor stays mapped, and takes no memory of its own
            self.base = {name: experts.base[name].to(self.device, torch.float32) for name in self.models.weights}
            self.task_vectors = {name: task_vectors_of(experts, name, self.device, thin=thin) for name in experts.merged}
        self.experts = [_Expert(tasks[name], self.models.models[name], *sources[name]) for name in experts.tasks]
        if task_vectors:
            self._freeze_text_heads({name for name, v in self.task_vectors.items() if varies(v)})
        self._first: dict[int, list[float]] = {}
        self._warned: set[int] = set()
        if options.objective in ("distill", "features"):
            for k, own in enumerate(experts.experts):
                self.models.become_(experts, k)
                with own_tensors(own, experts, self.experts[k].model):
                    self._ask_expert(k, run.folder)

    @torch.no_grad()
    def stand_on_(self, weights: Weights, varying: Collection[str]) -> dict[str, nn.Parameter]:
        """Take ``weights`` for the base: ``self.base`` keeps what varies, the rest is written into the models for good.

        Returns:
            The live parameters that vary; nothing is asked of the gradients of others.
        """
        for name, live in self.models.weights.items():
            live.copy_(weights[name])
            if name in varying:
                self.base[name] = live.detach().clone()
        self._freeze_text_heads(varying)
        for name, live in self.models.weights.items():
            live.requires_grad_(name in varying)
        return {name: live for name, live in self.models.weights.items() if name in varying}

    def losses(self, k: int, seed: int) -> Iterator[Part]:
        """S_k on a batch, this process's share of it, micro-batch by micro-batch."""
        expert = self.experts[k]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(expert.fit.inputs), generator=generator)[: self.options.batch_size].tolist()
        rank, size = world()
        mine = drawn[rank::size]
        step = self.options.micro_batch_size or max(1, len(mine))
        total, count = torch.zeros(()), 0  # of the predictions so far
        for start in range(0, len(mine), step):
            indices = mine[start : start + step]
            predictions = self._predict(expert, expert.fit, indices)
            loss = OBJECTIVES[self.options.objective](predictions)
            watched = {}
            if self.options.objective != "features":
                shares = predictions.logits.detach()[:: 1 + predictions.logits.numel() // _WATCHED].float().softmax(-1)
                total, count = total.to(shares) + shares.sum(0), count + len(shares)
                watched["marginal"] = float(shannon(total / count))
            del predictions  # the logits' memory is the backward pass's now
            yield Part(loss, len(indices) / len(drawn), watched)

    @torch.no_grad()
    def held_out(self) -> float:
        """Mean objective over the tasks on some held-out inputs each, without their labels, at the weights as they are."""
        total = 0.0
        for expert in self.experts:
            assert expert.held_out is not None
            count = len(expert.held_out.inputs)
            batches = -(-count // (self.options.micro_batch_size or self.options.batch_size))
            for first in range(batches):  # each from all over the inputs
                indices = range(first, count, batches)
                value = OBJECTIVES[self.options.objective](self._predict(expert, expert.held_out, indices))
                total += float(value) * len(indices) / count
        return total / len(self.experts)

    def watching(self, report: Report | None) -> Report:
        """A report that tells the user when predictions collapse to few classes, the fit ends early, or epo's program fails."""
        told: set[str] = set()

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
            if logged.get("over"):
                self.say(f"stopped early after step {done}: the held-out objective improves no more; the best is kept")
            mode = str(logged.get("epo", {}).get("mode", ""))
            if mode.startswith("linear") and mode not in told:
                told.add(mode)
                self.say(f"warning: step {done}: epo's linear program has no solution ({mode}); the step is linear in γ")
            if report:
                report(done, logged)

        return watch

    def _predict(self, expert: _Expert, source: _Source, indices: Sequence[int]) -> Predictions:
        batch = {name: tensor.to(self.device) for name, tensor in source.inputs.batch(indices).items()}
        with self._in_precision(batch):
            outputs = self._outputs(expert, batch)
        rows = torch.as_tensor(indices)
        kept = source.teacher
        teacher = None if kept is None else kept.values[rows].to(self.device, torch.float32)
        labels = None if source.inputs.labels is None else source.inputs.labels[rows].to(self.device)
        if not self._running(expert):
            return Predictions(outputs.float(), teacher, labels)
        tokens = batch["input_ids"][:, 1:]
        mask = batch["attention_mask"][:, 1:].bool() if "attention_mask" in batch else None
        if teacher is not None:
            teacher = _counted(teacher[:, : tokens.shape[1]], mask)
        if kept is None or kept.places is None:
            return Predictions(_counted(outputs, mask).float(), teacher, _counted(tokens, mask))
        places = _counted(kept.places[rows, : tokens.shape[1]].to(self.device), mask)
        return Predictions(_counted(outputs, mask), teacher, _counted(tokens, mask), places)

    @contextmanager
    def _in_precision(self, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Of the forward pass, and so of the backward pass; a batch of pictures counts as one of few tokens."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            tokens = batch["input_ids"].shape[1] if "input_ids" in batch else 0
            if self.autocast and self.device.type == "cpu" and tokens <= _SHORT and torch.is_grad_enabled():
                with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's bfloat16 gradient is slow there
                    yield
            else:
                yield

    def _running(self, expert: _Expert) -> bool:
        """Whether a prediction is wanted at every token: that at t is of token t + 1."""
        return expert.task.kind == "language-modelling" and self.options.objective != "features"

    def _outputs(self, expert: _Expert, batch: dict[str, Tensor]) -> Tensor:
        """Logits, or for feature matching the mean over tokens of the last hidden state."""
        if self._running(expert):  # nothing is asked of the last token, and those before do not see it
            return predict(expert.model, {name: x[:, :-1] for name, x in batch.items()})
        if self.options.objective != "features":
            return predict(expert.model, batch, expert.head())
        last: Tensor = expert.model(**batch, output_hidden_states=True).hidden_states[-1]
        if last.ndim != 3:
            return last.flatten(1)
        mask = batch.get("attention_mask", torch.ones(last.shape[:2], device=last.device))[..., None].to(last.dtype)
        return (last * mask).sum(1) / mask.sum(1)

    def _freeze_text_heads(self, varying: Collection[str]) -> None:
        """Zero-shot heads are computed once if nothing of the text tower varies; if something does, θ(γ)'s is what counts.

        So the fit looks at the same head as whoever measures or uses the models.
        """
        for expert in self.experts:
            if (prompts := expert.task.prompts) is None:
                continue
            if changed := [name for name in self._read_by_text(expert) if name in varying]:
                self.say(
                    f"{expert.task.name}: the experts differ in the text tower ({changed[0]} and {len(changed) - 1} more): the "
                    f"head of its {len(prompts.inputs)} prompts is computed anew in every step; to keep the base's, --exclude "
                    f"its tensors"
                )
                continue
            with torch.no_grad():
                expert.text_head = prompts.features(expert.model)

    def _read_by_text(self, expert: _Expert) -> list[str]:
        """Names of the merged tensors that a text feature depends on, found by one prompt's gradient."""
        assert expert.task.prompts is not None
        one = _spread(expert.task.prompts.inputs, 1)
        with torch.enable_grad():
            features = Prompts(one, 1).features(expert.model)
        if not features.requires_grad:  # the experts have no text tower
            return []
        features.sum().backward()
        names = [name for name, weight in self.models.weights.items() if weight.grad is not None]
        for weight in self.models.weights.values():
            weight.grad = None
        return names

    @torch.no_grad()
    def _ask_expert(self, k: int, folder: Path | None) -> None:
        """Keep what the expert, whose weights are in the models, says of its inputs: fp32 (of every token: fp16)."""
        expert = self.experts[k]
        running = self._running(expert)
        size = min(64, self.options.micro_batch_size or self.options.batch_size) if running else 64
        for what, source in (("fit", expert.fit), ("held-out", expert.held_out)):
            if source is None:
                continue
            inputs = source.inputs
            shape: tuple[int, ...] = ()

            def predicted(indices: Tensor, inputs: Inputs = inputs) -> Tensor:
                batch = {name: tensor.to(self.device) for name, tensor in inputs.batch(indices.tolist()).items()}
                with self._in_precision(batch):
                    return self._outputs(expert, batch)

            if running:  # texts of different lengths: as long as the longest
                chunks = torch.arange(len(inputs)).split(size)
                shape = (max(inputs.batch(i.tolist())["input_ids"].shape[1] for i in chunks) - 1,)
            top = self.options.teacher_top if running else None
            facts = (what, self.options.objective, top, str(self.device), self.autocast)
            head = () if expert.text_head is None else (expert.text_head,)
            source.teacher = teachers.ask(
                len(inputs), predicted, batch_size=size, shape=shape, top=top,
                dtype=torch.float16 if running else torch.float32,
                file=folder / "teacher" / f"{expert.task.name}-{what}-{world()[0]}" if folder else None,  # each process its own
                key=partial(teachers.key_of, expert.model, inputs, size, facts, head),
                say=lambda line: self.say(f"{expert.task.name}: {line}"),
            )  # fmt: skip


def task_vectors_of(experts: Experts, name: str, device: torch.device, *, thin: bool = True) -> Vectors:
    """The K task vectors of a tensor in fp32: with ``thin`` as products, where all experts that change it hold them so."""
    if thin and (pairs := experts.pairs(name)) is not None:
        found = LowRank.beside(pairs)
        if not found.finite():
            raise experts.not_finite(name)
        return found.to(device, torch.float32)
    return experts.task_vectors(name).reshape(len(experts), experts.infos[name].numel).to(device, torch.float32)


def sources_of(
    names: Sequence[str], tasks: Mapping[str, Task], options: TrainingOptions
) -> dict[str, tuple[_Source, _Source | None]]:
    """Each task's inputs to fit on, and those for early stopping if it is wanted.

    Raises:
        UserError: there are none.
    """
    return {name: _sources(name, tasks.get(name), options.objective, held_out=options.patience > 0) for name in names}


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
    return _Source(task.fit), _Source(_spread(task.held_out, _HELD_OUT))


def _counted(each: Tensor, mask: Tensor | None) -> Tensor:
    """(inputs, tokens, …) -> (n, …), the tokens that count; all of them by a view, whose gradient is far cheaper."""
    return each.flatten(0, 1) if mask is None or bool(mask.all()) else each[mask]
