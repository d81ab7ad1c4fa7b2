"""Steered sets, PWE-MoE, Pareto Merging and soups on the demo's tasks, held out, with what each stores.

    .venv/bin/python benchmarks/steered.py                      # everything: about an hour of processor time
    .venv/bin/python benchmarks/steered.py --only "PM" --seeds 0
    .venv/bin/python benchmarks/steered.py --show               # the table of the results as they are

Every fit is distilled on the same unlabelled images with one recipe (batch 16, cosine, skipping below 0.01): Adam 2e-3, γ ~
Dir(0.3) and every fourth step equal for Pareto Merging and steered sets; Adam 1e-2, γ ~ Dir(1) for the routers, which start at
task arithmetic as in the paper, or at the soup. A steered set of no steps at rank R is the soup of truncated task vectors.
Accuracy on task k at equal preference, at half of γ on k, at all of γ on k, averaged over the tasks; mean and deviation over
seeds. Results are kept run by run, and runs that are there are not made again.
"""

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from paretomerge import api
from paretomerge.demo import Demo, load
from paretomerge.evaluation import measure
from paretomerge.front import Front, front_of
from paretomerge.sets import ParetoSet

RESULTS = Path(__file__).parent / "results" / "steered.json"
RANKS = (32, 16, 8, 4)


def cases(steps: int) -> dict[str, tuple[bool, Callable[[Demo, int], Front]]]:
    """name -> (whether seeds matter, how it is made)."""

    def merged(method: str, **options: Any) -> Callable[[Demo, int], Front]:
        return lambda demo, seed: front_of(
            ParetoSet(demo.experts.tasks, api.merge(demo.experts, method, **options)), demo.experts, hashes=False
        )

    def fitted(method: str, **options: Any) -> Callable[[Demo, int], Front]:
        options = {"batch_size": 16, "steps": steps, **options}
        return lambda demo, seed: api.fit(demo.experts, method, data=demo.tasks, hashes=False, seed=seed, **options)

    made: dict[str, tuple[bool, Callable[[Demo, int], Front]]] = {
        "TA 0.3": (False, merged("task_arithmetic", scale=0.3)),
        "TIES 0.3": (False, merged("ties", density=0.2, scale=0.3)),
        "TIES 1": (False, merged("ties", density=0.2, scale=1.0)),
        "soup": (False, lambda demo, seed: api.fit(demo.experts, "soup", hashes=False)),
    }
    made |= {f"soup, R {rank}": (False, fitted("steered", steps=0, rank=0, task_vector_rank=rank)) for rank in RANKS}
    made |= {"PM": (True, fitted("pareto-merging")), "steered": (True, fitted("steered"))}
    start = {"start": "task-arithmetic", "scale": 0.3}
    made |= {"PWE MLP": (True, fitted("pwe-moe", modules="mlp", **start)), "PWE attn+MLP": (True, fitted("pwe-moe", **start))}
    made |= {
        "PWE MLP, from the soup": (True, fitted("pwe-moe", modules="mlp")),
        "PWE attn+MLP, from the soup": (True, fitted("pwe-moe")),
    }
    made |= {f"steered, R {rank}": (True, fitted("steered", task_vector_rank=rank)) for rank in RANKS}
    made |= {
        "steered, no low rank": (True, fitted("steered", rank=0)),
        "PWE all": (True, fitted("pwe-moe", modules="all", **start)),
    }
    return made


def measured(demo: Demo, front: Front) -> dict[str, dict[str, float]]:
    """Held-out accuracy on each task at equal preference, priority and one-hot."""
    found: dict[str, dict[str, float]] = {"equal": {}, "priority": {}, "only": {}}
    for task in demo.experts.tasks:
        model = front.model("equal", head=task, dtype=torch.float32)
        for kind, spec in (("equal", "equal"), ("priority", f"priority:{task}"), ("only", f"only:{task}")):
            found[kind][task] = measure(front.apply_(model, spec), demo.tasks[task], 256)
    return found


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':22}{'stores':>9}{'error':>7}   equal         priority      one-hot       seeds")
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        cells = []
        for kind in ("equal", "priority", "only"):
            means = [100 * fmean(row[kind].values()) for row in mine]
            cells.append(f"{fmean(means):5.1f}" + (f" ± {stdev(means):.1f}" if len(means) > 1 else "      "))
        error = f"{mine[0]['error']:.2f}" if mine[0]["error"] else ""
        print(f"{name:22}{mine[0]['added'] / mine[0]['base']:>8.0%} {error:>6}   " + "   ".join(cells) + f"   {len(mine)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="of the cases; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    done = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"rows": []}
    demo = load()
    for seed in () if arguments.show else arguments.seeds:
        for name, (seeded, make) in cases(arguments.steps).items():
            key = {"name": name, "seed": seed, "steps": arguments.steps}
            if (arguments.only and name not in arguments.only) or (not seeded and seed != arguments.seeds[0]):
                continue
            if any(key.items() <= row.items() for row in done["rows"]):
                continue
            front = make(demo, seed)
            parameters = front.summary()["parameters"]
            error = front.pareto_set.settings.get("task_vectors", {}).get("error")
            row = {**key, "base": parameters["base"], "added": parameters["added"], "error": error, **measured(demo, front)}
            done["rows"].append(row)
            done |= {
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {package: version(package) for package in ("paretomerge", "torch", "transformers")},
                "inputs": {task: [len(t.fit or ()), len(t.held_out or ())] for task, t in demo.tasks.items()},
            }
            arguments.output.write_text(json.dumps(done, indent=1) + "\n")
            print(name, seed, {kind: round(100 * fmean(row[kind].values()), 1) for kind in ("equal", "priority", "only")},
                  flush=True)  # fmt: skip
    show(done["rows"])


if __name__ == "__main__":
    main()
