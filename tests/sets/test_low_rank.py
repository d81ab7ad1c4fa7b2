"""Pareto Merging's set: what θ(γ) is, what is stored for it, and what equal preference gives back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.preferences import one_hot
from paretomerge.sets import Factors, ParetoSet, folded, restored
from paretomerge.weights import Weights
from states import DTYPES, state

QKV = {"attn.query.weight": (6, 5), "attn.key.weight": (3, 5), "attn.value.weight": (6, 5)}
SHAPES = {**QKV, "mlp.weight": (5, 7), "norm": (5,)}
TASKS = ("math", "code", "chat")


def factors(name, members, rank=2, K=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = sum(SHAPES[m][0] for m in members), SHAPES[members[0]][1]

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return {
        name: Factors(draw(rows, rank), draw(K, rank, rank), draw(rank, columns), tuple((m, SHAPES[m][0]) for m in members))
    }


def low_rank(dtype=torch.float32, K=3):
    parts = factors("attn.{qkv}.weight", list(QKV), K=K) | factors("mlp.weight", ["mlp.weight"], rank=3, K=K, seed=1)
    return ParetoSet(TASKS[:K], Weights.of(state(0, dtype, SHAPES)), factors=parts, settings={"rank": 2})


def expected(pareto_set, name, gamma):
    """W_base + A Σ_k (γ_k − 1/K) G_k B for the rows of one member, written out."""
    base = pareto_set.base[name].double()
    for target in pareto_set.factors.values():
        start = 0
        for member, rows in target.members:
            if member == name:
                K = len(target.g)
                core = sum((gamma[k] - 1 / K) * target.g[k].double() for k in range(K))
                return base + target.a[start : start + rows].double() @ core @ target.b.double()
            start += rows
    return base


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [(1, 0, 0), (0, 1, 0), (0.5, 0.25, 0.25), (0.1, 0.2, 0.7)])
def test_definition(dtype, gamma):
    pareto_set = low_rank(dtype)
    weights = pareto_set.at(gamma)
    step = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]
    assert set(weights) == set(SHAPES)
    for name in SHAPES:
        assert weights[name].dtype == dtype
        torch.testing.assert_close(weights[name].double(), expected(pareto_set, name, gamma), rtol=step, atol=step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [1, 2, 3])
def test_equal_preference_is_the_base_bit_for_bit(dtype, K):
    pareto_set = low_rank(dtype, K)
    pareto_set.base["mlp.weight"][0, 0] = -0.0  # adding nothing would already turn it into +0
    for preference in ("equal", (1 / K,) * K, dict.fromkeys(TASKS[:K], 7.0)):
        weights = pareto_set.at(preference)
        for name in SHAPES:
            assert weights[name].dtype == dtype
            assert torch.equal(weights[name].view(torch.uint8), pareto_set.base[name].view(torch.uint8))


def test_another_dtype():
    pareto_set = low_rank(torch.float32)
    wide, narrow = pareto_set.at("only:code"), pareto_set.at("only:code", torch.bfloat16)
    for name in SHAPES:
        assert narrow.infos[name].dtype == narrow[name].dtype == torch.bfloat16
        assert torch.equal(narrow[name], wide[name].bfloat16())  # rounded once
    equal = pareto_set.at("equal", torch.float16)
    assert all(torch.equal(equal[name], pareto_set.base[name].half()) for name in SHAPES)


simplex = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda w: tuple(x / sum(w) for x in w))


@given(simplex, simplex, st.floats(0, 1))
def test_linear_in_the_preference(a, b, t):
    pareto_set = low_rank(torch.float64)
    between = tuple(t * x + (1 - t) * y for x, y in zip(a, b, strict=True))
    for name in SHAPES:
        mix = t * pareto_set.at(a)[name] + (1 - t) * pareto_set.at(b)[name]
        torch.testing.assert_close(pareto_set.at(between)[name], mix, rtol=1e-5, atol=1e-5)


@given(simplex, simplex)
def test_shift_is_the_difference_of_two_points(a, b):
    pareto_set = low_rank(torch.float64)
    for name in pareto_set.varying:
        tensor = pareto_set.at(a)[name].clone()
        moved = pareto_set.shift(pareto_set.preference(b), pareto_set.preference(a)).add_(name, tensor)
        assert moved is tensor
        torch.testing.assert_close(tensor, pareto_set.at(b)[name], rtol=1e-5, atol=1e-5)


def test_what_depends_on_the_preference_is_computed_once(monkeypatch):
    """One product for the three members of a target, however many tensors are moved by it."""
    counted = []
    mixed = Factors.mixed
    monkeypatch.setattr(Factors, "mixed", lambda self, d: counted.append(self) or mixed(self, d))
    weights = low_rank().at("only:math")
    assert len([weights[name] for name in SHAPES]) == 5 and len(counted) == 2


def test_a_preference_that_is_one_already_is_taken_as_it_is():
    pareto_set = low_rank()
    gamma = pareto_set.preference("math=3,code=1,chat=0")
    assert pareto_set.preference(gamma) is gamma
    assert pareto_set.preference(2 * gamma).tolist() == gamma.float().tolist() == pareto_set.preference(gamma.float()).tolist()
    for wrong in (-gamma, gamma[:2], gamma * torch.nan):
        with pytest.raises(ValueError, match="preference: "):
            pareto_set.preference(wrong)


def test_the_difference_is_a_lora_of_the_rank():
    pareto_set = low_rank(torch.float64)
    for name in pareto_set.varying:
        left, right = pareto_set.shift(pareto_set.preference("only:math")).pair(name)
        difference = pareto_set.at("only:math")[name] - pareto_set.base[name]
        rank = 3 if name == "mlp.weight" else 2
        assert left.shape[1] == right.shape[0] == rank
        torch.testing.assert_close(left.double() @ right.double(), difference, rtol=1e-5, atol=1e-5)
        assert torch.linalg.matrix_rank(difference, rtol=1e-5) == rank


def test_what_does_not_vary_is_not_touched():
    pareto_set = low_rank()
    assert set(pareto_set.varying) == {name for name in SHAPES if name.endswith("weight")}
    assert torch.equal(pareto_set.at("only:math")["norm"], pareto_set.base["norm"])


def test_reading_leaves_the_base_alone():
    pareto_set = low_rank()
    before = {name: pareto_set.base[name].clone() for name in SHAPES}
    weights = pareto_set.at("only:math")
    first = {name: weights[name] for name in SHAPES}
    assert all(torch.equal(pareto_set.base[name], before[name]) for name in SHAPES)
    assert all(torch.equal(weights[name], first[name]) for name in SHAPES)


def test_stored_and_restored(tmp_path):
    import json

    from paretomerge.weights import open_checkpoint, write_safetensors

    pareto_set = low_rank()
    tensors, facts = pareto_set.stored()
    write_safetensors(tensors, tmp_path / "set.safetensors")
    read, facts = open_checkpoint(tmp_path / "set.safetensors"), json.loads(json.dumps(facts))
    again = restored("pareto-merging", TASKS, pareto_set.base, {"rank": 2}, read, facts)
    assert again.tasks == TASKS and again.settings == {"rank": 2}
    for k in range(3):
        one, other = pareto_set.at(one_hot(3, k)), again.at(one_hot(3, k))
        assert all(torch.equal(one[name], other[name]) for name in SHAPES)


def test_added_parameters_are_what_is_stored():
    pareto_set = low_rank()
    tensors, _ = pareto_set.stored()
    assert pareto_set.added_parameters() == sum(tensors[name].numel() for name in tensors)
    assert pareto_set.added_parameters() == (15 * 2 + 3 * 4 + 2 * 5) + (5 * 3 + 3 * 9 + 3 * 7)


def test_a_preference_of_an_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'maths', did you mean 'math'"):
        low_rank().at("maths=1")


# -- folding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [(1 / 3, 1 / 3, 1 / 3), (1, 0, 0), (0.2, 0.7, 0.1)])
def test_folding_changes_nothing_at_any_preference(dtype, gamma):
    pareto_set = low_rank(dtype)
    base, centred = folded(pareto_set.base, pareto_set.factors)
    again = ParetoSet(TASKS, base, factors=centred)
    for name in SHAPES:
        # before: base + A (Σ_k γ_k G_k) B, as the paper writes it
        before = pareto_set.base[name].double() if name not in pareto_set.varying else papers(pareto_set, name, gamma)
        torch.testing.assert_close(again.at(gamma)[name].double(), before, rtol=1e-5, atol=1e-5)
    for target in centred.values():
        assert target.g.sum(0).abs().max() < 1e-6


def papers(pareto_set, name, gamma):
    """W_base + A (Σ_k γ_k G_k) B: the whole sum, nothing centred."""
    at_equal = expected(pareto_set, name, gamma) - pareto_set.base[name].double()
    for target in pareto_set.factors.values():
        start = 0
        for member, rows in target.members:
            if member == name:
                mean = target.a[start : start + rows].double() @ target.g.double().mean(0) @ target.b.double()
                return pareto_set.base[name].double() + at_equal + mean
            start += rows
    raise AssertionError


# -- the size that the paper reports


def vit_b_32(fused):
    width, blocks = 768, 12
    names = ["in_proj_weight"] if fused else ["query.weight", "key.weight", "value.weight"]
    rows = 3 * width if fused else width
    return {f"blocks.{i}.attn.{name}": (rows, width) for i in range(blocks) for name in names}


@pytest.mark.parametrize("fused, option, share", [(True, False, 0.005), (False, True, 0.005), (False, False, 0.008)])
def test_parameters_added_to_a_vit_b_32(fused, option, share):
    from paretomerge.sets import choose_targets
    from paretomerge.weights import TensorInfo

    K, r = 2, 16
    infos = {name: TensorInfo(shape, torch.float32) for name, shape in vit_b_32(fused).items()}
    chosen = choose_targets(infos, list(infos), "attention", fuse_qkv=option)
    parts = {
        name: Factors(
            torch.zeros(sum(rows for _, rows in members), r),
            torch.zeros(K, r, r),
            torch.zeros(r, infos[members[0][0]].shape[1]),
            members,
        )
        for name, members in chosen.items()
    }
    added = ParetoSet(("a", "b"), Weights(infos, torch.zeros), factors=parts).added_parameters()
    if fused or option:
        assert added == 12 * (2304 * 16 + 16 * 768 + 2 * 256) == 595_968
    else:
        assert added == 36 * (768 * 16 + 16 * 768 + 2 * 256) == 903_168
    assert round(added / 113.4e6, 3) == share  # the paper: 0.6 M on 113.4 M
