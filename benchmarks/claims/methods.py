"""The methods of the tables: each a name, what it stores, and a function from a suite and a seed to a front."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch

from benchmarks.claims import vit
from benchmarks.claims.sources import CACHE
from benchmarks.claims.suite import Suite, Use, digest
from paretomerge import api
from paretomerge.data import Task
from paretomerge.evaluation import measure
from paretomerge.experts import Experts, heads_of
from paretomerge.front import Front, front_of, load_front
from paretomerge.sets import ParetoSet
from paretomerge.weights import Weights

PRECISION: Literal["bfloat16", "float32"] = "bfloat16" if vit.has_bfloat16() else "float32"
"""Of fits, searches and measurements: bfloat16 where the processor multiplies it, in 0.6 of the time."""
LIMIT = {"full": None, "quick": 100}
"""Inputs a task, to fit on and to measure on."""
FRONTS = CACHE / "claims" / "fronts"
FEW = 200
"""Where a front is measured at many preferences."""


@dataclass(frozen=True)
class Bench:
    """A suite, opened once per process: experts, and inputs for one use."""

    suite: Suite
    use: Use
    mode: str

    @cached_property
    def experts(self) -> Experts:
        return self.suite.opened()

    @cached_property
    def inputs(self) -> dict[str, Task]:
        return self.suite.inputs(self.use, limit=LIMIT[self.mode], labelled=False)

    @cached_property
    def labelled(self) -> dict[str, Task]:
        """The same with the labels of the inputs to fit on."""
        return self.suite.inputs(self.use, limit=LIMIT[self.mode], labelled=True)

    @cached_property
    def few(self) -> dict[str, Task]:
        """The same with fewer inputs to measure many preferences on."""
        return self.suite.inputs(self.use, limit=LIMIT[self.mode] or FEW)

    def steps(self, full: int) -> int:
        return full if self.mode == "full" else max(5, full // 20)

    def single(self, weights: Weights) -> Front:
        """One model, the same at every preference."""
        return front_of(ParetoSet(self.experts.tasks, weights), self.experts, hashes=False)


def solid(weights: Weights) -> Weights:
    """All tensors computed once, instead of at every reading."""
    return Weights.of({name: weights[name] for name in weights})


@lru_cache(maxsize=4)
def bench(suite: Suite, use: Use, mode: str) -> Bench:
    return Bench(suite, use, mode)


@dataclass(frozen=True)
class Method:
    """A row of the tables."""

    name: str
    make: Callable[[Bench, int], Front]
    settings: Mapping[str, Any]
    """All that decides the result but suite, use and seed: a cell whose settings changed is measured again."""
    front: bool = False
    """Has a model for every preference."""
    seeded: bool = False
    """The seed matters."""
    fitted: bool = False
    """Sees the inputs to fit on."""
    once: bool = False
    """One seed has to do: it costs much, or the seed decides little."""
    models: int = 1
    """How many whole models are stored (a soup: one, and a task vector for every expert)."""

    def __hash__(self) -> int:
        return hash(self.name)


def identity(method: Method, suite: Suite, use: Use, seed: int, mode: str, how: str = "") -> str:
    """Changes with everything that a front, or how it is measured, depends on, but the library's code."""
    stamps = [folder / "stamp.json" for folder in (suite.base.parent, next(iter(suite.data.values())).parent)]
    stamp = [file.read_text() for file in stamps if file.exists()]
    return digest(stamp, [method.name, method.settings, use, seed, how, mode, list(suite.tasks)])


def made(method: Method, on: Bench, seed: int) -> tuple[Front, dict[str, float]]:
    """A method's front and the seconds that it took to make; one that was fitted is kept, as other tables measure it, too."""
    folder = FRONTS / identity(method, on.suite, on.use, seed, on.mode)
    if method.fitted and (folder / "cost.json").exists():
        return load_front(folder / "front"), json.loads((folder / "cost.json").read_text())
    _ = on.labelled if method.settings.get("labels") else on.inputs  # read before the clock starts
    started, cpu = time.perf_counter(), time.process_time()
    front = method.make(on, seed)
    solid(front.pareto_set.base)  # merges are lazy: computing them belongs to the cost
    cost = {"wall_s": round(time.perf_counter() - started, 2), "cpu_s": round(time.process_time() - cpu, 2)}
    if method.fitted:
        shutil.rmtree(folder, ignore_errors=True)
        front.save(folder / "front")
        (folder / "cost.json").write_text(json.dumps(cost))
    return front, cost


def merged(name: str, method: str, *, seeded: bool = False, **options: Any) -> Method:
    def make(on: Bench, seed: int) -> Front:
        chosen = {key: value(on) if callable(value) else value for key, value in options.items()}
        return on.single(solid(api.merge(on.experts, method, **chosen, **({"seed": seed} if seeded else {}))))

    shown = {key: "1/K" if callable(value) else value for key, value in options.items()}
    return Method(name, make, {"method": method, **shown}, seeded=seeded)


LAMBDAS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def tuned(name: str, method: str) -> Method:
    """A merge whose λ is the one with the best mean on the validation inputs."""

    def make(on: Bench, seed: int) -> Front:
        judged = bench(on.suite, "validation", on.mode)
        fronts = [on.single(solid(api.merge(on.experts, method, scale=scale))) for scale in LAMBDAS]
        return max(fronts, key=lambda front: mean_score(front, judged.inputs))

    return Method(name, make, {"method": method, "scale": LAMBDAS})


def mean_score(front: Front, inputs: Mapping[str, Task]) -> float:
    """Mean accuracy at equal preference, or what is as good: less perplexity is more."""
    total = 0.0
    for task, given in inputs.items():
        model = front.model("equal", head=task if task in front.heads else None, dtype=torch.float32)
        with vit.fast_maths(cache=False):
            value = measure(model, given, 250)
        total += -math.log(value) if given.metric == "perplexity" else value
    return total / len(inputs)


def experts() -> Method:
    """Each task's own model, at any preference for that task alone: a soup at one-hot preferences."""
    return Method("the experts", lambda on, seed: api.fit(on.experts, "soup", hashes=False), {}, front=True, models=-1)


def soup(name: str, **options: Any) -> Method:
    return Method(name, lambda on, seed: api.fit(on.experts, "soup", hashes=False, **options), options, front=True, models=-1)


def closed_form(name: str, on_merge: str | None = None, on_options: Mapping[str, Any] | None = None, **options: Any) -> Method:
    """Pareto Merging without data, on any merge."""

    def make(on: Bench, seed: int) -> Front:
        base = None if on_merge is None else solid(api.merge(on.experts, on_merge, **(on_options or {})))
        return api.fit(on.experts, on=base, hashes=False, seed=seed, **options)

    return Method(name, make, {"on": on_merge, "on_options": on_options, **options}, front=True)


def fitted(
    name: str, method: str = "pareto-merging", *, steps: int, preset: str = "recommended", labels: bool = False, **options: Any
) -> Method:
    """A fit on the suite's inputs, without their labels unless it needs them."""

    def make(on: Bench, seed: int) -> Front:
        inputs, run = on.labelled if labels else on.inputs, {"steps": on.steps(steps), "seed": seed, "preset": preset}
        return api.fit(on.experts, method, data=inputs, hashes=False, precision=PRECISION, **run, **options)

    settings = {"method": method, "steps": steps, "preset": preset, "precision": PRECISION, **options}
    if labels:
        settings["labels"] = True
    return Method(name, make, settings, front=method not in ("adamerging", "training"), seeded=True, fitted=True)


def on_data(name: str, method: str) -> Method:
    """A merge that looks at the suite's inputs."""

    def make(on: Bench, seed: int) -> Front:
        return on.single(solid(api.merge(on.experts, method, data=on.inputs, seed=seed)))

    return Method(name, make, {"method": method}, seeded=True, fitted=True, once=True)


def searched(name: str, method: str, **options: Any) -> Method:
    """A search by accuracy on the validation inputs (their labels are needed)."""

    def make(on: Bench, seed: int) -> Front:
        judged = bench(on.suite, "validation", on.mode).few
        inputs = {task: replace(given, fit=judged[task].held_out) for task, given in on.inputs.items()}
        return api.fit(on.experts, method, data=inputs, hashes=False, seed=seed, precision=PRECISION, **options)

    settings = {"method": method, "precision": PRECISION, **options}
    return Method(name, make, settings, front=True, seeded=True, fitted=True)


def corrected(name: str, start: Method) -> Method:
    """ReACT on another method's front."""

    def make(on: Bench, seed: int) -> Front:
        inner = made(start, on, seed)[0].pareto_set
        return api.fit(on.experts, "react", data=on.inputs, on=inner, hashes=False, seed=seed, precision=PRECISION)

    settings = {"method": "react", "on": [start.name, start.settings], "precision": PRECISION}
    return Method(name, make, settings, front=True, seeded=True, fitted=True, once=True)


def one_over_k(on: Bench) -> float:
    return 1 / len(on.experts)


PRETRAINED = merged("pretrained", "task_arithmetic", scale=0.0)
EXPERTS = experts()
SINGLE = [
    merged("weight averaging", "average"),
    merged("Task Arithmetic, λ 0.3", "task_arithmetic", scale=0.3),
    merged("Task Arithmetic, λ 1/K", "task_arithmetic", scale=one_over_k),
    tuned("Task Arithmetic, λ on validation", "task_arithmetic"),
    merged("TIES, λ 1", "ties"),
    tuned("TIES, λ on validation", "ties"),
    merged("DARE + TA, λ 0.3", "dare_linear", seeded=True),
    merged("TSV-M", "tsv"),
    merged("Iso-C", "iso_c"),
    tuned("Iso-C, λ on validation", "iso_c"),
]
SOUPS = soup("Rewarded Soups")
SOUPS_03 = soup("eq. 3, λ 0.3", scale=0.3)
PM_TA = closed_form("PM on TA λ 1/K, attention", targets="attention")
PM_TA_ALL = closed_form("PM on TA λ 1/K, all matrices", targets="all")
CLOSED = [
    PM_TA,
    PM_TA_ALL,
    closed_form("PM on TA λ 0.3, attention", targets="attention", scale=0.3),
    closed_form("PM on TIES, attention", "ties", {}, targets="attention"),
    closed_form("PM on TSV-M, all matrices", "tsv", {}, targets="all"),
    closed_form("PM on Iso-C, all matrices", "iso_c", {}, targets="all"),
]
STEPS = 100
"""Of a fit in the tables; the library's default for Pareto Merging is 600, AdaMerging's paper has 500."""
LR = 5e-3
"""Of fits by entropy: AdaMerging's 500 steps of 1e-3 are as far as 100 of this, and end where they end (76.6 and 76.4)."""
ADA = fitted("AdaMerging", "adamerging", steps=STEPS, lr=LR)
ADA_TIES = fitted("AdaMerging + TIES", "adamerging", steps=STEPS, lr=LR, ties=0.2)
PAPER = fitted("AdaMerging + PM, paper", preset="paper", steps=STEPS, lr=LR)
PAPER_TIES = fitted("AdaMerging + TIES + PM, paper", preset="paper", steps=STEPS, lr=LR, ties=0.2)
ADA_DISTILLED = fitted("AdaMerging, distilled", "adamerging", steps=STEPS, objective="distill", lr=2e-3)
PM = fitted("PM, distilled, rank 16", steps=STEPS)
STEERED = fitted("steered, distilled, rank 16", "steered", steps=STEPS)
PWE = fitted("PWE-MoE, distilled, attention + MLP", "pwe-moe", steps=STEPS)
PWE_PAPER = fitted("PWE-MoE, paper, MLP (labels)", "pwe-moe", preset="paper", steps=STEPS, labels=True)
TRAINED = replace(
    fitted("multi-task training (labels)", "training", steps=STEPS, labels=True, batch_size=16, lr=4e-4), once=True
)
MAP = replace(searched("MAP, 100 evaluations", "map", evaluations=100, batch_size=FEW), once=True)
MAP_TWO = searched("MAP, 30 evaluations", "map", evaluations=30, batch_size=FEW)
REACT = [
    corrected("ReACT on TA λ 1/K", SINGLE[2]),
    corrected("ReACT on Rewarded Soups", SOUPS),
    corrected("ReACT on PM, distilled", PM),
]
MERGED_ON_DATA = [on_data("Fisher merging", "fisher"), on_data("RegMean", "regmean")]
BY_PREDICTIONS = [ADA, PAPER, ADA_TIES, PAPER_TIES, ADA_DISTILLED, PM, STEERED, REACT[0]]
"""What the papers fit on the very inputs that are measured, without labels, and ours."""
FITTED = [PM, ADA, PAPER, STEERED, PWE_PAPER, ADA_DISTILLED, *REACT, PWE, ADA_TIES, PAPER_TIES, *MERGED_ON_DATA, MAP, TRAINED]


def with_heads(front: Front, of: Experts) -> Front:
    """The front with the heads of all of a suite's experts, those of tasks that it does not know included."""
    return replace(front, heads={**heads_of(of), **front.heads})
