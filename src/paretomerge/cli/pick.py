"""``paretomerge pick``: the model or adapter that a preference asks for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paretomerge.cli.flags import Data, Dtype, HeadOf, Json, OptionValues, Overwrite, Quiet, RecipeData, ShardSize
from paretomerge.cli.terminal import done, progress, say
from paretomerge.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from paretomerge.data.tasks import Task
    from paretomerge.front.front import Front
    from paretomerge.sets.pareto_set import Preference
    from paretomerge.specs.data_spec import DataSpec


def pick(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    recipe: RecipeData = None,
    preference: Annotated[
        str | None, typer.Option("--preference", "-p", help="math=0.7,code=0.3 (normalised), equal, priority:math, only:math.")
    ] = None,
    at_least: Annotated[
        list[str] | None,
        typer.Option("--at-least", metavar="TASK=VALUE", help="Of the measured ones: good enough here …"),
    ] = None,
    maximise: Annotated[str | None, typer.Option("--maximise", metavar="TASK", help="… and best at this task.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The measured preference where the front bends most.")] = False,
    lora: Annotated[bool, typer.Option("--lora", help="Write a PEFT LoRA adapter on the front's base instead.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="With --lora: of the adapter at most; the error is said.")] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="With --lora: the name under which the adapter finds the front.")
    ] = None,
    head: HeadOf = None,
    data: Data = None,
    option: OptionValues = None,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the model that a preference asks for: a Hugging Face checkpoint, or with --lora a small adapter.

    Instead of a preference: --at-least and --maximise, or --knee, which choose one of those that evaluate has measured.

    With --option head_steps=200 or norm_statistics=true, the head of --head or batch norms' statistics are made anew on the
    task's labelled inputs (--data, or a recipe's).
    """
    started = time.perf_counter()
    from paretomerge.experts.heads import chosen_head
    from paretomerge.front.folder import load_front
    from paretomerge.recipes.flag_values import option_values
    from paretomerge.recipes.reading import combined
    from paretomerge.weights.writing import may_write

    plan = combined(recipe, data=data, dtype=dtype, shard_size=shard_size)
    opened = load_front(front)
    chosen = chosen_head(opened.heads, head, opened.tasks)
    if sum([preference is not None, knee, bool(at_least or maximise)]) != 1:
        raise UserError("say which model: either --preference, or --at-least with --maximise, or --knee")
    facts: dict[str, Any] = {}
    if preference is None:
        from paretomerge.recipes.flag_values import parse_numbers
        from paretomerge.results.queries import best_with
        from paretomerge.results.queries import knee as knee_of

        if knee:
            found = knee_of(opened.own_rows, opened.tasks)
        elif maximise is None:
            raise UserError("--at-least needs --maximise TASK: of the models that are good enough, the best at what?")
        else:
            enough = parse_numbers(at_least or [], "--at-least")
            found = best_with(opened.own_rows, opened.tasks, at_least=enough, maximise=maximise)
        preference, facts = found.preference, {"measured": found.values, "of": found.points}
        if not quiet:
            say(f"{preference}: of {found.points} measured preferences")
    gamma = opened.pareto_set.preference(preference)
    may_write(output, "paretomerge.json" if overwrite else None)
    facts = {"preference": dict(zip(opened.tasks, gamma.tolist(), strict=True)), **facts}
    if lora:
        if dtype or shard_size:
            raise UserError("--dtype and --shard-size do not go with --lora: an adapter is one small file in float32")
        if option or data or recipe:
            raise UserError("--option, --data and a recipe do not go with --lora: a tuned head is written into a checkpoint")
        error = opened.pick_lora(gamma, output, head=head, rank=rank, base_model=base_model, overwrite=overwrite)
        if rank is not None:
            facts = {**facts, "rank": rank, "relative_error": round(error, 6)}
            if not quiet:
                say(f"rank {rank} at most: relative error of the adapted matrices {error:.2%}")
        done(output, None, started, quiet, as_json, facts)
        return
    if base_model or rank is not None:
        raise UserError("--base-model and --rank go with --lora only")
    tuned = None
    if option or data or recipe:
        tuned = tuned_for(opened, gamma, chosen, plan.data, option_values(option or []))
    weights = opened.at(gamma, plan.torch_dtype, chosen)
    with progress("writing", len(weights), weights.nbytes, quiet) as tick:
        opened.write_picked(
            weights, gamma, output, head=chosen, shard_bytes=plan.shard_bytes, overwrite=overwrite, progress=tick, tuned=tuned
        )
    done(output, weights, started, quiet, as_json, facts)


def tuned_for(
    front: Front,
    preference: Preference,
    head: str | None,
    data: Mapping[str, Task | DataSpec | str],
    options: Mapping[str, Any],
) -> dict[str, Tensor]:
    """``tuned_tensors`` for the arguments of ``pick``.

    Args:
        front: the set.
        preference: γ.
        head: the task whose model is written.
        data: task -> its inputs.
        options: of ``Tuning``.

    Raises:
        UserError: options that are wrong, or nothing to do; no head; no data of that task.
    """
    from paretomerge.api import load_tasks
    from paretomerge.evaluation.tuning import Tuning, tuned_tensors
    from paretomerge.options import check_options

    tuning = Tuning(**check_options(Tuning, options, "pick"))
    if not tuning:
        raise UserError("pick: data are for tuning: say how with --option head_steps=200, or --option norm_statistics=true")
    if head is None:
        raise UserError("pick: a model is tuned for one task: name it with --head")
    if head not in data:
        raise UserError(f"task {head} has no inputs to tune on: name them with --data {head}=PATH")
    task = load_tasks(front, {head: data[head]}, keep_labels=True)[head]
    return tuned_tensors(front, preference, task, tuning)
