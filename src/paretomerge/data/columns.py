"""Which column of the data is the text, the image, the label: what the user names, or what names and types give away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from paretomerge.data.sources import Split
from paretomerge.errors import UserError

_TEXT = ("text", "sentence", "content", "review", "tweet", "document")
_LABEL = ("label", "labels", "class", "target", "category", "fine_label")
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
_NUMBERS = ("id", "idx", "index", "guid", "uid")
"""Columns that number the rows."""


def image_column(split: Split, given: str | None) -> str:
    """The column of images.

    Raises:
        UserError: none, or several; or the given one is none.
    """
    if given is None and len(split.images) == 1:
        return next(iter(split.images))
    if given is None or given not in split.images:
        found = f"columns of images: {', '.join(sorted(split.images)) or 'none'}"
        raise UserError(f"{split.where}: which column has the images? Name it with image ({found})")
    return given


def text_columns(split: Split, text: str | None, pair: str | None, label: str | None = None) -> tuple[str, ...]:
    """The column of the text, or those of a text and its pair.

    Raises:
        UserError: no such column, or none that stands out.
    """
    columns = split.columns
    if text is None and pair is None:
        for both in _PAIRS:
            if set(both) <= set(columns):
                return both
    found = text or _first(_TEXT, columns)
    if found is None:
        others = _others(split, label or _label(split), pair)
        texts = [name for name in others if isinstance(columns[name][0], str)]
        found = texts[0] if len(texts) == 1 else None
    if found is None:
        raise UserError(f"{split.where}: which column is the text? Name it with text (columns: {', '.join(columns)})")
    names = (found,) if pair is None else (found, pair)
    for name in names:
        _check(split, name)
    return names


def label_column(split: Split, given: str | None) -> str | None:
    """The column of the labels; None where there is none.

    Raises:
        UserError: the given column does not exist.
    """
    if given is not None:
        return _check(split, given)
    found = _label(split)
    if found is None and (inputs := next(iter(split.images), None) or _first(_TEXT, split.columns)):
        others = _others(split, inputs)
        found = others[0] if len(others) == 1 else None
    return found


def _label(split: Split) -> str | None:
    return next(iter(split.names)) if len(split.names) == 1 else _first(_LABEL, split.columns)


def _others(split: Split, *known: str | None) -> Sequence[str]:
    return [name for name in split.columns if name not in known and name.lower() not in _NUMBERS]


def _first(names: Iterable[str], columns: Iterable[str]) -> str | None:
    columns = set(columns)
    return next((name for name in names if name in columns), None)


def _check(split: Split, name: str) -> str:
    if name not in split.columns:
        raise UserError(f"{split.where} has no column {name!r} (columns: {', '.join(split.columns)})")
    return name
