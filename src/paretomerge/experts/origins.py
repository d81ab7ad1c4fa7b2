"""What does not show in the tensors' names: adapters that were trained on another base, modules that stay unmerged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from paretomerge.errors import UserError
from paretomerge.experts.alignment import Options
from paretomerge.experts.findings import Finding
from paretomerge.weights.checkpoint import Checkpoint, open_checkpoint
from paretomerge.weights.companions import module_folders
from paretomerge.weights.hub import mirrored
from paretomerge.weights.lazy import Weights
from paretomerge.weights.lora_files import Adapter

_SIZES = ("model_type", "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "num_layers", "intermediate_size")
_QUANTISED = re.compile(r"(-unsloth)?(-bnb)?-(4|8)-?bit$|-(gptq|awq|fp8|int4|int8|gguf|hqq)$")


def bases_of_adapters(
    named: object, base: Weights, sources: Mapping[str, Weights | Adapter], options: Options
) -> Iterator[Finding]:
    """A note on each adapter whose configuration names another base; an error where the two cannot be the same model.

    The same model has many names: of the hub with and without a revision, of its cache, of a folder that it was copied to, of
    a quantised copy (QLoRA). Where no name agrees and the other model is here, sizes and some numbers of both are compared.

    Args:
        named: the base as the user named it.
        base: the opened base.
        sources: the opened experts.
        options: of the alignment.
    """
    if not isinstance(base, Checkpoint):
        return
    own = {_short(name) for name in (str(named), str(base.path), str(base.path.resolve()), _origin(base.config))} - {""}
    for source in sources.values():
        if not isinstance(source, Adapter):
            continue
        trained_on = source.config.get("base_model_name_or_path")
        if not isinstance(trained_on, str) or not trained_on.strip() or _is(trained_on, base, source):
            continue
        other = _opened(trained_on, source)
        file = str(source.path / "adapter_config.json") if source.path else "adapter in memory"
        if other is None:
            if _short(trained_on) not in own:
                yield Finding("note", file, "", f"names {trained_on} as its base: make sure that {base.path} is that model")
            continue
        if difference := _difference(other, base, options):
            message = f"was trained on {trained_on}, which is not the base {base.path} ({difference}): name that as the base"
            yield Finding("error", file, "", message)
        elif not _alike(other, base):
            message = f"was trained on {trained_on}, whose weights differ from those of the base {base.path}: wrong base?"
            yield Finding("note", file, "", message)


def stored_twice(models: Iterable[object]) -> Iterator[Finding]:
    """A warning for each model in which two files hold one tensor: the index says which of them counts."""
    for model in models:
        if isinstance(model, Checkpoint) and model.passed_over:
            name, file = next(iter(model.passed_over.items()))
            more = f" (and {len(model.passed_over) - 1} more)" if len(model.passed_over) > 1 else ""
            yield Finding("warning", str(file), name, f"is left out{more}: the index names {model.files[name].name} for it")


def modules_not_merged(base: Weights) -> Iterator[Finding]:
    """A warning about sentence-transformers' modules with weights of their own (``2_Dense``): they are the base's."""
    if not isinstance(base, Checkpoint) or not base.path.is_dir():
        return
    for name in module_folders(base.path):
        if any(file.suffix in (".safetensors", ".bin") for file in (base.path / name).rglob("*")):
            message = "a module with weights of its own: copied from the base, not merged"
            yield Finding("warning", str(base.path / name), "", message)


def _short(name: str) -> str:
    """The last part of a model's name or path, as it is the same for most copies of the model."""
    if found := re.search(r"models--[^/\\]+?--([^/\\]+)[/\\]snapshots", name):
        name = found[1]
    last = re.split(r"[/\\]", name.strip().rstrip("/\\"))[-1].partition("@")[0].lower().replace("_", "-")
    return _QUANTISED.sub("", last)


def _origin(config: Mapping[str, Any]) -> str:
    found = config.get("_name_or_path")
    return found if isinstance(found, str) else ""


def _is(trained_on: str, base: Checkpoint, source: Adapter) -> bool:
    """Whether a name leads to the base's very folder."""
    return any(path.exists() and os.path.samefile(path, base.path) for path in _paths(trained_on, source))


def _paths(name: str, source: Adapter) -> list[Path]:
    if "\0" in name or len(name) > 1000:
        return []
    found = [Path(name).expanduser()] + ([source.path / name] if source.path else [])
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) and (folder := mirrored(name)):
        found.append(folder)
    return found


def _opened(name: str, source: Adapter) -> Checkpoint | None:
    """The model of that name, if it is on this machine."""
    for path in _paths(name, source):
        try:
            if path.exists():
                return open_checkpoint(path)
        except (UserError, OSError):  # quantised, damaged, no model: it tells nothing
            continue
    return None


def _difference(other: Checkpoint, base: Checkpoint, options: Options) -> str:
    """In which of their sizes two models differ; "" where they agree as far as both tell."""
    for field in _SIZES:
        theirs, ours = other.config.get(field), base.config.get(field)
        if None not in (theirs, ours) and theirs != ours:
            return f"{field} {theirs}, not {ours}"
    theirs, ours = other.vocabulary, base.vocabulary
    if None not in (theirs, ours) and theirs != ours and options.vocab != "common":
        return f"a vocabulary of {theirs} tokens, not {ours}; add --vocab common if the rows they share are the same"
    return ""


def _alike(other: Checkpoint, base: Checkpoint) -> bool:
    """Whether two models hold the same numbers, as far as the first rows of some tensors of the same name and shape tell."""
    common = [name for name in base.infos if other.infos.get(name) and other.infos[name].shape == base.infos[name].shape]
    for name in common[:: max(1, len(common) // 8)]:
        if not base.infos[name].shape:
            continue
        theirs, ours = other.matrix(name)[slice(0, 4)], base.matrix(name)[slice(0, 4)].clone()
        if not torch.allclose(theirs.float(), ours.float(), rtol=2**-7, atol=1e-6, equal_nan=True):  # stored wider or narrower
            return False
    return True
