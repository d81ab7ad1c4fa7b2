"""MAP on the demo's tasks: does it find the front that direct search finds, and with how many evaluations?

    .venv/bin/python benchmarks/map_search.py                       # everything; a quarter of an hour on a free core
    .venv/bin/python benchmarks/map_search.py --pairs 1 --triples 0 --seeds 1 --inputs 50   # does it run?

All subsets of two and of three of the demo's four experts, accuracy on labelled images, box [0, 1]^N. θ(c) is made in fp32 and
runs in bf16 (50 ms for 200 images on a core with AMX; 125 in fp32). Every evaluation is kept in `benchmarks/.cache`
(PARETOMERGE_CACHE names another folder) and every row in the results, so a stopped run goes on. For each subset:

    direct      200 c for two tasks, 300 for three: a grid, filled up; its non-dominated points
    MAP         30 or 50 c (Sobol points), NSGA-III on the surrogates; its front is measured: all points that the
                win rate compares were evaluated
    win rate    of MAP's front over direct search's (a tie counts one half; the paper's count, ties lost, beside it), on the
                inputs that both searches saw, of which direct search keeps the luckiest of 200, and on inputs that neither saw
    measured    the same of the non-dominated of all that MAP evaluated with 10 points of its front, beyond the 30 or 50 c or
                among them: chosen by what was seen, as direct search's are; and of the 30 or 50 alone, without a surrogate
    R²          of each surrogate on held-out c, and of the whole front: measured against predicted
    Bayesian    6 + 2 × 3 c (N = 2) against 6 and 12 at random, many seeds. The truth here is a smoothing spline
                (RBF, thin plate) of everything that was evaluated of that pair, since each front has to be measured for a
                fair distance: IGD and GD to the spline's own front from a 101 × 101 grid, metrics scaled by that front
    selection   on these splines: the win rate of the true front, by exact and by noisy evaluations (the noise: what the spline
                misses on held-out c), seen and true
    nested      all four tasks, equal and priority preferences: task-evaluations, and the preference-weighted accuracy

Results go to benchmarks/results/map_search.json.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator

from paretomerge import api, preferences
from paretomerge.data import Inputs, Task
from paretomerge.demo import assets
from paretomerge.evaluation import measure
from paretomerge.experts import heads_of, load_experts
from paretomerge.models import SharedModels
from paretomerge.results import Objective, generational_distance, inverted_generational_distance, non_dominated, win_rate
from paretomerge.search import bayesian, box, budget, direct_search, nested, plain, r_squared
from paretomerge.sets import choose

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("PARETOMERGE_CACHE") or HERE / ".cache")
COMPARED = 20
"""Points of MAP's front that are measured for the win rate."""
COMPARED_UNSEEN = 15
"""Of these, those that are measured on inputs that no search saw, for the first seed."""
OTHERS = 200
"""Images a task, at the most, that no search sees."""
BATCH = 100


class Some:
    """Some of a task's inputs."""

    def __init__(self, whole: Inputs, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, list(indices)
        self.labels = whole.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        return self.whole.batch([self.indices[i] for i in indices])


class Live:
    """Accuracy of θ(c) on every task of the demo, c over all its experts; one live model for each head, kept in a file.

    Searches see ``inputs`` images a task; the others, which no search saw, tell how good what it found is.
    """

    def __init__(self, inputs: int) -> None:
        root = assets()
        names = sorted(folder.name for folder in (root / "experts").iterdir())
        self.experts = load_experts(root / "pretrained", {name: root / "experts" / name for name in names})
        self.tasks: dict[tuple[str, bool], Task] = {}
        for name, task in api.load_tasks(self.experts, {name: str(root / "data" / f"{name}.npz") for name in names}).items():
            whole = task.held_out
            seen = np.sort(np.random.default_rng([0, 1]).choice(len(whole), inputs, replace=False))
            self.tasks[name, False] = replace(task, held_out=Some(whole, seen))
            self.tasks[name, True] = replace(task, held_out=Some(whole, np.setdiff1d(np.arange(len(whole)), seen)[:OTHERS]))
        self.names = tuple(names)
        self.base = {name: self.experts.base[name].float() for name in self.experts.merged}
        self.vectors = {name: self.experts.task_vectors(name) for name in self.experts.merged}
        self.models = SharedModels(
            self.experts, heads_of(self.experts), self.experts.merged, torch.device("cpu"), torch.bfloat16
        )
        self.at: tuple[float, ...] | None = None
        CACHE.mkdir(parents=True, exist_ok=True)
        self.file = CACHE / f"map_search-{inputs}-bf16.jsonl"
        rows = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        self.known: dict[tuple[Any, ...], float] = {(*c, task, *rest[:-1]): rest[-1] for c, task, *rest in rows}

    def accuracy(self, c: Sequence[float], task: str, unseen: bool = False) -> float:
        at = tuple(round(x, 12) for x in c)
        key = (*at, task, True) if unseen else (*at, task)
        if key not in self.known:
            if at != self.at:
                with torch.no_grad():
                    for name, parameter in self.models.weights.items():
                        parameter.copy_(self.base[name] + torch.tensordot(torch.tensor(at), self.vectors[name], 1))
                self.at = at
            self.known[key] = measure(self.models.models[task], self.tasks[task, unseen], BATCH)
            with self.file.open("a") as file:
                file.write(json.dumps([at, *key[len(at) :], self.known[key]]) + "\n")
        return self.known[key]


class Subset:
    """The evaluator of some of the tasks; the other experts' coefficients are 0."""

    def __init__(self, live: Live, members: Sequence[str], unseen: bool = False) -> None:
        self.live, self.members, self.unseen = live, tuple(members), unseen
        self.objectives = [Objective(name, "accuracy", True, 0.0, 1.0) for name in members]

    def __call__(self, coefficients: np.ndarray, tasks: Sequence[int] | None = None) -> np.ndarray:
        found = np.full((len(coefficients), len(self.members)), np.nan)
        for row, c in zip(found, coefficients, strict=True):
            wide = [float(c[self.members.index(name)]) if name in self.members else 0.0 for name in self.live.names]
            for k in range(len(self.members)) if tasks is None else tasks:
                row[k] = self.live.accuracy(wide, self.members[k], self.unseen)
        return found


class Smooth:
    """A smoothing spline through everything that is known of a pair: a truth that is free to ask."""

    def __init__(self, objectives: Sequence[Objective], c: np.ndarray, metrics: np.ndarray) -> None:
        self.objectives = objectives
        half = np.random.default_rng(0).permutation(len(c))[: len(c) // 5]
        rest = np.setdiff1d(np.arange(len(c)), half)
        self.r2 = [r_squared(metrics[half, k], self._spline(c[rest], metrics[rest])(c[half])[:, k]) for k in range(2)]
        missed = self._spline(c[rest], metrics[rest])(c[half]) - metrics[half]
        self.noise = float(np.sqrt((missed**2).mean()))
        self.spline = self._spline(c, metrics)
        axis = np.linspace(0, 1, 101)
        everywhere = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        best = non_dominated(self.spline(everywhere), maximise=True)
        self.points, self.front = everywhere[best], self.spline(everywhere[best])

    @staticmethod
    def _spline(c: np.ndarray, metrics: np.ndarray) -> RBFInterpolator:
        return RBFInterpolator(c, metrics, smoothing=1e-3)

    def __call__(self, coefficients: np.ndarray, tasks: Sequence[int] | None = None) -> np.ndarray:
        return self.spline(coefficients).clip(0, 1)

    def distances(self, points: np.ndarray) -> tuple[float, float]:
        """IGD and GD of a front's points c, measured and filtered, in units of the true front's extent."""
        low, high = self.front.min(0), self.front.max(0)
        span = np.where(high > low, high - low, 1.0)
        metrics = self(points)
        metrics = metrics[non_dominated(metrics, maximise=True)]
        mine, truth = (metrics - low) / span, (self.front - low) / span
        return inverted_generational_distance(mine, truth), generational_distance(mine, truth)


class Noisy:
    """A spline's values with normal noise, another draw for every c but always the same there, in steps of one input."""

    def __init__(self, truth: Smooth, inputs: int) -> None:
        self.truth, self.inputs, self.objectives = truth, inputs, truth.objectives

    def __call__(self, coefficients: np.ndarray, tasks: Sequence[int] | None = None) -> np.ndarray:
        metrics = self.truth(coefficients)
        for row, c in zip(metrics, coefficients, strict=True):
            row += self.truth.noise * np.random.default_rng(np.round(c * 1e9).astype(np.uint64)).normal(size=2)
        return (np.round(metrics * self.inputs) / self.inputs).clip(0, 1)


def mean_std(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(fmean(values), 4), "std": round(stdev(values), 4) if len(values) > 1 else 0.0, "n": len(values)}


def against_direct(live: Live, members: Sequence[str], seeds: int, anchors: bool) -> dict[str, Any]:
    evaluator = Subset(live, members)
    n = len(members)
    direct = direct_search(evaluator, box(n), sampling="grid")
    unseen = Subset(live, members, unseen=True)
    baseline, baseline_unseen = direct.measured, unseen(direct.points)
    rows = []
    for seed in range(seeds):
        found = plain(evaluator, box(n), anchors=anchors, seed=seed)
        drawn = np.random.default_rng(seed).permutation(len(found.points))[:COMPARED]
        real = evaluator(found.points[drawn])
        some = found.points[drawn[:COMPARED_UNSEEN]]
        longer = plain(evaluator, box(n), anchors=anchors, seed=seed, measure=10)
        within_budget = plain(evaluator, box(n), anchors=anchors, seed=seed, evaluations=budget(n) - 10, measure=10)
        rows.append(
            {
                "seed": seed, "evaluations": found.models, "points": len(found.points),
                "win_rate": win_rate(real, baseline, maximise=True),
                "win_rate_ties_lost": win_rate(real, baseline, maximise=True, ties=0),
                "measured": rates(longer.evaluated, baseline),
                "measured_within_budget": rates(within_budget.evaluated, baseline),
                "sample_alone": rates(found.evaluated, baseline),
                "r2_held_out": [round(fit.r2_held_out, 4) for fit in found.fits],
                "r2_of_front": [round(r_squared(real[:, k], found.predicted[drawn, k]), 4) for k in range(n)],
                "front_range": [round(float(np.ptp(real[:, k])), 4) for k in range(n)],
            }
        )  # fmt: skip
        if seed == 0:
            rows[-1]["win_rate_unseen_inputs"] = win_rate(unseen(some), baseline_unseen, maximise=True)
            for what, search in {"measured": longer, "measured_within_budget": within_budget, "sample_alone": found}.items():
                front = search.evaluated[0][non_dominated(search.evaluated[1], maximise=True)]
                rows[-1][what]["win_rate_unseen_inputs"] = win_rate(unseen(front), baseline_unseen, maximise=True)
        print(members, rows[-1], flush=True)
    return {"tasks": list(members), "direct_points": len(baseline), "runs": rows}


def rates(evaluated: tuple[np.ndarray, np.ndarray], baseline: np.ndarray) -> dict[str, Any]:
    """Win rate of the non-dominated of what a search evaluated."""
    metrics = evaluated[1][non_dominated(evaluated[1], maximise=True)]
    return {"points": len(metrics), "win_rate": win_rate(metrics, baseline, maximise=True)}


def smooth(live: Live, members: Sequence[str]) -> tuple[Smooth, int]:
    """The spline of a pair, and how many points it is made of."""
    evaluator = Subset(live, members)
    names = live.names
    others = [k for k, name in enumerate(names) if name not in members]
    mine = [names.index(name) for name in members]
    keys = {key[: len(names)] for key in live.known if len(key) == len(names) + 1 and all(key[k] == 0 for k in others)}
    keys = [key for key in keys if all((*key, name) in live.known for name in members)]
    c = np.array([[key[k] for k in mine] for key in keys])
    return Smooth(evaluator.objectives, c, evaluator(c)), len(c)


def selection(live: Live, members: Sequence[str], seeds: int, inputs: int) -> dict[str, Any]:
    """Win rates over direct search on the spline: of its own front, which nothing can beat, and of MAP's, by evaluations that
    are exact or noisy, counted by these evaluations (what a search sees) and by the truth.
    """
    truth, points = smooth(live, members)
    result: dict[str, Any] = {"tasks": list(members), "spline_points": points, "noise": round(truth.noise, 5)}
    evaluators: dict[str, Smooth | Noisy] = {"exact": truth, "noisy": Noisy(truth, inputs)}
    for name, evaluator in evaluators.items():
        direct = direct_search(evaluator, box(2), sampling="grid")
        for what, fronts in {
            "true front": [truth.points],
            "MAP": [plain(evaluator, box(2), seed=seed, population=64, generations=40).points for seed in range(seeds)],
        }.items():
            result[f"{what}, {name}"] = {
                "seen": [round(win_rate(evaluator(c), direct.measured, maximise=True), 4) for c in fronts],
                "true": [round(win_rate(truth(c), truth(direct.points), maximise=True), 4) for c in fronts],
            }
    return result


def bayesian_or_random(live: Live, members: Sequence[str], seeds: int) -> dict[str, Any]:
    truth, points = smooth(live, members)
    quick = {"population": 64, "generations": 40}
    methods = {
        "random 6": lambda seed: bayesian(truth, box(2), rounds=0, seed=seed, **quick),
        "random 12": lambda seed: bayesian(truth, box(2), first=12, rounds=0, seed=seed, **quick),
        "Bayesian 6 + 2 x 3": lambda seed: bayesian(truth, box(2), seed=seed, **quick),
        "Sobol 12": lambda seed: plain(truth, box(2), evaluations=12, seed=seed, **quick),
    }
    result: dict[str, Any] = {
        "tasks": list(members),
        "spline_points": points,
        "spline_r2_held_out": np.round(truth.r2, 4).tolist(),
    }
    for name, search in methods.items():
        distances = [truth.distances(search(seed).points) for seed in range(seeds)]
        result[name] = {"igd": [round(igd, 5) for igd, _ in distances], "gd": [round(gd, 5) for _, gd in distances]}
    return result


def nested_or_plain(live: Live, seed: int) -> dict[str, Any]:
    evaluator = Subset(live, live.names)
    n = len(live.names)
    gammas = np.array([preferences.equal(n), *(preferences.priority(n, k) for k in range(n))])
    of_one = nested(evaluator, box(n), live.names, gammas[:1], seed=seed)
    found = nested(evaluator, box(n), live.names, gammas, seed=seed)
    whole = plain(evaluator, box(n), seed=seed)
    chosen = {
        "nested": found.points,
        "plain": whole.points[[choose(-whole.predicted, gamma) for gamma in gammas]],
        "plain, weighted sum": whole.points[[int((whole.predicted @ gamma).argmax()) for gamma in gammas]],
        "task arithmetic 0.3": np.full((len(gammas), n), 0.3),
        "soups": gammas,
    }
    row: dict[str, Any] = {
        "seed": seed,
        "task_evaluations_of_one": of_one.task_evaluations,
        "task_evaluations_of_five": found.task_evaluations,
        "plain_task_evaluations": whole.task_evaluations,
        "plain_r2_held_out": [round(fit.r2_held_out, 4) for fit in whole.fits],
    }
    for name, points in chosen.items():
        sums = (evaluator(points) * gammas).sum(1)
        row[name] = {"equal": round(float(sums[0]), 4), "priority": round(float(sums[1:].mean()), 4)}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200, help="labelled images a task")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--triples", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--triple-seeds", type=int, default=1)
    parser.add_argument("--anchors", action="store_true", help="MAP's c begin with the experts and c = t·1")
    parser.add_argument("--bayesian-seeds", type=int, default=10)
    parser.add_argument("--nested-seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "map_search.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    live = Live(options.inputs)
    pairs, triples = list(combinations(live.names, 2))[: options.pairs], list(combinations(live.names, 3))[: options.triples]
    report: dict[str, Any] = {"inputs": options.inputs, "compared": COMPARED, "anchors": options.anchors}
    if options.output.exists():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
        if all(earlier.get(key) == value for key, value in report.items()):
            report = earlier

    def row(kind: str, key: str, value: Any, make: Callable[[], dict[str, Any]]) -> None:
        if all(known[key] != value for known in report.setdefault(kind, [])):
            report[kind].append(make())
            report.update(summaries(report))
            options.output.parent.mkdir(exist_ok=True)
            options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    for members in pairs:
        row("pairs", "tasks", list(members), partial(against_direct, live, members, options.seeds, options.anchors))
    for seed in range(options.nested_seeds):
        row("nested", "seed", seed, partial(nested_or_plain, live, seed))
    for members in pairs if options.bayesian_seeds else []:
        row("bayesian", "tasks", list(members), partial(bayesian_or_random, live, members, options.bayesian_seeds))
        row("selection", "tasks", list(members), partial(selection, live, members, options.seeds, options.inputs))
    for members in triples:
        row("triples", "tasks", list(members), partial(against_direct, live, members, options.triple_seeds, options.anchors))
    print(json.dumps({key: value for key, value in report.items() if key.endswith("summary")}, indent=1))
    print(f"{time.perf_counter() - started:.0f} s")


def summaries(report: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation over everything of a kind."""
    found: dict[str, Any] = {}
    for kind in ("pairs", "triples"):
        runs = [run for row in report.get(kind, []) for run in row["runs"]]
        if runs:
            names = ("win_rate", "win_rate_unseen_inputs", "win_rate_ties_lost")
            found[f"{kind}_summary"] = {name: mean_std([run[name] for run in runs if name in run]) for name in names} | {
                "r2_held_out": mean_std([r2 for run in runs for r2 in run["r2_held_out"]]),
                **{
                    what: {name: mean_std([run[what][name] for run in runs if name in run[what]]) for name in names[:2]}
                    for what in ("measured", "measured_within_budget", "sample_alone")
                },
            }
    for what, kinds in {"bayesian": ("igd", "gd"), "selection": ("seen", "true")}.items():
        if rows := report.get(what):
            found[f"{what}_summary"] = {
                name: {kind: mean_std([x for row in rows for x in row[name][kind]]) for kind in kinds}
                for name, value in rows[0].items()
                if isinstance(value, dict)
            }
    return found


if __name__ == "__main__":
    main()
