"""The K tasks' models over one set of shared weights: writing θ(γ) once moves them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from paretomerge.errors import UserError
from paretomerge.export.heads import Head
from paretomerge.export.huggingface import build_model
from paretomerge.weights.architecture import live_names
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.experts import Experts


class SharedModels:
    """Live models, one per task, whose merged parameters are the same tensors.

    ``weights`` maps the base's names of the merged tensors to those parameters (fp32, with gradients); everything else, the
    heads included, is frozen. Models are in evaluation mode: no dropout, and running statistics stay as they are.
    """

    def __init__(self, experts: Experts, heads: Mapping[str, Head], names: Sequence[str], device: torch.device) -> None:
        base = experts.base.cast(torch.float32).without(frozenset(experts.base) - frozenset(experts.infos))
        config = experts.base.config if isinstance(experts.base, Checkpoint) else {}
        if not config.get("architectures") and not heads:
            raise UserError("the base has no config.json that names an architecture: a model cannot be built to fit on data")
        self.weights: dict[str, nn.Parameter] = {}
        self.models: dict[str, nn.Module] = {}
        shared_body: nn.Module | None = None
        for task in experts.tasks:
            head = heads.get(task)
            if head is None and shared_body is not None:
                self.models[task] = shared_body  # without a head of its own a task uses the very same model
                continue
            built = build_model(base if head is None else head.on(base, torch.float32), head.config if head else config)
            built.requires_grad_(False).to(device)
            live = live_names(names, built)
            if missing := [name for name in names if name not in live]:
                raise UserError(
                    f"{missing[0]}: no parameter of {type(built).__name__}; keep it out of the merge with --exclude"
                )
            for name in names:
                module_name, _, leaf = live[name].rpartition(".")
                module = built.get_submodule(module_name)
                if name not in self.weights:
                    self.weights[name] = nn.Parameter(getattr(module, leaf).detach())
                setattr(module, leaf, self.weights[name])
            built.tie_weights()
            self.models[task] = built
            if head is None:
                shared_body = built

    def forget_gradients(self) -> None:
        """Free the dense gradient."""
        for parameter in self.weights.values():
            parameter.grad = None
