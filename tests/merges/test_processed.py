"""Processed task vectors: their sum is the merge, and each is what the merge leaves of its task."""

import numpy as np
import pytest
import torch

from paretomerge.errors import UserError
from paretomerge.experts import load_experts
from paretomerge.merges import dare_linear, for_every_name, processed, task_arithmetic, ties, tsv, with_coefficients
from states import DTYPES, family, opened

MERGES = {
    "task_arithmetic": lambda experts: task_arithmetic(experts, scale=1.0),
    "ties": lambda experts: ties(experts, density=0.3, scale=1.0, normalize=False),
    "dare": lambda experts: dare_linear(experts, density=0.3, scale=1.0, seed=5),
    "tsv": lambda experts: tsv(experts, scale=1.0),
}
DENSITY = {"ties": 0.3, "dare": 0.3}


@pytest.mark.parametrize("inside", MERGES)
@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_coefficients_one_is_the_merge(inside, K, dtype):
    experts = opened(*family(K, dtype))
    vectors = processed(experts, inside, density=DENSITY.get(inside), seed=5)
    merged, expected = with_coefficients(experts, vectors, [1.0] * K), MERGES[inside](experts)
    step = 1e-10 if dtype == torch.float64 else 1e-5
    assert set(merged) == set(expected)
    for name in expected:
        torch.testing.assert_close(merged[name], expected[name], rtol=step, atol=step)


def test_dares_vectors_are_those_of_its_merge_in_large_tensors():
    """The masks are drawn slice by slice: the same slices, or other masks."""
    generator = torch.Generator().manual_seed(0)
    shape = (300, 257)
    base = {"layer.weight": torch.randn(shape, generator=generator)}
    experts = opened(base, [{"layer.weight": base["layer.weight"] + torch.randn(shape, generator=generator)} for _ in range(2)])
    vectors = processed(experts, "dare", density=0.2, seed=3)
    expected = dare_linear(experts, density=0.2, scale=0.7, seed=3)
    merged = with_coefficients(experts, vectors, [0.7, 0.7])
    torch.testing.assert_close(merged["layer.weight"], expected["layer.weight"], rtol=1e-5, atol=1e-5)
    assert (vectors["layer.weight"] != 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", [(0.3, 0.9, -0.2), (0, 0, 0), (1, 0, 0)])
def test_coefficients_per_task_are_task_arithmetics(dtype, c):
    experts = opened(*family(3, dtype))
    expected = task_arithmetic(experts, scale=list(c))
    merged = with_coefficients(experts, processed(experts), list(c))
    step = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-5}[dtype]
    for name in expected:
        assert merged[name].dtype == expected[name].dtype
        torch.testing.assert_close(merged[name].double(), expected[name].double(), rtol=step, atol=step)


def test_ties_keeps_entries_or_drops_them():
    experts = opened(*family(3))
    plain, kept = processed(experts), processed(experts, "ties", density=0.3)
    magnitudes = torch.cat([plain[name].abs().reshape(3, -1) for name in plain], 1)
    count = int(0.3 * magnitudes.shape[1])
    threshold = magnitudes.sort(descending=True).values[:, count - 1]
    for name in plain:
        v, left = plain[name], kept[name]
        assert ((left == 0) | (left == v)).all()
        large = v * (v.abs() >= threshold.view(-1, *[1] * (v.dim() - 1)))
        np.testing.assert_array_equal(left.numpy(), (large * (large.sign() == large.sum(0).sign())).numpy())


def test_tsv_parts_have_low_rank_and_do_not_overlap():
    experts = opened(*family(3))
    vectors = processed(experts, "tsv")
    parts = vectors["layer.query.weight"].double()
    assert [int(torch.linalg.matrix_rank(part, rtol=1e-4)) for part in parts] == [8 // 3] * 3
    for i in range(3):
        for j in range(i):
            assert (parts[i].T @ parts[j]).abs().max() < 1e-4 and (parts[i] @ parts[j].T).abs().max() < 1e-4
    torch.testing.assert_close(vectors["vector"], processed(experts)["vector"] / 3)


def test_reads_one_tensor_at_a_time_and_the_same_each_time():
    experts = opened(*family(2))
    for inside in MERGES:
        vectors = processed(experts, inside, seed=1)
        assert set(vectors) == set(experts.merged)
        for name in vectors:
            assert vectors[name].shape == vectors.infos[name].shape == (2, *experts.infos[name].shape)
            assert torch.equal(vectors[name], vectors[name])


def test_second_names_of_tied_weights():
    def model(seed):
        embedding = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))
        return {"wte.weight": embedding, "lm_head.weight": embedding, "h.weight": torch.ones(3, 3) * seed}

    experts = load_experts(model(0), {"a": model(1), "b": model(2)})
    vectors = processed(experts)
    merged = with_coefficients(experts, vectors, [0.5, 0.2])
    assert torch.equal(merged["lm_head.weight"], merged["wte.weight"])
    assert set(for_every_name(experts, vectors)) == set(experts.infos)


def test_mistakes():
    experts = opened(*family(2))
    for inside in ("task_arithmetic", "tsv"):
        with pytest.raises(UserError, match="density"):
            processed(experts, inside, density=0.5)
    for density in (0, -1, 1.5):
        with pytest.raises(UserError, match="density"):
            processed(experts, "ties", density=density)
    base, states = family(2)
    states[1]["layer.query.weight"][0, 0] = float("nan")
    broken = opened(base, states)
    for inside in MERGES:
        with pytest.raises(UserError, match=r"layer.query.weight: 1 of"):
            processed(broken, inside)["layer.query.weight"]
