"""Whether what a front came from is still what it was, and where."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from paretomerge.errors import UserError
from paretomerge.front import FACTS, load_front, sha256
from paretomerge.weights.checkpoint import open_checkpoint, read_json
from paretomerge.weights.writing import write_json


def relocate(folder: str | Path, base: str | Path) -> None:
    """Let a front that refers to its base (one of LoRA experts) find it in another place.

    Args:
        folder: the front.
        base: the base's new folder; it must hold the same files, by their SHA-256 where the front has recorded that.

    Raises:
        UserError: a front that holds its base itself, or another base.
    """
    folder = Path(folder).expanduser()
    front = load_front(folder, base=base)  # its tensors fit
    there = open_checkpoint(base)
    files = front.sources["base"]["files"]
    if {file.name for file in there.sources} != set(files):
        raise UserError(f"{base}: has other files than the front's base: {', '.join(sorted(files))}")
    for file in there.sources:
        if files[file.name] not in (None, sha256(file)):
            raise UserError(f"{file}: is not the file that the front was made from: name the same base")
    where = str(there.path.resolve())
    facts = read_json(folder / FACTS)
    facts["sources"]["base"]["path"] = facts["origin"] = where
    _replaced(folder / "adapter_config.json", {**read_json(folder / "adapter_config.json"), "base_model_name_or_path": where})
    _replaced(folder / FACTS, facts)


def _replaced(file: Path, content: dict[str, Any]) -> None:
    """The file with new content: beside it first, then in its place."""
    temporary = file.with_name(f".{file.name}.writing-{secrets.token_hex(4)}")
    try:
        write_json(temporary, content)
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
