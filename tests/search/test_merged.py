"""Merged models that move: the same bits from scratch, whatever came before, and what is written is what is live."""

import numpy as np
import pytest
import torch

import fit_data
import tiny
from paretomerge.experts import load_experts
from paretomerge.merges import processed, task_arithmetic
from paretomerge.models import ingredients_of
from paretomerge.weights import added, as_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Embeddings are tied to the output."""
    return load_experts(*tiny.family("llama", tmp_path_factory.mktemp("llama"), tie_word_embeddings=True))


def made(experts, inside="task_arithmetic"):
    return ingredients_of(experts, processed(experts, inside))


def logits(net):
    with torch.no_grad():
        return net(input_ids=torch.arange(3, 11).view(1, -1)).logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_sum_is_the_sum(monkeypatch, dtype, stored):
    monkeypatch.setattr("paretomerge.weights.vectors._BLOCK", 7)
    draw = torch.Generator().manual_seed(0)
    base, v = torch.randn(5, 6, generator=draw).to(dtype), torch.randn(3, 5, 6, generator=draw).to(stored)
    c = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    out = torch.full((5, 6), torch.nan, dtype=dtype)
    assert added(base, v, c, out) is out
    exact = base.double() + (c.view(3, 1, 1) * v.double()).sum(0)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-6)


def test_a_model_at_c_is_the_merge(llamas):
    found, merge = made(llamas).at([0.25, 0.5]), task_arithmetic(llamas, scale=[0.25, 0.5])
    assert list(found) == list(merge) and found.infos == merge.infos
    for name in merge:
        torch.testing.assert_close(found[name], merge[name], rtol=0, atol=1e-6)
    half = made(llamas).at([0.25, 0.5], torch.bfloat16)
    assert all(torch.equal(half[name], found[name].to(torch.bfloat16)) for name in merge)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_models_stored_in_another_dtype_are_summed_before_they_are_rounded(llamas, dtype):
    found, merge = made(llamas.stored_as(dtype)).at([0.3, 0.3]), task_arithmetic(llamas.stored_as(dtype), scale=0.3)
    for name in merge:
        assert found[name].dtype == dtype
        torch.testing.assert_close(found[name], merge[name], rtol=0.008 if dtype == torch.bfloat16 else 1e-6, atol=1e-4)


def test_a_live_model_does_not_drift(llamas):
    live = made(llamas).live(CPU)
    net = live.models["a"]
    assert net is live.models["b"]
    live.move_([0.3, 0.6])
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    for c in np.random.default_rng(0).random((200, 2)):
        live.move_(c.tolist())
    assert any(not torch.equal(before[name], parameter) for name, parameter in net.named_parameters())
    live.move_([0.3, 0.6])
    assert all(torch.equal(before[name], parameter) for name, parameter in net.named_parameters())


@pytest.mark.parametrize("inside", ["task_arithmetic", "ties", "tsv"])
def test_live_and_written_models_say_the_same(llamas, tmp_path, inside):
    from transformers import AutoModelForCausalLM

    ingredients = made(llamas, inside)
    live = ingredients.live(CPU)
    live.move_([0.9, 0.1])
    from paretomerge.evaluation.evaluators import _write

    _write(ingredients, [0.9, 0.1], tmp_path / "model", None)
    torch.testing.assert_close(
        logits(live.models["a"]), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), rtol=1e-5, atol=1e-5
    )


def test_task_vectors_in_half_precision_are_close(llamas):
    ingredients = made(llamas)
    exact, short = ingredients.live(CPU), ingredients.live(CPU, torch.bfloat16)
    for live in (exact, short):
        live.move_([1.0, 0.5])
    both = zip(exact.models["a"].parameters(), short.models["a"].parameters(), strict=True)
    apart = max(float((one - other).detach().abs().max()) for one, other in both)
    assert 0 < apart < 1.5 * 2**-14  # Σ c = 1.5; perturbations are below 2⁻⁵, and half of bfloat16's last bit there is 2⁻¹⁴


def test_each_head_has_its_own_model_over_the_same_weights(tmp_path):
    experts = fit_data.experts(fit_data.save("vit", tmp_path))
    live = made(experts).live(CPU)
    a, b = live.models["a"], live.models["b"]
    live.move_([1.0, 0.0])
    own = tiny.model("vit", num_labels=5)
    assert a.config.num_labels == 5 and b.config.num_labels == 3 and type(a) is type(own)
    merged = a.vit.embeddings.patch_embeddings.projection.weight
    assert merged is b.vit.embeddings.patch_embeddings.projection.weight
    name = "embeddings.patch_embeddings.projection.weight"
    torch.testing.assert_close(merged.detach(), experts.base[name] + experts.task_vectors(name)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_bytes(dtype):
    tensor = torch.arange(6).view(2, 3).to(dtype)
    again = torch.from_numpy(as_bytes(tensor.T).copy()).view(dtype).view(3, 2)
    assert torch.equal(again, tensor.T)
