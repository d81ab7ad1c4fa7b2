"""Adapters that were trained on another base than the one that is named."""

import json
import shutil

import pytest
import torch

import tiny
from paretomerge.experts import Options, inspect_experts
from paretomerge.weights import VARIABLE

peft = pytest.importorskip("peft")


@pytest.fixture
def models(tmp_path):
    """A base, an adapter on it, and other models that the adapter fits to."""
    base = tiny.save(tiny.model("llama"), tmp_path / "org" / "Llama_Tiny")
    net = peft.get_peft_model(tiny.model("llama"), peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    net.save_pretrained(tmp_path / "lora")
    return base


def found(base, folder, trained_on, vocab="error"):
    """Level of what is said of the adapter's base, if anything is."""
    file = folder / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": trained_on}))
    findings = inspect_experts(base, {"a": folder / "lora"}, Options(vocab=vocab)).findings
    return [finding.level for finding in findings if finding.file == str(file)]


def test_the_same_model_by_other_names(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models, tmp_path / "copied")
    (tmp_path / "link").symlink_to(models)
    half = tiny.save(tiny.model("llama").to(torch.bfloat16), tmp_path / "half")
    names = [
        models, f"{models}/", "org/Llama_Tiny", "org/llama-tiny", "other/Llama-Tiny@v1", "/no/such/place/llama_tiny",
        tmp_path / "copied", tmp_path / "link", "copied", half, "unsloth/llama-tiny-unsloth-bnb-4bit", "org/Llama-Tiny-GPTQ",
        "/x/hub/models--org--Llama_Tiny/snapshots/abc", None, "", 5,
    ]  # fmt: skip
    for name in names:
        assert found(models, tmp_path, str(name) if not isinstance(name, int) and name else name) == [], name
    assert found(tmp_path / "link", tmp_path, "org/llama-tiny") == []


def test_another_model_of_the_same_shape(tmp_path, models, monkeypatch):
    other = tiny.save(tiny.model("llama", seed=5), tmp_path / "other")
    assert found(models, tmp_path, str(other)) == ["note"]
    assert found(models, tmp_path, "org/another-model") == ["note"]
    monkeypatch.setenv(VARIABLE, str(tmp_path / "hub"))
    shutil.copytree(other, tmp_path / "hub" / "org" / "llama-tiny")  # the same name, and not the same weights
    assert found(models, tmp_path, "org/llama-tiny") == ["note"]


@pytest.mark.parametrize("changes", [{"vocab_size": 50}, {"num_hidden_layers": 3}, {"intermediate_size": 32}])
def test_a_model_that_it_cannot_be(tmp_path, models, changes):
    other = tiny.save(tiny.model("llama", **changes), tmp_path / "other")
    assert found(models, tmp_path, str(other)) == ["error"]
    assert found(models, tmp_path, str(other), vocab="common") == (["note"] if "vocab_size" in changes else ["error"])
