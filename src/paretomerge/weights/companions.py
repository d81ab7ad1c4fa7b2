"""The files beside the weights that make a folder a model: what is fetched from the hub, and what is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from paretomerge.errors import UserError
from paretomerge.weights.unchanged import check_unchanged, states_of

PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "*.spm", "*.bpe", "*.codes")
"""Configurations, tokenizers of all kinds, chat templates, and the code of models that bring their own."""
FETCHED = ("*.safetensors", *PATTERNS)
NOT_FETCHED = ("consolidated*.safetensors", "*/consolidated*.safetensors", "original/*", "onnx/*", "openvino/*")
"""The same weights a second time, under the names of other programs."""
_NOT_COPIED = ("*.index.json", "adapter_config.json", "paretomerge.json", "pareto_set.json", "config.json")
_TEMPLATES = "additional_chat_templates"
"""Where transformers keeps a tokenizer's named chat templates."""
_MODULES = "modules.json"
"""sentence-transformers' list of what comes after the model: pooling, dense layers."""


def copy_companions(source: Path, folder: Path) -> None:
    """Copy a model's companions: the files in its folder, and the folders that belong to tokenizer and modules.

    Raises:
        UserError: ``modules.json`` names a folder that leads out of the model.
    """
    for pattern in PATTERNS:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not any(file.match(other) for other in _NOT_COPIED):
                _copy(file, folder / file.name)
    for name in (_TEMPLATES, *module_folders(source)):
        for file in sorted((source / name).rglob("*")):
            target = folder / file.relative_to(source)
            if file.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy(file, target)


def _copy(file: Path, target: Path) -> None:
    before = states_of((file,))
    shutil.copyfile(file, target)
    check_unchanged(before)


def module_folders(source: Path) -> Iterator[str]:
    """The folders that a sentence-transformers model's ``modules.json`` names, less the model's own.

    Raises:
        UserError: one leads out of the model.
    """
    try:
        modules = json.loads((source / _MODULES).read_text(encoding="utf-8")) if (source / _MODULES).is_file() else []
    except (OSError, ValueError, RecursionError):  # somebody else's file of that name: it is copied as it is
        return
    for module in modules if isinstance(modules, list) else []:
        name = module.get("path") if isinstance(module, dict) else None
        if not isinstance(name, str) or name in ("", "."):
            continue
        if "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{source / _MODULES}: {name[:80]!r} leads out of its folder: download the model again")
        if not (source / name).is_dir():  # a module without files of its own, such as Normalize, may have none
            continue
        yield name
