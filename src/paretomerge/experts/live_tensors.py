"""The tensors of somebody's live model, under the names of a checkpoint: where to write a merge, and what was written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paretomerge.errors import UserError
from paretomerge.experts.architecture import live_names
from paretomerge.experts.tied import tied_embedding
from paretomerge.weights.lazy import TensorInfo

_SAMPLES = 4
"""Entries of a tensor, along each dimension, that tell whether somebody has written into it."""
_PLAIN = (Tensor, nn.Parameter, nn.Buffer) if hasattr(nn, "Buffer") else (Tensor, nn.Parameter)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def bare(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``'s and DataParallel's wrappers, which share its tensors.

    Raises:
        UserError: it carries PEFT adapters, which would be added to whatever is written.
    """
    model = unwrapped(model)
    if carries_adapters(model):
        raise UserError(
            f"{type(model).__name__} carries PEFT adapters, which would be added to the merged weights: "
            "use the model without them (merge_and_unload or unload), or front.model"
        )
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers that share its tensors."""
    while True:
        if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def carries_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put adapters into a model."""
    return any(hasattr(module, "peft_config") for module in (model, getattr(model, "model", None))) or any(
        ".base_layer." in name or ".lora_" in name for name, _ in model.named_parameters()
    )


def live_tensors(model: nn.Module, *, to_read: bool = False) -> dict[str, Tensor]:
    """Name -> parameter or persistent buffer of a model; for what accelerate offloads, the tensor that its hooks hand out.

    Args:
        model: a module without wrappers.
        to_read: tensors that lie on disk will do.

    Raises:
        UserError: quantised or sharded tensors, and what is offloaded to disk, as nothing that is written there would stay.
    """
    if getattr(model, "is_quantized", False):
        raise UserError(f"{type(model).__name__} is quantised: load it in bfloat16 or float32")
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):  # what a module keeps beside its tensors
            continue
        if type(tensor) not in _PLAIN or (tensor.is_floating_point() and tensor.dtype not in _DTYPES):
            kind = type(tensor).__name__ if type(tensor) not in _PLAIN else str(tensor.dtype)
            raise UserError(f"{name}: is a {kind}, quantised or sharded: load the model whole, in bfloat16 or float32")
        tensors[name] = _offloaded(model, name, to_read) if tensor.is_meta else tensor
    return tensors


def _offloaded(model: nn.Module, name: str, to_read: bool) -> Tensor:
    """The tensor that an accelerate hook puts in the place of one on the meta device when the model runs."""
    module, parts = model, name.split(".")
    for depth in range(len(parts)):
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            weights: Mapping[str, Tensor] | None = getattr(each, "weights_map", None)
            try:
                found = None if weights is None else weights[".".join(parts[depth:])]
                # what is read from disk is made anew each time, and a change of it would be lost
                if found is not None and (to_read or found is weights[".".join(parts[depth:])]):  # type: ignore[index]
                    return found
            except KeyError:
                continue
            if found is not None:
                raise UserError(
                    f"{name}: is offloaded to disk, where it cannot be changed: load the model with a device_map without "
                    "'disk', or write the preference with front.pick and load that"
                )
        module = getattr(module, parts[depth], module)
    raise UserError(f"{name}: is on the meta device and holds nothing: load the model's weights first")


def places(
    infos: Mapping[str, TensorInfo],
    varying: Collection[str],
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    heads: Collection[str] = (),
    lacks: Collection[str] = (),
    whole: bool = True,
) -> dict[str, list[str]]:
    """Checkpoint's name -> the names that its tensor has in a live model, for all that the model must hold of it.

    Args:
        infos: the checkpoint.
        varying: the tensors without which a model cannot be moved to a preference.
        model: the live model.
        tensors: its ``live_tensors``.
        heads: names of one task's own tensors, in the model or the checkpoint: left alone unless they vary.
        lacks: tensors of the checkpoint that the model may lack.
        whole: all tensors of the checkpoint, not only those that vary.

    Raises:
        UserError: a tensor is missing, or has another shape or kind; the model has layers that the checkpoint lacks.
    """
    wanted = [name for name in infos if name in varying or (whole and name not in heads)]
    found = {name: place for name, place in live_names(wanted, model).items() if place in tensors}
    placed: dict[str, list[str]] = {}
    first_at: dict[int, str] = {}  # address -> the first name that is written there
    for name, place in found.items():
        if place in heads and name not in varying:
            continue
        tensor, info = tensors[place], infos[name]
        if tuple(tensor.shape) != info.shape or tensor.is_floating_point() != info.dtype.is_floating_point:
            has = f"{list(tensor.shape)} {tensor.dtype}, the front {list(info.shape)} {info.dtype}"
            raise UserError(f"{place}: the model has {has}: build it with front.model")
        first = first_at.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if first != name:
            raise UserError(f"{place}: is the same tensor as {found[first]} in the model, but not in the front: untie them")
        placed[name] = [place]
    patterns = {_pattern(name) for name in placed}
    for name in wanted:
        if name not in found and name not in lacks and (name in varying or _needed(name, found, patterns, model)):
            why = "it is another model, or transformers has fused this tensor with others"
            raise UserError(f"the model has no parameter {name} ({why}): build it with front.model")
    return _with_copies(placed, infos, model, tensors, heads) if whole else placed


def _with_copies(
    placed: dict[str, list[str]],
    infos: Mapping[str, TensorInfo],
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    heads: Collection[str],
) -> dict[str, list[str]]:
    """The same with second copies of tied weights; what else the model has may only be a head."""
    covered = {place for each in placed.values() for place in each}
    modules, patterns = {place.rpartition(".")[0] for place in covered}, {_pattern(place) for place in covered}
    written = {tensors[place].data_ptr() for place in covered}
    ties = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for place in sorted(parameters & tensors.keys() - covered - set(heads)):
        tensor = tensors[place]
        if tensor.data_ptr() in written or not tensor.numel():
            continue
        source = tied_embedding(place, infos, tuple(tensor.shape))
        if ties and source in placed:  # accelerate's copies of tied weights are no longer one tensor
            placed[source].append(place)
        elif _pattern(place) in patterns or place.rpartition(".")[0] in modules:
            raise UserError(f"the model has {place}, which the front lacks, so it is another model: build it with front.model")
    return placed


def _pattern(name: str) -> str:
    """The name without the number of its layer."""
    return re.sub(r"\d+", "#", name)


def _needed(name: str, found: Mapping[str, str], patterns: Collection[str], model: nn.Module) -> bool:
    """Whether a model without this tensor of the checkpoint is another model, rather than its backbone or a later version."""
    if any(re.search(each, name) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()):
        return False
    if _pattern(name) in patterns:
        return True  # a layer is missing
    place = name
    for known, live in found.items():
        if known.endswith("." + live):  # a backbone: its names lack a prefix, and heads are outside of it
            prefix = known.removesuffix(live)
            if not name.startswith(prefix):
                return False
            place = name.removeprefix(prefix)
            break
        if live.endswith("." + known):
            place = live.removesuffix(known) + name
            break
    module_name, _, leaf = place.rpartition(".")
    try:
        module = model.get_submodule(module_name)
    except AttributeError:
        return bool(re.search(r"(^|\.)\d+\.", name))  # part of a layer
    # old checkpoints also store what the model computes (masks, positions): that is no parameter there
    return leaf in module._parameters or (leaf not in module._buffers and isinstance(getattr(module, leaf, None), Tensor))


class Stamp(NamedTuple):
    """What was last seen of some tensors: the objects, their versions, and a few entries of each."""

    seen: tuple[Any, ...]
    samples: tuple[Tensor, ...]

    def same(self, other: Stamp) -> bool:
        return self.seen == other.seen and all(map(torch.equal, self.samples, other.samples))


def stamp(tensors: Iterable[Tensor]) -> Stamp:
    """A stamp that differs once somebody writes into one of the tensors or puts another in its place."""
    seen: list[Any] = []
    samples: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        seen.append((id(tensor), None if tensor.is_inference() else tensor._version, tensor.dtype))
        entries = tensor.detach()[tuple(slice(None, None, max(1, -(-size // _SAMPLES))) for size in tensor.shape)]
        samples.setdefault((tensor.device, tensor.dtype), []).append(entries.reshape(-1))
    return Stamp(tuple(seen), tuple(torch.cat(parts).cpu() for parts in samples.values()))
