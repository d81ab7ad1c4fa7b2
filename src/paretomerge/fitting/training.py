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

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from paretomerge import preferences
from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.fitting.driver import Fit
from paretomerge.fitting.options import FitRun, TrainingOptions
from paretomerge.merges.streaming import completed
from paretomerge.options import Without
from paretomerge.sets.pareto_set import ParetoSet


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
    options: Annotated[
        TrainingOptions, Without("alpha", "sampling", "equal_every", "beta", "skip_below", "patience")
    ] = TrainingOptions(objective="cross-entropy", lr=1e-4),
    run: FitRun = FitRun(),
) -> ParetoSet:
    """All parameters trained from the pretrained model at one preference (STL, LS, EPO, MGDA): one model, for comparison.

    Args:
        experts: the base to start from; the experts give the names of the tensors that are trained, and the heads.
        tasks: task -> its inputs, with labels for cross-entropy.
        preference: Preference of every step: equal, only:a for a single task, or a=0.7,b=0.3. With scalarization linear,
            equal is plain multi-task learning; mgda takes no other.
        options: how it trains.
        run: where its states go, and who hears of its progress.

    Raises:
        UserError: a preference for mgda; a task without inputs or labels.
        Stopped: see ``fit_``.

    Needs: inputs with labels.
    Stores: one model.
    Paper: multi-task training, Mahapatra & Rajan 2020 (EPO), Désidéri 2012 (MGDA).
    """
    arguments = dict(locals())
    gamma = preferences.parse(preference, experts.tasks)
    if options.scalarization == "mgda" and len(set(gamma)) > 1:
        raise UserError("scalarization mgda takes no preference: leave preference out")
    fit = Fit(training, arguments, preference=gamma)
    problem = fit.problem
    problem.task_vectors = {}
    dense = Dense(problem.base, len(experts))
    problem.base = {}
    dense.attach_(problem.models.weights)
    fit.learn_(dense)
    trained = {name: dense.view(name).cpu() for name in problem.models.weights}
    return ParetoSet(experts.tasks, completed(experts, trained), settings=fit.settings)
