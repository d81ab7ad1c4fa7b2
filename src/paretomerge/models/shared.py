"""The K tasks' models over one set of shared weights: writing θ(γ) once moves them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from paretomerge.errors import UserError
from paretomerge.experts.architecture import live_names
from paretomerge.experts.config import architecture
from paretomerge.experts.experts import Expert, Experts
from paretomerge.experts.heads import Head
from paretomerge.models.build import build_model
from paretomerge.weights.lazy import TensorInfo, Weights

_ENTRIES = 1 << 20
"""Of a tensor that are copied at a time."""


class SharedModels:
    """Live models, one per task, whose merged parameters are the same tensors.

    ``weights`` maps the base's names of the merged tensors to those parameters (with gradients); everything else, the
    heads included, is frozen. Models are in evaluation mode: no dropout, and running statistics stay as they are.
    """

    def __init__(
        self,
        experts: Experts,
        heads: Mapping[str, Head],
        names: Sequence[str],
        device: torch.device,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        """``names`` are shared; ``dtype``: of all weights (None: as they are stored)."""
        base = experts.base.cast(dtype).without(frozenset(experts.base) - frozenset(experts.infos))
        config = getattr(experts.base, "config", {})
        if not architecture(config) and not heads:
            raise UserError("the base has no config.json that names an architecture: a model cannot be built of it")
        self.weights: dict[str, nn.Parameter] = {}
        self.models: dict[str, nn.Module] = {}
        shared_body: nn.Module | None = None
        for task in experts.tasks:
            head = heads.get(task)
            if head is None and shared_body is not None:
                self.models[task] = shared_body  # without a head of its own a task uses the very same model
                continue
            known = base.replacing(*self._known(base, experts.aliases))
            lent = {weight.data_ptr() for weight in self.weights.values()}
            built = build_model(known if head is None else head.on(known, dtype), head.config if head else config, lent)
            built.requires_grad_(False).to(device)
            live = live_names([*names, *experts.aliases], built)
            lacks = () if head is None else head.lacks
            if missing := [name for name in names if name not in live and name not in lacks]:
                raise UserError(
                    f"{missing[0]}: no parameter of {type(built).__name__}; keep it out of the merge with --exclude"
                )
            for name, place in live.items():
                module_name, _, leaf = place.rpartition(".")
                module = built.get_submodule(module_name)
                first = experts.aliases.get(name, name)
                if first not in self.weights:
                    self.weights[first] = nn.Parameter(getattr(module, leaf).detach())
                setattr(module, leaf, self.weights[first])
            built.tie_weights()
            self.models[task] = built
            if head is None:
                shared_body = built

    def checkpoint_activations(self) -> None:
        """Let every layer keep its inputs only, and run again in the backward pass (Chen et al. 2016).

        transformers' own switch acts in training mode alone, which would turn on dropout, too; its layers are taken instead.

        Raises:
            UserError: a model without such layers.
        """
        from transformers import PretrainedConfig
        from transformers.modeling_layers import GradientCheckpointingLayer

        for model in {id(model): model for model in self.models.values()}.values():
            layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
            if not layers:
                raise UserError(f"checkpointing: {type(model).__name__} has no layers that can run again: leave it out")
            for layer in layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            for config in (getattr(module, "config", None) for module in model.modules()):
                if isinstance(config, PretrainedConfig):
                    config.use_cache = False  # keys and values of the first run would meet those of the second

    def _known(self, base: Weights, aliases: Mapping[str, str]) -> tuple[dict[str, TensorInfo], Callable[[str], torch.Tensor]]:
        """The base's tensors that are shared already, as ``Weights.replacing`` wants them: they need no second reading."""
        weights = {name: self.weights[aliases.get(name, name)] for name in base if aliases.get(name, name) in self.weights}
        infos = {
            name: base.infos[name]
            for name, weight in weights.items()
            if (tuple(weight.shape), weight.dtype) == base.infos[name]
        }
        return infos, lambda name: weights[name].detach().cpu()

    @torch.no_grad()
    def become_(self, experts: Experts, k: int) -> None:
        """Write θ_k into the shared weights, slice by slice or by its LoRA factors; of the experts only the k-th is read."""
        expert = experts.experts[k]
        alone = replace(experts, experts=(expert,))
        for name, weight in self.weights.items():
            if (whole := expert.whole(name)) is not None and whole.shape == experts.infos[name].shape:
                weight.detach().copy_(whole.view_as(weight))
                continue
            theta = torch.atleast_1d(weight.detach())
            if (pairs := alone.pairs(name)) is not None:
                base = experts.base[name].to(theta.device, experts.wide(name))
                theta.copy_(torch.addmm(base, *(factor.to(base) for factor in pairs[0])))
                continue
            for rows, base, v in alone.chunks(name, entries=_ENTRIES):
                theta[rows] = v[0].add_(base).view_as(theta[rows]).to(theta)


@contextmanager
def own_tensors(expert: Expert, experts: Experts, model: nn.Module) -> Iterator[None]:
    """For a while what is not merged (running statistics, excluded tensors) is the expert's own, not the base's."""
    names = [name for name in experts.infos if name not in experts.merged and name not in experts.aliases]
    state = model.state_dict()
    before: dict[str, torch.Tensor] = {}
    if isinstance(expert.source, Weights):
        for name, place in live_names(names, model).items():
            own = expert.own.get(name)
            if own is not None and expert.source.infos[own].shape == state[place].shape:
                before[place] = state[place].clone()
                state[place].copy_(expert.source[own])
    try:
        yield
    finally:
        for place, tensor in before.items():
            state[place].copy_(tensor)
