"""Where tensors come from: the files of each model and their SHA-256, and the libraries that computed with them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paretomerge.experts.experts import Experts
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.hashing import hashes_of
from paretomerge.weights.lazy import Weights
from paretomerge.weights.lora_files import Adapter
from paretomerge.weights.unchanged import check_unchanged

IN_MEMORY = "in memory"
"""The path of a model that has none."""


class Sources(Mapping[str, Any]):
    """What ``sources_of`` gives, with hashes; they are made when it is first looked at.

    By then a save has read the files, and hashed them meanwhile.
    """

    def __init__(self, experts: Experts) -> None:
        self._experts = experts

    @property
    def files(self) -> list[Path]:
        """The files that are hashed."""
        return [file for source in _sources(self._experts).values() for file in _files(source)]

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return sources_of(self._experts, hashes=True)

    def __getitem__(self, key: str) -> Any:
        return self._facts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)


def sources_of(experts: Experts, *, hashes: bool) -> dict[str, Any]:
    """Where the tensors come from: the path of each model, its files, and their SHA-256 (``hashes``).

    Raises:
        UserError: a file is hashed that is no longer the one that was opened.
    """
    sources = _sources(experts)
    found = hashes_of(file for source in sources.values() for file in _files(source)) if hashes else {}
    if hashes:
        for source in sources.values():
            check_unchanged(getattr(source, "states", ()))
    described = {
        task: {
            "path": str(getattr(source, "path", None) or IN_MEMORY),
            "files": {file.name: found.get(file) for file in _files(source)},
        }
        for task, source in sources.items()
    }
    return {"base": described.pop(""), "experts": described}


def _sources(experts: Experts) -> dict[str, Weights | Adapter]:
    """The base ("") and the experts."""
    return {"": experts.base, **{expert.task: expert.source for expert in experts.experts}}


def _files(source: Weights | Adapter) -> list[Path]:
    if isinstance(source, Adapter):
        return [source.file] if source.file else []
    return source.sources if isinstance(source, Checkpoint) else []


def paths_seen_from(folder: Path, sources: Mapping[str, Any]) -> dict[str, Any]:
    """The sources as a front in ``folder`` records them, so that it may move together with them.

    Relative to the folder where a model lies in it or beside it, absolute elsewhere.
    """
    folder = Path(os.path.abspath(folder))

    def seen(path: str) -> str:
        if path == IN_MEMORY:
            return path
        there = Path(os.path.abspath(path))
        return Path(os.path.relpath(there, folder)).as_posix() if there.is_relative_to(folder.parent) else str(there)

    return _with_paths(sources, seen)


def paths_found_from(folder: Path, sources: Mapping[str, Any]) -> dict[str, Any]:
    """The same with paths that can be opened from anywhere.

    Older fronts recorded relative paths as they were typed: such a one is tried from the working directory, too.
    """
    folder = Path(os.path.realpath(folder))

    def found(path: str) -> str:
        if path == IN_MEMORY or os.path.isabs(path):
            return path
        beside = os.path.normpath(folder / path)
        return os.path.abspath(path) if not os.path.exists(beside) and os.path.exists(path) else beside

    return _with_paths(sources, found)


def _with_paths(sources: Mapping[str, Any], of: Callable[[str], str]) -> dict[str, Any]:
    experts = {task: {**source, "path": of(source["path"])} for task, source in sources["experts"].items()}
    return {"base": {**sources["base"], "path": of(sources["base"]["path"])}, "experts": experts}


def versions() -> dict[str, str]:
    """Of the libraries that computed the numbers."""
    return {name: version(name) for name in ("paretomerge", "torch", "safetensors")} | {"python": platform.python_version()}
