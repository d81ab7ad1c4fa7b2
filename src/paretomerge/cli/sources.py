"""What check, merge and fit share: the experts of a plan, and the folder to write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paretomerge.cli.terminal import say
from paretomerge.errors import UserError

if TYPE_CHECKING:
    from paretomerge.experts.experts import Experts
    from paretomerge.recipes.recipe import Recipe


def loaded(plan: Recipe, quiet: bool) -> Experts:
    """The experts of a plan; what was found in them goes to standard error."""
    from paretomerge.experts.experts import load_experts

    experts = load_experts(
        plan.base, plan.experts, exclude=plan.exclude, task_tensors=plan.task_tensors, vocab=plan.vocab, missing=plan.missing
    )
    if not quiet:
        notices = [f"note: {notice}" for notice in plan.notices]
        for line in notices + [f"{finding.level}: {finding}" for finding in experts.findings]:
            say(line)
    return experts.stored_as(plan.torch_dtype)


def target(plan: Recipe, overwrite: bool, ours: str) -> Path:
    """The folder to write, known to be writable before any work is done."""
    from paretomerge.weights.writing import may_write

    if plan.output is None:
        raise UserError("no output folder: name it with --output")
    may_write(plan.output, ours if overwrite else None)
    return Path(plan.output)
