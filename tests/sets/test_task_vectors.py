"""Task vectors that a set keeps, whole and truncated."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.sets import TaskVectors, truncated_svd
from paretomerge.weights import TensorInfo, Weights

SHAPES = {"matrix": (6, 5), "kernel": (4, 3, 2), "vector": (7,), "scalar": ()}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(K: int) -> tuple[TaskVectors, dict[str, torch.Tensor]]:
    """Matrix and kernel as products, the rest whole; and what they stand for."""
    left = {"matrix": drawn(K, 6, 2), "kernel": drawn(K, 4, 3)}
    right = {"matrix": drawn(K, 2, 5, seed=1), "kernel": drawn(K, 3, 6, seed=1)}
    whole = {"vector": drawn(K, 7, seed=2), "scalar": drawn(K, seed=3)}
    vectors = TaskVectors(Weights.of(whole), Weights.of(left), Weights.of(right))
    return vectors, whole | {name: (left[name] @ right[name]).view(K, *SHAPES[name]) for name in left}


@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize("transposed", [False, True])
def test_adds_the_weighted_sum(K, transposed):
    vectors, meant = kept(K)
    c = drawn(K, seed=4)
    assert set(vectors.names) == set(SHAPES)
    for name, shape in SHAPES.items():
        start = drawn(*shape, seed=5)
        tensor = start.clone()
        if transposed and tensor.ndim == 2:
            tensor = tensor.T.contiguous().T
        found = vectors.add_(name, tensor, c)
        assert found is tensor
        torch.testing.assert_close(found, start + sum(c[k] * meant[name][k] for k in range(K)), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 3))
def test_small_matrices_are_truncated_best(m, n, rank, K):
    """Eckart and Young: what is lost is the tail of the singular values, and the factors share what is kept."""
    rank = min(rank, m, n)
    matrices = drawn(K, m, n)
    left, right = truncated_svd(matrices, rank, torch.Generator().manual_seed(0))
    assert left.shape == (K, m, rank) and right.shape == (K, rank, n)
    lost = (matrices - left @ right).square().sum((1, 2))
    tail = torch.linalg.svdvals(matrices)[:, rank:].square().sum(1)
    torch.testing.assert_close(lost, tail, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(left.mT @ left, right @ right.mT, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("falls", [0.0, 0.5, 1.0])
def test_large_matrices_are_truncated_nearly_best(falls):
    """Singular values i^−falls; 0 has no best subspace at all, and even there little is lost."""
    u, v = (torch.linalg.qr(drawn(size, 160, seed=i))[0] for i, size in enumerate((300, 200)))
    s = torch.arange(1, 161, dtype=torch.float64) ** -falls
    matrix = (u * s) @ v.T
    left, right = truncated_svd(matrix[None], 8, torch.Generator().manual_seed(0))
    lost, best = float((matrix - (left @ right)[0]).norm()), float(s[8:].norm())
    assert best * (1 - 1e-9) <= lost <= 1.01 * best


def test_an_exact_product_is_kept_exactly():
    """A LoRA expert of rank 4 loses nothing at R = 4."""
    matrices = drawn(2, 300, 4) @ drawn(2, 4, 200, seed=1)
    left, right = truncated_svd(matrices, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(left @ right, matrices, rtol=1e-10, atol=1e-10)


def test_stored_and_restored():
    vectors, _ = kept(3)
    infos = {name: TensorInfo(shape, torch.float32) for name, shape in SHAPES.items()}
    tensors = vectors.stored()
    more = tensors.replacing({"other.A": TensorInfo((1,), torch.float32)}, lambda name: torch.ones(1))
    again = TaskVectors.restored(more, 3, infos)
    assert set(again.names) == set(vectors.names)
    for name, shape in SHAPES.items():
        one, other = (v.add_(name, torch.zeros(shape, dtype=torch.float64), drawn(3)) for v in (vectors, again))
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "missing, changed",
    [
        ("task_vectors_left.matrix", {}),
        ("task_vectors_right.kernel", {}),
        ("", {"matrix": TensorInfo((6, 4), torch.float32)}),
        ("", {"vector": TensorInfo((8,), torch.float32)}),
        ("", {"scalar": TensorInfo((), torch.int64)}),
    ],
)
def test_what_does_not_fit_is_refused(missing, changed):
    infos = {name: TensorInfo(shape, torch.float32) for name, shape in SHAPES.items()} | changed
    with pytest.raises(ValueError, match="task vectors"):
        TaskVectors.restored(kept(3)[0].stored().without({missing}), 3, infos)
    with pytest.raises(ValueError, match="task vectors"):
        TaskVectors.restored(kept(3)[0].stored(), 2, infos)


def test_copies_move_along():
    vectors, meant = kept(2)
    both = vectors.with_copies({"copy": "matrix", "other": "vector", "unknown": "elsewhere"})
    assert set(both.names) == {*SHAPES, "copy", "other"}
    found = both.add_("copy", torch.zeros(6, 5, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found, meant["matrix"][1])
    assert len(both.stored()) == len(vectors.stored()) + 3
