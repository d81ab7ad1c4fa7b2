"""What a fitting step costs beside the forward and backward passes that it cannot do without.

    make peers
    .venv/bin/python benchmarks/fit_step.py                              # everything, about an hour on two cores
    .venv/bin/python benchmarks/fit_step.py --model vit-b-32 --k 8 --repeat 3 --only ours
    .venv/bin/python benchmarks/fit_step.py --small --only ours          # does it run?

Models of the shapes of ViT-B/32 and GPT-2 and K random experts, made once and kept in `benchmarks/.cache` (8 GB;
PARETOMERGE_CACHE names another folder); K = 2 with 32 inputs a task and K = 8 with 8 (GPT-2: of 64 tokens each).

    floor        a plain loop over the K tasks on the leaf weights of the same live model: forward, loss, backward; nothing else
    every task   steps of the real loop (`fit_`): θ(γ) built, K losses, gradients pulled back to φ (λ, A, G and B of every
                 matrix, rank 16), Adam on φ; linear scalarisation
    K gradients  the same with each task's gradient pulled back by itself, as scalarisations that look at gradients want it
    skipping     every task's step under γ ~ Dir(0.1), where a task with γ_k < 0.01 mostly sits out: the mean over --steps steps
    FusionBench  its layer-wise AdaMerging: its merged model and its loss, in the peers' environment, beside a floor there

A floor is timed after every step, in the same process, so that the two meet the same load. Times are medians (skipping: means);
"× floor" is the median of step / the mean of the floors before and after it (skipping: mean / median of floors; in brackets at
the mean number of tasks of 4 000 steps, by a line through the cost of steps with few and many tasks). CPU is user +
system seconds of all threads. Memory is the peak of anonymous pages (RssAnon) during two steps, in a process of its own that
times nothing, less what the interpreter, the libraries and the inputs took before. From it the activations of one task are
taken (measured: what a forward and backward takes beyond weights and gradients); what is left may be the weights × (K + 3), in
fp32. Linux only.
"""

import argparse
import ctypes
import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, linear_regression, median
from typing import Any

from merge_speed import CACHE, HERE, MIB, WAIT_POLICY, anonymous, build, one_of, warm

PEERS = Path(os.environ.get("PEERS_VENV") or HERE.parent / ".venv-peers") / "bin" / "python"
MODELS = ("vit-b-32", "gpt2")
BATCH = {2: 32, 8: 8}
CLASSES, TOKENS, RANK, TOP = 10, 64, 16, 64
TARGETS = {"every task": 1.05, "skipping": 0.5}


# ------------------------------------------------------------------------------------------------ models and inputs


def models_of(name: str, k: int, small: bool) -> list[Path]:
    """The folders of base and experts, made if they are not there."""
    if name == "gpt2":
        return build("fp32", 8, small)[: k + 1]
    folder = CACHE / f"{name}{'-small' if small else ''}-8-fp32"
    names = ["base", *(f"expert_{i}" for i in range(8))]
    if not folder.exists():
        unfinished = CACHE / f"{folder.name}.{os.getpid()}"
        _write_vits(unfinished, names, small)
        unfinished.rename(folder)
    return [folder / n for n in names][: k + 1]


def _write_vits(folder: Path, names: list[str], small: bool) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = tiny_vit(num_labels=CLASSES) if small else ViTConfig(image_size=224, patch_size=32, num_labels=CLASSES)
    torch.manual_seed(0)
    base = ViTModel(config, add_pooling_layer=False)
    base.save_pretrained(folder / names[0])
    for name in names[1:]:
        expert = ViTForImageClassification(config)
        expert.vit.load_state_dict(base.state_dict())
        with torch.no_grad():
            for weight in expert.parameters():
                weight.add_(0.001 * torch.randn(weight.shape))
        expert.save_pretrained(folder / name)
        print(f"made vit-b-32 {name}", file=sys.stderr)


def tiny_vit(**options: Any) -> Any:
    from transformers import ViTConfig

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return ViTConfig(image_size=224, patch_size=32, **{**sizes, **options})


def inputs_of(name: str, k: int, small: bool) -> list[dict[str, Any]]:
    """One batch a task."""
    import torch

    torch.manual_seed(1)
    n = BATCH.get(k, 8)
    if name == "gpt2":
        return [{"input_ids": torch.randint(512 if small else 50257, (n, TOKENS))} for _ in range(k)]
    return [{"pixel_values": torch.randn(n, 3, 224, 224)} for _ in range(k)]


# ------------------------------------------------------------------------------------------------ clocks


class Clock:
    """CPU and wall seconds since the last reading."""

    def __init__(self) -> None:
        self.read()

    def read(self) -> tuple[float, float]:
        before = getattr(self, "_at", (0.0, 0.0))
        self._at = time.process_time(), time.perf_counter()
        return self._at[0] - before[0], self._at[1] - before[1]


@contextmanager
def peak_memory(into: dict[str, float], what: str) -> Iterator[None]:
    """Note the highest anonymous memory of this process while something runs, in MiB."""
    done = threading.Event()
    highest = anonymous(os.getpid())

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.004):
            highest = max(highest, anonymous(os.getpid()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        into[what] = max(highest, anonymous(os.getpid())) / MIB


def tidy(name: str) -> float:
    """Anonymous memory, in MiB, with nothing left over, and with all that a first forward and backward loads."""
    model = ready(name, None)
    model(**{key: x[:1] for key, x in inputs_of(name, 2, True)[0].items()}).last_hidden_state.sum().backward()
    del model
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return anonymous(os.getpid()) / MIB


def ready(name: str, folder: str | None, **options: Any) -> Any:
    """A backbone, in evaluation mode; without a folder a tiny one."""
    import transformers

    if name == "gpt2":
        cls, config = transformers.GPT2Model, transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=512)
    else:
        cls, config, options = transformers.ViTModel, tiny_vit(num_hidden_layers=1), {"add_pooling_layer": False}
    return (cls.from_pretrained(folder, **options) if folder else cls(config, **options)).eval()


# ------------------------------------------------------------------------------------------------ one process: ours


def plain_loss(name: str, objective: str, model: Any, batch: dict[str, Any], teacher: Any = None) -> Any:
    """What the floor runs forward and backward."""
    from paretomerge.fitting import OBJECTIVES, Predictions

    if name == "gpt2":  # as the fit does: nothing is asked of the last token
        batch = {key: x[:, :-1] for key, x in batch.items()}
    logits = model(**batch).logits.flatten(0, -2)
    if teacher is None:
        return OBJECTIVES[objective](Predictions(logits))
    places = None if teacher.places is None else teacher.places.flatten(0, -2)
    return OBJECTIVES[objective](Predictions(logits, teacher.values.flatten(0, -2).float(), places=places))


def teacher(name: str, model: Any, batch: dict[str, Any]) -> Any:
    """What a fit keeps of an expert."""
    from paretomerge.fitting import Kept, largest

    if name == "gpt2":
        return Kept(*largest(model(**{key: x[:, :-1] for key, x in batch.items()}).logits, TOP))
    return Kept(model(**batch).logits, None)


def activations(case: dict[str, Any]) -> dict[str, Any]:
    """What the forward and backward of one task after the other takes beyond weights and their gradients."""
    import torch
    import transformers

    name, k = case["model"], case["k"]
    inputs = inputs_of(name, k, case["small"])[:2]
    cls = transformers.GPT2LMHeadModel if name == "gpt2" else transformers.ViTForImageClassification
    tidy(name)
    model = cls.from_pretrained(case["models"][1]).eval()
    teachers: list[Any] = [None, None]
    if case["objective"] == "distill":
        with torch.no_grad():
            teachers = [teacher(name, model, batch) for batch in inputs]
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    memory = {"before": anonymous(os.getpid()) / MIB}
    with peak_memory(memory, "peak"):
        for _ in range(2):
            for batch, kept in zip(inputs, teachers, strict=True):
                plain_loss(name, case["objective"], model, batch, kept).backward()
            model.zero_grad()
    gradients = sum(p.nbytes for p in model.parameters()) / MIB
    return {"memory": memory | {"activations": memory["peak"] - memory["before"] - gradients}}


def ours(case: dict[str, Any]) -> dict[str, Any]:
    """Time or weigh steps of `fit_`."""

    from paretomerge.data import Task, TensorInputs
    from paretomerge.experts import load_experts
    from paretomerge.fitting import FitRun, Learned, Problem, Target, TrainingOptions, coverage, loop
    from paretomerge.sets import choose_targets

    name, k, objective = case["model"], case["k"], case["objective"]
    base, *others = (Path(m) for m in case["models"])
    inputs = inputs_of(name, k, case["small"])
    memory = {"before": tidy(name)}
    experts = load_experts(base, {folder.name: folder for folder in others})
    kind, metric = ("language-modelling", "perplexity") if name == "gpt2" else ("image-classification", "accuracy")
    tasks = {t: Task(t, kind, TensorInputs(x), None, metric) for t, x in zip(experts.tasks, inputs, strict=True)}
    with peak_memory(memory, "preparing"):
        problem = Problem(
            experts, tasks, TrainingOptions(objective=objective, batch_size=BATCH.get(k, 8), device="cpu", teacher_top=TOP),
            FitRun(say=print),
        )  # fmt: skip
    shapes = {target: experts.infos[target].shape for target in choose_targets(experts.infos, experts.merged, "all")}
    targets = [Target(t, ((t, s[0]),), (s[0], s[1]), min(RANK, *s)) for t, s in shapes.items()]

    spent = {"build": [0.0, 0.0], "pull back": [0.0, 0.0]}

    class Timed(Learned):
        def build_(self, weights: Any, gamma: Any) -> None:
            clock = Clock()
            super().build_(weights, gamma)
            spent["build"] = [a + b for a, b in zip(spent["build"], clock.read(), strict=True)]

        def pull_back(self, gradients: Any, gamma: Any) -> Any:
            clock = Clock()
            small = super().pull_back(gradients, gamma)
            spent["pull back"] = [a + b for a, b in zip(spent["pull back"], clock.read(), strict=True)]
            return small

    learned = Timed(problem.base, problem.task_vectors, targets, task_wise=False)
    problem.task_vectors = {}
    learned.phi.normal_(0, 0.02)
    learned.view("lambda").fill_(1 / k)
    weights = problem.models.weights

    def floor() -> None:
        for expert, batch in zip(problem.experts, inputs, strict=True):
            plain_loss(name, objective, expert.model, batch, expert.fit.teacher).backward()
        for weight in weights.values():
            weight.grad = None

    facts = {
        "parameters": sum(w.numel() for w in weights.values()),
        "weights_mib": sum(w.nbytes for w in weights.values()) / MIB,
        "phi": learned.phi.numel(),
    }
    steps, floors, count = [], [], []
    clock = Clock()
    skipping = case["what"] == "skipping"

    def report(done: int, logged: Any) -> None:
        steps.append(clock.read())
        count.append(len(logged["losses"]))
        if case["what"] != "memory" and (not skipping or done % 4 == 1):
            floor()
            floors.append(clock.read())

    settings = TrainingOptions(
        steps=case["steps"], lr=1e-3, alpha=0.1, equal_every=0, skip_below=0.01 if skipping else 0.0, seed=case["seed"]
    )
    if case["what"] != "memory":
        floor()  # allocations, threads and oneDNN's kernels are there before the first clock
        clock.read()
        floor()
        floors.append(clock.read())
    with peak_memory(memory, "peak") if case["what"] == "memory" else threading.Lock():
        if "K gradients" in (case["what"], case.get("of")):
            loop.relative_weight = lambda *_, **__: None
        loop.fit_(learned, weights, problem.losses, settings, report=report)
    if skipping:
        facts["tasks_expected"] = coverage(k, replace(settings, steps=4000)).visits
    per_step = {part: [seconds / len(steps) for seconds in pair] for part, pair in spent.items()}
    return facts | {"memory": memory, "steps": steps, "floors": floors, "tasks": count, "parts": per_step}


# ------------------------------------------------------------------------------------------------ one process: FusionBench


def fusionbench(case: dict[str, Any]) -> dict[str, Any]:
    """The same for a step of FusionBench's layer-wise AdaMerging; runs in the peers' environment."""
    from importlib.metadata import version

    import torch
    from fusion_bench.method.adamerging.entropy_loss import entropy_loss
    from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel, get_layer_wise_weights
    from torch import nn

    name, k = case["model"], case["k"]
    inputs = inputs_of(name, k, case["small"])
    memory = {"before": tidy(name)}
    pretrained, *finetuned = (ready(name, folder) for folder in case["models"])
    heads = [nn.Linear(pretrained.config.hidden_size, CLASSES).requires_grad_(False) for _ in range(k)]

    def logits(output: Any, i: int, table: Any) -> Any:
        hidden = output.last_hidden_state
        return (hidden[:, :-1] @ table.T).flatten(0, 1) if name == "gpt2" else heads[i](hidden[:, 0])

    if case["what"] != "memory":
        leaf = ready(name, case["models"][0])

    def floor() -> None:
        table = leaf.get_input_embeddings().weight if name == "gpt2" else None
        for i in range(k):
            entropy_loss(logits(leaf(**inputs[i]), i, table)).backward()
        leaf.zero_grad()

    module = LayerWiseMergedModel(
        get_layer_wise_weights(k, len([p for p in pretrained.parameters() if p.requires_grad]), 0.3),
        pretrained, finetuned, clamp_weights=False,
    ).train()  # fmt: skip
    for vectors in module.task_vectors:
        vectors.eval()
    module.pretrained_model.eval()
    optimizer = torch.optim.Adam([module.merge_weight], lr=1e-3)
    module.merge_weights()

    def step() -> None:  # as its test_time_adaptation
        for i in range(k):
            output = module(**inputs[i])
            table = module._merged_state_dict["wte.weight"] if name == "gpt2" else None
            entropy_loss(logits(output, i, table)).backward(retain_graph=True)
        optimizer.step()
        optimizer.zero_grad()
        module.merge_weights()

    steps, floors = [], []
    if case["what"] == "memory":
        with peak_memory(memory, "peak"):
            step()
            step()
        return {"memory": memory, "version": version("fusion-bench")}
    floor()
    clock = Clock()
    floor()
    floors.append(clock.read())
    for _ in range(case["steps"]):
        clock.read()
        step()
        steps.append(clock.read())
        floor()
        floors.append(clock.read())
    return {"memory": memory, "steps": steps, "floors": floors, "version": version("fusion-bench")}


# ------------------------------------------------------------------------------------------------ all processes


def child(python: str | Path, case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in a process of its own."""
    print(f"{case['model']} K={case['k']} {case['tool']}: {case['what']} …", file=sys.stderr, flush=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": WAIT_POLICY}
    load = os.getloadavg()[0]
    done = subprocess.run(
        [python, Path(__file__).resolve(), "--child", json.dumps(case)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(" | ".join([f"exit {done.returncode}", *done.stderr.strip().splitlines()[-3:]]))
    return json.loads(done.stdout.splitlines()[-1]) | {"load": [load, os.getloadavg()[0]]}


def compared(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A row's figures from what its process said."""
    steps, floors = found["steps"][1:], found["floors"]  # the first step allocates
    for j, what in enumerate(("cpu_s", "wall_s")):
        row[f"floor_{what}"] = median(f[j] for f in floors)
        if row["what"] == "skipping":
            row[what] = fmean(s[j] for s in steps)
            row[f"times_{what}"] = row[what] / row[f"floor_{what}"]
        else:
            row[what] = median(s[j] for s in steps)
            around = [(a[j] + b[j]) / 2 for a, b in itertools.pairwise(floors[1:])]
            row[f"times_{what}"] = median(s[j] / f for s, f in zip(steps, around, strict=True))
    row |= {key: found[key] for key in ("parts", "parameters", "weights_mib", "phi", "version", "load") if key in found}
    row["seconds"] = {"steps": found["steps"], "floors": found["floors"]}
    if row["what"] == "skipping":
        counts, cpu = found["tasks"][1:], [s[0] for s in steps]
        row |= {"tasks_a_step": fmean(counts), "tasks_expected": found["tasks_expected"]}
        if len(set(counts)) > 1:  # cost = a + b · tasks, at the number of tasks that many steps have
            b, a = linear_regression(counts, cpu)
            row["times_cpu_s_expected"] = (a + b * row["tasks_expected"]) / row["floor_cpu_s"]
    return row


def rows_of(name: str, k: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    models = models_of(name, k, arguments.small)
    warm(models)
    case = {"model": name, "k": k, "small": arguments.small, "models": [str(m) for m in models], "seed": arguments.seed}
    case |= {"objective": arguments.objective, "steps": arguments.repeat + 1, "tool": "ours"}

    def one(tool: str, what: str, python: str | Path, **changes: Any) -> dict[str, Any]:
        row = {"model": name, "k": k, "batch": BATCH.get(k, 8), "tool": tool, "what": what}
        row |= {"objective": arguments.objective if tool == "ours" else "entropy", "target": TARGETS.get(what)}
        changed = {**case, "tool": tool, "what": what, **changes}
        try:
            row = compared(row, child(python, changed))
            if what in ("every task", "K gradients"):
                memory = child(python, {**changed, "what": "memory", "of": what, "steps": 2})["memory"]
                highest = max(memory["peak"], memory.get("preparing", 0.0))
                row |= {"memory_mib": highest - memory["before"], "memory": memory}
        except RuntimeError as failure:
            print(f"  {failure}", file=sys.stderr)
            row["error"] = str(failure)
        return row

    if "ours" in arguments.only:
        taken = child(sys.executable, {**case, "what": "activations"})["memory"]["activations"]
        for what in (each for each in ("every task", "K gradients") if each in arguments.what):
            row = one("ours", what, sys.executable)
            if "error" not in row:
                row["activations_mib"] = taken
                row["memory_limit_mib"] = row["weights_mib"] * (k + 3)
            yield row
        if k > 2 and "skipping" in arguments.what:
            yield one("ours", "skipping", sys.executable, steps=arguments.steps + 1)
    if "fusionbench" in arguments.only:
        yield one("FusionBench", "every task", PEERS)


def show(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for heading in ("model", "K × batch", "step"):
        table.add_column(heading, no_wrap=True)
    headings = ("floor CPU s", "CPU s", "× floor", "wall ×", "target", "build", "pull back", "MiB", "− act.", "=", "limit")
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right")
    for row in rows:
        what = row["what"] if row["tool"] == "ours" else row["tool"]
        if "tasks_a_step" in row:
            what += f" ({row['tasks_a_step']:.1f} tasks)"
        first = (row["model"], f"{row['k']} × {row['batch']}", what)
        if "error" in row:
            table.add_row(*first, "failed")
            continue
        table.add_row(
            *first,
            *(f"{row[key]:.2f}" for key in ("floor_cpu_s", "cpu_s")),
            f"{row['times_cpu_s']:.3f}" + (f" ({row['times_cpu_s_expected']:.3f})" if "times_cpu_s_expected" in row else ""),
            f"{row['times_wall_s']:.3f}",
            f"≤ {row['target']:g}" if row["target"] and row["tool"] == "ours" else "",
            *(f"{row['parts'][part][0]:.2f}" if "parts" in row else "" for part in ("build", "pull back")),
            *(f"{row[key]:.0f}" if key in row else "" for key in ("memory_mib", "activations_mib")),
            f"{row['memory_mib'] - row['activations_mib']:.0f}" if "activations_mib" in row else "",
            f"≤ {row['memory_limit_mib']:.0f}" if "memory_limit_mib" in row else "",
        )
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)
    loads = [load for row in rows for load in row.get("load", [])]
    if loads:
        print(f"load average while it ran: {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tools, steps = ["ours", "fusionbench"], ["every task", "K gradients", "skipping"]
    parser.add_argument("--model", type=one_of(list(MODELS)), default=list(MODELS), metavar="A,B", help=", ".join(MODELS))
    parser.add_argument("--k", type=one_of(["2", "8"]), default=["2", "8"], metavar="2,8", help="numbers of tasks")
    parser.add_argument("--only", type=one_of(tools), default=tools, metavar="A,B", help=", ".join(tools))
    parser.add_argument("--what", type=one_of(steps), default=steps, metavar="A,B", help=f"of ours: {', '.join(steps)}")
    parser.add_argument("--objective", choices=("entropy", "distill"), default="entropy", help="of ours and its floor")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="steps with every task that are timed")
    parser.add_argument("--steps", type=int, default=24, metavar="N", help="steps with skipping that are timed")
    parser.add_argument("--seed", type=int, default=0, help="of the preferences")
    parser.add_argument("--small", action="store_true", help="tiny models; writes JSON only where -o says")
    parser.add_argument("-o", "--output", type=Path, help="JSON [benchmarks/results/fit_step.json]")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        runs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"ours": ours, "FusionBench": fusionbench}
        run = activations if arguments.child["what"] == "activations" else runs[arguments.child["tool"]]
        print(json.dumps(run(arguments.child)))
        return

    rows = [row for name in arguments.model for k in map(int, arguments.k) for row in rows_of(name, k, arguments)]
    show(rows)
    output = arguments.output or (None if arguments.small else HERE / "results" / "fit_step.json")
    if output:
        from importlib.metadata import version

        described = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        result = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "processor": next((value.strip() for key, _, value in described if key.strip() == "model name"), ""),
                "cores": os.cpu_count(),
                "wait_policy": WAIT_POLICY,
                "threads": os.environ.get("OMP_NUM_THREADS"),
            },
            "versions": {p: version(p) for p in ("paretomerge", "torch", "transformers")},
            "rank": RANK,
            "tokens": TOKENS,
            "repeat": arguments.repeat,
            "steps": arguments.steps,
            "rows": rows,
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"written: {output}")
    if any("error" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
