"""The command line. Heavy imports happen inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from paretomerge import looking, showing
from paretomerge.errors import Stopped, UserError
from paretomerge.flags import (
    Base,
    Data,
    Dtype,
    EvaluatorOf,
    Exclude,
    ExpertPaths,
    Gpus,
    HeadOf,
    Heads,
    Json,
    Method,
    Metrics,
    Missing,
    On,
    OnOptions,
    OptionValues,
    Output,
    Overwrite,
    Preset,
    Quiet,
    Ray,
    RecipeFile,
    Resume,
    RunFolder,
    ShardSize,
    Vocab,
    Workers,
)  # fmt: skip
from paretomerge.terminal import done, fitting_bar, progress, searching_bar, status

if TYPE_CHECKING:
    import torch

    from paretomerge.recipe import Recipe
    from paretomerge.weights.experts import Experts

app = typer.Typer(
    help="Merge fine-tuned models into one for every preference over their tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_STOPPED = 130
"""The exit code of a program that was interrupted (Ctrl-C)."""
_NO_MEMORY = "not enough memory: raise the limit (ulimit -v, control group), or fit smaller batches"


@app.command()
def check(
    recipe: RecipeFile = None,
    base: Base = None,
    expert: ExpertPaths = None,
    vocab: Vocab = None,
    missing: Missing = None,
    exclude: Exclude = None,
    heads: Heads = None,
    as_json: Json = False,
) -> None:
    """Say what would be merged, what does not fit, and what memory it takes, from headers only; exit 2 if something does not.

    Activations of a fit on data come on top of the estimates.
    """
    plan = _recipe(recipe, base=base, expert=expert, vocab=vocab, missing=missing, exclude=exclude, heads=heads)
    from paretomerge.budget import estimates

    experts = _inspected(plan)
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
        print(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        for finding in experts.findings:
            print(f"{finding.level}: {finding}")
        print(
            f"{'ok' if not errors else f'{len(errors)} errors'}: {len(experts)} experts; {len(experts.merged)} tensors "
            f"({entries / 1e6:.1f} M parameters) are merged, {facts['copied_tensors']} copied from the base"
        )
        for what, *each in found:
            memory, read, written = (f"{number / 2**30:.2f} GiB" for number in each)
            print(f"{what}: about {memory} of memory; reads {read}, writes {written}")
    if errors:
        raise typer.Exit(2)


@app.command()
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
    heads: Heads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge to one model: average, task_arithmetic, ties, dare_linear, dare_ties, della, slerp, tsv, iso_c; fisher, regmean.

    The last two look at inputs of each task (--data). A mergekit YAML is a recipe, too.
    """
    started = time.perf_counter()
    plan = _recipe(
        recipe, base=base, expert=expert, method=method, option=option, data=data, output=output, dtype=dtype,
        shard_size=shard_size, vocab=vocab, missing=missing, exclude=exclude, heads=heads,
    )  # fmt: skip
    folder = _target(plan, overwrite, "paretomerge.json")
    from paretomerge import api
    from paretomerge.export.huggingface import write_model
    from paretomerge.export.lora import write_sum_of_adapters
    from paretomerge.provenance import sources_of, versions
    from paretomerge.weights.heads import head_of, heads_of

    experts = _loaded(plan, quiet)
    method = plan.method or "task_arithmetic"
    with status("asking the experts", quiet or not plan.data):
        merged = api.merge(experts, method, data=plan.data, say=_said(quiet), **plan.options)
    config = getattr(experts.base, "config", {})
    if head is not None:
        own = head_of(heads_of(experts), head, experts.tasks)
        merged, config = own.on(merged, _dtype(plan.dtype)), own.config
    path = getattr(experts.base, "path", None)
    provenance = {
        "method": method,
        "settings": plan.options,
        "sources": sources_of(experts, hashes=False),
        "versions": versions(),
    }
    if lora:
        write_sum_of_adapters(merged, folder, config=config, provenance=provenance, overwrite=overwrite)
        done(folder, None, started, quiet, as_json, {"method": provenance["method"]})
        return
    with progress("merging", len(merged), merged.nbytes, quiet) as tick:
        write_model(
            merged, folder, config=config, companions=path if path and path.is_dir() else None, provenance=provenance,
            shard_bytes=plan.shard_bytes, overwrite=overwrite, progress=tick,
        )  # fmt: skip
    done(folder, merged, started, quiet, as_json, {"method": provenance["method"]})


@app.command()
def fit(
    recipe: RecipeFile = None,
    base: Base = None,
    expert: ExpertPaths = None,
    method: Method = None,
    option: OptionValues = None,
    on: On = None,
    on_option: OnOptions = None,
    data: Data = None,
    closed_form: Annotated[
        bool | None, typer.Option("--closed-form", help="With --data: they are for the base merge only (--on fisher, regmean).")
    ] = None,
    evaluator: EvaluatorOf = None,
    metric: Metrics = None,
    preset: Preset = None,
    run_folder: RunFolder = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="With --data: also log for TensorBoard in the run's folder.")
    ] = False,
    resume: Resume = False,
    workers: Workers = 1,
    ray: Ray = None,
    gpus: Gpus = 0.0,
    output: Output = None,
    copy_base: Annotated[
        bool, typer.Option("--copy-base", help="Write the whole model, though LoRA experts need a reference to the base only.")
    ] = False,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    vocab: Vocab = None,
    missing: Missing = None,
    exclude: Exclude = None,
    heads: Heads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a front, a model for every preference: pareto-merging (in closed form, or on --data) or soup.

    With --data also steered, pwe-moe, adamerging, react (corrects the features of what --on names), training (all parameters).

    map, map-nested, map-bayesian, direct-search and moead search by evaluations alone, of labelled --data or an --evaluator.

    The front's folder is itself the model at equal preference; paretomerge pick writes the others.
    """
    started = time.perf_counter()
    plan = _recipe(
        recipe, base=base, expert=expert, method=method, option=option, on=on, on_option=on_option, data=data,
        closed_form=closed_form, evaluator=evaluator, metric=metric, preset=preset, output=output, dtype=dtype,
        shard_size=shard_size, vocab=vocab, missing=missing, exclude=exclude, heads=heads,
    )  # fmt: skip
    folder = _target(plan, overwrite, "pareto_set.json")
    from paretomerge import api
    from paretomerge.fitting.searches import SEARCHES

    searched = plan.method in SEARCHES
    on_data = bool(plan.data) and not plan.closed_form and not searched
    if (not (on_data or searched) and (run_folder or resume)) or (not on_data and tensorboard):
        words = "--run, --resume and --tensorboard belong to a fit on data"
        raise UserError(f"{words}: name the inputs with --data, and leave out --closed-form")
    if not searched and (workers > 1 or ray or gpus):
        raise UserError(f"--workers, --ray and --gpus belong to a search: {', '.join(SEARCHES)}")
    states = run_folder or folder.with_name(folder.name + ".run")
    experts = _loaded(plan, quiet)
    named = {"method": plan.method or "pareto-merging", "preset": plan.preset, "paper": plan.paper}
    arguments: dict[str, Any] = {**named, **plan.options}
    if plan.on:
        arguments |= {"on": plan.on.method, "on_options": plan.on.options}
    if searched or plan.evaluator or plan.metrics:
        arguments |= {"data": plan.data or None, "evaluator": plan.evaluator, "metrics": plan.metrics}
        with searching_bar(quiet) as report:
            run = api.FitRun(states, resume, report, _said(quiet), workers=workers, ray=ray, gpus=gpus)
            front = api.fit(experts, run=run if searched else None, **arguments)
    elif on_data:
        from paretomerge.fitting.processes import joined

        with joined() as first, fitting_bar(experts.tasks, quiet or not first) as report:
            run = api.FitRun(states, resume, report, _said(quiet or not first), tensorboard)
            front = api.fit(experts, data=plan.data, run=run, **arguments)
        if not first:  # of several processes one writes
            return
    else:
        told = api.FitRun(say=_said(quiet)) if plan.data else None
        with status("fitting", quiet):
            front = api.fit(experts, data=plan.data, closed_form=plan.closed_form, run=told, **arguments)
    tensors, _ = front.pareto_set.stored()
    written = front.pareto_set.base
    with progress("writing", len(written) + len(tensors), written.nbytes + tensors.nbytes, quiet) as tick:
        front.save(folder, overwrite=overwrite, copy_base=copy_base, shard_bytes=plan.shard_bytes, progress=tick)
    done(folder, written, started, quiet, as_json, front.summary())


@app.command()
def pick(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
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
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the model that a preference asks for: a Hugging Face checkpoint, or with --lora a small adapter.

    Instead of a preference: --at-least and --maximise, or --knee, which choose one of those that evaluate has measured.
    """
    started = time.perf_counter()
    from paretomerge import preferences
    from paretomerge.opening import load_front
    from paretomerge.weights.writing import may_write

    plan = _recipe(None, dtype=dtype, shard_size=shard_size)
    opened = load_front(front)
    if sum([preference is not None, knee, bool(at_least or maximise)]) != 1:
        raise UserError("say which model: either --preference, or --at-least with --maximise, or --knee")
    facts: dict[str, Any] = {}
    if preference is None:
        from paretomerge.evaluation.queries import best_with
        from paretomerge.evaluation.queries import knee as knee_of
        from paretomerge.recipe import parse_numbers

        if knee:
            found = knee_of(opened.own_rows, opened.tasks)
        elif maximise is None:
            raise UserError("--at-least needs --maximise TASK: of the models that are good enough, the best at what?")
        else:
            enough = parse_numbers(at_least or [], "--at-least")
            found = best_with(opened.own_rows, opened.tasks, at_least=enough, maximise=maximise)
        preference, facts = found.preference, {"measured": found.values, "of": found.points}
        if not quiet:
            print(f"{preference}: of {found.points} measured preferences", file=sys.stderr)
    gamma = preferences.parse(preference, opened.tasks)
    may_write(output, "paretomerge.json" if overwrite else None)
    facts = {"preference": dict(zip(opened.tasks, gamma, strict=True)), **facts}
    if lora:
        if dtype or shard_size:
            raise UserError("--dtype and --shard-size do not go with --lora: an adapter is one small file in float32")
        error = opened.pick_lora(gamma, output, head=head, rank=rank, base_model=base_model, overwrite=overwrite)
        if rank is not None:
            facts = {**facts, "rank": rank, "relative_error": round(error, 6)}
            if not quiet:
                print(f"rank {rank} at most: relative error of the adapted matrices {error:.2%}", file=sys.stderr)
        done(output, None, started, quiet, as_json, facts)
        return
    if base_model or rank is not None:
        raise UserError("--base-model and --rank go with --lora only")
    weights = opened.at(gamma, _dtype(plan.dtype), head)
    with progress("writing", len(weights), weights.nbytes, quiet) as tick:
        opened.pick(
            gamma, output, head=head, dtype=_dtype(plan.dtype), shard_bytes=plan.shard_bytes, overwrite=overwrite,
            progress=tick,
        )  # fmt: skip
    done(output, weights, started, quiet, as_json, facts)


for _command in (
    looking.evaluate,
    looking.select,
    looking.info,
    showing.explore,
    showing.report,
    looking.methods,
    looking.relocate,
    looking.verify,
    looking.demo,
):
    app.command()(_command)


def main() -> None:
    """The entry point: a user's mistake is one line on standard error and exit code 2, never a traceback."""
    # idle OpenMP threads that spin would take the cores from whatever else runs, ourselves included
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(_STOPPED)
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, EOFError, typer.Abort):
        code = _STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # the system's no: permissions, a full disk
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError:
        _fail(_NO_MEMORY)
    except Exception as error:
        if "can't allocate memory" in str(error) or "unable to mmap" in str(error):  # torch's way to say it
            _fail(_NO_MEMORY)
        # a mistake in the flags: click's exception, wherever this version of typer keeps click
        if not hasattr(error, "format_message"):
            raise
        if message := error.format_message():
            _fail(message)
        code = 2  # no command, and the help has been shown
    if code == _STOPPED:
        print("stopped", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _recipe(file: Path | None, **flags: Any) -> Recipe:
    """The recipe that a file and flags describe together; what a flag says counts."""
    from paretomerge.recipe import combined

    return combined(file, **flags)


def _inspected(plan: Recipe) -> Experts:
    from paretomerge.weights.alignment import Options
    from paretomerge.weights.experts import inspect_experts

    options = Options(tuple(plan.exclude), tuple(plan.heads), plan.vocab, plan.missing)
    return inspect_experts(plan.base, plan.experts, options)


def _loaded(plan: Recipe, quiet: bool) -> Experts:
    from paretomerge.weights.experts import load_experts

    experts = load_experts(
        plan.base, plan.experts, exclude=plan.exclude, heads=plan.heads, vocab=plan.vocab, missing=plan.missing
    )
    if not quiet:
        notices = [f"note: {notice}" for notice in plan.notices]
        for line in notices + [f"{finding.level}: {finding}" for finding in experts.findings]:
            print(line, file=sys.stderr)
    return experts.stored_as(_dtype(plan.dtype))


def _said(quiet: bool) -> Callable[[str], None]:
    """Who prints what the user should know, a line at a time."""
    return lambda line: None if quiet else print(line, file=sys.stderr)


def _target(plan: Recipe, overwrite: bool, ours: str) -> Path:
    """The folder to write, known to be writable before any work is done."""
    from paretomerge.weights.writing import may_write

    if plan.output is None:
        raise UserError("no output folder: name it with --output")
    may_write(plan.output, ours if overwrite else None)
    return Path(plan.output)


def _dtype(name: str | None) -> torch.dtype | None:
    """The dtype of a name that a recipe has checked."""
    if name is None:
        return None
    import torch

    found: torch.dtype = getattr(torch, name)
    return found
