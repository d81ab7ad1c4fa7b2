"""Two choices of a fit on data, put to the test on the demo's four tasks: held-out accuracy, three seeds.

    .venv/bin/python benchmarks/fit_evidence.py                      # both studies, a quarter of an hour on two cores
    .venv/bin/python benchmarks/fit_evidence.py --study skipping

    skipping     tasks with γ_k < 0.01 mostly left out of a step (`skip_below`), or every task in every step, for α = 0.1 and
                 0.3: is the front as good, and how many forward and backward passes does a step take?
    objectives   `--preset paper` (entropy, attention, Kaiming start, smooth Tchebycheff), the same with infomax, the default
                 settings with infomax, and the default itself (distillation)

Fits as in `paretomerge demo --fit`: 150 steps of 16 inputs a task, rank 16. Priority and one-hot are of the task that is
preferred; each figure is the mean over the four tasks, ± the deviation over the seeds. Marginal entropy is that of the mean
prediction on held-out inputs at equal preference, as a share of what the labels have: near 0 everything is one class.
Results that are in the JSON already are kept: to do them anew, delete it.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from merge_speed import HERE, one_of

SEEDS = (0, 1, 2)
STEPS = 150
DEMO: dict[str, Any] = {"steps": STEPS, "batch_size": 16}
STUDIES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "skipping": {
        f"α = {alpha}, {name}": ("recommended", {**DEMO, "alpha": alpha, "skip_below": below})
        for alpha in (0.1, 0.3)
        for name, below in (("every task", 0.0), ("γ_k < 0.01 skipped", 0.01))
    },
    "objectives": {
        "paper: entropy": ("paper", DEMO),
        "paper with infomax": ("paper", {**DEMO, "objective": "infomax"}),
        "default with infomax": ("recommended", {**DEMO, "objective": "infomax"}),
        "default: distill": ("recommended", DEMO),
    },
}
WHAT = ("equal", "priority", "one-hot", "marginal", "tasks", "cpu_s")


def measured(preset: str, options: dict[str, Any], seed: int) -> dict[str, float]:
    """One fit, and its figures."""
    import torch

    from paretomerge import api
    from paretomerge.demo import run as demo
    from paretomerge.evaluation import measure
    from paretomerge.fitting import marginal_entropy, shannon
    from paretomerge.models import predict

    shipped = demo.load()
    visits: list[int] = []
    clock = time.process_time()
    front = api.fit(
        shipped.experts, data=shipped.tasks, preset=preset, hashes=False, seed=seed,
        run=api.FitRun(report=lambda done, logged: visits.append(len(logged["losses"]))), **options,
    )  # fmt: skip
    found: dict[str, Any] = {"tasks": fmean(visits), "cpu_s": time.process_time() - clock}
    rows: dict[str, list[float]] = {"equal": [], "priority": [], "one-hot": [], "marginal": []}
    for name, task in shipped.tasks.items():
        model = front.model("equal", head=name, dtype=torch.float32)
        inputs = task.held_out
        assert inputs is not None and inputs.labels is not None
        with torch.inference_mode():
            logits = torch.cat([predict(model, inputs.batch(i.tolist())) for i in torch.arange(len(inputs)).split(250)])
        rows["marginal"].append(
            float(marginal_entropy(logits) / shannon(torch.bincount(inputs.labels).float() / len(inputs.labels)))
        )
        for what, preference in (("equal", "equal"), ("priority", f"priority:{name}"), ("one-hot", f"only:{name}")):
            rows[what].append(100 * measure(front.apply_(model, preference), task, 256))
    return found | {what: fmean(values) for what, values in rows.items()}


def show(study: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, title=f"{study}: held out, {STEPS} steps, seeds {', '.join(map(str, SEEDS))}")
    table.add_column(study)
    for heading in ("equal", "priority", "one-hot", "marginal entropy", "tasks a step", "CPU s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in STUDIES[study]:
        of_seeds = [row for row in rows if row["name"] == name]
        if not of_seeds:
            continue
        cells = []
        for what in WHAT:
            values = [row[what] for row in of_seeds]
            digits = {"marginal": 2, "tasks": 2, "cpu_s": 0}.get(what, 1)
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.{digits}f}{spread}")
        table.add_row(name, *cells)
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=one_of(list(STUDIES)), default=list(STUDIES), metavar="A,B", help=", ".join(STUDIES))
    parser.add_argument("--folder", type=Path, default=HERE / "results", help="of the JSON [benchmarks/results]")
    arguments = parser.parse_args()
    for study in arguments.study:
        path = arguments.folder / f"fit_{study}.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        for seed in SEEDS:
            for name, (preset, options) in STUDIES[study].items():
                if any(row["name"] == name and row["seed"] == seed for row in rows):
                    continue
                figures = {what: round(value, 4) for what, value in measured(preset, options, seed).items()}
                rows.append({"name": name, "preset": preset, "options": options, "seed": seed, **figures})
                print(rows[-1], file=sys.stderr, flush=True)
                path.write_text(json.dumps({"study": study, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
        show(study, rows)


if __name__ == "__main__":
    main()
