"""What belongs to one task only: the tensors and the configuration that turn shared weights into that task's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.options import unknown
from paretomerge.weights.lazy import Weights
from paretomerge.weights.lora_files import Adapter
from paretomerge.weights.naming import from_base

NO_HEAD = "none"
"""Chosen for the shared weights alone, as a model of the base's own class."""


@dataclass(frozen=True)
class Head:
    """A task's own tensors and configuration, and how its model names the shared tensors."""

    tensors: Weights
    config: Mapping[str, Any]
    prefix: str
    """Before the base's names in this task's model (``vit.``); ``-vit.``: the base's names less ``vit.``."""
    lacks: tuple[str, ...] = ()
    """Tensors of the base that this task's model does not have."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The base's names -> this task's model's, where more than the prefix differs."""

    def on(self, weights: Weights, dtype: torch.dtype | None = None) -> Weights:
        """The whole model of the task: shared weights under its own names, and its head."""
        shared = weights.without(frozenset(self.lacks)).renamed(lambda name: self.names.get(name, from_base(name, self.prefix)))
        own = self.tensors.cast(dtype)
        return shared.replacing(own.infos, own.__getitem__)


def heads_of(experts: Experts) -> dict[str, Head]:
    """The heads of the experts that have one."""
    heads = {}
    for expert in experts.experts:
        if not expert.heads:
            continue
        lacks: tuple[str, ...] = ()
        names: dict[str, str] = {}
        if not isinstance(expert.source, Adapter):
            lacks = tuple(name for name in experts.infos if name not in expert.own)
            names = {name: own for name, own in expert.own.items() if own != from_base(name, expert.prefix)}
        heads[expert.task] = Head(expert.head(), expert.config, expert.prefix, lacks, names)
    return heads


def chosen_head(heads: Mapping[str, Head], head: str | None, tasks: Sequence[str]) -> str | None:
    """The task whose head a model is exported with; None: with the base's own class, as nothing else is to be chosen.

    Args:
        heads: of the tasks that have one.
        head: a task, ``"none"`` for the model without a task's head, or None: not chosen yet.
        tasks: all tasks.

    Raises:
        UserError: there are heads, and none is chosen; no such task, or a task without a head.
    """
    if head == NO_HEAD and NO_HEAD not in tasks:
        return None
    if head is not None:
        head_of(heads, head, tasks)
        return head
    if able := [task for task, own in heads.items() if own.config]:
        raise UserError(
            f"{'tasks have heads' if len(able) > 1 else 'a task has a head'} of their own ({', '.join(able)}): choose "
            f"one with --head TASK (head= in Python), or --head {NO_HEAD} for the base's own class without any of them"
        )
    return None


def head_of(heads: Mapping[str, Head], task: str, tasks: Sequence[str]) -> Head:
    """The head of one task, with all that a model needs.

    Raises:
        UserError: no such task, a task without a head, or a head without a configuration.
    """
    if task not in heads:
        if task in tasks:
            raise UserError(f"task {task} has no head of its own: leave --head out, or --head {NO_HEAD}")
        raise UserError(f"{unknown('task in head', task, tasks)}; {NO_HEAD}: without a head")
    if not heads[task].config:
        raise UserError(f"the head of task {task} came without a config.json (with a LoRA adapter): leave --head out")
    return heads[task]
