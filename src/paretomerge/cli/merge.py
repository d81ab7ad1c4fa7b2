"""``paretomerge merge``: one merged model."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import typer

from paretomerge.cli.flags import (  # fmt: skip
    Base,
    Data,
    Dtype,
    Exclude,
    ExpertPaths,
    HeadOf,
    Json,
    Method,
    Missing,
    OptionValues,
    Output,
    Overwrite,
    Quiet,
    RecipeFile,
    ShardSize,
    TaskTensors,
    Vocab,
)
from paretomerge.cli.sources import loaded, target
from paretomerge.cli.terminal import done, progress, say, status


def merge(
    recipe: RecipeFile = None,
    base: Base = None,
    expert: ExpertPaths = None,
    method: Method = None,
    option: OptionValues = None,
    data: Data = None,
    output: Output = None,
    lora: Annotated[bool, typer.Option("--lora", help="Of LoRA experts: write their sum as one adapter.")] = False,
    head: HeadOf = None,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    vocab: Vocab = None,
    missing: Missing = None,
    exclude: Exclude = None,
    task_tensors: TaskTensors = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge to one model: average, task_arithmetic, ties, dare_linear, dare_ties, della, slerp, tsv, iso_c; fisher, regmean.

    The last two look at inputs of each task (--data). A mergekit YAML is a recipe, too.
    """
    from paretomerge.recipes.reading import combined

    started = time.perf_counter()
    plan = combined(
        recipe, base=base, expert=expert, method=method, option=option, data=data, output=output, dtype=dtype,
        shard_size=shard_size, vocab=vocab, missing=missing, exclude=exclude, task_tensors=task_tensors,
    )  # fmt: skip
    folder = target(plan, overwrite, "paretomerge.json")
    from paretomerge import api
    from paretomerge.experts.heads import chosen_head, heads_of
    from paretomerge.front.saving import save

    experts = loaded(plan, quiet)
    chosen_head(heads_of(experts), head, experts.tasks)  # a wrong one is refused before the work
    method = plan.method or "task_arithmetic"
    with status("asking the experts", quiet or not plan.data):
        merged = api.merge(experts, method, data=plan.data, say=partial(say, quiet=quiet), **plan.options)
    with progress("merging", len(merged), merged.nbytes, quiet or lora) as tick:
        save(
            merged,
            folder,
            without_config=True,
            head=head,
            lora=lora,
            shard_bytes=plan.shard_bytes,
            overwrite=overwrite,
            progress=tick,
        )
    done(folder, None if lora else merged, started, quiet, as_json, {"method": method})
