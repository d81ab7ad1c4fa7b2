"""Measured rows are added to a front's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretomerge import preferences
from paretomerge.front.card import renewed
from paretomerge.front.changing import changing
from paretomerge.front.front import FACTS
from paretomerge.results.rows import Row
from paretomerge.weights.writing import replace_json, with_index, write_text


def record(folder: str | Path, rows: Iterable[Row], identity: str | None = None) -> None:
    """Add measured rows to a front's folder; a row of the same method, preference, task, metric, split and seed is replaced.

    The file is written beside the old one and renamed, so it is whole at any time; of several processes that record, one waits
    for the other.

    Args:
        folder: the front.
        rows: what was measured.
        identity: of the front that was measured (``Front.identity``); None: the one that is there now.

    Raises:
        UserError: the folder is no front, holds another one than was measured, or cannot be written.
    """
    with changing(folder, identity) as facts:
        file = Path(folder).expanduser() / FACTS
        measured = {_key(row): row for row in [*facts.get("measured", []), *rows]}
        replace_json(file, {**with_index(file.parent, facts), "measured": list(measured.values())})
        _renew_card(file.with_name("README.md"), facts, list(measured.values()))


def _renew_card(card: Path, facts: Mapping[str, Any], rows: list[Any]) -> None:
    """Bring the metrics of a front's card up to date, and leave the rest of it, which people edit, alone."""
    from paretomerge.front.tables import card_table, metrics_of
    from paretomerge.results.measured import measured

    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    tasks, method = facts["tasks"], facts["method"]
    metrics = metrics_of(measured(rows, tasks, method), preferences.equal(len(tasks)))
    write_text(card, renewed(text, method, card_table(rows, tasks, method), metrics))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("method", "preference", "task", "metric", "split", "seed"))
