"""Decompositions that LAPACK's first driver does not manage, and the line where none does."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from paretomerge import UserError, decompositions, merges
from paretomerge.decompositions import UndecomposableError, eigh, least_squares, qr, solve_from_right, svd
from paretomerge.experts import load_experts
from paretomerge.fitting import pareto_merging
from states import opened


def matrix(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=["converges", "fails in fp32", "fails always", "gives NaN"])
def lapack(request, monkeypatch):
    """LAPACK's quick drivers as they are, or not converging."""

    def wrapped(driver):
        def run(m, **options):
            if request.param == "fails always" or (request.param == "fails in fp32" and m.dtype == torch.float32):
                raise torch.linalg.LinAlgError("failed to converge")
            parts = driver(m, **options)
            return tuple(part * torch.nan for part in parts) if request.param == "gives NaN" else parts

        return run

    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, wrapped(getattr(torch.linalg, name)))
    return request.param


@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (3, 6, 5)])
def test_svd_by_any_driver(lapack, shape, size):
    m = matrix(*shape) * size
    u, s, v_t = svd(m)
    assert all(part.dtype == m.dtype for part in (u, s, v_t))
    assert torch.allclose((u * s[..., None, :]) @ v_t, m, rtol=1e-5, atol=1e-5 * size)
    assert torch.allclose(u.mT @ u, torch.eye(u.shape[-1]).expand(*shape[:-2], -1, -1), atol=1e-5)


def test_eigh_by_any_driver(lapack):
    m = matrix(6, 6, dtype=torch.float64)
    values, vectors = eigh(m @ m.T)
    assert torch.allclose(vectors * values @ vectors.T, m @ m.T) and bool((values.diff() >= 0).all())


def test_qr_of_numbers_whose_squares_overflow():
    q, r = qr(matrix(6, 3) * 1e30)
    assert torch.allclose(q @ r, matrix(6, 3) * 1e30, rtol=1e-4, atol=1e25)


def test_what_cannot_be_inverted_is_solved_as_nearly_as_can_be():
    singular = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    x = solve_from_right(singular, torch.ones(2, 3, dtype=torch.float64))
    assert torch.allclose(x, torch.tensor([[1.0, 0.5, 0.0]] * 2, dtype=torch.float64))


def test_least_squares_when_its_svd_does_not_converge(monkeypatch):
    def fails(*args, **options):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "lstsq", fails)
    a = matrix(5, 2).double().numpy()
    assert np.allclose(least_squares(a, a @ [1.0, -2.0]), [1, -2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(bad):
    m = matrix(5, 5)
    m[3, 2] = bad
    for decompose in (svd, eigh, lambda m: solve_from_right(m, torch.eye(5)), lambda m: least_squares(m.numpy(), np.ones(5))):
        with pytest.raises(UndecomposableError, match="NaN"):
            decompose(m)


def test_a_failure_names_the_tensor(monkeypatch):
    def fails(m, full_matrices=False):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    monkeypatch.setattr("scipy.linalg.svd", lambda *args, **options: (_ for _ in ()).throw(np.linalg.LinAlgError("no")))
    base = {"layer.weight": matrix(6, 6)}
    experts = opened(base, [{"layer.weight": matrix(6, 6, seed=k)} for k in (1, 2)])
    for merge in (merges.tsv, merges.iso_c):
        with pytest.raises(UserError, match=r"^layer\.weight: no decomposition converges"):
            merge(experts)["layer.weight"]


def test_tsv_of_equal_experts():
    """The stack of their singular vectors has half the rank that it has columns."""
    base = {"layer.weight": matrix(64, 64)}
    experts = opened(base, [{"layer.weight": matrix(64, 64, seed=1)}] * 2)
    assert bool(torch.isfinite(merges.tsv(experts)["layer.weight"]).all())


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_a_front_of_task_vectors_of_any_size(size):
    name = "layer.0.attention.query.weight"
    base = {name: torch.zeros(12, 12)}
    experts = opened(base, [{name: size * matrix(12, 2, seed=k) @ matrix(2, 12, seed=9)} for k in (1, 2)])
    found = pareto_merging(experts, rank=4)
    for k, expert in enumerate(experts.experts):
        only = found.at(tuple(float(j == k) for j in range(2)))[name]
        assert torch.allclose(only / size, expert.source[name] / size, atol=1e-4)
    assert 0 <= found.settings["captured"] <= 1.0001


def test_adapters_whose_product_overflows_are_one_line(tmp_path):
    """Their factors are finite: only the product is not, and that is first seen between the factors' triangles."""
    name = "model.layers.0.self_attn.q_proj.weight"
    folders = {}
    for k, task in enumerate("ab"):
        folders[task] = tmp_path / task
        folders[task].mkdir()
        factors = {
            f"base_model.{name.removesuffix('weight')}lora_A.weight": 1e25 * matrix(2, 12, seed=k),
            f"base_model.{name.removesuffix('weight')}lora_B.weight": 1e25 * matrix(12, 2, seed=k + 5),
        }
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
        save_file(factors, folders[task] / "adapter_model.safetensors")
        (folders[task] / "adapter_config.json").write_text(json.dumps(config))
    experts = load_experts({name: torch.zeros(12, 12)}, folders)
    with pytest.raises(UserError, match=rf"^{re.escape(name)}: .* too large"):
        pareto_merging(experts, rank=2)


def test_no_decomposition_stands_outside():
    """One place: elsewhere only norms and what solves no equation."""
    names = r"linalg\.(svd|svdvals|eigh?|eigvals\w*|qr|lstsq|pinv|solve|inv|cholesky\w*)\b"
    pattern = re.compile(names + "|svd_lowrank|import nnls")
    source = Path(decompositions.__file__).parent
    others = [file for file in source.rglob("*.py") if file != Path(decompositions.__file__)]
    assert not [f"{file.name}: {found[0]}" for file in others if (found := pattern.search(file.read_text()))]
