"""Writing a model from the page: into ``exports/`` under the front, nowhere else, and over nothing."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from paretomerge.errors import UserError
from paretomerge.front.changing import EXPORTS, changing
from paretomerge.front.front import Front
from paretomerge.preferences import Preference

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
# names that some systems keep for devices, with whatever ending
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def target(front: Front, name: str) -> Path:
    """The folder that an export of this name gets.

    Raises:
        UserError: the front is not in a folder; the name is more than a plain name; ``exports`` leads elsewhere.
    """
    if front.folder is None:
        raise UserError("this front is in memory only: save it first")
    name = name.strip()
    if not _NAME.fullmatch(name) or name.endswith(".") or _RESERVED.fullmatch(name):
        raise UserError("name: begin with a letter or digit, then letters, digits, dots, - and _; at most 80")
    exports = front.folder.resolve() / EXPORTS
    if exports.is_symlink() or (exports.exists() and not exports.is_dir()):
        raise UserError(f"{exports}: is no ordinary folder, so nothing is written there")
    return exports / name


def free_name(front: Front, gamma: Preference, head: str | None, *, lora: bool) -> str:
    """A name for this model that is not taken: ``math-70-code-30``, ``only-math``, ``equal-2``."""
    shares = {task: round(100 * share) for task, share in zip(front.tasks, gamma, strict=True)}
    named = {task: share for task, share in shares.items() if share}
    if max(gamma) - min(gamma) < 1e-9:
        stem = "equal"
    elif len(named) == 1:
        stem = f"only-{next(iter(named))}"
    else:
        stem = "-".join(f"{task}-{share}" for task, share in named.items())
    stem += f"-for-{head}" if head else ""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stem + ("-lora" if lora else "")).strip("._-")[:70] or "model"
    name, number = stem, 1
    while front.folder is not None and (front.folder / EXPORTS / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def export(
    front: Front,
    gamma: Preference,
    name: str,
    *,
    lora: bool = False,
    head: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write θ(γ) as a Hugging Face folder, or with ``lora`` as an adapter; returns the folder.

    Raises:
        UserError: what ``target`` and ``pick`` raise; a folder of that name exists.
    """
    folder = target(front, name)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{EXPORTS}/{folder.name} exists already: choose another name")
    with changing(folder.parent.parent, front.identity):  # so that no other front takes this one's place meanwhile
        if lora:
            front.pick_lora(gamma, folder, head=head)
        else:
            front.pick(gamma, folder, head=head, dtype=dtype)
    return folder
