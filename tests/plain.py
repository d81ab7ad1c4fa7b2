"""Models of two matrices in one file each: the smallest that can be merged, fitted and measured by a command."""

from pathlib import Path

import torch
from safetensors.torch import save_file

FLAGS = ["--base", "base.safetensors", "--expert", "a=a.safetensors", "--expert", "b=b.safetensors"]
METRICS = ["--metric", "a=acc", "--metric", "b=acc"]


def model(file: Path, seed: int, size: float = 1.0) -> Path:
    """``size``: of the difference to the base, which has seed 0."""
    generator, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    tensors = {f"l{i}.weight": torch.randn(8, 8, generator=generator) for i in range(2)}
    if seed:
        tensors = {name: t + size * torch.randn(8, 8, generator=own) for name, t in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def models(folder: Path) -> None:
    """base, a and b."""
    for seed, name in enumerate(("base", "a", "b")):
        model(folder / f"{name}.safetensors", seed)
