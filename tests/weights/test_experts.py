"""Task vectors in slices: every entry once, whatever the slices, shapes and dtypes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from paretomerge.experts import load_experts
from paretomerge.weights import TensorInfo, Weights, matrix_shape
from states import DTYPES, SHAPES, family, opened


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entries", [0, 1, 13, 48, 10**6])
@pytest.mark.parametrize("K", [1, 3])
def test_slices_cover_each_tensor_once(K, entries, dtype):
    base, experts = family(K, dtype)
    loaded = opened(base, experts)
    for name, shape in SHAPES.items():
        n_rows, columns = matrix_shape(shape)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        covered, bases, vectors = [], [], []
        for rows, theta, v in loaded.chunks(name, entries=entries):
            assert theta.dtype == v.dtype == wide
            assert theta.shape == (rows.stop - rows.start, columns) and v.shape == (K, *theta.shape)
            assert theta.numel() <= max(entries, columns) or columns == 1
            covered += range(rows.start, rows.stop)
            bases.append(theta.clone())
            vectors.append(v.clone())
        assert covered == list(range(n_rows))
        if covered:
            assert torch.equal(torch.cat(bases).reshape(shape), base[name].to(wide))
            expected = torch.stack([e[name].to(wide) - base[name].to(wide) for e in experts])
            assert torch.equal(torch.cat(vectors, 1).reshape(K, *shape), expected)
            assert torch.equal(loaded.task_vectors(name), expected)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), ()])
def test_tensors_of_no_and_of_one_entry(shape):
    base = {"x": torch.zeros(shape), "y": torch.zeros(2)}
    loaded = opened(base, [{"x": torch.ones(shape), "y": torch.ones(2)}] * 2)
    assert loaded.task_vectors("x").shape == (2, *shape)
    assert torch.equal(loaded.task_vectors("x"), torch.ones(2, *shape))


def test_task_vectors_do_not_share_memory():
    loaded = opened(*family(2))
    first = loaded.task_vectors("layer.query.weight")
    copy = first.clone()
    loaded.task_vectors("layer.dense.weight")
    assert torch.equal(first, copy)


def test_threads_do_not_share_buffers():
    base = {f"t{i}": torch.zeros(50, 40) for i in range(8)}
    loaded = opened(base, [{name: torch.full_like(t, i + 1.0) for i, (name, t) in enumerate(base.items())}] * 3)
    barrier = threading.Barrier(8)

    def check(i):
        barrier.wait()
        for _ in range(20):
            for _, _, v in loaded.chunks(f"t{i}", entries=80):
                if not (v == i + 1.0).all():
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(8)))


def test_buffers_follow_the_dtype():
    base = {"narrow": torch.zeros(4, 4), "wide": torch.zeros(4, 4, dtype=torch.float64)}
    loaded = opened(base, [{n: t + 1e-12 for n, t in base.items()}])
    for _ in range(2):
        assert next(iter(loaded.chunks("narrow")))[2].dtype == torch.float32
        assert loaded.task_vectors("wide").max().item() == 1e-12


def test_what_is_stored_is_asked_for_by_dtype():
    loaded = opened(*family(2)).stored_as(torch.bfloat16)
    assert loaded.infos["layer.query.weight"].dtype == torch.bfloat16
    assert loaded.infos["steps"].dtype == torch.int64
    assert loaded.task_vectors("layer.query.weight").dtype == torch.float32


def test_lazy_weights():
    read = []

    def value(name):
        read.append(name)
        return torch.full((2,), float(ord(name)))

    weights = Weights({name: TensorInfo((2,), torch.float32) for name in "abc"}, value)
    assert (list(weights), len(weights), weights.nbytes, read) == (["a", "b", "c"], 3, 24, [])
    assert weights["b"].tolist() == [98.0, 98.0] and read == ["b"]
    with pytest.raises(KeyError):
        weights["z"]
    renamed = weights.renamed(str.upper)
    assert list(renamed) == ["A", "B", "C"] and renamed["A"].tolist() == [97.0, 97.0]
    assert list(weights.without({"b"})) == ["a", "c"]
    with pytest.raises(KeyError):
        weights.without({"b"})["b"]
    replaced = weights.replacing({"b": TensorInfo((1,), torch.float64)}, lambda name: torch.zeros(1).double())
    assert replaced["b"].dtype == torch.float64 and replaced["a"].tolist() == [97.0, 97.0]
    cast = Weights.of({"x": torch.ones(2), "n": torch.ones(2, dtype=torch.int32)}).cast(torch.float16)
    assert (cast["x"].dtype, cast["n"].dtype, cast.infos["x"].dtype) == (torch.float16, torch.int32, torch.float16)
    assert weights.cast(None) is weights


def test_names_of_tasks_are_kept_in_order():
    base, experts = family(3)
    loaded = load_experts(base, {"z": experts[0], "a": experts[1], "m": experts[2]})
    assert loaded.tasks == ("z", "a", "m") and len(loaded) == 3
