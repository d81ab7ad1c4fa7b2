"""What a front is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paretomerge.front.front import Front


def title(front: Front) -> str:
    """What the front is called: its folder, with the folder above where that is what tells it from others.

    >>> from types import SimpleNamespace
    >>> from pathlib import Path
    >>> title(SimpleNamespace(folder=Path("/models/demo/front")))
    'demo/front'
    """
    if front.folder is None:
        return "front"
    folder = front.folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "front" and folder.parent.name else folder.name
