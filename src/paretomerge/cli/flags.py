"""The command line's flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[
    Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe (YAML) instead of, or completed by, the options below.")
]
RecipeData = Annotated[
    Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe (YAML): of the front's tasks, its data or its evaluator.")
]
Base = Annotated[str | None, typer.Option("--base", help="The pretrained model: folder, .safetensors file or hub name.")]
ExpertPaths = Annotated[
    list[str] | None, typer.Option("--expert", metavar="NAME=PATH", help="A model fine-tuned from the base, or a LoRA adapter.")
]
Method = Annotated[str | None, typer.Option("--method", "-m", help="The method; see paretomerge methods.")]
OptionValues = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the method, e.g. density=0.2.")
]
On = Annotated[str | None, typer.Option("--on", help="The base merge (default: task_arithmetic; with --data: learned).")]
OnOptions = Annotated[list[str] | None, typer.Option("--on-option", metavar="NAME=VALUE", help="An option of that merge.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Store as float32, bfloat16, float16 … (default: as the base).")]
ShardSize = Annotated[str | None, typer.Option("--shard-size", help="Largest file, e.g. 5GB.")]
Vocab = Annotated[str | None, typer.Option("--vocab", help="error, or common: merge the tokens that all have.")]
Missing = Annotated[str | None, typer.Option("--missing", help="error, or base: what an expert lacks is unchanged.")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Tensors to keep as in the base.")]
TaskTensors = Annotated[
    list[str] | None,
    typer.Option("--task-tensors", metavar="GLOB", help="Tensors that are not merged: each task keeps its own, like a head."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a folder that paretomerge wrote.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
HeadOf = Annotated[
    str | None, typer.Option("--head", metavar="TASK", help="Write that task's model, with its head; none: the base's class.")
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME=PATH", help="A task's inputs: fit on them (images, CSV, JSONL, text, npz, data set)."),
]
Preset = Annotated[str | None, typer.Option("--preset", help="With --data: recommended, or paper for the paper's settings.")]
RunFolder = Annotated[
    Path | None, typer.Option("--run", help="The folder of a fit's logs and states, or a search's evaluations (OUTPUT.run).")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run stopped; a search does so by itself.")]
EvaluatorOf = Annotated[
    str | None,
    typer.Option(
        "--evaluator",
        metavar="COMMAND",
        help="Shell command that prints metrics of the model folder {model} as JSON; or lm-eval.",
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="TASK=METRIC", help="With --evaluator: accuracy, or score:max:0:100 (or min)."),
]
Workers = Annotated[
    int, typer.Option("--workers", min=1, help="Number of models to evaluate in parallel (more than 1 use Ray).")
]
Ray = Annotated[str | None, typer.Option("--ray", metavar="ADDRESS", help="A Ray cluster (default: one on this machine).")]
Gpus = Annotated[float, typer.Option("--gpus", help="GPUs per worker; fractions are allowed (0.5: two workers share one).")]
Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
