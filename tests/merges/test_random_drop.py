"""DARE and DELLA: what they do with the masks they draw, and how the masks are distributed."""

import math

import numpy as np
import pytest
import torch

import oracles
from paretomerge import merges
from paretomerge.experts import Experts
from states import DTYPES, NAMES, assert_same, family, opened

DENSITY = [0.5, 0.25, 0.75]  # multiples of 2⁻¹⁶: the probabilities in use are exactly these
WEIGHTS = [0.7, 1.9, 0.2]


def only(k, K):
    return {NAMES[j]: float(j == k) for j in range(K)}


def masks_of(merge, loaded, base, **options):
    """The masks that `merge` draws for each task, seen by merging one task at a time without rescaling."""
    masks = []
    for k in range(len(loaded)):
        merged = merge(loaded, k=k, **options)
        masks.append({n: (merged[n] != base[n]).double() for n in base if base[n].is_floating_point()})
    return masks


def dare_mask(loaded, k, **options):
    return merges.dare_linear(loaded, scale=only(k, len(loaded)), rescale=False, **options)


def della_mask(loaded, k, **options):
    weights = only(k, len(loaded))
    return merges.della(loaded, weights=weights, elect=False, normalize=False, rescale=False, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_given_its_masks(K, dtype, rescale):
    base, experts = family(K, dtype)
    loaded = opened(base, experts)
    density = dict(zip(NAMES, DENSITY[:K], strict=False))
    masks = masks_of(dare_mask, loaded, base, density=density, seed=5)
    merged = merges.dare_linear(
        loaded, density=density, scale=dict(zip(NAMES, WEIGHTS[:K], strict=False)), rescale=rescale, seed=5
    )
    expected = oracles.dare_linear(base, experts, masks, density=DENSITY[:K], scale=WEIGHTS[:K], rescale=rescale)
    assert_same(merged, expected, dtype)
    for normalize in (True, False):
        merged = merges.dare_ties(
            loaded,
            density=density,
            scale=0.6,
            weights=dict(zip(NAMES, WEIGHTS[:K], strict=False)),
            normalize=normalize,
            rescale=rescale,
            seed=5,
        )
        expected = oracles.dare_ties(
            base,
            experts,
            masks,
            density=DENSITY[:K],
            scale=0.6,
            weights=WEIGHTS[:K],
            normalize=normalize,
            rescale=rescale,
        )
        assert_same(merged, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("elect", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_della_given_its_masks(K, dtype, elect, normalize, rescale):
    base, experts = family(K, dtype)
    loaded = opened(base, experts)
    density, epsilon = [0.5, 0.4, 0.7][:K], 0.2
    options = {"density": dict(zip(NAMES, density, strict=False)), "epsilon": epsilon, "seed": 5}
    masks = masks_of(della_mask, loaded, base, **options)
    merged = merges.della(
        loaded,
        scale=0.6,
        weights=dict(zip(NAMES, WEIGHTS[:K], strict=False)),
        normalize=normalize,
        rescale=rescale,
        elect=elect,
        **options,
    )
    expected = oracles.della(
        base,
        experts,
        masks,
        density=density,
        epsilon=epsilon,
        scale=0.6,
        weights=WEIGHTS[:K],
        normalize=normalize,
        rescale=rescale,
        elect=elect,
    )
    assert_same(merged, expected, dtype)


def one_tensor(shape, v):
    base = {"dense.weight": torch.zeros(shape)}
    return opened(base, [{"dense.weight": v}])


@pytest.mark.parametrize("density", [0.1, 0.3, 0.9])
def test_dare_keeps_the_share_and_the_expectation(density):
    v = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    loaded = one_tensor((64, 50), v)
    draws = torch.stack([merges.dare_linear(loaded, density=density, scale=1.0, seed=s)["dense.weight"] for s in range(100)])
    kept = (draws != 0).double()
    n = kept.numel()
    assert abs(kept.mean() - density) < 5 * math.sqrt(density * (1 - density) / n)
    # Σ (draw − v)/v over all draws has mean 0 and variance n (1 − p)/p
    z = ((draws / v - 1).double().sum() / math.sqrt(n * (1 - density) / density)).item()
    assert abs(z) < 5
    # no entry is kept always or never
    assert kept.mean(0).min() > 0 or density < 0.2
    assert kept.mean(0).max() < 1


def test_dare_rescales_by_the_probability_in_use():
    # 1e-5 · 2¹⁶ rounds to one level: what is kept is multiplied by 2¹⁶, not by 1e5
    v = torch.ones(2000, 1000)
    merged = merges.dare_linear(one_tensor(v.shape, v), density=1e-5, scale=1.0)["dense.weight"]
    assert set(merged.unique().tolist()) == {0.0, 65536.0}
    assert 5 < int((merged != 0).sum()) < 70  # 30.5 expected


def test_della_keeps_larger_entries_more_often():
    rows, n, density, epsilon = 4000, 8, 0.4, 0.4
    generator = torch.Generator().manual_seed(0)
    # |v| is a permutation of 1 … n in every row, with random signs
    v = torch.argsort(torch.rand(rows, n, generator=generator), 1).float() + 1
    v *= torch.randint(0, 2, v.shape, generator=generator) * 2 - 1
    merged = merges.della(one_tensor(v.shape, v), density=density, epsilon=epsilon, rescale=False)["dense.weight"]
    for rank in range(n):
        wanted = density - epsilon / 2 + epsilon * rank / (n - 1)
        share = (merged[v.abs() == rank + 1] != 0).double().mean().item()
        assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / rows), rank
    rescaled = merges.della(one_tensor(v.shape, v), density=density, epsilon=epsilon)["dense.weight"]
    for rank in range(n):
        chosen = v.abs() == rank + 1
        wanted = density - epsilon / 2 + epsilon * rank / (n - 1)
        z = (rescaled[chosen] / v[chosen] - 1).double().sum() / math.sqrt(rows * (1 - wanted) / wanted)
        assert abs(z) < 5, rank


@pytest.mark.parametrize("shape", [(40,), (40, 1), (5, 8), (2, 3, 2, 2), (), (1, 1), (3, 0), (0, 3)])
def test_della_and_dare_take_any_shape(shape):
    v = torch.ones(shape)
    for merge in (merges.della, merges.dare_linear, merges.dare_ties):
        merged = merge(one_tensor(shape, v), density=0.5, scale=1.0)["dense.weight"]
        assert merged.shape == shape


def test_a_vector_is_one_row_for_della():
    # the largest entry of a vector is kept with probability 1, the smallest almost never
    v = torch.arange(1.0, 101.0)
    counts = sum(
        (merges.della(one_tensor(v.shape, v), density=0.5, epsilon=0.98, seed=s)["dense.weight"] != 0) for s in range(200)
    )
    assert counts[-1] > 190 and counts[0] < 10
    assert np.corrcoef(counts.numpy(), np.arange(100))[0, 1] > 0.95


def test_masks_depend_on_the_name_not_on_the_other_tensors():
    base, experts = family(2)
    few = ["layer.query.weight", "vector"]
    all_of_it = merges.dare_linear(opened(base, experts))
    part = merges.dare_linear(opened({n: base[n] for n in few}, [{n: e[n] for n in few} for e in experts]))
    assert all(torch.equal(all_of_it[n], part[n]) for n in few)


def test_slices_change_the_masks_but_not_their_law(monkeypatch):
    v = torch.ones(300, 50)
    monkeypatch.setattr(Experts.chunks, "__defaults__", (50,))
    merged = merges.dare_linear(one_tensor(v.shape, v), density=0.5, scale=1.0)["dense.weight"]
    kept = (merged != 0).double()
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / math.sqrt(v.numel())
    # a stream that started anew in each slice would give every row the same mask
    assert kept.mean(0).min() > 0 and kept.mean(0).max() < 1
