"""Tensors of an expert that the base lacks: the head of its task, or more than a head, which is an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from paretomerge.errors import UserError
from paretomerge.experts.matching import Matching, config_of
from paretomerge.weights.lazy import Weights
from paretomerge.weights.lora_files import Adapter

_USUAL = (
    "classifier",
    "score",
    "classification_head",
    "pre_classifier",
    "qa_outputs",
    "lm_head",
    "cls",
    "v_head",
    "value_head",
)
"""Names at the root of a model that transformers and trl give to heads, of any architecture."""


def more_than_a_head(source: Weights | Adapter, base: Weights, matching: Matching, left: Collection[str]) -> list[str]:
    """Those of an expert's tensors ``left``, which the base lacks, that are no head; own names.

    A head is what the architecture calls one (``architecture.is_head_of``). Where that cannot be known (no configuration, a
    class that transformers does not have), and for modules that the class does not have, it is a module of its own: no part
    of a further layer, and no further parameter of a module that the base has.
    """
    roots = {name.split(".")[0] for name in base} | {matching.prefix.strip("-.").split(".")[0]}
    doubtful = [own for own in left if own.split(".")[0] not in _USUAL or own.split(".")[0] in roots]
    if not doubtful:
        return []
    is_head, live = (None, {}) if isinstance(source, Adapter) else _by_architecture(source, base)
    modules = _modules(base)
    wrong = []
    for own in doubtful:
        if is_head is not None and own in live:
            if not is_head(live[own]):
                wrong.append(own)
        elif _inside(matching.names[own], modules):
            wrong.append(own)
    return wrong


def _by_architecture(source: Weights, base: Weights) -> tuple[Callable[[str], bool] | None, dict[str, str]]:
    """The rule of the expert's class, and the expert's names in it; None: the class cannot be built."""
    config = config_of(source)
    if not config.get("architectures"):
        return None, {}
    from paretomerge.experts.architecture import empty_model, is_head_of, live_names

    try:
        model = empty_model(config)
    except UserError:
        return None, {}
    return is_head_of(model, _of_base(config, config_of(base))), live_names(source, model)


def _of_base(config: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
    """The base's class as the expert's configuration would have it; None for another kind of model."""
    from paretomerge.experts.architecture import empty_model

    if not base.get("architectures") or base.get("model_type") != config.get("model_type"):
        return None
    try:
        return empty_model({**config, "architectures": base["architectures"]})
    except UserError:
        return None


def _modules(names: Collection[str]) -> set[str]:
    """The paths of all modules that hold these tensors; the root is empty."""
    found = {""}
    for name in names:
        path = name.rpartition(".")[0]
        while path and path not in found:
            found.add(path)
            path = path.rpartition(".")[0]
    return found


def _inside(name: str, modules: set[str]) -> bool:
    """Whether a tensor belongs to the body: a parameter of a module that the base has, or something in or of a numbered layer.

    A module of another name within the body (a pooler) may be a head, and so may one at the root, a sequence of layers included
    (``classifier.0``); a tower of layers deeper down is none.
    """
    path = name.rpartition(".")[0]
    parts = name.split(".")
    if path and path in modules:
        return True
    while path not in modules:
        path = path.rpartition(".")[0]
    numbers = [part.isdigit() for part in parts]
    return any(numbers) if path else numbers[0] or any(numbers[2:])
