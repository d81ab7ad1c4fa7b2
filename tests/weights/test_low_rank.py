"""Several products of thin factors in one object, against the dense matrices that they stand for."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.weights import LowRank

RANKS = st.lists(st.integers(0, 3), min_size=1, max_size=4)


def drawn(m, n, ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [[torch.randn(shape, generator=generator).double() for shape in ((m, r), (r, n))] for r in ranks]
    return LowRank.beside([LowRank(left, right) for left, right in parts]), [left @ right for left, right in parts]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), RANKS, RANKS, st.integers(0, 99))
def test_stacked_by_their_rows_the_products_of_a_task_stay_its_own(m, more, n, ranks, others, seed):
    others = (others * len(ranks))[: len(ranks)]
    (upper, above), (lower, below) = drawn(m, n, ranks, seed), drawn(more, n, others, seed + 1)
    both = LowRank.below([upper, lower])
    assert both.shape == (m + more, n) and both.rank == sum(ranks) + sum(others) and both.count == len(ranks)
    c = torch.arange(1.0, len(ranks) + 1).double()
    left, right = both.weighted(c)
    expected = sum(w * torch.cat(whole) for w, *whole in zip(c, above, below, strict=True))
    torch.testing.assert_close(left @ right, expected)
    g = torch.randn(m + more, n, generator=torch.Generator().manual_seed(seed)).double()
    inner = torch.stack([(torch.cat(whole) * g).sum() for whole in zip(above, below, strict=True)])
    torch.testing.assert_close(both.inner(g), inner, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 6), RANKS, st.integers(1, 9))
def test_transposed_cut_and_filled_up(m, ranks, rows):
    both, dense = drawn(m, 5, ranks)
    left, right = both.T
    torch.testing.assert_close(left @ right, sum(dense).T)
    left, right = both.with_rows(rows)
    torch.testing.assert_close(left @ right, torch.cat([sum(dense), torch.zeros(9, 5).double()])[:rows])


def test_added_to_tensors_of_every_layout():
    product, dense = drawn(6, 8, (2, 3))
    for start in (torch.zeros(6, 8), torch.zeros(8, 6).T, torch.zeros(6, 2, 2, 2),
                  torch.zeros(6, 2, 2, 2).to(memory_format=torch.channels_last)):  # fmt: skip
        tensor = start.double()
        assert product.add_to_(tensor) is tensor
        torch.testing.assert_close(tensor.reshape(6, 8), sum(dense))


def test_what_is_not_finite_is_found():
    product, _ = drawn(3, 3, (1, 2))
    assert product.finite() and not LowRank(product.left, product.right * torch.inf).finite()
