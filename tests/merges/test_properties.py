"""What must hold of the merges whatever the models are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paretomerge import merges
from paretomerge.weights import write_safetensors
from states import NAMES, family, near, opened, state

SYMMETRIC = ["average", "task_arithmetic", "ties", "slerp", "tsv", "iso_c"]
RANDOM = ["dare_linear", "dare_ties", "della"]

sixteenths = st.integers(-64, 64).map(lambda i: i / 16)  # sums of few of them are exact, so votes are even or they are not


@st.composite
def matrices(draw):
    """A base matrix and some experts of the same shape."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=5))
    stack = draw(hnp.arrays(np.float32, (1 + draw(st.integers(1, 4)), *shape), elements=sixteenths))
    base, *experts = ({"dense.weight": torch.from_numpy(a.copy())} for a in stack)
    return base, experts


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@given(matrices(), st.floats(-2, 2), st.floats(-2, 2))
def test_task_arithmetic_is_linear_in_the_scale(models, s, t):
    base, experts = models

    def deviation(scale):
        return merges.task_arithmetic(opened(base, experts), scale=scale)["dense.weight"] - base["dense.weight"]

    close(deviation(s) + deviation(t), deviation(s + t), 1e-4)


@given(matrices(), st.integers(1, 8))
def test_average_of_equal_experts_is_the_expert(models, K):
    base, (expert, *_) = models
    close(merges.average(opened(base, [expert] * K))["dense.weight"], expert["dense.weight"])


@given(matrices())
def test_average_does_not_depend_on_the_base(models):
    base, experts = models
    close(
        merges.average(opened(base, experts))["dense.weight"],
        merges.average(opened(experts[0], experts))["dense.weight"],
    )


@given(matrices(), st.booleans())
def test_ties_of_agreeing_experts_is_their_mean(models, trim_by_tensor):
    base, experts = models
    # all deviations of one sign per entry, none zero
    sign = torch.where(base["dense.weight"] >= 0, 1.0, -1.0)
    experts = [{"dense.weight": base["dense.weight"] + sign * (1 + e["dense.weight"].abs())} for e in experts]
    loaded = opened(base, experts)
    ties = merges.ties(loaded, density=1.0, trim="tensor" if trim_by_tensor else "model")
    close(ties["dense.weight"], merges.average(loaded)["dense.weight"])


@given(matrices())
def test_dare_that_drops_nothing_is_task_arithmetic_and_ties(models):
    loaded = opened(*models)
    close(merges.dare_linear(loaded, density=1.0)["dense.weight"], merges.task_arithmetic(loaded)["dense.weight"])
    close(merges.dare_ties(loaded, density=1.0)["dense.weight"], merges.ties(loaded, density=1.0)["dense.weight"])
    della = merges.della(loaded, density=1.0, epsilon=0.0)
    close(della["dense.weight"], merges.ties(loaded, density=1.0)["dense.weight"])


@given(matrices(), st.floats(0, 1))
def test_ties_never_leaves_the_range_of_the_deviations(models, density):
    base, experts = models
    merged = merges.ties(opened(base, experts), density=density)["dense.weight"] - base["dense.weight"]
    v = torch.stack([e["dense.weight"] - base["dense.weight"] for e in experts])
    assert (merged <= v.amax(0).clamp(min=0) + 1e-5).all() and (merged >= v.amin(0).clamp(max=0) - 1e-5).all()


@settings(max_examples=25)
@given(st.permutations(range(3)), st.integers(0, 99), st.sampled_from(SYMMETRIC))
def test_order_of_experts_does_not_matter(order, seed, name):
    base, experts = family(3, seed=seed)
    if name == "slerp":
        experts, order = experts[:2], [k for k in order if k < 2]
    merged = merges.MERGES[name](opened(base, experts))
    shuffled = merges.MERGES[name](opened(base, [experts[k] for k in order]))
    for tensor in merged:
        torch.testing.assert_close(merged[tensor], shuffled[tensor], rtol=1e-4, atol=1e-5)


@given(st.floats(0, 1))
def test_slerp_keeps_the_length(t):
    a, b = torch.zeros(2, 2), torch.zeros(2, 2)
    a[0, 0], b[1, 1] = 3.0, 3.0
    merged = merges.slerp(opened({"x": a}, [{"x": a}, {"x": b}]), t=t)["x"]
    assert merged.norm() == pytest.approx(3.0, rel=1e-5)


def test_iso_c_has_equal_singular_values():
    base = {"dense.weight": torch.zeros(6, 9)}
    merged = merges.iso_c(opened(base, [near(base, k) for k in range(3)]))["dense.weight"]
    values = torch.linalg.svdvals(merged)
    close(values, values.mean().expand(6))
    total = sum(near(base, k)["dense.weight"] for k in range(3))
    assert values.sum() == pytest.approx(float(torch.linalg.svdvals(total).sum()), rel=1e-5)


def test_tsv_of_one_expert_is_the_expert():
    base = state(0)
    expert = near(base, 1)
    merged = merges.tsv(opened(base, [expert]))
    for name in base:
        close(merged[name], expert[name])


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_same_bytes_other_seed_other_bytes(name):
    loaded = opened(*family(3))
    merge = merges.MERGES[name]
    first, again, other = (merge(loaded, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[tensor], again[tensor]) for tensor in first)
    changed = [tensor for tensor in first if not torch.equal(first[tensor], other[tensor])]
    assert {"layer.query.weight", "layer.dense.weight", "conv.weight"} <= set(changed)


@pytest.mark.parametrize("name", list(merges.MERGES))
def test_workers_do_not_show(tmp_path, name):
    shapes = {f"layers.{i}.dense.weight": (40 + i, 30) for i in range(12)} | {"vector": (500,)}
    base = state(0, shapes=shapes)
    loaded = opened(base, [near(base, k) for k in range(2)])
    for workers in (1, 2, 5):
        write_safetensors(merges.MERGES[name](loaded), tmp_path / f"{workers}.safetensors", workers=workers)
    one, two, five = ((tmp_path / f"{workers}.safetensors").read_bytes() for workers in (1, 2, 5))
    assert one == two == five


@pytest.mark.parametrize("name", list(merges.MERGES))
def test_inputs_are_left_alone(name):
    base, experts = family(2)
    before = [{n: t.clone() for n, t in model.items()} for model in (base, *experts)]
    merged = merges.MERGES[name](opened(base, experts))
    for tensor in merged:
        merged[tensor]
    for model, copy in zip((base, *experts), before, strict=True):
        assert all(torch.equal(model[n], copy[n]) for n in model)


@pytest.mark.parametrize("name", RANDOM)
def test_random_drops_differ_between_tasks_and_tensors(name):
    shape = {"one.weight": (50, 50), "two.weight": (50, 50)}
    base = state(0, shapes=shape)
    expert = {n: t + 1 for n, t in base.items()}
    loaded = opened(base, [expert, expert])
    options = {"rescale": False, "density": 0.5}
    kept = {}
    for task in "ab":
        if name == "dare_linear":
            options["scale"] = {t: float(t == task) for t in "ab"}
        else:
            options["weights"] = {t: float(t == task) for t in "ab"}
        merged = merges.MERGES[name](loaded, **options)
        for tensor in base:
            kept[task, tensor] = ((merged[tensor] - base[tensor]) > 0.5).float()
    masks = torch.stack([mask.flatten() for mask in kept.values()])
    correlations = torch.corrcoef(masks)
    assert (correlations - torch.eye(4)).abs().max() < 0.1  # 2 500 entries: 0.02 is one standard deviation


def test_tasks_are_named(tmp_path):
    assert opened(*family(3)).tasks == tuple(NAMES[:3])
