"""Tiny state dicts of mixed shapes, and experts near them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from paretomerge.experts import Experts, load_experts

SHAPES = {
    "scalar": (),
    "vector": (7,),
    "empty": (0,),
    "embed_tokens.weight": (11, 6),
    "layer.query.weight": (12, 8),
    "layer.dense.weight": (5, 12),
    "column.weight": (9, 1),
    "conv.weight": (4, 3, 2, 2),
}
MATRICES = {"layer.query.weight", "layer.dense.weight"}
"""What TSV and Iso-C treat as linear maps: no table of tokens, no single column, no kernel."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = "abcdefgh"


def state(seed: int, dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def near(base: Mapping[str, Tensor], seed: int, size: float = 0.3) -> dict[str, Tensor]:
    """An expert: base + size · noise, in the base's dtype; integers as they are."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: (t.double() + size * torch.randn(t.shape, generator=generator, dtype=torch.float64)).to(t.dtype)
        if t.is_floating_point()
        else t.clone()
        for name, t in base.items()
    }


def family(K: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A base and K experts, with a tensor of integers and one of booleans beside the weights."""
    base = state(seed, dtype) | {"steps": torch.tensor([3, 4]), "flags": torch.tensor([True, False])}
    return base, [near(base, seed + k) for k in range(K)]


def opened(base: Mapping[str, Tensor], experts: list[dict[str, Tensor]]) -> Experts:
    """The same as ``Experts``; the tasks are called a, b, c, …"""
    return load_experts(base, dict(zip(NAMES, experts, strict=False)))


def assert_same(merged: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype, times: float = 1) -> None:
    """Equal up to `times` the rounding of the stored dtype (and of sums in fp32)."""
    step = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype] * times
    assert set(merged) == set(expected)
    for name, tensor in expected.items():
        assert merged[name].shape == tensor.shape, name
        if tensor.is_floating_point():
            assert merged[name].dtype == dtype, name
            assert torch.allclose(merged[name].double(), tensor.double(), step, step), (
                f"{name}: up to {(merged[name].double() - tensor.double()).abs().max():.3g} apart"
            )
        else:
            assert torch.equal(merged[name], tensor), name
