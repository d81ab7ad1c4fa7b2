"""Tasks' inputs, as experts and fronts need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.experts.heads import heads_of
from paretomerge.experts.in_memory import companions_of, config_of
from paretomerge.fitting.options import FitRun as FitRun
from paretomerge.front.front import Front
from paretomerge.options import unknown

if TYPE_CHECKING:
    from paretomerge.data.tasks import DataSpec, Task


def load_tasks(
    of: Experts | Front, data: Mapping[str, Task | DataSpec | str], *, keep_labels: bool = False, seed: int = 0
) -> dict[str, Task]:
    """The tasks' inputs, prepared with the tokenizer or image processor of the base and the labels of each head.

    Args:
        of: the experts to be fitted, or the front to be measured.
        data: task -> where its inputs are, or a task that is ready.
        keep_labels: let the fit see labels.
        seed: of the choice among more inputs than are wanted.

    Raises:
        UserError: data for an unknown task, or data that cannot be read.
    """
    from paretomerge.data.tasks import Task, load_task

    if strangers := [name for name in data if name not in of.tasks]:
        raise UserError(unknown("task in data", strangers[0], of.tasks))
    if isinstance(of, Front):
        heads, own, companions = of.heads, of.config, of.companions
    else:
        heads, own, companions = heads_of(of), config_of(of.base), companions_of(of.base)
    tasks = {}
    for name, spec in data.items():
        config = heads[name].config if name in heads else own
        if isinstance(spec, Task):
            tasks[name] = spec
            continue
        tasks[name] = load_task(name, spec, companions=companions, config=config, keep_labels=keep_labels, seed=seed)
        if isinstance(of, Front) and of.pareto_set.settings.get("data", {}).get(name, {}).get("split") == "transductive":
            # the fit saw the inputs that are measured on: whoever measures must say so, too
            tasks[name] = replace(tasks[name], split="transductive")
    return tasks


def tell(tasks: Mapping[str, Task], say: Callable[[str], None]) -> None:
    """What was found in the data."""
    for task in tasks.values():
        for line in task.said:
            say(f"{task.name}: {line}")
