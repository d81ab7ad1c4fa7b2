"""Labels as the data write them -> numbers of the head's classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.experts.config import count, labels


def class_numbers(
    values: Sequence[Any],
    names: Sequence[str] | None,
    config: Mapping[str, Any],
    order: Sequence[str] | None,
    where: str,
    *,
    numbered: bool = False,
) -> tuple[Tensor, str]:
    """Labels as (n,) int64, and a line that says how they were read.

    Names are compared with the head's ``id2label`` (or with ``order``), in any case, with ``_`` and ``-`` as spaces. Whole
    numbers are class numbers. Names under a head whose classes are just LABEL_0, LABEL_1 … are taken in alphabetical order,
    if there are as many.

    Args:
        values: n labels: text or whole numbers.
        names: what the data call class 0, 1 …, if their labels are numbers with names.
        config: config.json of the head.
        order: the user's names of the head's classes, in the head's order.
        where: the data, for messages.
        numbered: ``order`` is that of the data's class numbers, and may call the classes otherwise than ``names``.

    Raises:
        UserError: an empty label, one that is no class, or names that are not the head's.
    """
    listed = [int(value) if isinstance(value, bool) else value for value in values]
    for row, value in enumerate(listed, 1):
        if value is None or value == "" or value == -1 or isinstance(value, float | list | dict):
            raise UserError(f"{where}: example {row} has the label {value!r}, which is no class")
    head = list(order) if order else head_classes(config)
    if len(head) < 2 and not order:
        raise UserError("the model's head has one output (regression): accuracy needs classes")
    others = ""
    if numbered and names is not None and len(names) == len(head):
        keys = _keys(head, names)
        if strange := [name for name, other in zip(head, names, strict=True) if keys[name] != keys[other]]:
            others = f"; {len(strange)} of them the data call otherwise than the prompts: {_few(strange)}"
    if names is not None and not others and (order or not _unnamed(head)):
        listed = [names[int(value)] for value in listed]
    texts = [str(value) for value in listed]
    distinct = sorted(set(texts))
    keys = _keys(head, distinct)
    known = {keys[name]: number for number, name in enumerate(head)}
    if all(keys[text] in known for text in distinct):
        table = {text: known[keys[text]] for text in distinct}
        line = f"labels: {len(distinct)} names of the {'given' if order else 'head’s'} {len(head)} classes"
    elif all(text.isdecimal() for text in distinct):
        table = {text: int(text) for text in distinct}
        if (largest := max(table.values())) >= len(head):
            raise UserError(f"{where}: has the label {largest}, but the head has {len(head)} classes (0 to {len(head) - 1})")
        line = f"labels: numbers of {len(head)} classes{others}"
    elif _unnamed(head) and len(distinct) == len(head):
        table = {text: number for number, text in enumerate(distinct)}
        line = f"labels: the head does not name its classes; taken in alphabetical order: {_few(distinct)}"
    else:
        strange = [text for text in distinct if keys[text] not in known]
        raise UserError(
            f"{where}: labels that the head does not know: {_few(strange)} (it has {len(head)}: {_few(head)}); "
            "list the data's names in the head's order with classes:"
        )
    return torch.tensor([table[text] for text in texts], dtype=torch.long), line


def head_classes(config: Mapping[str, Any]) -> list[str]:
    """The head's classes in order; LABEL_0, LABEL_1 … where config.json does not name them."""
    return [*labels(config).values()] or [f"LABEL_{i}" for i in range(count(config, "num_labels") or 2)]


def spoken(name: str) -> str:
    """A class's name as a prompt says it.

    >>> spoken("traffic_light")
    'traffic light'
    """
    return re.sub(r"[_\s]+", " ", name).strip()


def _keys(head: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Name -> what is compared: loosely, where that does not make two classes one."""
    loose = {name: spoken(name.replace("-", "_")).casefold() for name in (*head, *others)}
    return loose if len({loose[name] for name in head}) == len(set(head)) else {name: name for name in loose}


def _unnamed(head: Sequence[str]) -> bool:
    return all(name == f"LABEL_{i}" for i, name in enumerate(head))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
