"""A folder in the hub's place: for machines that do not reach it.

With ``PARETOMERGE_MIRROR=/data/hub`` the model ``org/name`` is looked for in ``/data/hub/org/name`` and the data set of that
name in ``/data/hub/datasets/org/name``, as the hub's own addresses go, each as ``hf download --local-dir`` or ``git clone``
leaves it. What is not there is asked of the hub.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PARETOMERGE_MIRROR"


def mirrored(name: str, kind: str = "") -> Path | None:
    """The folder that stands for a repository of the hub, if there is one; a revision is not looked at.

    Args:
        name: ``org/name`` or ``org/name@revision``.
        kind: ``""`` for a model, ``"datasets"``.
    """
    root = os.environ.get(VARIABLE)
    folder = Path(root).expanduser() / kind / name.partition("@")[0] if root else None
    return folder if folder and folder.is_dir() else None
