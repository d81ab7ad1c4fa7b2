"""How a merge runs: tensor by tensor, and within a tensor by slices of rows, so that memory does not grow with the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from paretomerge.decompositions import of_tensor
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.weights.lazy import PART, Weights, matrix_shape

Rule = Callable[[Tensor, Tensor], Tensor]
"""(base (m, n), task vectors (K, m, n)) -> merged (m, n), fp32, for some rows of a tensor; may overwrite the task vectors."""

PerTask = float | Mapping[str, float] | Sequence[float]
"""One number for all tasks, or one per task: by name, or in order."""

V = TypeVar("V")


def by_rows(experts: Experts, rule_for: Callable[[str], Rule]) -> Weights:
    """The merged model whose tensor ``name`` is computed slice by slice with ``rule_for(name)``.

    ``rule_for`` is called once each time a tensor is read, and may measure that tensor first; its rule then gets the slices
    in order.
    """

    def blocks(name: str, entries: int) -> Iterator[Tensor]:
        info = experts.infos[name]
        n_rows, columns = matrix_shape(info.shape)
        rule, filled = rule_for(name), 0
        block = torch.empty(0, columns, dtype=info.dtype)
        for _, base, task_vectors in experts.chunks(name):
            if not len(block):
                block = torch.empty(min(n_rows, max(len(base), entries // max(1, columns))), columns, dtype=info.dtype)
            if filled + len(base) > len(block):
                yield checked(block[:filled], name)
                filled = 0
            block[filled : (filled := filled + len(base))] = rule(base, task_vectors)
        yield checked(block[:filled], name)

    def checked(block: Tensor, name: str) -> Tensor:
        # NaN and infinity survive a sum, and one sum is nearly free; a finite overflow is told apart then
        wide = experts.wide(name)
        if not torch.isfinite(block.sum(dtype=wide)) and not torch.isfinite(block.to(wide)).all():
            raise experts.not_finite(name)
        return block

    def read(name: str) -> Tensor:
        return next(blocks(name, experts.infos[name].numel)).view(experts.infos[name].shape)

    return _merged(experts, read, lambda name: blocks(name, PART // experts.infos[name].dtype.itemsize))


def by_tensor(experts: Experts, combine: Callable[[str, Tensor, Tensor], Tensor]) -> Weights:
    """The merged model whose tensors are ``combine(name, base, task vectors (K, *shape))``, each taken whole."""

    def read(name: str) -> Tensor:
        info = experts.infos[name]
        wide = experts.wide(name)
        task_vectors = experts.task_vectors(name)
        if not torch.isfinite(task_vectors).all():  # a decomposition would fail without saying where
            raise experts.not_finite(name)
        with of_tensor(name):
            merged = combine(name, experts.base[name].to(wide), task_vectors).to(info.dtype)
        if not torch.isfinite(merged.to(wide)).all():
            raise experts.not_finite(name)
        return merged

    return _merged(experts, read)


def completed(experts: Experts, merged: Mapping[str, Tensor]) -> Weights:
    """The model with these tensors, in the dtype that is stored; the rest is the base's."""

    def read(name: str) -> Tensor:
        name = experts.aliases.get(name, name)
        return (merged[name] if name in merged else experts.base[name]).to(experts.infos[name].dtype)

    return Weights(experts.infos, read)


def _merged(experts: Experts, read: Callable[[str], Tensor], parts: Callable[[str], Iterator[Tensor]] | None = None) -> Weights:
    parts = parts or (lambda name: iter((read(name),)))
    merged = frozenset(experts.merged)

    def read_or_copy(name: str) -> Tensor:
        name = experts.aliases.get(name, name)
        return read(name) if name in merged else experts.base[name].to(experts.infos[name].dtype)

    def parts_or_copy(name: str) -> Iterator[Tensor]:
        name = experts.aliases.get(name, name)
        return parts(name) if name in merged else (part.to(experts.infos[name].dtype) for part in experts.base.parts(name))

    return Weights(experts.infos, read_or_copy, parts_or_copy)


def per_task(value: PerTask, tasks: Sequence[str], what: str) -> Tensor:
    """One number per task as a (K, 1, 1) fp64 tensor, to multiply task vectors with.

    Raises:
        UserError: a mapping that lacks a task or names an unknown one, a sequence of another length, no finite number.
    """
    if isinstance(value, Mapping):
        if unknown := sorted(set(value) - set(tasks)):
            raise UserError(f"{what}: no task is called {unknown[0]!r} (tasks: {', '.join(tasks)})")
        if missing := [task for task in tasks if task not in value]:
            raise UserError(f"{what}: no value for task {missing[0]!r}")
        numbers = [value[task] for task in tasks]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != len(tasks):
            raise UserError(f"{what}: {len(value)} values for {len(tasks)} tasks")
        numbers = list(value)
    else:
        numbers = [value] * len(tasks)
    if wrong := [n for n in numbers if not isinstance(n, int | float) or not math.isfinite(n)]:
        raise UserError(f"{what}: {wrong[0]!r} is not a finite number")
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)
