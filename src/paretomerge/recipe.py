"""The recipe: what to merge and how, from a YAML file, from the command line's flags, or from both.

    base: models/base              # folder, .safetensors file or hub name
    experts: {math: models/math, code: models/code}
    method: pareto-merging
    options: {rank: 16}
    on: {method: ties, options: {density: 0.2}}
    output: front

A relative path in the file is looked for beside the file first, then in the working directory; what is in neither place
may be a hub name. ``output`` is relative to the working directory. Keys are text as written, and numbers and booleans
those of YAML 1.2 (``1e-3`` is a number, ``on`` and ``no`` are text).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr, ValidationError

from paretomerge.errors import UserError
from paretomerge.evaluation.dataspec import DataSpec
from paretomerge.options import shown, unknown
from paretomerge.strict_yaml import parse_yaml

_LARGEST_FILE = 10**6
_BASELESS = ("average", "slerp")
"""Merges whose result does not depend on the base."""
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
    output: str | None = None
    dtype: Annotated[
        Literal["float64", "float32", "float16", "bfloat16"] | None,
        BeforeValidator(lambda name: _SHORT_DTYPES.get(str(name), name)),
    ] = None
    shard_size: Annotated[str, BeforeValidator(str)] = "5GB"
    vocab: Literal["error", "common"] = "error"
    missing: Literal["error", "base"] = "error"
    exclude: list[str] = []
    heads: list[str] = []
    _notices: tuple[str, ...] = PrivateAttr(())

    @property
    def shard_bytes(self) -> int:
        """``shard_size`` as a number."""
        return parse_size(self.shard_size)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of how a mergekit file was read."""
        return self._notices

    def with_notices(self, notices: Iterable[str]) -> Recipe:
        """The same recipe with other notices."""
        noted = self.model_copy()
        noted._notices = tuple(notices)
        return noted


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file, or a mergekit configuration, which has a ``merge_method``.

    Raises:
        UserError: cannot be read, over 1 MB, not YAML, anchors, a key twice, an unknown key, a value of the wrong kind.
    """
    path = Path(path)
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
    if "merge_method" in raw:
        from paretomerge.mergekit import convert

        recipe = convert(raw, path)
    else:
        recipe = _validated(raw, path)

    def located(name: str) -> str:
        beside = os.path.join(path.parent, name)
        return beside if name and os.path.exists(beside) else name

    return recipe.model_copy(
        update={
            "base": recipe.base and located(recipe.base),
            "experts": {task: located(expert) for task, expert in recipe.experts.items()},
            "data": {
                task: located(spec) if isinstance(spec, str) else spec.model_copy(update={"path": located(spec.path)})
                for task, spec in recipe.data.items()
            },
        }
    )


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
    fields = recipe.model_dump(exclude_unset=True)
    for name in given.keys() - {"expert", "option", "on", "on_option", "data", "metric"}:
        fields[name] = str(given[name]) if isinstance(given[name], Path) else given[name]
    if "expert" in given:
        fields["experts"] = recipe.experts | parse_pairs(given["expert"], "--expert", "math=models/math")
    if "data" in given:
        fields["data"] = recipe.data | parse_pairs(given["data"], "--data", "math=data/math.jsonl")
    if "metric" in given:
        fields["metrics"] = recipe.metrics | parse_pairs(given["metric"], "--metric", "math=exact_match")
    kept = recipe.options if recipe.method in (None, fields.get("method")) else {}
    fields["options"] = kept | _values(given.get("option", []), "--option")
    if "on" in given or "on_option" in given:
        on = recipe.on or BaseMerge()
        method = given.get("on", on.method)
        kept = on.options if method == on.method else {}
        fields["on"] = {"method": method, "options": kept | _values(given.get("on_option", []), "--on-option")}
    recipe = _validated(fields, None).with_notices(recipe.notices)
    if "method" in flags:
        if recipe.experts and recipe.base is None and recipe.method not in _BASELESS:
            raise UserError(f"no base: name the model that the experts were fine-tuned from ({_place(file, 'base')})")
        if recipe.on is not None and "on" not in flags:
            raise UserError(f"{_place(file, 'on')}: a merge is not made on another merge; it belongs to a fit")
        if recipe.evaluator is not None and "evaluator" not in flags:
            raise UserError(f"{_place(file, 'evaluator')}: a merge is not evaluated; an evaluator belongs to a fit")
    return recipe


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
