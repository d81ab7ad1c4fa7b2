"""The floor that merges are timed against: task arithmetic in a plain loop, with nothing around it.

    python benchmarks/floor.py OUT BASE EXPERT …     each a .safetensors file

Reads every tensor of every file once, adds, writes one file. With no expert it copies BASE through torch. Sums in fp32,
stores as the base does.
"""

import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SCALE = 0.3


def main(out: str, base: str, *experts: str) -> None:
    theta_0 = safe_open(base, "pt")
    thetas = [safe_open(path, "pt") for path in experts]
    merged = {}
    for name in theta_0.keys():  # noqa: SIM118 (not a dictionary)
        stored = theta_0.get_tensor(name)
        if not thetas:
            merged[name] = stored
            continue
        start = stored.float()
        total = start.clone()
        for theta in thetas:
            total.add_(theta.get_tensor(name).float() - start, alpha=SCALE)
        merged[name] = total.to(stored.dtype)
    save_file(merged, out, metadata={"format": "pt"})


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
