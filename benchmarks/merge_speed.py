"""How long merging takes, and how much memory: paretomerge beside mergekit and beside a plain loop.

    make peers
    .venv/bin/python benchmarks/merge_speed.py                            # everything, about an hour on two cores
    .venv/bin/python benchmarks/merge_speed.py --methods ties,slerp --dtype bf16 --repeat 1
    .venv/bin/python benchmarks/merge_speed.py --small --skip-peers       # does it run?

The models: GPT-2 (124 M parameters) and 8 experts, base + random perturbations, made once and kept in `benchmarks/.cache`
(7 GB; PARETOMERGE_CACHE names another folder). Every row is a process of its own, from start to exit, imports included:

    CPU     user + system seconds of the process and its children (wait4), the figure that other load disturbs least
    wall    seconds
    memory  the peak of its anonymous pages (RssAnon, every 20 ms), so that mapped files do not count

"× floor" is CPU against `floor.py`: task arithmetic as a plain loop that reads the 9 files and writes one. Figures are
medians; the repeats take turns over all rows, and files are in the page cache before the first. OMP_WAIT_POLICY is PASSIVE
for every row unless it is set: where something else runs beside, threads that wait would else spin, and be counted. Linux only.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("PARETOMERGE_CACHE") or HERE / ".cache")
OURS = Path(sys.executable).with_name("paretomerge")
MERGEKIT = Path(os.environ.get("PEERS_VENV") or HERE.parent / ".venv-peers") / "bin" / "mergekit-yaml"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
WAIT_POLICY = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
MIB = 2**20


@dataclass(frozen=True)
class Method:
    """One merge, in the words of both tools, with definitions as near to each other as they go."""

    ours: str
    options: dict[str, object]
    peer: str | None = None
    weight: float | None = None  # of every model, in mergekit
    parameters: dict[str, object] = field(default_factory=dict)
    target: float | None = None  # × floor


METHODS = {
    "linear": Method("average", {}, "linear", 1.0, target=1.3),
    "task_arithmetic": Method("task_arithmetic", {"scale": 0.3}, "task_arithmetic", 0.3, target=1.3),
    "slerp": Method("slerp", {"t": 0.5}, "slerp", None, {"t": 0.5}, target=1.3),
    "ties": Method("ties", {"density": 0.2, "trim": "tensor"}, "ties", 1.0, {"density": 0.2}, target=3),
    "ties_whole_model": Method("ties", {"density": 0.2, "trim": "model"}, target=3),
    "dare_ties": Method("dare_ties", {"density": 0.2}, "dare_ties", 1.0, {"density": 0.2, "normalize": True}, target=3),
    "della": Method("della", {"density": 0.3, "epsilon": 0.2}, "della", 1.0, {"density": 0.3, "epsilon": 0.1}, target=3),
}
FRONT = ("fit", "pick")  # data-free Pareto Merging; a pick from its front beside copies of the checkpoint


# ------------------------------------------------------------------------------------------------ models


def build(dtype: str, experts: int, small: bool) -> list[Path]:
    """The folders of base and experts, made if they are not there."""
    folder = CACHE / f"gpt2{'-small' if small else ''}-{experts}-{dtype}"
    names = ["base", *(f"expert_{k}" for k in range(experts))]
    if not folder.exists():
        parameters = 10**6 if small else 125 * 10**6
        needed = (experts + 3) * parameters * (4 if dtype == "fp32" else 2)
        CACHE.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(CACHE).free < needed:
            sys.exit(f"{needed / 1e9:.1f} GB are needed in {CACHE}")
        with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
            _write_models(Path(unfinished, "models"), names, dtype, small)
            Path(unfinished, "models").rename(folder)
    return [folder / name for name in names]


def _write_models(folder: Path, names: list[str], dtype: str, small: bool) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    config = (
        GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=512, bos_token_id=0, eos_token_id=0) if small else GPT2Config()
    )
    config.architectures, config.dtype = ["GPT2LMHeadModel"], DTYPES[dtype]
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPT2LMHeadModel(config).named_parameters()}  # tied weights once
    for k, name in enumerate(names):
        weights = {}
        for i, (tensor, shape) in enumerate(shapes.items()):
            draw = torch.Generator().manual_seed(i)
            value = 0.02 * torch.randn(shape, generator=draw)
            if k:
                value += 0.001 * torch.randn(shape, generator=draw.manual_seed(10**6 * k + i))
            weights[tensor] = value.to(getattr(torch, DTYPES[dtype]))
        (folder / name).mkdir(parents=True)
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder / name)
        print(f"made {dtype} {name}", file=sys.stderr)


def warm(models: list[Path]) -> None:
    """Bring the files into the page cache."""
    for model in models:
        with open(model / "model.safetensors", "rb", buffering=0) as file:
            while file.read(16 * MIB):
                pass


# ------------------------------------------------------------------------------------------------ commands


def floor_command(out: Path, models: list[Path]) -> list[object]:
    return [sys.executable, HERE / "floor.py", out, *(m / "model.safetensors" for m in models)]


def ours_command(method: Method, out: Path, base: Path, experts: list[Path]) -> list[object]:
    options = [x for key, value in method.options.items() for x in ("--option", f"{key}={value}")]
    return [OURS, "merge", *_models(base, experts), "--method", method.ours, *options, "-o", out, "--quiet"]


def fit_command(out: Path, base: Path, experts: list[Path]) -> list[object]:
    return [OURS, "fit", *_models(base, experts), "--method", "pareto-merging", "-o", out, "--quiet"]


def pick_command(out: Path, front: Path) -> list[object]:
    return [OURS, "pick", front, "--preference", "priority:expert_0", "-o", out, "--quiet"]


def _models(base: Path, experts: list[Path]) -> list[object]:
    return ["--base", base, *(x for expert in experts for x in ("--expert", f"{expert.name}={expert}"))]


def mergekit_command(method: Method, out: Path, base: Path, experts: list[Path]) -> list[object]:
    parameters = {} if method.weight is None else {"weight": method.weight}
    if method.peer == "slerp":  # its two models are the base and another
        base, experts = experts[0], experts[1:]
    config: dict[str, object] = {"merge_method": method.peer, "parameters": method.parameters}
    config["models"] = [{"model": str(expert), "parameters": parameters} for expert in experts]
    if method.peer != "linear":
        config["base_model"] = str(base)
    recipe = out.with_name("mergekit.yml")
    recipe.write_text(json.dumps(config))  # JSON is YAML
    return [MERGEKIT, recipe, out, "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]


# ------------------------------------------------------------------------------------------------ measuring


@dataclass
class Run:
    """What one process cost."""

    cpu_s: float
    wall_s: float
    anonymous_mib: float


class Failed(Exception):
    """A command that did not exit with 0."""


def measure(command: list[object]) -> Run:
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": WAIT_POLICY}
        process = subprocess.Popen([str(x) for x in command], stdout=log, stderr=subprocess.STDOUT, env=environment)
        peak = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            tail = log.read().decode(errors="replace").strip().splitlines()[-3:]
            raise Failed(f"{Path(str(command[0])).name} exited with {process.returncode}: " + " | ".join(tail))
    return Run(usage.ru_utime + usage.ru_stime, wall, peak / MIB)


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process and its descendants, 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return own + sum(anonymous(int(child)) for child in children)


@dataclass
class Row:
    """One method by one tool: how to run it, and what its runs cost."""

    method: str
    dtype: str
    tool: str
    command: Callable[[Path], list[object]]
    target: float | None = None
    target_of: str = "floor"  # the tool whose CPU seconds × target are the limit, or "seconds"
    runs: list[Run] = field(default_factory=list)
    error: str | None = None
    times: float | None = None

    def median(self, what: str) -> float | None:
        return median(getattr(run, what) for run in self.runs) if self.runs else None


def rows_for(dtype: str, models: list[Path], methods: list[str], tools: list[str]) -> Iterator[Row]:
    base, *experts = models
    if "floor" in tools:
        yield Row("task_arithmetic", dtype, "floor", lambda out: floor_command(out / "model.safetensors", models))
    for name in methods:
        if name in FRONT:
            continue
        method = METHODS[name]
        chosen = experts[:2] if name == "slerp" else experts
        if "ours" in tools:
            yield Row(name, dtype, "ours", lambda out, m=method, e=chosen: ours_command(m, out, base, e), method.target)
        if "mergekit" in tools and method.peer:
            yield Row(name, dtype, "mergekit", lambda out, m=method, e=chosen: mergekit_command(m, out, base, e))
    if "ours" not in tools:
        return
    if "fit" in methods:
        yield Row("fit", dtype, "ours", lambda out: fit_command(out, base, experts), 30, "seconds")
    if "pick" in methods:
        checkpoint, front = base / "model.safetensors", models[0].parent / "front"
        yield Row("pick", dtype, "cp", lambda out: ["cp", checkpoint, out / "model.safetensors"])
        yield Row("pick", dtype, "copy in torch", lambda out: floor_command(out / "model.safetensors", [base]))
        yield Row("pick", dtype, "ours", lambda out: pick_command(out, front), 1.5, "copy in torch")


def run_once(row: Row) -> None:
    if row.error:
        return
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        out = Path(scratch, "out")
        if row.tool in ("floor", "cp", "copy in torch"):
            out.mkdir()
        print(f"{row.dtype} {row.method} {row.tool} …", file=sys.stderr, flush=True)
        try:
            row.runs.append(measure(row.command(out)))
        except Failed as failure:
            row.error = str(failure)
            print(f"  {failure}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------ reporting


def compare(rows: list[Row]) -> None:
    """Fill in each row's CPU against the floor of its dtype (a pick's: against the copy in torch)."""
    for row in rows:
        against = "copy in torch" if row.method == "pick" else "floor"
        reference = next((r for r in rows if r.tool == against and r.dtype == row.dtype), None)
        if reference and reference.runs and row.runs:
            row.times = row.median("cpu_s") / reference.median("cpu_s")


def show(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for heading in ("dtype", "method", "tool"):
        table.add_column(heading, no_wrap=True)
    for heading in ("CPU s", "wall s", "× floor", "target", "MiB"):
        table.add_column(heading, no_wrap=True, justify="right")
    for row in rows:
        if row.error:
            table.add_row(row.dtype, row.method, row.tool, "failed")
            continue
        target = "" if row.target is None else f"≤ {row.target:g} s" if row.target_of == "seconds" else f"≤ {row.target:g}"
        table.add_row(
            *(row.dtype, row.method, row.tool),
            f"{row.median('cpu_s'):.2f}",
            f"{row.median('wall_s'):.2f}",
            "" if row.times is None else f"{row.times:.2f}",
            target,
            f"{row.median('anonymous_mib'):.0f}",
        )
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    print("× floor: CPU against floor.py of the same dtype; of pick: against a copy in torch (read one file, write one).")
    print("MiB: the peak of anonymous memory.")


def as_json(rows: list[Row], arguments: argparse.Namespace, load: float) -> dict[str, object]:
    described = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    processor = next((value.strip() for key, _, value in described if key.strip() == "model name"), platform.machine())
    peer = subprocess.run(
        [MERGEKIT.with_name("python"), "-c", "from importlib.metadata import version as v; print(v('mergekit'))"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": processor, "cores": os.cpu_count(), "load_before": load, "wait_policy": WAIT_POLICY},
        "versions": {p: version(p) for p in ("paretomerge", "torch", "safetensors")} | {"mergekit": peer},
        "models": {"architecture": "gpt2-small" if arguments.small else "gpt2", "experts": arguments.experts},
        "repeat": arguments.repeat,
        "rows": [
            {"method": r.method, "dtype": r.dtype, "tool": r.tool, "error": r.error}
            | {what: r.median(what) for what in ("cpu_s", "wall_s", "anonymous_mib")}
            | {"times_floor": r.times, "target": r.target, "target_of": r.target_of if r.target else None}
            | {"runs": [asdict(run) for run in r.runs]}
            for r in rows
        ],
    }


# ------------------------------------------------------------------------------------------------ command line


def one_of(allowed: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every, tools = [*METHODS, *FRONT], ["floor", "ours", "mergekit"]
    parser.add_argument("--methods", type=one_of(every), default=every, metavar="A,B", help=f"of {', '.join(every)}")
    parser.add_argument("--dtype", type=one_of(list(DTYPES)), default=list(DTYPES), metavar="fp32,bf16")
    parser.add_argument("--only", type=one_of(tools), default=tools, metavar="A,B", help=f"of {', '.join(tools)}")
    parser.add_argument("--skip-peers", action="store_true", help="leave mergekit out")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--experts", type=int, default=8, metavar="K")
    parser.add_argument("--small", action="store_true", help="a tiny model; writes JSON only where -o says")
    parser.add_argument("-o", "--output", type=Path, help="JSON [benchmarks/results/merge_speed.json]")
    arguments = parser.parse_args()
    chosen = [tool for tool in arguments.only if not (tool == "mergekit" and arguments.skip_peers)]
    if "ours" in chosen and not OURS.exists():
        sys.exit(f"{OURS} does not exist: run this with the Python that paretomerge is installed for")
    if "mergekit" in chosen and not MERGEKIT.exists():
        sys.exit(f"{MERGEKIT} does not exist: `make peers`, or --skip-peers")

    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"note: something else runs here (load {load:.1f}); CPU seconds will be too high", file=sys.stderr)
    rows: list[Row] = []
    for dtype in arguments.dtype:
        models = build(dtype, arguments.experts, arguments.small)
        warm(models)
        of_dtype = list(rows_for(dtype, models, arguments.methods, chosen))
        rows += of_dtype
        front = models[0].parent / "front"
        try:
            if "pick" in arguments.methods and "ours" in chosen:
                measure(fit_command(front, models[0], models[1:]))
            for _ in range(arguments.repeat):
                for row in of_dtype:
                    run_once(row)
        except Failed as failure:
            sys.exit(str(failure))
        finally:
            shutil.rmtree(front, ignore_errors=True)
    compare(rows)
    show(rows)
    output = arguments.output or (None if arguments.small else HERE / "results" / "merge_speed.json")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(as_json(rows, arguments, load), indent=1, ensure_ascii=False) + "\n")
        print(f"written: {output}")
    if any(row.error for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
