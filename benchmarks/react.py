"""ReACT: what its closed form costs beside the forward passes, and what it does for the demo's tasks, held out.

    python benchmarks/react.py cost --out benchmarks/results/react_cost.json
    python benchmarks/react.py closed-form --out benchmarks/results/react_closed_form.json
    python benchmarks/react.py demo --out benchmarks/results/react_demo.json

cost: 8 experts of ViT-B/32's shapes (random weights, bf16 files in a temporary folder), 2 000 inputs each; features of the
right shapes come from a random number generator instead of forward passes, whose time, and that of fetching their inputs, is
taken off; all else is the real fit: most of it is reading the experts and building their models (and making their soup; the
merge is there before). closed-form: what is left when they are there (widths of CLIP's and of ViT's features).
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from paretomerge import api
from paretomerge.data import Task, TensorInputs
from paretomerge.evaluation import evaluate
from paretomerge.experts import load_experts
from paretomerge.fitting import features, react
from paretomerge.front import Front, front_of
from paretomerge.sets import ParetoSet
from paretomerge.weights import Weights

N_TASKS, N_INPUTS = 8, 2000


def cost(on: str) -> dict[str, Any]:
    """Seconds of a fit less those of the (replaced) forward passes."""
    from transformers import ViTConfig, ViTForImageClassification

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(patch_size=32, num_labels=10)).to(torch.bfloat16)
        model.base_model.save_pretrained(root / "base")
        for k in range(N_TASKS):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1e-3)
            model.save_pretrained(root / f"task{k}")
        experts = load_experts(root / "base", {f"task{k}": root / f"task{k}" for k in range(N_TASKS)})
        pixels = torch.zeros(1, 3, 224, 224).expand(N_INPUTS, 3, 224, 224)
        tasks = {
            name: Task(name, "image-classification", TensorInputs({"pixel_values": pixels}), None, "accuracy")
            for name in experts.tasks
        }
        spent = [0.0, 0.0]
        batch_of = TensorInputs.batch

        def fetched(self: TensorInputs, indices: Any) -> dict[str, torch.Tensor]:
            started = time.perf_counter(), time.process_time()
            found = batch_of(self, indices)
            note(started)
            return found

        def note(started: tuple[float, float]) -> None:
            spent[0] += time.perf_counter() - started[0]
            spent[1] += time.process_time() - started[1]

        def drawn(self: features.FeaturePoint, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            started = time.perf_counter(), time.process_time()
            found = torch.randn(len(batch["pixel_values"]), 768) * torch.logspace(0, -2, 768)
            note(started)
            return found

        run = features._run

        def passed(*arguments: Any) -> torch.Tensor:
            started = time.perf_counter(), time.process_time()
            found = run(*arguments)
            note(started)
            return found

        features._run = passed
        features.FeaturePoint.of = drawn  # type: ignore[method-assign]
        TensorInputs.batch = fetched  # type: ignore[method-assign]
        if on == "soup":
            base: Any = api.fit(experts, on, hashes=False).pareto_set
        else:  # merged before: what a merge costs is in merge_speed.py
            base = Weights.of(dict(api.merge(experts, on)))
        started, cpu = time.perf_counter(), time.process_time()
        react.react(experts, tasks, on=base)
        return {
            "on": on, "width": 768, "tasks": N_TASKS, "inputs": N_INPUTS, "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - started - spent[0], 2),
            "processor_seconds": round(time.process_time() - cpu - spent[1], 2),
        }  # fmt: skip


def closed_form(d: int) -> dict[str, Any]:
    """Processor seconds of the closed form alone: Gram matrices, rotations, choice of β and statistics, on one base."""
    torch.manual_seed(0)
    drawn = [torch.randn(N_INPUTS, d) * torch.logspace(0, -2, d) for _ in range(N_TASKS)]
    apart = torch.arange(N_INPUTS) % 5 == 0
    started, grams = time.process_time(), []
    for z in drawn:
        y = z + 0.1 * torch.randn_like(z)
        most, few = (react._Grams.empty(d, torch.device("cpu")) for _ in range(2))
        most.add(z[~apart], y[~apart])
        few.add(z[apart], y[apart])
        grams.append([(most, few)])
    means = [[(most + few).means() for most, few in found] for found in grams]
    turns = [[react.rotation(most.means()[1]) for most, _ in found] for found in grams]
    kept_apart = react._KeptApart(grams, turns)
    for beta in react._BETAS:
        kept_apart.missed(beta)
    react._statistics(means, turns, 1e-3)
    return {"width": d, "threads": torch.get_num_threads(), "processor_seconds": round(time.process_time() - started, 2)}


def demo() -> list[dict[str, Any]]:
    """Mean held-out accuracy of the four tasks at equal, priority and one-hot preference."""
    from paretomerge.demo import load

    shipped = load()
    experts, tasks = shipped.experts, shipped.tasks
    pm = {"rank": 16, "targets": "all"}
    made: dict[str, Front] = {
        "TA": front_of(ParetoSet(experts.tasks, api.merge(experts, "task_arithmetic", scale=0.3)), experts, hashes=False),
        "TA + ReACT": api.fit(experts, "react", data=tasks, on="task_arithmetic", on_options={"scale": 0.3}, hashes=False),
        "PM": api.fit(experts, "pareto-merging", hashes=False, **pm),
        "soups": api.fit(experts, "soup", hashes=False),
    }
    for statistics in ("corners", "equal"):
        for name, on, options in (("PM", "pareto-merging", pm), ("soups", "soup", {})):
            made[f"{name} + ReACT, statistics={statistics}"] = api.fit(
                experts, "react", data=tasks, on=on, on_options=options, statistics=statistics, hashes=False
            )
    rows = []
    for name, front in made.items():
        kinds = {"equal": "equal", "priority": "priority:{}", "one-hot": "only:{}"}
        found = {}
        for kind, spec in kinds.items():
            values = []
            for task in experts.tasks:
                (row,) = evaluate(front, [tasks[task]], [spec.format(task)], batch_size=256)
                values.append(row["value"])
            found[kind] = round(100 * fmean(values), 2)
        rows.append({"method": name, **found, "beta": front.pareto_set.settings.get("beta")})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "closed-form", "demo"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jobs = {
        "cost": lambda: [cost("task_arithmetic"), cost("soup")],
        "closed-form": lambda: [closed_form(512), closed_form(768)],
        "demo": demo,
    }
    found: Any = jobs[options.what]()
    result = {"torch": torch.__version__, "machine": platform.machine(), "results": found}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
