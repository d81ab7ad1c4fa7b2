"""What a step of PWE-MoE costs beside K forward and backward passes, on ViT-B/32 shapes.

    .venv/bin/python benchmarks/pwe_step.py                         # K = 2 and 8, MLP and attention + MLP
    .venv/bin/python benchmarks/pwe_step.py --k 2 --repeat 2 --small

    step     of the real loop (`fit_`): θ(γ) built, K losses, each pulled back to the routers at once, Adam
    floor    forward, loss and backward on the same live model for the K tasks, with the gradients of all weights
    tight    the same with the gradients of the upscaled weights alone: the least that the routers need

In CPU seconds of all threads; a floor is timed after every step, so that the two meet the same load. The ratio is that of
medians; the target is 1.15 times the floor. Random weights: the time does not depend on them.
"""

import argparse
import json
import os
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from paretomerge.fitting import Learned, Part, TrainingOptions, fit_, start_
from paretomerge.sets import choose_modules
from paretomerge.weights import TensorInfo

RESULTS = Path(__file__).parent / "results" / "pwe_step.json"
CLASSES = 10


def measure(k: int, modules: str, batch: int, repeat: int, small: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96} if small else {}
    model = ViTModel(ViTConfig(image_size=224, patch_size=32, **sizes), add_pooling_layer=False).eval()
    heads = [nn.Linear(model.config.hidden_size, CLASSES).requires_grad_(False) for _ in range(k)]
    images = [torch.randn(batch, 3, 224, 224) for _ in range(k)]
    labels = [torch.randint(CLASSES, (batch,)) for _ in range(k)]
    weights = dict(model.named_parameters())
    chosen = choose_modules({n: TensorInfo(tuple(w.shape), w.dtype) for n, w in weights.items()}, list(weights), modules)
    upscaled = {name: weights[name] for names in chosen.values() for name in names}
    base = {name: weight.detach().clone() for name, weight in upscaled.items()}
    vectors = {name: 1e-3 * torch.randn(k, weight.numel()) for name, weight in upscaled.items()}
    learned = Learned(base, vectors, (), kind="routed", groups=chosen)
    start_(learned, 0.3, 0)

    def loss(task: int) -> torch.Tensor:
        logits = heads[task](model(images[task]).last_hidden_state[:, 0])
        return nn.functional.cross_entropy(logits, labels[task])

    def floor(every: bool) -> float:
        for name, weight in weights.items():
            weight.requires_grad_(every or name in upscaled)
        started = time.process_time()
        for task in range(k):
            loss(task).backward()
        spent = time.process_time() - started
        for name, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(name in upscaled)
        return spent

    floor(True)  # allocations, threads and oneDNN's kernels are there before the first clock
    floor(False)
    times: dict[str, list[float]] = {"step": [], "floor": [], "tight": []}
    clock = time.process_time()

    def report(done: int, logged: Any) -> None:
        nonlocal clock
        times["step"].append(time.process_time() - clock)
        times["floor"].append(floor(True))
        times["tight"].append(floor(False))
        clock = time.process_time()

    settings = TrainingOptions(steps=repeat + 1, lr=1e-2, alpha=1.0, equal_every=0, skip_below=0.0)
    fit_(learned, upscaled, lambda task, seed: [Part(loss(task), 1.0, {})], settings, report=report)
    spent = {what: median(seconds[1:]) for what, seconds in times.items()}  # the first step allocates
    return {
        "k": k, "modules": modules, "batch": batch, "routers": len(chosen), "parameters": learned.phi.numel(), **spent,
        "times_floor": spent["step"] / spent["floor"], "times_tight": spent["step"] / spent["tight"], "seconds": times,
        "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--modules", nargs="+", default=["mlp", "attention+mlp"])
    parser.add_argument("--batch", type=int, default=16, help="images per task")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="steps that are timed")
    parser.add_argument("--small", action="store_true", help="a tiny model; writes JSON only where -o says")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for k in arguments.k:
        for modules in arguments.modules:
            row = measure(k, modules, arguments.batch, arguments.repeat, arguments.small)
            rows.append(row)
            print(f"K {k}  {modules:14} {row['parameters']:6} parameters  step {row['step']:6.2f} s  × floor "
                  f"{row['times_floor']:.3f} (≤ 1.15)  × tight {row['times_tight']:.3f}", flush=True)  # fmt: skip
    output = arguments.output or (None if arguments.small else RESULTS)
    if output:
        versions = {package: version(package) for package in ("paretomerge", "torch", "transformers")}
        made = datetime.now(UTC).isoformat(timespec="seconds")
        machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
        output.write_text(json.dumps({"made": made, "machine": machine, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
