"""Changing a front in its folder: one writer at a time, and only the set that it means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paretomerge.errors import UserError
from paretomerge.front.front import FACTS
from paretomerge.io.leftovers import sweep
from paretomerge.io.locking import locked
from paretomerge.weights.checkpoint import read_json

EXPORTS = "exports"
"""The folder in a front's folder that its page writes models into."""
_DECISIVE = ("format", "method", "tasks", "settings", "set", "heads", "files")
"""Of ``pareto_set.json``: all that decides the models. The rest is about places, versions and measured numbers."""


def identity_of(facts: Mapping[str, Any]) -> str:
    """A hash of what decides a front's models, wherever the front and its sources are.

    Args:
        facts: what ``pareto_set.json`` holds; its ``files`` has the SHA-256 of every tensor file.
    """
    decisive = {part: facts.get(part) for part in _DECISIVE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@contextmanager
def changing(folder: str | Path, identity: str | None = None) -> Iterator[dict[str, Any]]:
    """What ``pareto_set.json`` holds, while nobody else writes in the front's folder.

    What killed writers left there is removed.

    Args:
        folder: the front.
        identity: of the front that is meant (``Front.identity``); None: the one that is there.

    Raises:
        UserError: the folder is no front, or holds another one than is meant.
    """
    folder = Path(folder).expanduser()
    if not (folder / FACTS).exists():
        raise UserError(f"{folder}: not a front (no {FACTS} in it)")
    with locked(folder):
        facts = read_json(folder / FACTS)
        if identity is not None and identity_of(facts) != identity:
            raise UserError(f"{folder}: another front has been written there since this one was opened: open it again")
        sweep(folder)
        if not (folder / EXPORTS).is_symlink():
            sweep(folder / EXPORTS)
        yield facts
