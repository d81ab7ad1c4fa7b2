"""``paretomerge demo``: fit, measure on held-out data, draw, on models and data that come with the package."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from paretomerge import api, preferences
from paretomerge.evaluation.accuracy import accuracy
from paretomerge.evaluation.results import Row, value
from paretomerge.front import Front, front_of
from paretomerge.report.plots import Point, front_figure
from paretomerge.sets.low_rank import LowRank
from paretomerge.weights.checkpoint import read_json
from paretomerge.weights.experts import Experts, load_experts
from paretomerge.weights.writing import whole_folder, write_json

STEPS = 8
"""Preferences between two tasks: γ = 0, 1/8, …, 1."""
SHARES = {0.0: "{task}=0", 0.25: "{task}=0.25", 0.5: "priority:{task}", 0.75: "{task}=0.75", 1.0: "only:{task}"}
"""Shares of one task, the others sharing the rest, and how rows name that preference."""
RESULTS = "demo.json"
TA, SOUPS, PM_ATTENTION, PM_ALL = "TA 0.3", "rewarded soups", "PM, attention", "PM, all matrices"


@dataclass(frozen=True)
class Demo:
    """The shipped models, and each task's held-out images (n, 1, 28, 28) and labels (n,)."""

    experts: Experts
    data: dict[str, tuple[Tensor, Tensor]]


def assets() -> Path:
    """The folder with the shipped models and data."""
    return Path(str(files("paretomerge.demo") / "assets"))


def load() -> Demo:
    """Open the shipped experts and their held-out data."""
    root = assets()
    tasks = sorted(folder.name for folder in (root / "experts").iterdir())
    experts = load_experts(root / "pretrained", {task: root / "experts" / task for task in tasks})
    processor = read_json(root / "pretrained" / "preprocessor_config.json")
    data = {}
    for task in tasks:
        with np.load(root / "data" / f"{task}.npz") as arrays:  # pickles are refused by default
            pixels = torch.from_numpy(arrays["test_images"]).float() * processor["rescale_factor"]
            mean, std = processor["image_mean"][0], processor["image_std"][0]
            data[task] = ((pixels[:, None] - mean) / std, torch.from_numpy(arrays["test_labels"]).long())
    return Demo(experts, data)


def fronts(experts: Experts, seed: int) -> dict[str, Front]:
    """The sets that the demo compares."""
    return {
        SOUPS: api.fit(experts, "soup", hashes=False),
        PM_ATTENTION: api.fit(experts, rank=16, targets="attention", seed=seed),
        PM_ALL: api.fit(experts, rank=16, targets="all", seed=seed),
    }


def run(output: Path, *, seed: int, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Run the demo and write the front, its picture and its numbers under ``output``."""
    started = time.perf_counter()

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    with whole_folder(output, overwrite=RESULTS if overwrite else None) as folder:
        shipped = load()
        tasks = shipped.experts.tasks
        say(f"{len(tasks)} experts of one vision transformer: {', '.join(tasks)}")
        sets = fronts(shipped.experts, seed)
        say(f"three sets fitted after {time.perf_counter() - started:.1f} s; measuring on held-out images")
        rows = list(measure(shipped, sets, seed))
        figure = folder / "front.png"
        draw(figure, rows, tasks, list(sets))
        sets[PM_ALL].save(folder / "front")
        write_json(folder / RESULTS, {"results": rows})
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not quiet:
        show(rows, tasks, sets)
        first, second = tasks[:2]
        print(f"picture: {output / 'front.png'}    front: {output / 'front'}    {time.perf_counter() - started:.0f} s")
        print(f"next:    paretomerge pick {output / 'front'} --head {first} "
              f"-p {first}=0.7,{second}=0.3,{','.join(f'{t}=0' for t in tasks[2:])} -o my-model")  # fmt: skip


def measure(shipped: Demo, sets: dict[str, Front], seed: int) -> Iterator[Row]:
    """Held-out accuracies: single models first, then each set at the preferences of the table and of the figure."""
    tasks = shipped.experts.tasks
    merged = {
        "pretrained": api.merge(shipped.experts, "task_arithmetic", scale=0.0),
        TA: api.merge(shipped.experts, "task_arithmetic", scale=0.3),
    }
    soup = sets[SOUPS]
    single = {name: front_of(LowRank(tasks, weights, {}), shipped.experts, hashes=False) for name, weights in merged.items()}
    for name, front in {**single, **sets}.items():
        models = {task: front.model("equal", head=task, dtype=torch.float32) for task in tasks}
        for spec, gamma, measured in wanted(tasks) if name in sets else [("equal", None, tasks)]:
            for task in measured:
                if gamma is not None:
                    front.apply_(models[task], gamma)
                yield _row(name, spec, task, models[task], shipped, seed)
    for task in tasks:  # at λ = 1/K a soup's one-hot preference is the expert itself
        expert = soup.model(f"only:{task}", head=task, dtype=torch.float32)
        yield _row("expert", f"only:{task}", task, expert, shipped, seed)


def wanted(tasks: tuple[str, ...]) -> Iterator[tuple[str, preferences.Preference, Iterable[str]]]:
    """(preference's name, preference, tasks to measure there)."""
    n_tasks = len(tasks)
    yield "equal", preferences.equal(n_tasks), tasks
    for k, task in enumerate(tasks):
        for share, spec in SHARES.items():
            others = (1 - share) / (n_tasks - 1)
            yield spec.format(task=task), tuple(share if j == k else others for j in range(n_tasks)), [task]
    for step in range(STEPS + 1):
        gamma = (step / STEPS, 1 - step / STEPS, *[0.0] * (n_tasks - 2))
        yield preferences.format(gamma, tasks), gamma, tasks[:2]


def show(rows: list[Row], tasks: tuple[str, ...], sets: dict[str, Front]) -> None:
    """The table of held-out accuracy per task."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Held-out accuracy, %. Priority and one-hot: for the task of the column.")
    for column in ("method", "stores", "preference", *tasks, "mean"):
        table.add_column(column, justify="left" if column in ("method", "preference") else "right")

    def add(method: str, stores: str, label: str, measured: str, spec: str) -> None:
        values = [100 * value(rows, measured, spec.format(task=task), task) for task in tasks]
        table.add_row(method, stores, label, *(f"{v:.1f}" for v in values), f"{fmean(values):.1f}")

    for name in ("pretrained", TA):
        add(name, "1 model", "", name, "equal")
    for name, front in sets.items():
        table.add_section()
        stores = f"+{front.summary()['parameters']['added_share']:.0%}"
        add(name, stores, "equal", name, "equal")
        add("", "", "priority", name, "priority:{task}")
        add("", "", "one-hot", name, "only:{task}")
    table.add_section()
    add("experts", f"{len(tasks)} models", "", "expert", "only:{task}")
    Console().print(table)


def draw(path: Path, rows: list[Row], tasks: tuple[str, ...], methods: list[str]) -> None:
    """The picture: fronts of the first two tasks, and what a larger share buys."""
    first, second = tasks[:2]

    def points(method: str) -> list[Point]:
        gammas = [(step / STEPS, 1 - step / STEPS, *[0.0] * (len(tasks) - 2)) for step in range(STEPS + 1)]
        specs = [preferences.format(gamma, tasks) for gamma in gammas]
        return [(value(rows, method, spec, first), value(rows, method, spec, second)) for spec in specs]

    front_figure(
        path,
        (first, second),
        {method: points(method) for method in methods},
        {name: (value(rows, name, "equal", first), value(rows, name, "equal", second)) for name in (TA, "pretrained")},
        {
            method: [
                (share, fmean(value(rows, method, spec.format(task=task), task) for task in tasks))
                for share, spec in SHARES.items()
            ]
            for method in methods
        },
        (value(rows, "expert", f"only:{first}", first), value(rows, "expert", f"only:{second}", second)),
    )


def _row(method: str, preference: str, task: str, model: nn.Module, shipped: Demo, seed: int) -> Row:
    return {
        "method": method, "preference": preference, "task": task, "metric": "accuracy",
        "value": accuracy(model, *shipped.data[task]), "split": "held-out", "seed": seed,
    }  # fmt: skip
