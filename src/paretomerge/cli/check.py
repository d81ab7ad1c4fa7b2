"""``paretomerge check``: whether models fit together."""

from __future__ import annotations

import typer

from paretomerge.cli.flags import (  # fmt: skip
    Base,
    Exclude,
    ExpertPaths,
    Json,
    Missing,
    RecipeFile,
    TaskTensors,
    Vocab,
)
from paretomerge.cli.terminal import show, show_json


def check(
    recipe: RecipeFile = None,
    base: Base = None,
    expert: ExpertPaths = None,
    vocab: Vocab = None,
    missing: Missing = None,
    exclude: Exclude = None,
    task_tensors: TaskTensors = None,
    as_json: Json = False,
) -> None:
    """Say what would be merged, what does not fit, and what memory it takes, from headers only; exit 2 if something does not.

    Activations of a fit on data come on top of the estimates.
    """
    from paretomerge.experts.alignment import Options
    from paretomerge.experts.experts import inspect_experts
    from paretomerge.fitting.budget import estimates
    from paretomerge.recipes.reading import combined

    plan = combined(recipe, base=base, expert=expert, vocab=vocab, missing=missing, exclude=exclude, task_tensors=task_tensors)
    experts = inspect_experts(
        plan.base, plan.experts, Options(tuple(plan.exclude), tuple(plan.task_tensors), plan.vocab, plan.missing)
    )
    errors = [finding for finding in experts.findings if finding.level == "error"]
    entries = sum(experts.infos[name].numel for name in experts.merged)
    found = [] if errors else estimates(experts)
    facts = {
        "ok": not errors,
        "tasks": list(experts.tasks),
        "merged_tensors": len(experts.merged),
        "copied_tensors": len(experts.infos) - len(experts.merged),
        "merged_parameters": entries,
        "model_bytes": sum(info.nbytes for info in experts.infos.values()),
        "heads": {e.task: len(e.heads) for e in experts.experts if e.heads},
        "findings": [vars(finding) for finding in experts.findings],
        "estimates": [estimate._asdict() for estimate in found],
    }
    if as_json:
        show_json(facts)
    else:
        for finding in experts.findings:
            show(f"{finding.level}: {finding}")
        show(
            f"{'ok' if not errors else f'{len(errors)} errors'}: {len(experts)} experts; {len(experts.merged)} tensors "
            f"({entries / 1e6:.1f} M parameters) are merged, {facts['copied_tensors']} copied from the base"
        )
        for what, *each in found:
            memory, read, written = (f"{number / 2**30:.2f} GiB" for number in each)
            show(f"{what}: about {memory} of memory; reads {read}, writes {written}")
    if errors:
        raise typer.Exit(2)
