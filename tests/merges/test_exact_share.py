"""Trims by magnitude keep exactly the share that is asked for, however many entries are equally large: the first of those."""

import math

import pytest
import torch

from paretomerge import merges
from paretomerge.experts import Experts
from paretomerge.merges import processed, threshold, trimmed_and_elected
from states import opened

SHAPES = {"up.weight": (60, 37), "norm.weight": (53,), "down.weight": (41, 50), "conv.weight": (6, 5, 3, 3)}
DENSITIES = [0.0, 0.01, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0]


def model(dtype, seed, near=None):
    """Small numbers, or a model so near another that their differences in bf16 take few values."""
    g = torch.Generator().manual_seed(seed)
    if near is None:
        return {name: (0.02 * torch.randn(shape, generator=g)).to(dtype) for name, shape in SHAPES.items()}
    return {name: (t.float() + 1e-4 * torch.randn(t.shape, generator=g)).to(dtype) for name, t in near.items()}


def mergekit_magnitude(v: torch.Tensor, density: float) -> torch.Tensor:
    """What mergekit's ``magnitude`` keeps of a flat tensor; on a CPU torch sorts stably."""
    mask = torch.zeros_like(v)
    count = min(len(v), max(math.floor(density * len(v)), int(density > 0)))
    mask[torch.sort(v.abs().float(), descending=True, stable=True).indices[:count]] = 1
    return mask * v


@pytest.fixture(params=["gathered", "streamed", "streamed in rows"], autouse=True)
def pass_over_the_data(request, monkeypatch):
    if request.param != "gathered":
        monkeypatch.setattr(threshold, "_GATHER", 50)
    if request.param == "streamed in rows":  # several slices a tensor
        monkeypatch.setattr(Experts.chunks, "__defaults__", (300,))


@pytest.mark.parametrize("trim", ["model", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_ties_keeps_what_a_stable_sort_keeps(dtype, trim):
    base = model(dtype, 0)
    for task, density in enumerate(DENSITIES):
        expert = model(dtype, 1 + task, near=base)
        flat = {name: (expert[name].float() - base[name].float()).flatten() for name in base}
        if trim == "tensor":
            expected = {name: mergekit_magnitude(v, density) for name, v in flat.items()}
        else:
            whole = mergekit_magnitude(torch.cat(list(flat.values())), density)
            expected = dict(zip(flat, whole.split([len(v) for v in flat.values()]), strict=True))
        merged = merges.ties(opened(base, [expert]).stored_as(torch.float32), density=density, trim=trim)
        for name in sorted(base, reverse=True):  # in whatever order they are read
            found = merged[name].flatten() != base[name].flatten().float()
            assert torch.equal(found, expected[name] != 0), (density, name)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5])
def test_every_other_trim_keeps_the_same(density):
    """The vectors of a search inside TIES, and AdaMerging++'s, of one expert: no election changes anything."""
    base = model(torch.bfloat16, 0)
    experts = opened(base, [model(torch.bfloat16, 1, near=base)])
    vectors = {name: experts.task_vectors(name).flatten(1) for name in base}
    whole = mergekit_magnitude(torch.cat([v[0] for v in vectors.values()]), density)
    inside, elected = processed(experts, "ties", density=density), trimmed_and_elected(experts, vectors, density)
    assert torch.equal(torch.cat([inside[name].flatten() for name in base]) != 0, whole != 0)
    assert torch.equal(torch.cat([elected[name].flatten() for name in base]), whole)
    assert int((whole != 0).sum()) == math.floor(density * len(whole))


def test_the_share_that_ends_among_entries_of_fp64():
    """A threshold that no fp32 number equals: in a tensor of fp32 only what is larger is kept."""
    base = {"a": torch.zeros(100), "b": torch.zeros(100, dtype=torch.float64)}
    expert = {"a": torch.full((100,), 1.0), "b": torch.full((100,), 1 + 1e-12, dtype=torch.float64)}
    merged = merges.ties(opened(base, [expert]), density=0.25)
    assert [int((merged[name] != 0).sum()) for name in base] == [0, 50]
    assert bool((merged["b"][:50] != 0).all()), "the first"
