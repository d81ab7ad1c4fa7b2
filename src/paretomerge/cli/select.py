"""``paretomerge select``: a preference for an unseen task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretomerge.cli.flags import (
    HeadOf,
    Json,
    RecipeData,
    Seed,
)
from paretomerge.cli.terminal import show, show_json
from paretomerge.errors import UserError


def select(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    unseen: Annotated[
        str,
        typer.Option("--unseen", metavar="PATH", help="Inputs of a task that no expert knows, or its name in the recipe."),
    ],
    recipe: RecipeData = None,
    head: HeadOf = None,
    classes: Annotated[str | None, typer.Option("--classes", help="cat,dog,…: a zero-shot head for models like CLIP.")] = None,
    sample: Annotated[int, typer.Option("--sample", help="Preferences to try.")] = 30,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Inputs at a time.")] = 64,
    device: Annotated[str, typer.Option("--device", help="Where the model runs.")] = "auto",
    as_json: Json = False,
) -> None:
    """Choose a preference for an unseen task: the one whose model is surest of its inputs; no labels are used.

    If the inputs have labels, the model's metric at that preference is said, too.
    """
    import torch

    from paretomerge.data.tasks import load_task
    from paretomerge.evaluation.evaluate import select_unseen
    from paretomerge.evaluation.measure import measure
    from paretomerge.front.folder import load_front
    from paretomerge.models.build import device_of
    from paretomerge.recipes.reading import combined
    from paretomerge.specs.data_spec import DataSpec

    opened = load_front(front)
    known = combined(recipe).data.get(unseen, unseen)
    spec = DataSpec(path=known) if isinstance(known, str) else known
    if classes:
        spec = spec.model_copy(update={"classes": classes.split(",")})
    config = opened.head(head).config if head else opened.config
    task = load_task("unseen", spec, companions=opened.companions, config=config, seed=seed)
    inputs = task.fit or task.held_out
    if inputs is None:
        raise UserError(f"{unseen}: no inputs in it")
    found = select_unseen(
        opened, inputs, head=head, prompts=task.prompts, sample=sample, seed=seed, batch_size=batch_size, device=device
    )
    value = None
    if task.held_out is not None:
        value = measure(opened.model(found.preference, head=head, dtype=torch.float32).to(device_of(device)), task, batch_size)
    if as_json:
        measured = {} if value is None else {task.metric: value}
        show_json(found._asdict() | measured)
    else:
        show(
            f"{found.preference}: mean entropy {found.entropies[found.preference]:.4f}, the smallest of {len(found.entropies)}"
            + ("" if value is None else f"; {task.metric} there {value:.4f}")
        )
