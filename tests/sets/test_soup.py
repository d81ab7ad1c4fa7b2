"""Rewarded Soups and eq. 3: exact at equal preference, the experts at one-hot preferences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.experts import load_experts
from paretomerge.fitting import soup
from paretomerge.merges import task_arithmetic, ties
from paretomerge.sets import restored
from paretomerge.weights import Weights
from states import DTYPES, NAMES, family, opened

STEP = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2**-8, torch.bfloat16: 2**-5}
simplex = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda w: tuple(x / sum(w) for x in w))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [1, 2, 3, 8])
def test_one_hot_preferences_are_the_experts(K, dtype):
    base, experts = family(K, dtype)
    pareto_set = soup(opened(base, experts))
    for k in range(K):
        weights = pareto_set.at(f"only:{NAMES[k]}")
        for name in base:
            assert weights[name].dtype == base[name].dtype
            expected = experts[k][name] if base[name].is_floating_point() else base[name]
            torch.testing.assert_close(weights[name], expected, rtol=STEP[dtype], atol=STEP[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("merge", [None, ties])
def test_equal_preference_is_the_base_bit_for_bit(dtype, merge):
    loaded = opened(*family(3, dtype))
    on = merge(loaded) if merge else None
    pareto_set = soup(loaded, on=on, scale=0.4)
    reference = on if merge else task_arithmetic(loaded, scale=0.4)
    weights = pareto_set.at("equal")
    assert all(torch.equal(weights[name], reference[name]) for name in reference)


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.9])
@pytest.mark.parametrize("gamma", [(1, 0, 0), (0.2, 0.5, 0.3), (1 / 3, 1 / 3, 1 / 3)])
def test_is_equation_3(scale, gamma):
    base, experts = family(3, torch.float64)
    weights = soup(opened(base, experts), scale=scale).at(gamma)
    for name in (name for name in base if base[name].is_floating_point()):
        expected = base[name] + 3 * scale * sum(g * (e[name] - base[name]) for g, e in zip(gamma, experts, strict=True))
        torch.testing.assert_close(weights[name], expected, rtol=1e-12, atol=1e-12)


@given(simplex, simplex, st.floats(0, 1))
def test_linear_in_the_preference(a, b, t):
    pareto_set = soup(opened(*family(3, torch.float64)))
    between = tuple(t * x + (1 - t) * y for x, y in zip(a, b, strict=True))
    name = "layer.query.weight"
    mix = t * pareto_set.at(a)[name] + (1 - t) * pareto_set.at(b)[name]
    torch.testing.assert_close(pareto_set.at(between)[name], mix, rtol=1e-9, atol=1e-9)


@given(simplex, simplex)
def test_shift_is_the_difference_of_two_points(a, b):
    pareto_set = soup(opened(*family(3, torch.float64)))
    for name in ("layer.query.weight", "scalar", "conv.weight"):
        tensor = pareto_set.at(a)[name].clone()
        moved = pareto_set.shift(pareto_set.preference(b), pareto_set.preference(a)).add_(name, tensor)
        assert moved is tensor
        torch.testing.assert_close(tensor, pareto_set.at(b)[name], rtol=1e-9, atol=1e-9)


def test_shifting_there_and_back_again():
    pareto_set = soup(opened(*family(3)))
    equal, one = pareto_set.equal, pareto_set.preference("only:a")
    there, back = pareto_set.shift(one), pareto_set.shift(equal, one)
    tensor = pareto_set.base["layer.query.weight"].clone()
    for _ in range(50):
        there.add_("layer.query.weight", tensor)
        back.add_("layer.query.weight", tensor)
    torch.testing.assert_close(tensor, pareto_set.base["layer.query.weight"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_and_restored(dtype):
    pareto_set = soup(opened(*family(2, dtype)), scale=0.3)
    tensors, facts = pareto_set.stored()
    kept = Weights.of({name: tensors[name].clone() for name in tensors})
    again = restored("soup", pareto_set.tasks, pareto_set.base, pareto_set.settings, kept, facts)
    one, other = pareto_set.at("only:b"), again.at("only:b")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert set(again.varying) == set(pareto_set.varying)


def test_added_parameters_are_the_task_vectors():
    base, experts = family(3)
    count = sum(t.numel() for t in base.values() if t.is_floating_point())
    assert soup(opened(base, experts)).added_parameters() == 3 * count


def test_integers_do_not_vary():
    pareto_set = soup(opened(*family(2)))
    assert not {"steps", "flags"} & set(pareto_set.varying)


def test_both_names_of_a_tied_weight_move_together():
    # a state dict of a tied model holds the embedding under two names
    def model(seed):
        embedding = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))
        return {"wte.weight": embedding, "lm_head.weight": embedding, "h.weight": torch.ones(3, 3) * seed}

    experts = {"a": model(1), "b": model(2)}
    loaded = load_experts(model(0), experts)
    assert loaded.aliases == {"lm_head.weight": "wte.weight"}
    weights = soup(loaded).at("only:b")
    assert torch.equal(weights["lm_head.weight"], weights["wte.weight"])
    torch.testing.assert_close(weights["lm_head.weight"], experts["b"]["wte.weight"])
