"""Thin products: sums, compression, and a base with some of them added."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.errors import UserError
from paretomerge.weights import Adapted, LowRank, TensorInfo, Weights, side_by_side


def pair(m, n, r, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(m, r, generator=generator), torch.randn(r, n, generator=generator))


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_a_concatenation_is_the_weighted_sum(m, n, ranks):
    pairs = [pair(m, n, r, seed) for seed, r in enumerate(ranks)]
    weights = [0.5 - seed for seed in range(len(pairs))]
    dense = sum(w * (left @ right) for w, (left, right) in zip(weights, pairs, strict=True))
    left, right = side_by_side(pairs, weights)
    assert left.shape == (m, sum(ranks)) and right.shape == (sum(ranks), n)
    torch.testing.assert_close(left @ right, dense)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 9))
def test_compression_is_the_truncated_svd(m, n, r, rank):
    whole = pair(m, n, r)
    dense = (whole.left.double() @ whole.right.double()).numpy()
    smaller, lost, total = whole.truncated(rank)
    s = torch.linalg.svdvals(torch.from_numpy(dense))
    assert smaller.rank == min(rank, r, m, n)
    assert total == pytest.approx(float(s.square().sum()), rel=1e-6)
    assert lost == pytest.approx(float(s[rank:].square().sum()), rel=1e-6, abs=1e-9 * total)
    apart = torch.from_numpy(dense) - smaller.left.double() @ smaller.right.double()
    assert float(apart.square().sum()) == pytest.approx(lost, rel=1e-4, abs=1e-9 * total)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_base_with_products(dtype):
    origin = Weights.of({"w": pair(40, 30, 5).left @ pair(40, 30, 5).right, "b": torch.randn(3)}).cast(dtype)
    added = pair(40, 30, 2, seed=3)
    model = Adapted(origin, origin.infos, ["w"], {"w": added}.__getitem__, lambda name: UserError(name))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = (origin["w"].to(wide) + added.left.to(wide) @ added.right.to(wide)).to(dtype)
    torch.testing.assert_close(model["w"], expected)
    assert torch.equal(model["b"], origin["b"])
    assert model.plus(["w"], {"w": added}.__getitem__).pair("w").rank == 2, "the same right factor: the rank stays"
    other = LowRank(added.left, added.right + 1)
    more = model.plus(["w"], {"w": other}.__getitem__)
    assert more.pair("w").rank == 4
    torch.testing.assert_close(
        more["w"].to(wide),
        origin["w"].to(wide) + added.left.to(wide) @ (2 * added.right + 1).to(wide),
        rtol=1e-2 if dtype == torch.bfloat16 else 1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("bad", [float("nan"), 1e38])
def test_what_is_not_finite_is_told(bad):
    origin = Weights.of({"w": torch.full((3, 2), bad)})
    model = Adapted(
        origin, {"w": TensorInfo((3, 2), torch.float16)}, ["w"], lambda name: pair(3, 2, 1), lambda name: UserError("told")
    )
    with pytest.raises(UserError, match="told"):
        model["w"]
