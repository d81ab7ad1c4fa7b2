"""Baselines that train: all merged parameters, from the pretrained model, at one preference; one model a run.

    STL     preference=only:a        the task alone (the experts themselves, if they were trained so)
    LS      scalarization=linear     Σ_k γ_k S_k; at equal preference plain multi-task learning
    EPO     scalarization=epo        γ_k S_k all equal
    MGDA    scalarization=mgda       some Pareto-stationary model, whatever γ

Heads are the experts' and stay as they are. Memory in models of fp32: φ (the live weights are views of it), Adam's two
moments, and the gradient twice. The gradients of linear (and of smooth Tchebycheff where a batch is one part) are left to add
up; the other scalarisations need the K dense gradients side by side, K models more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.evaluation.tasks import Task
from paretomerge.fitting.loop import Report, check_run, fit_
from paretomerge.fitting.problem import Problem, sources_of
from paretomerge.fitting.scalarization import Name as Scalarization
from paretomerge.fitting.settings import Settings
from paretomerge.merges.streaming import completed
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.experts import Experts
from paretomerge.weights.live import device_of


class Dense:
    """φ = θ: every merged tensor, one after the other in one flat vector; the same θ at every preference."""

    def __init__(self, start: Mapping[str, Tensor], n_tasks: int) -> None:
        self.n_tasks = n_tasks
        self._shapes = {name: tensor.shape for name, tensor in start.items()}
        self.phi = torch.cat([tensor.flatten() for tensor in start.values()])

    def view(self, name: str, of: Tensor | None = None) -> Tensor:
        """A tensor of θ, as a view of φ or of a vector like it."""
        return self._views(self.phi if of is None else of)[name]

    def attach_(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Make live parameters views of φ: whoever moves φ moves them."""
        for name, view in self._views(self.phi).items():
            weights[name].data = view

    @torch.no_grad()
    def build_(self, weights: Mapping[str, Tensor], gamma: Tensor) -> None:
        """Write θ into ``weights``, unless they are views of φ."""
        for name, view in self._views(self.phi).items():
            if weights[name].data_ptr() != view.data_ptr():
                weights[name].copy_(view)

    def pull_back(self, gradients: Mapping[str, Tensor | None], gamma: Tensor) -> Tensor:
        """∂S/∂φ: the dense gradients in a row; None counts as zero."""
        flat = torch.zeros_like(self.phi)
        for name, view in self._views(flat).items():
            if (dense := gradients.get(name)) is not None:
                view.copy_(dense)
        return flat

    def penalty(self, gamma: Tensor) -> tuple[float, Tensor]:
        """None."""
        return 0.0, torch.zeros_like(self.phi)

    def _views(self, of: Tensor) -> dict[str, Tensor]:
        parts = of.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)}


def training(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    preference: str = "equal",
    objective: Literal["cross-entropy", "distill", "infomax", "entropy", "features"] = "cross-entropy",
    scalarization: Scalarization = "linear",
    steps: int = 600,
    batch: int = 32,
    micro_batch: int | None = None,
    lr: float = 1e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
    mu: float = 0.1,
    clip: float = 0.0,
    seed: int = 0,
    checkpoint_every: int = 100,
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpointing: bool = False,
    teacher_top: int | None = 64,
    device: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ParetoSet:
    """All parameters trained from the pretrained model at one preference (STL, LS, EPO, MGDA): one model, for comparison.

    Args:
        experts: the base to start from; the experts give the names of the tensors that are trained, and the heads.
        tasks: task -> its inputs, with labels for cross-entropy.
        preference: γ of every step: ``"equal"``, ``"only:a"`` for a single task, ``"a=0.7,b=0.3"``.
        objective: ``"cross-entropy"`` with the labels, or one without, as in ``pareto_merging_on_data``.
        scalarization: ``"linear"`` (LS; at equal preference multi-task learning), ``"epo"``, ``"mgda"``, which takes no
            preference, or as in ``pareto_merging_on_data``.
        steps: number of steps.
        batch: inputs per task and step.
        micro_batch: inputs at a time; None: all of a batch.
        lr: Adam's learning rate.
        schedule: ``"cosine"`` to a tenth, or ``"constant"``.
        mu: μ of smooth Tchebycheff.
        clip: largest norm of a step's gradient; 0: not clipped.
        seed: of everything random.
        checkpoint_every: steps between saved states.
        precision: of the forward and backward passes.
        checkpointing: keep the activations of no layer, and compute them again in the backward pass: less memory, more time.
        teacher_top: as in ``pareto_merging_on_data``.
        device: where to train.
        folder: of the run.
        resume: go on where the run in ``folder`` stopped.
        report: called after each step.
        say: is told what the user should know.

    Raises:
        UserError: a preference for mgda; a task without inputs or labels.
        Stopped: see ``fit_``.

    Needs: inputs with labels.
    Stores: one model.
    Paper: multi-task training, Mahapatra & Rajan 2020 (EPO), Désidéri 2012 (MGDA).
    """
    options = {
        k: v for k, v in locals().items() if k not in ("experts", "tasks", "folder", "resume", "report", "say", "device")
    }
    gamma = preferences.parse(preference, experts.tasks)
    if scalarization == "mgda" and len(set(gamma)) > 1:
        raise UserError("scalarization mgda takes no preference: leave preference out")
    names = {field.name for field in fields(Settings)} - {"preference"}
    settings = Settings(**{k: v for k, v in options.items() if k in names}, preference=tuple(gamma), equal_every=0)
    sources = sources_of(experts.tasks, tasks, objective, held_out=False)
    facts: dict[str, Any] = {"tasks": list(experts.tasks), "inputs": [len(fit.inputs) for fit, _ in sources.values()]}
    facts |= {k: v for k, v in options.items() if k != "preference"}
    check_run(folder, settings, facts, resume=resume)
    problem = Problem(
        experts, tasks, objective, batch=batch, micro_batch=micro_batch, precision=precision, device=device_of(device),
        folder=folder, say=say, held_out=False, checkpointing=checkpointing, teacher_top=teacher_top,
    )  # fmt: skip
    problem.task_vectors = {}
    dense = Dense(problem.base, len(experts))
    problem.base = {}
    dense.attach_(problem.models.weights)
    fit_(
        dense,
        problem.models.weights,
        problem.losses,
        settings,
        folder=folder,
        resume=resume,
        facts=facts,
        whole=micro_batch is None or micro_batch >= batch,
        report=problem.watching(report),
    )
    trained = {name: dense.view(name).cpu() for name in problem.models.weights}
    return ParetoSet(experts.tasks, completed(experts, trained), settings=options)
