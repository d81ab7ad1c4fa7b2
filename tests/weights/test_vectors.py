"""Task vectors as products against the same ones stacked: sums and inner products, and their gradients by autograd."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.sets import TaskVectors
from paretomerge.weights import LowRank, Weights, added, inner, number, varies


def thin(m, n, ranks, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return LowRank.beside([LowRank(draw(m, r), draw(r, n)) for r in ranks]), draw(m, n), draw(len(ranks)), draw(m, n)


def dense(of):
    return torch.stack([(of.left[:, own] @ of.right[own]).flatten() for own in of.columns()])


shapes = given(
    m=st.integers(1, 7), n=st.integers(1, 7), ranks=st.lists(st.integers(0, 4), min_size=1, max_size=4), seed=st.integers(0, 99)
)


@shapes
def test_products_and_stacks_give_the_same(m, n, ranks, seed):
    of, base, c, g = thin(m, n, ranks, seed)
    whole = dense(of)
    torch.testing.assert_close(added(base, of, c), added(base, whole, c), rtol=0, atol=1e-12)
    torch.testing.assert_close(inner(of, g), inner(whole, g), rtol=0, atol=1e-12)
    assert number(of) == number(whole) == len(ranks)
    assert varies(of) == bool(whole.any())


@shapes
def test_inner_products_are_the_gradients_of_the_sum(m, n, ranks, seed):
    of, base, c, g = thin(m, n, ranks, seed)
    c.requires_grad_()
    theta = base + sum(c[k] * of.left[:, own] @ of.right[own] for k, own in enumerate(of.columns()))
    torch.testing.assert_close(inner(of, g), torch.autograd.grad((theta * g).sum(), c)[0], rtol=1e-10, atol=1e-10)


@shapes
def test_stacked_factors_of_one_rank_are_the_same_products(m, n, ranks, seed):
    of, base, c, _ = thin(m, n, ranks, seed, torch.float32)
    left, right = of.stacked()
    assert left.shape == (len(ranks), m, max(ranks)) and right.shape == (len(ranks), max(ranks), n)
    kept = TaskVectors(Weights.of({}), Weights.of({"x": left}), Weights.of({"x": right}))
    expected = added(base, of, c)
    torch.testing.assert_close(kept.add_("x", base.clone(), c.double()), expected, rtol=1e-5, atol=1e-5)
    pair = kept.pair("x", c.double())
    torch.testing.assert_close(base + pair.left @ pair.right, expected, rtol=1e-5, atol=1e-5)


def test_sums_can_be_written_in_place_and_to_a_tensor_that_is_not_contiguous():
    of, base, c, _ = thin(4, 6, (2, 1), 0)
    expected = added(base, of, c)
    out = torch.empty(4, 6, dtype=torch.float64)
    assert added(base.T.contiguous().T, of, c, out) is out
    torch.testing.assert_close(out, expected)
    left, right = of.stacked()
    kept = TaskVectors(Weights.of({}), Weights.of({"x": left}), Weights.of({"x": right}))
    crooked = base.T.contiguous().T
    torch.testing.assert_close(kept.add_("x", crooked, c), expected)
    torch.testing.assert_close(kept.add_("x", base, c), expected)
