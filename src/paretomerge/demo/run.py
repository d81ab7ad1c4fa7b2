"""``paretomerge demo``: fit, measure on held-out data, draw, on models and data that come with the package."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from PIL import Image
from torch import nn

from paretomerge import api, preferences
from paretomerge.data.tasks import DataSpec, Task
from paretomerge.evaluation.evaluate import evaluate, standard_preferences
from paretomerge.evaluation.measure import measure as measure_metric
from paretomerge.experts.experts import Experts, load_experts
from paretomerge.front.front import Front, front_of
from paretomerge.report.plots import Point, front_figure
from paretomerge.results.rows import EXPERT, PRETRAINED, Row, value
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.writing import whole_folder, write_marker

MEASURED = 500
"""Held-out images a task, of 1 000 that come with the package: enough for a demonstration in under a minute."""
STEPS = 6
"""Preferences between two tasks: γ = 0, 1/6, …, 1."""
KEPT = 3
"""Random preferences, beside the named ones, at which the front that is kept is measured."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of one task, the others sharing the rest."""
RESULTS, IMAGES = "demo.json", "images"
SILENCE = 4.0
"""Seconds of measuring without a line."""
SEEDS = (0, 1, 2)
FIT_STEPS = 150
"""Of a fit on data; a real one runs 600 and more."""
TA, SOUPS, PM_ATTENTION, PM_ALL = "TA 0.3", "soups", "PM, attention", "PM, all"
ADA, PM_FITTED = "AdaMerging", "PM, fitted"
NAMES = {
    SOUPS: "Rewarded Soups", PM_ATTENTION: "Pareto Merging, attention", PM_ALL: "Pareto Merging, all matrices",
    TA: "task arithmetic,\none merged model", PRETRAINED: "pretrained",
}  # fmt: skip
"""In the picture."""


@dataclass(frozen=True)
class Demo:
    """The shipped models, and each task's inputs: some to fit on, without labels, and others held out."""

    experts: Experts
    tasks: dict[str, Task]


def assets() -> Path:
    """The folder with the shipped models and data."""
    return Path(str(files("paretomerge.demo") / "assets"))


def load() -> Demo:
    """Open the shipped experts and their data."""
    root = assets()
    names = sorted(folder.name for folder in (root / "experts").iterdir())
    experts = load_experts(root / "pretrained", {name: root / "experts" / name for name in names})
    data = {name: DataSpec(path=str(root / "data" / f"{name}.npz"), evaluate_inputs=MEASURED) for name in names}
    return Demo(experts, api.load_tasks(experts, data))


def fronts(experts: Experts, seed: int) -> dict[str, Front]:
    """The sets that the demo compares."""
    return {
        SOUPS: api.fit(experts, "soup", hashes=False),
        PM_ATTENTION: api.fit(experts, rank=16, targets="attention", seed=seed),
        PM_ALL: api.fit(experts, rank=16, targets="all", seed=seed),
    }


def run(output: Path, *, fit: bool, seed: int, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Run the demo and write the front, its picture and its numbers under ``output``; with ``fit``, fit on data, too."""
    started = time.perf_counter()

    def say(text: str) -> None:
        if not quiet:
            print(f"{time.perf_counter() - started:5.1f} s  {text}", file=sys.stderr)

    with whole_folder(output, overwrite=RESULTS if overwrite else None) as folder:
        shipped = load()
        tasks = shipped.experts.tasks
        say(f"{len(tasks)} experts of one vision transformer: {', '.join(tasks)}")
        sets = fronts(shipped.experts, seed)
        say("three sets made without data; measuring on held-out images")
        rows = _told(measure(shipped, sets, seed), say)
        draw(folder / "front.png", rows, tasks, _stores(sets))
        if fit:
            rows += fitted(say)
        say("the front that is kept: measuring preferences for report and explore")
        kept = evaluate(
            sets[PM_ALL], list(shipped.tasks.values()), standard_preferences(tasks, KEPT), seed=seed, batch_size=256,
            progress=_counter(say),
        )  # fmt: skip
        beside = [row for row in rows if row["method"] in (EXPERT, PRETRAINED)]
        replace(sets[PM_ALL], measured=(*kept, *beside)).save(folder / "front")
        pictures(folder / IMAGES, tasks)
        write_marker(folder / RESULTS, {"results": rows, "stores": _stores(sets)})
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not quiet:
        show(rows, tasks, _stores(sets), fit)
        first, second = tasks[:2]
        print(f"picture: {output / 'front.png'}    front: {output / 'front'}    {time.perf_counter() - started:.0f} s")
        print(f"look:    paretomerge report {output / 'front'} -o report.html    or: paretomerge explore {output / 'front'}")
        print(f"         (explore's page lets you try the models: some images for it are in {output / IMAGES})")
        print(f"next:    paretomerge pick {output / 'front'} --head {first} "
              f"-p {first}=0.7,{second}=0.3,{','.join(f'{t}=0' for t in tasks[2:])} -o my-model")  # fmt: skip


def _told(rows: Iterable[Row], say: Callable[[str], None]) -> list[Row]:
    """The rows, counted while they are measured."""
    counted = _counter(say)
    measured = []
    for row in rows:
        measured.append(row)
        counted(row)
    return measured


def _counter(say: Callable[[str], None]) -> Callable[[Row], None]:
    """Says every few seconds how many measurements are done, and of what the last was."""
    done, last = 0, time.perf_counter()

    def count(row: Row) -> None:
        nonlocal done, last
        done += 1
        if time.perf_counter() - last > SILENCE:
            last = time.perf_counter()
            say(f"  {done} measured; now {row['method']}, {row['preference']}, on {row['task']}")

    return count


def fitted(say: Callable[[str], None]) -> list[Row]:
    """AdaMerging, and Pareto Merging on top of it, fitted on the unlabelled images with several seeds.

    The model is small: two fits side by side on a thread each take half of the time of one after the other on two.
    """
    rows = []
    workers = min(2, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        jobs = {
            pool.submit(_fitted, name, method, seed): f"{name}: fitted with seed {seed}"
            for seed in SEEDS
            for name, method in ((ADA, "adamerging"), (PM_FITTED, "pareto-merging"))
        }
        for job in as_completed(jobs):
            job.result()
            say(jobs[job])
        for job in jobs:
            rows += job.result()
    return rows


def _fitted(name: str, method: str, seed: int) -> list[Row]:
    """One fit, in a process of its own, and what it reaches."""
    shipped = load()
    front = api.fit(
        shipped.experts, method, data=shipped.tasks, hashes=False, seed=seed, steps=FIT_STEPS, batch_size=16, lr=2e-3,
        objective="distill",
    )  # fmt: skip
    rows = []
    for task in shipped.tasks:
        model = front.model("equal", head=task, dtype=torch.float32)
        for spec in ("equal", f"priority:{task}", f"only:{task}"):
            rows.append(_row(name, spec, task, front.apply_(model, spec), shipped, seed))
    return rows


def measure(shipped: Demo, sets: dict[str, Front], seed: int) -> Iterator[Row]:
    """Held-out accuracies: single models first, then each set at the preferences of the table and of the figure."""
    tasks = shipped.experts.tasks
    merged = {
        "pretrained": api.merge(shipped.experts, "task_arithmetic", scale=0.0),
        TA: api.merge(shipped.experts, "task_arithmetic", scale=0.3),
    }
    soup = sets[SOUPS]
    single = {name: front_of(ParetoSet(tasks, weights), shipped.experts, hashes=False) for name, weights in merged.items()}
    for name, front in {**single, **sets}.items():
        models = {task: front.model("equal", head=task, dtype=torch.float32) for task in tasks}
        for spec, measured in wanted(tasks) if name in sets else [("equal", tasks)]:
            for task in measured:
                front.apply_(models[task], spec)
                yield _row(name, spec, task, models[task], shipped, seed)
    for task in tasks:  # at λ = 1/K a soup's one-hot preference is the expert itself
        expert = soup.model(f"only:{task}", head=task, dtype=torch.float32)
        yield _row("expert", f"only:{task}", task, expert, shipped, seed)


def with_share(share: float, k: int, tasks: tuple[str, ...]) -> str:
    """The preference that gives task k a share and the others equal parts of the rest, by its shortest name."""
    n_tasks = len(tasks)
    names = {1 / n_tasks: "equal", float(preferences.priority_share(n_tasks)): f"priority:{tasks[k]}", 1.0: f"only:{tasks[k]}"}
    rest = (1 - share) / (n_tasks - 1)
    return names.get(share) or preferences.format([share if j == k else rest for j in range(n_tasks)], tasks)


def between(tasks: tuple[str, ...]) -> list[str]:
    """Preferences between the first two tasks."""
    others = [0.0] * (len(tasks) - 2)
    return [preferences.format([step / STEPS, 1 - step / STEPS, *others], tasks) for step in range(STEPS + 1)]


def wanted(tasks: tuple[str, ...]) -> Iterator[tuple[str, Iterable[str]]]:
    """(preference, tasks to measure there)."""
    yield "equal", tasks
    for k, task in enumerate(tasks):
        for share in SHARES:
            if (spec := with_share(share, k, tasks)) != "equal":
                yield spec, [task]
    for spec in between(tasks):
        yield spec, tasks[:2]


def show(rows: list[Row], tasks: tuple[str, ...], stores: Mapping[str, float], fit: bool) -> None:
    """The table of held-out accuracy per task."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Held-out accuracy, %. Priority and one-hot: for the task of the column.", box=None, padding=(0, 2, 0, 0)
    )
    for column in ("method", "stores", "", *tasks, "mean"):
        table.add_column(column, justify="left" if column in ("method", "") else "right", no_wrap=True)

    def add(method: str, stored: str, label: str, measured: str, spec: str) -> None:
        means = [100 * value(rows, measured, spec.format(task=task), task) for task in tasks]
        seeds = sorted({row["seed"] for row in rows if row["method"] == measured})
        of_seed = [
            fmean(100 * value([r for r in rows if r["seed"] == seed], measured, spec.format(task=t), t) for t in tasks)
            for seed in seeds
        ]
        spread = f" ± {stdev(of_seed):.1f}" if len(seeds) > 1 else ""
        table.add_row(method, stored, label, *(f"{mean:.1f}" for mean in means), f"{fmean(means):.1f}{spread}")

    for name in ("pretrained", TA):
        add(name, "1 model", "", name, "equal")
    if fit:
        add(ADA, "1 model", "", ADA, "equal")
    for name, share in [*stores.items(), *([(PM_FITTED, stores[PM_ALL])] if fit else [])]:
        table.add_row()
        add(name, f"+{share:.0%}", "equal", name, "equal")
        add("", "", "priority", name, "priority:{task}")
        add("", "", "one-hot", name, "only:{task}")
    table.add_row()
    add("experts", f"{len(tasks)} models", "", "expert", "only:{task}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    if fit:
        print(f"fitted: distilled on unlabelled images, {FIT_STEPS} steps; mean ± deviation of {len(SEEDS)} seeds")


def _stores(sets: Mapping[str, Front]) -> dict[str, float]:
    """Set -> parameters that it stores beside one model, as a share of that."""
    return {name: front.summary()["parameters"]["added_share"] for name, front in sets.items()}


def pictures(folder: Path, tasks: Iterable[str]) -> None:
    """Some held-out images of each task as files, to try on the page."""
    folder.mkdir()
    for task in tasks:
        with np.load(assets() / "data" / f"{task}.npz") as data:
            for i, image in enumerate(data["test_images"][MEASURED : MEASURED + 3]):
                Image.fromarray(image).save(folder / f"{task}-{i + 1}.png")


def draw(path: Path, rows: list[Row], tasks: tuple[str, ...], stores: Mapping[str, float]) -> None:
    """The picture: fronts of the first two tasks, and what a larger share buys."""
    first, second = tasks[:2]
    names = {method: f"{NAMES[method]} (stores +{100 * share:.0f} %)" for method, share in stores.items()}

    def points(method: str) -> list[Point]:
        return [(value(rows, method, spec, first), value(rows, method, spec, second)) for spec in between(tasks)]

    def gain(method: str, share: float) -> float:
        return fmean(value(rows, method, with_share(share, k, tasks), task) for k, task in enumerate(tasks))

    front_figure(
        path,
        (first, second),
        {name: points(method) for method, name in names.items()},
        {NAMES[name]: (value(rows, name, "equal", first), value(rows, name, "equal", second)) for name in (TA, PRETRAINED)},
        {name: [(share, gain(method, share)) for share in SHARES] for method, name in names.items()},
        (value(rows, "expert", f"only:{first}", first), value(rows, "expert", f"only:{second}", second)),
    )


def _row(method: str, preference: str, task: str, model: nn.Module, shipped: Demo, seed: int) -> Row:
    return {
        "method": method, "preference": preference, "task": task, "metric": "accuracy",
        "value": measure_metric(model, shipped.tasks[task], 256), "split": "held-out", "seed": seed,
    }  # fmt: skip
