"""What evaluations work on: models that depend on a point, and an evaluator that measures one of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import nn

from paretomerge.experts.heads import Head
from paretomerge.results.objective import Objective
from paretomerge.weights.lazy import Weights

Point = tuple[float, ...]
"""Coefficients c, or a preference γ."""
Measure = Callable[[Point, Sequence[str]], Mapping[str, float]]
"""(point, tasks that are wanted) -> task -> metric, of theirs at least.

Raises ``Failed``, or whatever else, if it does not work this time; UserError, if it never will."""


class Live(Protocol):
    """Live models in evaluation mode, task by task, over one set of weights."""

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """Task -> its model; tasks without a head of their own have the very same one."""

    def move_(self, point: Sequence[float]) -> None:
        """Bring all of them to a point. The weights do not depend on the points before."""


class Models(Protocol):
    """A model for every point: θ(c) of a search, θ(γ) of a front."""

    @property
    def tasks(self) -> tuple[str, ...]: ...
    @property
    def varying(self) -> Collection[str]:
        """Names of the tensors that depend on the point."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def heads(self) -> Mapping[str, Head]: ...
    @property
    def companions(self) -> Path | None:
        """The folder with the tokenizer."""

    def at(self, point: Sequence[float], dtype: torch.dtype | None = None) -> Weights:
        """The model at a point, lazily."""

    def live(self, device: torch.device, store: torch.dtype = torch.float32) -> Live:
        """Built; ``store``: dtype of task vectors that are kept beside them."""

    def weights(self) -> Mapping[str, Weights]:
        """All that is large, by name: to be sent to another process by itself."""

    def without_weights(self) -> Models:
        """The rest, which pickle can take."""

    def with_weights(self, weights: Mapping[str, Weights]) -> Models:
        """The same again."""


class Evaluator(Protocol):
    """Measures one merged model at a time. It can be sent to another process."""

    @property
    def objectives(self) -> Sequence[Objective]:
        """A metric per task, in the order of the tasks."""

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on beside the model, as JSON."""

    def opened(self, models: Models) -> Measure:
        """Ready to measure."""


@dataclass(frozen=True)
class Work:
    """What one worker does."""

    evaluator: Evaluator
    models: Models

    def opened(self) -> Measure:
        return self.evaluator.opened(self.models)

    def with_models(self, models: Models) -> Self:
        return replace(self, models=models)
