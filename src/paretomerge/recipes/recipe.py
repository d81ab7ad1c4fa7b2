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

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from paretomerge.errors import UserError
from paretomerge.options import shown
from paretomerge.specs.data_spec import DataSpec

if TYPE_CHECKING:
    import torch


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
