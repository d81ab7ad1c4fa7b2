"""How a front or a merge was asked for, as a recipe says it, for its card and its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paretomerge.options import parameters_of


def recipe_of(function: Callable[..., object], method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's ``method``, ``options``, ``on`` and ``data``; base and experts are left to whoever knows where they are.

    Args:
        function: of the method; its signature says which settings are options.
        method: its name.
        settings: what a set or a merge records of itself. Data that a recipe cannot name (they were in memory) become {}.
    """
    names = [name for name, _ in parameters_of(function)]
    recipe: dict[str, Any] = {"method": method}
    recipe["options"] = {name: settings[name] for name in names if settings.get(name) is not None}
    if isinstance(on := settings.get("on"), Mapping):
        recipe["on"] = dict(on)
    if isinstance(data := settings.get("data"), Mapping):
        named = all(isinstance(spec, Mapping) and "path" in spec for spec in data.values())
        recipe["data"] = {t: {k: v for k, v in spec.items() if k != "split"} for t, spec in data.items()} if named else {}
    return recipe
