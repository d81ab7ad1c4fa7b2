"""Where tensors come from: the files of each model and their SHA-256, and the libraries that computed with them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paretomerge.errors import UserError
from paretomerge.weights.adapter import Adapter
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.experts import Experts


def sources_of(experts: Experts, *, hashes: bool) -> dict[str, Any]:
    """Where the tensors come from: the path of each model, its files, and their SHA-256 (``hashes``)."""
    sources = {"": experts.base, **{expert.task: expert.source for expert in experts.experts}}
    files: dict[str, list[Path]] = {
        task: source.sources if isinstance(source, Checkpoint) else [source.file] if isinstance(source, Adapter) else []
        for task, source in sources.items()
    }
    found = hashes_of(file for each in files.values() for file in each) if hashes else {}
    described = {
        task: {
            "path": str(getattr(source, "path", "in memory")),
            "files": {file.name: found.get(file) for file in files[task]},
        }
        for task, source in sources.items()
    }
    return {"base": described.pop(""), "experts": described}


def versions() -> dict[str, str]:
    """Of the libraries that computed the numbers."""
    return {name: version(name) for name in ("paretomerge", "torch", "safetensors")} | {"python": platform.python_version()}


def hashes_of(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of the files' bytes, in hexadecimal."""
    ordered = sorted(set(files))
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ordered, pool.map(_sha256, ordered), strict=True))


def _sha256(file: Path) -> str:
    try:
        facts = file.stat()
        return _read_sha256(file, facts.st_size, facts.st_mtime_ns)
    except OSError as error:  # vanished since it was opened
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


@cache
def _read_sha256(file: Path, size: int, time: int) -> str:
    """Once for each state of a file: a search asks for it, and the front that it makes again."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
