"""An embedding and an output projection that are one tensor in one model, and two in another."""

import json

import pytest
import torch
import transformers as hf
from packaging.version import Version
from safetensors.torch import load_file, save_file

import tiny
from paretomerge.experts import Options, has_output, inspect_experts, load_experts, ties
from paretomerge.merges import average, task_arithmetic
from paretomerge.weights import SINGLE

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def errors(base, expert, **options):
    return [str(f) for f in inspect_experts(base, {"a": expert}, Options(**options)).findings if f.level == "error"]


@pytest.mark.parametrize("told", [True, False])
def test_a_tied_expert_on_an_untied_base(tmp_path, told):
    # of a GPT-2 the configuration does not say that it is tied: the default of its class counts
    kind, embedding = ("llama", EMBEDDING) if told else ("gpt2", "transformer.wte.weight")
    base = tiny.save(tiny.model(kind, tie_word_embeddings=False), tmp_path / "base")
    tied = tiny.save(tiny.perturb(tiny.model(kind, tie_word_embeddings=True), 1), tmp_path / "tied")
    untied = tiny.save(tiny.perturb(tiny.model(kind, tie_word_embeddings=False), 2), tmp_path / "untied")
    if not told:
        facts = json.loads((tied / "config.json").read_text())
        facts.pop("tie_word_embeddings", None)
        (tied / "config.json").write_text(json.dumps(facts))
    assert OUTPUT not in load_file(tied / SINGLE)
    alone = task_arithmetic(load_experts(base, {"a": tied}), scale=1.0)
    moved = load_file(tied / SINGLE)[embedding]
    torch.testing.assert_close(alone[OUTPUT], moved)
    torch.testing.assert_close(alone[embedding], moved)
    both = average(load_experts(base, {"a": tied, "b": untied}))
    torch.testing.assert_close(both[OUTPUT], (moved + load_file(untied / SINGLE)[OUTPUT]) / 2)
    excluded = average(load_experts(base, {"a": tied}, exclude=[OUTPUT]))
    assert torch.equal(excluded[OUTPUT], load_file(base / SINGLE)[OUTPUT])


def adapter(folder, base, **options):
    """An adapter with random factors on a tied Llama, and its logits."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    net = peft.get_peft_model(hf.LlamaForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    return folder, tiny.logits("llama", net.eval())


TRAINED = {
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "by factors": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.fixture
def llama(tmp_path):
    return tiny.save(tiny.model("llama", tie_word_embeddings=True), tmp_path / "base")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stored", [1, 2])
@pytest.mark.parametrize("how", TRAINED)
def test_an_adapter_that_trained_the_embedding_alone(llama, tmp_path, how, stored):
    folder, _ = adapter(tmp_path / "adapter", llama, **TRAINED[how])
    if stored == 2:  # the base's file may hold the tensor under both names
        tensors = load_file(llama / SINGLE)
        save_file({**tensors, OUTPUT: tensors[EMBEDDING].clone()}, llama / SINGLE, metadata={"format": "pt"})
    (error,) = errors(llama, folder)
    assert "adapter_model.safetensors" in error and EMBEDDING in error and "ties" in error and "--exclude" in error
    merged = task_arithmetic(load_experts(llama, {"a": folder}, exclude=[EMBEDDING]), scale=1.0)
    assert torch.equal(merged[EMBEDDING], load_file(llama / SINGLE)[EMBEDDING])
    # on an untied base, with both tensors in its file, the embedding moves alone, as it did in training
    facts = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**facts, "tie_word_embeddings": False}))
    tensors = {name: tensor.clone() for name, tensor in load_file(llama / SINGLE).items()}  # the file is written over
    save_file({**tensors, OUTPUT: tensors[EMBEDDING].clone()}, llama / SINGLE, metadata={"format": "pt"})
    merged = task_arithmetic(load_experts(llama, {"a": folder}), scale=1.0)
    assert torch.equal(merged[OUTPUT], tensors[EMBEDDING]) and not torch.equal(merged[EMBEDDING], tensors[EMBEDDING])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", TRAINED)
def test_an_adapter_that_kept_the_two_tied(llama, tmp_path, how):
    peft = pytest.importorskip("peft")
    if Version(peft.__version__) < Version("0.21"):
        pytest.skip("this peft cannot keep them tied")
    folder, expected = adapter(tmp_path / "adapter", llama, ensure_weight_tying=True, **TRAINED[how])
    merged = task_arithmetic(load_experts(llama, {"a": folder}), scale=1.0)
    assert OUTPUT not in merged
    net = hf.LlamaForCausalLM.from_pretrained(llama)
    net.load_state_dict({name: merged[name] for name in merged}, strict=False)
    torch.testing.assert_close(tiny.logits("llama", net.eval()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_on_a_backbone_nothing_is_tied(llama, tmp_path):
    folder, _ = adapter(tmp_path / "adapter", llama, **TRAINED["whole"])
    bare = tiny.save(hf.LlamaModel.from_pretrained(llama), tmp_path / "bare")
    assert not errors(bare, folder)


@pytest.mark.parametrize(
    "config, tied",
    [
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False, "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, False),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, True),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}, False),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": None, "text_config": 3}, False),
        ({}, False),
    ],
)
def test_whether_a_model_is_tied(config, tied):
    assert ties(config) is tied


def test_whether_a_class_projects_to_tokens():
    small = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}
    assert has_output({**small, "architectures": ["GPT2LMHeadModel"]})
    assert not has_output({**small, "architectures": ["GPT2Model"]})
