"""A front's folder, opened: what ``pareto_set.json`` must hold, and the front that it describes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, cast

from pydantic import BaseModel, ValidationError, model_validator

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.experts.experts import load_experts
from paretomerge.experts.heads import Head
from paretomerge.front.changing import identity_of
from paretomerge.front.front import FACTS, FORMAT, HEADS, TENSORS, Front
from paretomerge.front.provenance import paths_found_from
from paretomerge.merges.linear import task_arithmetic
from paretomerge.options import shown
from paretomerge.results.rows import Row
from paretomerge.sets import restored
from paretomerge.weights.checkpoint import Checkpoint, open_checkpoint, read_json
from paretomerge.weights.lazy import Weights
from paretomerge.weights.unchanged import reading


class _Head(BaseModel):
    prefix: str
    lacks: list[str]
    names: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_to_one(self) -> Self:
        if len(set(self.names.values())) < len(self.names):
            raise ValueError("heads: two tensors of one name")
        return self


class _Source(BaseModel):
    path: str
    files: dict[str, str | None]


class _Sources(BaseModel):
    base: _Source
    experts: dict[str, _Source]


class _Row(BaseModel):
    method: str
    preference: str
    task: str
    metric: str
    value: float
    split: Literal["held-out", "transductive"]
    seed: int
    larger_is_better: bool | None = None


class _Facts(BaseModel):
    """What ``pareto_set.json`` must hold; the file may come from anywhere."""

    method: str
    tasks: list[str]
    settings: dict[str, Any]
    set: dict[str, Any]
    heads: dict[str, _Head]
    sources: _Sources
    files: dict[str, str] = {}
    """The front's own tensor files and their SHA-256."""
    origin: str | None = None
    """Where the base is, if the front does not hold it."""
    measured: list[_Row] = []
    recipe: dict[str, Any] = {}

    @model_validator(mode="after")
    def _names(self) -> Self:
        for task in self.tasks:
            preferences.check_task(task)  # it becomes part of a path
        for name in (*self.files, *(n for s in (self.sources.base, *self.sources.experts.values()) for n in s.files)):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name or not name:
                raise ValueError(f"files: {name[:80]!r} leads out of its folder")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or not self.heads.keys() <= set(self.tasks):
            raise ValueError("tasks must be different, and every head must be that of a task")
        return self


def load_front(folder: str | Path, *, base: str | Path | None = None) -> Front:
    """Open a front folder; tensors are read when they are needed.

    Args:
        folder: the front.
        base: of a front that refers to its base, where that is now; None: where it was.

    Raises:
        UserError: no front there, one of a later format, or one that is damaged.
    """
    folder = Path(folder).expanduser()
    while True:
        before = _place(folder)
        try:
            with reading() as files:
                front = _opened(folder, base)
        except UserError:
            if _place(folder) == before:
                raise
            continue
        if _place(folder) == before:  # otherwise another front took its place meanwhile, and this is half of each
            return replace(front, states=frozenset(files))


def _place(folder: Path) -> tuple[int, int] | None:
    """Which folder it is that has this name."""
    try:
        facts = os.stat(folder)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _opened(folder: Path, base: str | Path | None) -> Front:
    if not (folder / FACTS).exists():
        raise UserError(f"{folder}: not a front (no {FACTS} in it): make one with paretomerge fit")
    raw = read_json(folder / FACTS)
    if raw.get("format") != FORMAT:
        raise UserError(f"{folder / FACTS}: format {shown(raw.get('format'))}; this version reads {FORMAT}: update paretomerge")
    tensors = Checkpoint(folder / TENSORS, [folder / TENSORS], {})
    try:
        facts = _Facts.model_validate(raw)
        sources = paths_found_from(folder, facts.sources.model_dump())
        origin = facts.origin
        if origin is not None and not os.path.exists(origin) and os.path.exists(sources["base"]["path"]):
            origin = sources["base"]["path"]  # both have moved together
        equal, config = _equal_model(folder, origin, base)
        pareto_set = restored(facts.method, facts.tasks, equal, facts.settings, tensors, facts.set)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{folder / FACTS}: damaged ({_reason(error)}): fit the front again") from error
    heads = {}
    for task, head in facts.heads.items():
        file = folder / HEADS / task / "head.safetensors"
        own = read_json(file.with_name("config.json"))
        heads[task] = Head(Checkpoint(file, [file], {}), own, head.prefix, tuple(head.lacks), head.names)
        pareto_set.on_head(task, heads[task].tensors, pareto_set.equal)  # does it fit?
    measured = tuple(cast("Row", row.model_dump(exclude_none=True)) for row in facts.measured)
    return Front(pareto_set, config, heads, sources, folder, folder, facts.files, measured, facts.recipe, identity_of(raw))


def _equal_model(folder: Path, origin: str | None, base: str | Path | None) -> tuple[Weights, Mapping[str, Any]]:
    """The equal-preference model of a front folder, and its configuration: a checkpoint, or an adapter on its origin."""
    if origin is None:
        if base is not None:
            raise UserError(f"{folder}: holds its base itself: leave the base out")
        checkpoint = open_checkpoint(folder)
        return checkpoint, checkpoint.config
    try:
        start = open_checkpoint(base or origin)
    except UserError as error:
        if base is not None:
            raise
        cure = f"paretomerge relocate {shlex.quote(str(folder))} --base PATH, if it was moved"
        raise UserError(f"{folder / FACTS}: refers to a base that cannot be opened ({error}): {cure}") from error
    experts = load_experts(start.path, {"equal": folder})
    return task_arithmetic(experts, scale=1.0), start.config


def _reason(error: Exception) -> str:
    """What is wrong with a damaged front, in one line."""
    if not isinstance(error, ValidationError):
        return repr(error) if isinstance(error, LookupError) else " ".join(str(error).split())
    first = error.errors()[0]
    return ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)
