"""The recipe: what to merge and how, from a YAML file, from the command line's flags, or from both.

    base: models/base              # folder, .safetensors file or hub name
    experts: {math: models/math, code: models/code}
    method: pareto-merging
    options: {rank: 16}
    on: {method: ties, options: {density: 0.2}}
    output: front

A relative path in the file is looked for beside the file first, then in the working directory; what is in neither place
may be a hub name. ``output`` is relative to the working directory. Keys are text as written, and numbers and booleans
those of YAML 1.2 (``1e-3`` is a number, ``on`` and ``no`` are text). A recipe that ``extends`` others completes and overrules
them, as flags do a recipe; so what many recipes share, models or data, is in one file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from paretomerge.data.spec import DataSpec
from paretomerge.errors import UserError
from paretomerge.io.strict_yaml import parse_yaml
from paretomerge.options import shown, unknown
from paretomerge.preferences import check_task

if TYPE_CHECKING:
    import torch

_LARGEST_FILE = 10**6
_BASELESS = ("average", "slerp")
"""Merges whose result does not depend on the base."""
_OF_TASKS = ("experts", "data", "metrics")
"""A recipe's maps from task to something."""
_SHORT_DTYPES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def parse_size(size: str | int) -> int:
    """Bytes from text such as 5GB, 500 MB or 2GiB.

    >>> parse_size("1.5GB")
    1500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i)?)?B?", str(size).strip(), re.IGNORECASE)
    power = "KMGT".index(match[2].upper()) + 1 if match and match[2] else 0
    size_in_bytes = int(min(float(match[1]) * (1024 if match[3] else 1000) ** power, 2.0**62)) if match else 0
    if not size_in_bytes:
        raise UserError(f"{shown(size)} is not a size: write 5GB, for instance")
    return size_in_bytes


class BaseMerge(BaseModel):
    """The merge on which a set is built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "task_arithmetic"
    options: dict[str, Any] = {}


class Recipe(BaseModel):
    """One job of ``merge`` or ``fit``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str | None = None
    experts: dict[str, str] = {}
    method: str | None = None
    options: dict[str, Any] = {}
    on: BaseMerge | None = None
    data: dict[str, DataSpec | str] = {}
    closed_form: bool = False
    evaluator: str | None = None
    metrics: dict[str, str] = {}
    preset: Literal["recommended", "paper"] = "recommended"
    paper: Annotated[
        str | None,
        Field(description="Of a fit: a published table, such as pareto-merging/table-2, beside which report shows the front."),
    ] = None
    output: str | None = None
    dtype: Annotated[
        Literal["float64", "float32", "float16", "bfloat16"] | None,
        BeforeValidator(lambda name: _SHORT_DTYPES.get(str(name), name)),
    ] = None
    shard_size: Annotated[str, BeforeValidator(str)] = "5GB"
    vocab: Literal["error", "common"] = "error"
    missing: Literal["error", "base"] = "error"
    exclude: list[str] = []
    task_tensors: list[str] = []
    tasks: Annotated[list[str], Field(description="Of the experts and data, these alone, in this order.")] = []
    extends: Annotated[
        list[str],
        BeforeValidator(lambda names: [names] if isinstance(names, str) else names),
        Field(description="Recipes, beside this one, that it completes and overrules."),
    ] = []
    _notices: tuple[str, ...] = PrivateAttr(())

    @property
    def shard_bytes(self) -> int:
        """``shard_size`` as a number."""
        return parse_size(self.shard_size)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """``dtype`` as torch has it."""
        if self.dtype is None:
            return None
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of how a mergekit file was read."""
        return self._notices

    def with_notices(self, notices: Iterable[str]) -> Recipe:
        """The same recipe with other notices."""
        noted = self.model_copy()
        noted._notices = tuple(notices)
        return noted


def read_recipe(path: str | Path, *, _below: tuple[Path, ...] = ()) -> Recipe:
    """Read a recipe file, with those that it extends, or a mergekit configuration, which has a ``merge_method``.

    Raises:
        UserError: cannot be read, over 1 MB, not YAML, anchors, a key twice, an unknown key, a value of the wrong kind, recipes
            that extend each other.
    """
    path = Path(path)
    raw = _parsed(path)
    if "merge_method" in raw:
        from paretomerge.recipes.mergekit import convert

        recipe = convert(raw, path)
    else:
        recipe = _validated(raw, path)

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


def parse_numbers(texts: Sequence[str], flag: str) -> dict[str, float]:
    """name=number texts of a flag."""
    numbers = {}
    for name, text in parse_pairs(texts, flag, "math=0.9").items():
        try:
            numbers[name] = float(text)
        except ValueError:
            raise UserError(f"{flag} {name}={text}: {text!r} is not a number") from None
    return numbers


def parse_pairs(texts: Sequence[str], flag: str, example: str) -> dict[str, str]:
    """name=value texts of a flag, each name once."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UserError(f"{flag} {text}: write a name, = and a value, for instance {flag} {example}")
        if name in pairs:
            raise UserError(f"{flag} {text}: {name} is given twice")
        pairs[name] = value
    return pairs


def option_values(texts: Sequence[str]) -> dict[str, Any]:
    """The values of --option flags."""
    return _values(texts, "--option")


def _values(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """name=value texts, each value as YAML; one that starts like an alias (``*.attn.*``) is text."""
    pairs = parse_pairs(texts, flag, "density=0.2")
    return {name: value if value[0] in "*&!%@`|>" else parse_yaml(value, f"{flag} {name}") for name, value in pairs.items()}
