"""Every merge against its definition in `oracles`, in every dtype, for one expert and for many."""

import pytest
import torch

import oracles
from paretomerge import merges
from paretomerge.errors import UserError
from paretomerge.experts import Experts
from states import DTYPES, MATRICES, NAMES, assert_same, family, opened

COUNTS = [1, 2, 3, 8]
WEIGHTS = [0.7, 1.9, 0.2, 1.1, 0.4, 0.9, 1.3, 0.6]


def by_task(values):
    return dict(zip(NAMES, values, strict=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", COUNTS)
@pytest.mark.parametrize("normalize", [True, False])
def test_average(K, dtype, normalize):
    base, experts = family(K, dtype)
    merged = merges.average(opened(base, experts), weights=by_task(WEIGHTS[:K]), normalize=normalize)
    assert_same(merged, oracles.average(base, experts, WEIGHTS[:K], normalize), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", COUNTS)
def test_task_arithmetic(K, dtype):
    base, experts = family(K, dtype)
    merged = merges.task_arithmetic(opened(base, experts), scale=by_task(WEIGHTS[:K]))
    assert_same(merged, oracles.task_arithmetic(base, experts, WEIGHTS[:K]), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", COUNTS)
@pytest.mark.parametrize("trim", ["model", "tensor"])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties(K, dtype, trim, normalize):
    base, experts = family(K, dtype)
    densities = [0.2, 0.7, 0.45, 1.0, 0.0, 0.3, 0.9, 0.1][:K]
    merged = merges.ties(
        opened(base, experts),
        density=by_task(densities),
        scale=0.8,
        trim=trim,
        weights=by_task(WEIGHTS[:K]),
        normalize=normalize,
    )
    expected = oracles.ties(base, experts, density=densities, scale=0.8, scope=trim, weights=WEIGHTS[:K], normalize=normalize)
    assert_same(merged, expected, dtype)


@pytest.mark.parametrize("K", [2, 3, 8])
@pytest.mark.parametrize("normalize", [True, False])
def test_negative_weights_turn_a_vote_and_weigh_by_their_size(K, normalize):
    """The mean is over Σ |w_k|, in every merge that ends in an election."""
    base, experts = family(K, torch.float32)
    weights = [-w if k % 2 else w for k, w in enumerate(WEIGHTS[:K])]
    loaded, options = opened(base, experts), {"weights": by_task(weights), "normalize": normalize}
    expected = oracles.ties(base, experts, density=[1.0] * K, scale=1.0, scope="model", weights=weights, normalize=normalize)
    assert_same(merges.ties(loaded, density=1.0, **options), expected, torch.float32)
    assert_same(merges.dare_ties(loaded, density=1.0, **options), expected, torch.float32)
    assert_same(merges.della(loaded, density=1.0, epsilon=0.0, **options), expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(dtype, t):
    base, experts = family(2, dtype)
    experts[1]["vector"] = experts[0]["vector"] * 2  # parallel
    experts[1]["column.weight"] = torch.zeros_like(experts[1]["column.weight"])  # has no direction
    assert_same(merges.slerp(opened(base, experts), t=t), oracles.slerp(base, experts, t), dtype)


@pytest.mark.parametrize("K", [1, 3])
def test_slerp_takes_two(K):
    with pytest.raises(UserError, match=f"two experts, not {K}"):
        merges.slerp(opened(*family(K)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", COUNTS)
@pytest.mark.parametrize("rule", ["tsv", "iso_c"])
def test_spectral(K, dtype, rule):
    base, experts = family(K, dtype)
    merged = getattr(merges, rule)(opened(base, experts), scale=0.9)
    # singular vectors of fp32 matrices are good to about 1e-5
    assert_same(merged, oracles.spectral(base, experts, getattr(oracles, rule), MATRICES, 0.9), dtype, 20)


def test_tsv_of_more_tasks_than_rows():
    base = {"dense.weight": torch.zeros(2, 5)}
    experts = [{"dense.weight": torch.randn(2, 5, generator=torch.Generator().manual_seed(k))} for k in range(4)]
    expected = oracles.spectral(base, experts, oracles.tsv, {"dense.weight"}, 1.0)
    assert_same(merges.tsv(opened(base, experts)), expected, torch.float32)


ALL = {
    "average": {},
    "task_arithmetic": {},
    "ties": {},
    "dare_linear": {},
    "dare_ties": {},
    "della": {},
    "slerp": {},
    "tsv": {},
    "iso_c": {},
}


def test_all_are_listed():
    assert list(merges.MERGES) == list(ALL)


@pytest.mark.parametrize("entries", [1, 7, 24, 100])
@pytest.mark.parametrize("name", ["average", "task_arithmetic", "ties", "slerp", "tsv", "iso_c"])
def test_slices_do_not_show(monkeypatch, name, entries):
    # rows of 6, 8 and 12 entries: slices of one row, of several, and a last slice that is shorter
    loaded = opened(*family(2))
    whole = merges.MERGES[name](loaded)
    expected = {tensor: whole[tensor] for tensor in whole}
    monkeypatch.setattr(Experts.chunks, "__defaults__", (entries,))
    sliced = merges.MERGES[name](loaded)
    for tensor in expected:
        torch.testing.assert_close(sliced[tensor], expected[tensor], rtol=1e-6, atol=1e-7)


def test_tensors_larger_than_a_slice():
    shape = (70, 1111)  # 77 770 entries: slices of 29 rows, and 12 rows at the end
    base = {"dense.weight": torch.randn(shape), "long": torch.randn(100_003)}
    experts = [{name: t + 0.1 * torch.randn(t.shape) for name, t in base.items()} for _ in range(3)]
    merged = merges.task_arithmetic(opened(base, experts), scale=0.3)
    assert_same(merged, oracles.task_arithmetic(base, experts, [0.3] * 3), torch.float32)
    merged = merges.ties(opened(base, experts))
    expected = oracles.ties(base, experts, density=[0.2] * 3, scale=1.0, scope="model", weights=[1.0] * 3)
    assert_same(merged, expected, torch.float32)


@pytest.mark.parametrize("name", list(ALL))
def test_what_is_not_trained_is_copied(name):
    base, experts = family(2)
    experts[0]["steps"] += 5
    experts[1]["flags"] = ~experts[1]["flags"]
    merged = merges.MERGES[name](opened(base, experts))
    assert torch.equal(merged["steps"], base["steps"]) and torch.equal(merged["flags"], base["flags"])


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["layer.query.weight", "vector"])
def test_nan_is_an_error_that_names_the_tensor(name, bad, where):
    base, experts = family(2)
    experts[1][where].view(-1)[3] = bad
    with pytest.raises(UserError, match=rf"^expert b: {where}: 1 of \d+ entries are NaN or infinite") as error:
        merged = merges.MERGES[name](opened(base, experts))
        for tensor in merged:
            merged[tensor]
    assert "\n" not in str(error.value)


def test_overflow_is_told_apart_from_nan():
    base = {"dense.weight": torch.full((2, 2), 60000.0, dtype=torch.float16)}
    merged = merges.task_arithmetic(opened(base, [{"dense.weight": base["dense.weight"] + 2000}]), scale=9.0)
    with pytest.raises(UserError, match=r"dense.weight: the merged tensor overflows torch.float16"):
        merged["dense.weight"]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("ties", {"density": 1.5}, "density"),
        ("ties", {"density": -0.1}, "density"),
        ("ties", {"density": float("nan")}, "density"),
        ("ties", {"trim": "modle"}, "trim"),
        ("ties", {"weights": {"a": 1.0}}, "no value for task 'b'"),
        ("task_arithmetic", {"scale": {"a": 1.0, "x": 1.0}}, "no task is called 'x'"),
        ("task_arithmetic", {"scale": [1.0, 2.0, 3.0]}, "3 values for 2 tasks"),
        ("task_arithmetic", {"scale": float("nan")}, "scale"),
        ("task_arithmetic", {"scale": "big"}, "scale"),
        ("average", {"weights": [1.0, -1.0]}, "sum to zero"),
        ("dare_linear", {"density": 0.0}, "density"),
        ("dare_ties", {"density": 1.1}, "density"),
        ("dare_linear", {"density": float("nan")}, "density"),
        ("della", {"density": 0.05, "epsilon": 0.2}, "density 0.05"),
        ("della", {"density": 1.0}, "density 1"),
        ("della", {"epsilon": -0.1}, "epsilon"),
        ("della", {"weights": [1.0, -1.0], "elect": False}, "sum to zero"),
    ],
)
def test_options_that_make_no_sense(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        merges.MERGES[name](opened(*family(2)), **options)
    assert "\n" not in str(error.value)
