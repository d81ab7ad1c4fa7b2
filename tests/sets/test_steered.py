"""Steered and routed sets: their formulas, exact at equal preference, stored and restored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paretomerge.sets import Coefficients, Factors, ParetoSet, TaskVectors, restored
from paretomerge.sets import coefficient_shapes as shapes
from paretomerge.weights import Weights
from states import DTYPES, state

K = 3
QUERY, DENSE = "layer.query.weight", "layer.dense.weight"
STEP = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-4}
"""The low-rank term is multiplied out in fp32."""
simplex = st.lists(st.floats(0.01, 1), min_size=K, max_size=K).map(lambda w: tuple(x / sum(w) for x in w))
KINDS = ("pwe-moe", "steered")


def drawn(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(kind: str, dtype: torch.dtype = torch.float64) -> tuple[ParetoSet, dict[str, Tensor]]:
    """A set in which the query matrix is kept as products and three other tensors whole; and its task vectors."""
    base = state(0, dtype) | {"steps": torch.tensor([3, 4])}
    whole = {name: drawn(K, *base[name].shape, seed=i) for i, name in enumerate((DENSE, "vector", "scalar", "conv.weight"))}
    left, right = drawn(K, 12, 2, seed=7), drawn(K, 2, 8, seed=8)
    vectors = TaskVectors(Weights.of(whole), Weights.of({QUERY: left}), Weights.of({QUERY: right}))
    groups = {"one": (QUERY, "vector"), "two": (DENSE, "scalar", "conv.weight")}
    function = "routed" if kind == "pwe-moe" else "affine"
    parts = {name: 3 * drawn(*shape, seed=20 + i) for i, (name, shape) in enumerate(shapes(function, 2, K).items())}
    c = Coefficients(function, parts, groups)
    meant = whole | {QUERY: left @ right}
    if kind == "pwe-moe":
        return ParetoSet("abc", Weights.of(base), coefficients=c, task_vectors=vectors, settings={"x": 1}), meant
    factors = {DENSE: Factors(drawn(5, 2, seed=9), drawn(K, 2, 2, seed=10), drawn(2, 12, seed=11), ((DENSE, 5),)),
               "embed": Factors(drawn(11, 1, seed=12), drawn(K, 1, 1, seed=13), drawn(1, 6, seed=14),
                                (("embed_tokens.weight", 11),))}  # fmt: skip
    whole_set = ParetoSet("abc", Weights.of(base), coefficients=c, task_vectors=vectors, factors=factors, settings={"x": 1})
    return whole_set, meant


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [(1.0, 0.0, 0.0), (0.2, 0.5, 0.3)])
def test_is_the_formula(kind, dtype, gamma):
    pareto_set, v = made(kind, dtype)
    weights, g = pareto_set.at(gamma), torch.tensor(gamma, dtype=torch.float64)
    equal = torch.full((K,), 1 / K, dtype=torch.float64)
    c = pareto_set.coefficients.at(g) - pareto_set.coefficients.at(equal)
    for name in pareto_set.base:
        expected = pareto_set.base[name]
        for row, members in enumerate(pareto_set.coefficients.groups.values()):
            if name in members:
                expected = expected + sum(c[row, k] * v[name][k] for k in range(K))
        for target in pareto_set.factors.values():
            if target.members[0][0] == name:
                expected = expected + target.a @ torch.tensordot(g - equal, target.g, dims=1) @ target.b
        assert weights[name].dtype == pareto_set.base[name].dtype
        torch.testing.assert_close(
            weights[name], expected.to(weights[name].dtype), rtol=STEP[dtype], atol=STEP[dtype], msg=name
        )
    varying = {QUERY, DENSE, "vector", "scalar", "conv.weight"} | ({"embed_tokens.weight"} if kind == "steered" else set())
    assert set(pareto_set.varying) == varying


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_preference_is_the_base_bit_for_bit(kind, dtype):
    pareto_set, _ = made(kind, dtype)
    weights = pareto_set.at("equal")
    assert all(torch.equal(weights[name], pareto_set.base[name]) for name in pareto_set.base)


@pytest.mark.parametrize("kind", KINDS)
@given(a=simplex, b=simplex)
def test_shift_is_the_difference_of_two_points(kind, a, b):
    pareto_set, _ = made(kind)
    for name in pareto_set.varying:
        tensor = pareto_set.at(a)[name].clone()
        moved = pareto_set.shift(pareto_set.preference(b), pareto_set.preference(a)).add_(name, tensor)
        assert moved is tensor
        torch.testing.assert_close(tensor, pareto_set.at(b)[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_restored(kind, dtype):
    pareto_set, _ = made(kind, dtype)
    tensors, facts = pareto_set.stored()
    kept = Weights.of({name: tensors[name].clone() for name in tensors})
    again = restored(kind, pareto_set.tasks, pareto_set.base, pareto_set.settings, kept, facts)
    one, other = pareto_set.at("only:b"), again.at("only:b")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert set(again.varying) == set(pareto_set.varying) and again.settings == {"x": 1}
    assert again.added_parameters() == pareto_set.added_parameters() == sum(tensors[name].numel() for name in tensors)
