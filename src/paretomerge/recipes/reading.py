"""Reading recipes: files that extend each other, mergekit's configurations, and flags that complete and overrule them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from paretomerge.errors import UserError
from paretomerge.options import shown, unknown
from paretomerge.preferences import check_task
from paretomerge.recipes.flag_values import _values, parse_pairs
from paretomerge.recipes.mergekit import convert
from paretomerge.recipes.recipe import BaseMerge, Recipe, parse_size
from paretomerge.specs.data_spec import DataSpec
from paretomerge.specs.strict_yaml import parse_yaml

_LARGEST_FILE = 10**6


_BASELESS = ("average", "slerp")
"""Merges whose result does not depend on the base."""


_OF_TASKS = ("experts", "data", "metrics")
"""A recipe's maps from task to something."""
_OTHER_FILES = {
    frozenset({"genome"}): "is a mergekit-evolve file: search with fit --method map or direct-search instead",
    frozenset({"base_model", "gate_mode"}): "is a mergekit-moe file: mixtures of experts are not made here",
    frozenset({"base_model", "experts"}): "is a mergekit-moe file: mixtures of experts are not made here",
}
"""Keys of other programs' files -> why those are no recipes."""


def read_recipe(path: str | Path, *, _below: tuple[Path, ...] = ()) -> Recipe:
    """Read a recipe file, with those that it extends, or a mergekit configuration, which has a ``merge_method``.

    Raises:
        UserError: cannot be read, over 1 MB, not YAML, anchors, a key twice, an unknown key, a value of the wrong kind, recipes
            that extend each other.
    """
    path = Path(path)
    raw = _parsed(path)
    for keys, refusal in _OTHER_FILES.items():
        if keys <= raw.keys():
            raise UserError(f"{path}: {refusal}")
    recipe = convert(raw, path) if "merge_method" in raw else _validated(raw, path)

    def located(name: str) -> str:
        beside = os.path.join(path.parent, name)
        return beside if name and os.path.exists(beside) else name

    def placed(spec: DataSpec | str) -> DataSpec | str:
        if isinstance(spec, str):
            return located(spec)
        names = {key: located(name) for key in ("path", "prompts") if (name := getattr(spec, key)) is not None}
        return spec.model_copy(update=names)

    found = {
        "base": recipe.base and located(recipe.base),
        "experts": {task: located(expert) for task, expert in recipe.experts.items()},
        "data": {task: placed(spec) for task, spec in recipe.data.items()},
    }
    recipe = recipe.model_copy(update={key: value for key, value in found.items() if key in recipe.model_fields_set})
    if not recipe.extends:
        return recipe
    if path.resolve() in _below:
        raise UserError(f"{path}: extends itself")
    lower = Recipe()
    for name in recipe.extends:
        parent = read_recipe(located(name), _below=(*_below, path.resolve()))
        lower = _validated(_over(lower, _given(parent)), path).with_notices([*lower.notices, *parent.notices])
    own = {key: value for key, value in _given(recipe).items() if key != "extends"}
    return _validated(_over(lower, own), path).with_notices([*lower.notices, *recipe.notices])


def _parsed(path: Path) -> dict[str, Any]:
    """A YAML file of keys and values."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file in UTF-8") from error
    if len(content) > _LARGEST_FILE:
        raise UserError(f"{path}: over 1 MB: is this a recipe?")
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: is not a recipe: keys and values are expected, such as method: ties")
    return raw


def _given(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says itself."""
    return recipe.model_dump(exclude_unset=True)


def _over(lower: Recipe, upper: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe, completed and overruled: maps of tasks are added to; options of another method are dropped."""
    fields = {**_given(lower), **upper}
    for name in _OF_TASKS:
        if name in upper:
            fields[name] = getattr(lower, name) | upper[name]
    same = lower.method in (None, fields.get("method"))
    fields["options"] = (lower.options if same else {}) | upper.get("options", {})
    if on := upper.get("on"):
        below = lower.on or BaseMerge()
        method = on.get("method", below.method)
        fields["on"] = {"method": method, "options": (below.options if method == below.method else {}) | on.get("options", {})}
    return fields


def combined(file: str | Path | None = None, **flags: Any) -> Recipe:
    """The recipe of a file (or none), completed and overruled by flags; those that are None or empty do not count.

    Args:
        file: a recipe or mergekit file.
        **flags: Recipe's fields under their names, less these six, which are made of text: ``expert``, ``data``, ``metric``
            and ``option`` (lists of ``name=value``; they are added to the file's, but options of another method are dropped),
            ``on`` (a name) and ``on_option``. A command that has no flag ``method`` or ``on`` does not merge or takes no
            base merge.
    """
    recipe = read_recipe(file) if file is not None else Recipe()
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    texts = {"expert", "option", "on", "on_option", "data", "metric"}
    upper = {name: str(value) if isinstance(value, Path) else value for name, value in given.items() if name not in texts}
    for flag, field, example in (
        ("expert", "experts", "math=models/math"),
        ("data", "data", "math=data/math.jsonl"),
        ("metric", "metrics", "math=exact_match"),
    ):
        if flag in given:
            upper[field] = parse_pairs(given[flag], f"--{flag}", example)
    if "option" in given:
        upper["options"] = _values(given["option"], "--option")
    if "on" in given or "on_option" in given:
        named = {"method": given["on"]} if "on" in given else {}
        upper["on"] = {**named, "options": _values(given.get("on_option", []), "--on-option")}
    fields = _over(recipe, upper)
    recipe = _of_tasks(_validated(fields, None).with_notices(recipe.notices), file)
    if "method" in flags:
        if recipe.experts and recipe.base is None and recipe.method not in _BASELESS:
            raise UserError(f"no base: name the model that the experts were fine-tuned from ({_place(file, 'base')})")
        if recipe.on is not None and "on" not in flags:
            raise UserError(f"{_place(file, 'on')}: a merge is not made on another merge; it belongs to a fit")
        if recipe.paper is not None and "evaluator" not in flags:
            raise UserError(f"{_place(file, 'paper')}: a merged model has no report; a published table belongs to a fit")
        if recipe.evaluator is not None and "evaluator" not in flags:
            raise UserError(f"{_place(file, 'evaluator')}: a merge is not evaluated; an evaluator belongs to a fit")
        for name in ("closed_form", "metrics", "preset"):
            if name in recipe.model_fields_set and name not in (*flags, *(("metrics",) if "metric" in flags else ())):
                raise UserError(f"{_place(file, name)}: belongs to a fit, and would change nothing here")
    return recipe


def _of_tasks(recipe: Recipe, file: str | Path | None) -> Recipe:
    """The recipe with the experts and data of its ``tasks`` alone, in that order.

    Raises:
        UserError: a task that has neither.
    """
    if not recipe.tasks:
        return recipe
    known = recipe.experts | recipe.data
    if strangers := [task for task in recipe.tasks if task not in known]:
        raise UserError(f"{_place(file, 'tasks')}: {unknown('task', strangers[0], known)}")
    maps = {field: getattr(recipe, field) for field in _OF_TASKS}
    return recipe.model_copy(update={f: {t: each[t] for t in recipe.tasks if t in each} for f, each in maps.items()})


def _validated(raw: Mapping[str, Any], file: Path | None) -> Recipe:
    """A Recipe; without a file, messages name flags. A key whose value is empty counts as absent."""
    try:
        recipe = Recipe.model_validate({key: value for key, value in raw.items() if value is not None})
    except ValidationError as error:
        first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
        *parents, key = (str(part) for part in first["loc"])
        place = _place(file, ".".join([*parents, key]))
        if first["type"] == "extra_forbidden":
            kinds: dict[str, type[BaseModel]] = {"on": BaseMerge, "data": DataSpec}
            fields = kinds.get(parents[0] if parents else "", Recipe).model_fields
            raise UserError(f"{_place(file, '.'.join(parents))}: {unknown('key', key, fields)}") from None
        message = first["msg"].replace("Input should be ", "must be ")
        raise UserError(f"{place} {message}, not {shown(first['input'])}") from None
    for field in _OF_TASKS:
        for task in getattr(recipe, field):
            try:
                check_task(task)
            except UserError as error:
                raise UserError(f"{_place(file, field)}: {error}" if file else str(error)) from None
    try:
        parse_size(recipe.shard_size)
    except UserError as error:
        raise UserError(f"{_place(file, 'shard_size')}: {error}") from None
    return recipe


def _place(file: str | Path | None, key: str) -> str:
    """Where a key is: in a file, or a flag."""
    if file is None:
        return "--" + key.replace("_", "-")
    return f"{file}: {key}" if key else str(file)
