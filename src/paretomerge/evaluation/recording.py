"""Measured numbers are kept: in the front, or if it can no longer be written in a file beside the work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from paretomerge.errors import UserError
from paretomerge.front.changing import changing
from paretomerge.front.front import FACTS, Front
from paretomerge.front.record import record
from paretomerge.io.leftovers import temporary
from paretomerge.results.rows import Row

_ROW = 400
"""Bytes of a row in ``pareto_set.json``, about, and of its part of the card."""


def check_recordable(front: Front, rows: int) -> None:
    """Try to write into a front's folder before anything is measured.

    Args:
        front: in a folder.
        rows: how many will be recorded.

    Raises:
        UserError: a read-only place, a full disk; another front is there by now.
    """
    assert front.folder is not None
    file = front.folder / FACTS
    try:
        with changing(front.folder, front.identity), temporary(file) as beside:
            beside.write_bytes(bytes(file.stat().st_size + rows * _ROW))
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{front.folder}: cannot be written ({why}): add --dry to measure without recording") from error


class NotRecordedError(UserError):
    """Numbers were measured, but the front can no longer be written; they are in ``rows``, and in the file that is named."""

    def __init__(self, message: str, rows: Sequence[Row]) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


def record_or_keep(front: Front, rows: Sequence[Row]) -> None:
    """Record rows in the front that was measured; if that fails, write them into a file.

    Args:
        front: as it was opened.
        rows: what was measured.

    Raises:
        NotRecordedError: why the rows are not in the front, and which file they are in.
    """
    assert front.folder is not None
    try:
        record(front.folder, rows, front.identity)
    except UserError as error:
        raise NotRecordedError(f"{error}; {_kept(front.folder.name, rows)}", rows) from error


def _kept(name: str, rows: Sequence[Row]) -> str:
    """Where the rows are now."""
    text = json.dumps(list(rows), ensure_ascii=False, indent=2)
    for place in (Path(), Path(tempfile.gettempdir())):
        try:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", prefix=f"{name}-measured-", suffix=".json", dir=place, delete=False
            ) as file:
                file.write(text)
        except OSError:
            continue
        return f"the numbers are in {place / Path(file.name).name}"
    return "the numbers are on standard output alone"
