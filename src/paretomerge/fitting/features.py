"""The last features of a live model: the linear map they go into or come out of, and what they are on some inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.models.predict import on_model, pooled, predict
from paretomerge.sets.corrected import Side


@dataclass(frozen=True)
class FeaturePoint:
    """Where a model's last features are: the input of the linear map that gives its logits; of a zero-shot task, the output
    of the projection that gives the image's features."""

    module: str
    side: Side
    task: Task

    @torch.no_grad()
    def of(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Features of a batch, (n, d): an entry per input, or per token that counts."""
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            kept[:] = [args[0] if self.side == "input" else output]

        handle = model.get_submodule(self.module).register_forward_hook(keep)
        try:
            _run(model, batch, self.task)
        finally:
            handle.remove()
        features = kept[0].detach()
        if features.ndim == 3 and "attention_mask" in batch:
            return features[batch["attention_mask"].to(features.device).bool()]
        return features.flatten(0, -2)


@torch.no_grad()
def feature_point(model: nn.Module, task: Task, batch: Mapping[str, Tensor]) -> FeaturePoint:
    """Find it, by what the linear maps of the model give on one batch.

    Raises:
        UserError: no linear map gives the logits (the features of a zero-shot task), or it is tied to the embeddings.
    """
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: outputs.__setitem__(name, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        wanted = _run(model, batch, task)
    finally:
        for handle in handles:
            handle.remove()
    what = "features" if task.prompts is not None else "logits"
    found = [name for name, output in outputs.items() if output.shape == wanted.shape and torch.equal(output, wanted)]
    if not found:
        raise UserError(f"task {task.name}: {type(model).__name__} makes its {what} with no single linear map")
    weight = model.get_submodule(found[-1]).weight
    if sum(getattr(module, "weight", None) is weight for module in model.modules()) > 1:
        raise UserError(
            f"task {task.name}: the head of {type(model).__name__} is tied to its embeddings, and cannot be changed without "
            "changing them"
        )
    return FeaturePoint(found[-1], "output" if task.prompts is not None else "input", task)


def _run(model: nn.Module, batch: Mapping[str, Tensor], task: Task) -> Tensor:
    """Logits, or the image's features of a zero-shot task."""
    if task.prompts is None:
        return predict(model, batch)
    read: Any = model.get_image_features
    return pooled(read(**on_model(batch, model)))
