"""Merging, fitting and picking models that are larger than the memory: under a limit, and against reading and writing.

    .venv/bin/python benchmarks/out_of_core.py                # as root: a Llama of 4 × 1 GiB, three models, 1 GiB of memory
    .venv/bin/python benchmarks/out_of_core.py --gib 1 --limit-mib 256

Base and two experts are made once, sharded, in bfloat16, in ``benchmarks/.cache``. Every command runs in a control group of
its own (memory, version 1 or 2) whose limit counts anonymous memory and the page cache alike, so files stream through. The
floor reads all three models and writes one file of their size under the same limit. Where something else runs beside, CPU
seconds and the bytes that were read say more than the wall clock does. ``ulimit -v`` would count every mapped
file and every library instead, and says nothing about memory.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from control_group import Group
from merge_speed import CACHE, HERE, MIB, OURS
from safetensors.torch import save_file

TASKS = ("a", "b")


def model(folder: Path, gib: float, seed: int) -> None:
    """A Llama folder of about this size in four shards."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True)
    width, inner = 2048, 5504
    shapes = {f"self_attn.{p}_proj.weight": (width, width) for p in "qkvo"}
    shapes |= {
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    per_layer = 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    layers = max(4, round(gib * 2**30 / per_layer))
    generator = torch.Generator().manual_seed(seed)
    places = {}
    for shard in range(4):
        name = f"model-{shard + 1:05}-of-00004.safetensors"
        tensors = {
            f"model.layers.{layer}.{tensor}": torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for layer in range(shard, layers, 4)
            for tensor, shape in shapes.items()
        }
        save_file(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaModel"]}))


FLOOR = """
import os, sys
*sources, target = sys.argv[1:]
buffer, size = bytearray(1 << 24), 0
with open(target, "wb", buffering=0) as out:
    for number, source in enumerate(sources):
        for file in sorted(os.listdir(source)):
            with open(os.path.join(source, file), "rb", buffering=0) as into:
                while count := into.readinto(buffer):
                    if number == 0:
                        out.write(memoryview(buffer)[:count])
    os.fsync(out.fileno())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of a model")
    parser.add_argument("--limit-mib", type=int, default=1024)
    arguments = parser.parse_args()
    root = CACHE / f"out-of-core-{arguments.gib:g}"
    folders = [root / name for name in ("base", *TASKS)]
    for seed, folder in enumerate(folders):
        model(folder, arguments.gib, seed)
    experts = [word for task in TASKS for word in ("--expert", f"{task}={root / task}")]
    models = ["--base", folders[0], *experts, "--quiet", "--overwrite"]
    out = root / "out"
    commands = {
        "floor: read three, write one": [sys.executable, "-c", FLOOR, *folders, root / "copy"],
        "merge, task arithmetic": [OURS, "merge", *models, "-o", out / "ta"],
        "merge, TIES, density 0.2": [OURS, "merge", *models, "--method", "ties", "--option", "density=0.2", "-o", out / "ties"],
        "fit, Pareto Merging, attention, rank 16": [OURS, "fit", *models, "-o", out / "front"],
        "pick": [OURS, "pick", out / "front", "-p", "only:a", "--quiet", "--overwrite", "-o", out / "picked"],
    }
    rows, floor = [], None
    for what, words in commands.items():
        os.sync()  # what the last command wrote is not this one's work
        for folder in folders:  # nothing is in the page cache before
            for file in folder.iterdir():
                with open(file, "rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            group = Group(arguments.limit_mib * MIB)
        except OSError as error:
            sys.exit(f"no control group for memory can be made here ({error}): run as root on Linux")
        try:
            wall, cpu, read, peak = group.run(words)
        except ChildProcessError as error:
            rows.append({"command": what, "failed": str(error)})
            print(f"{what:45} failed under the limit: {error}", flush=True)
            continue
        finally:
            time.sleep(0.2)
            group.close()
        floor = floor or wall
        facts = {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "read_gib": round(read / 2**30, 2)}
        rows.append({"command": what, **facts, "times_floor": round(wall / floor, 2)})
        text = f"{wall:7.1f} s {cpu:7.1f} CPU s  {wall / floor:5.2f} × floor  read {read / 2**30:6.2f} GiB"
        print(f"{what:45} {text}  peak {peak / MIB:6.0f} MiB", flush=True)
    facts = {"model_gib": arguments.gib, "limit_mib": arguments.limit_mib, "rows": rows, "load": os.getloadavg()[0]}
    (HERE / "results" / "out_of_core.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
