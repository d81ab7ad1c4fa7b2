"""pick --lora: peft, on the front's own folder, must give what the dense pick gives."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import tiny
from commands import HEADS, apart
from paretomerge import load_front

PREFERENCE = "a=0.9,b=0.1"


def adapted(cls, front, adapter, **changes):
    return peft.PeftModel.from_pretrained(cls.from_pretrained(front, **changes), adapter).eval()


@pytest.mark.parametrize(
    "kind, options",
    [
        ("llama", ["rank=3"]),
        ("llama", ["rank=3", "fuse_qkv=true"]),
        ("llama", ["rank=3", "targets=*embed_tokens*"]),
        ("llama", ["rank=12", "targets=all"]),  # more than k_proj's 8 rows: ranks differ
        ("gpt2", ["rank=3"]),
        ("gpt2", ["rank=5", "targets=all"]),
        ("gpt2", ["rank=2", "targets=*.mlp.c_fc.weight"]),
    ],
)
def test_the_adapter_gives_the_logits_of_the_dense_pick(cli, zoo, kind, options):
    """Linear (Llama) and Conv1D (GPT-2), loaded in the three ways that users load adapters."""
    cli("fit", *zoo.flags(kind), *(w for option in options for w in ("--option", option)), "-o", "front")
    cli("pick", "front", "-p", PREFERENCE, "-o", "dense")
    cli("pick", "front", "-p", PREFERENCE, "-o", "adapter", "--lora")
    dense = tiny.logits(kind, hf.AutoModelForCausalLM.from_pretrained("dense"))
    unadapted = tiny.logits(kind, hf.AutoModelForCausalLM.from_pretrained("front"))
    with torch.no_grad():
        for model in (
            adapted(hf.AutoModelForCausalLM, "front", "adapter"),
            peft.AutoPeftModelForCausalLM.from_pretrained("adapter"),
            hf.AutoModelForCausalLM.from_pretrained("adapter"),
            adapted(hf.AutoModelForCausalLM, "front", "adapter").merge_and_unload(),
        ):
            assert apart(tiny.logits(kind, model), dense) <= 1e-5
    assert apart(unadapted, dense) > 1e-4, "the adapter does nothing"
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    varying = load_front("front").pareto_set.varying
    assert len(config["target_modules"]) == len(varying)
    one_rank(Path("adapter"), int(options[0].removeprefix("rank=")))


def one_rank(folder, rank):
    """Engines that know no patterns scale by one alpha over each tensor's own rank: all must be the same."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    assert not config.get("rank_pattern") and not config.get("alpha_pattern")
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        assert tensor.shape[0 if name.endswith(("lora_A.weight", "embedding_A")) else 1] == rank


@pytest.mark.parametrize("task", HEADS)
def test_an_adapter_with_a_head(cli, zoo, task):
    """ViT, whose modules transformers renames on loading; the classifier travels in the adapter."""
    cli("fit", *zoo.flags("vit"), "--option", "rank=2", "-o", "front")
    cli("pick", "front", "-p", PREFERENCE, "--head", task, "-o", "dense")
    cli("pick", "front", "-p", PREFERENCE, "--head", task, "-o", "adapter", "--lora")
    cls = hf.AutoModelForImageClassification
    dense = tiny.logits("vit", cls.from_pretrained("dense"))
    model = adapted(cls, "front", "adapter", num_labels=HEADS[task])
    assert dense.shape == (2, HEADS[task])
    assert apart(tiny.logits("vit", model), dense) <= 1e-5


def test_an_adapter_without_a_head(cli, zoo):
    cli("fit", *zoo.flags("vit"), "--option", "rank=2", "-o", "front")
    cli("pick", "front", "-p", PREFERENCE, "--head", "none", "-o", "dense")
    cli("pick", "front", "-p", PREFERENCE, "--head", "none", "-o", "adapter", "--lora")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        dense = hf.AutoModel.from_pretrained("dense")(pixels).last_hidden_state
        light = adapted(hf.AutoModel, "front", "adapter")(pixels).last_hidden_state
    assert apart(dense, light) <= 1e-5


def test_the_adapter_finds_its_base(cli, zoo):
    cli("fit", *zoo.flags("llama"), "--option", "rank=2", "-o", "front")
    facts = json.loads(cli("pick", "front", "-p", "only:a", "-o", "here", "--lora", "--json"))
    assert facts["preference"] == {"a": 1.0, "b": 0.0}
    assert json.loads(Path("here/adapter_config.json").read_text())["base_model_name_or_path"] == str(cli.here / "front")
    cli("pick", "front", "-p", "only:a", "-o", "there", "--lora", "--base-model", "org/front")
    assert json.loads(Path("there/adapter_config.json").read_text())["base_model_name_or_path"] == "org/front"
    code, out, err = cli.call(["pick", "front", "-p", "only:a", "-o", "here", "--lora", "--overwrite", "--quiet"])
    assert (code, out, err) == (0, "", "")


def test_equal_preference_is_an_adapter_that_changes_nothing(cli, zoo):
    cli("fit", *zoo.flags("llama"), "--option", "rank=2", "-o", "front")
    cli("pick", "front", "-p", "equal", "-o", "adapter", "--lora")
    front = hf.AutoModelForCausalLM.from_pretrained("front")
    assert apart(tiny.logits("llama", adapted(type(front), "front", "adapter")), tiny.logits("llama", front)) == 0


def test_what_lora_cannot_adapt_is_named(cli, zoo):
    """A table of tokens that is the output's, too: unmerged, peft would change one of the two."""
    cli("fit", *zoo.flags("gpt2"), "--option", "targets=*wte*", "-o", "front")
    assert "wte.weight: is tied to the output" in cli.refuses("pick", "front", "-p", "only:a", "-o", "adapter", "--lora")


def test_adapters_as_experts(cli, zoo):
    """What pick writes, merge and fit read: an adapter on the front's folder is an expert of that base."""
    cli("fit", *zoo.flags("gpt2"), "--option", "rank=2", "-o", "front")
    for task in "ab":
        cli("pick", "front", "-p", f"only:{task}", "-o", task, "--lora")
        cli("pick", "front", "-p", f"only:{task}", "-o", f"dense-{task}")
    cli("merge", "--base", "front", "--expert", "a=a", "--expert", "b=b", "-m", "average", "-o", "light")
    cli("merge", "--base", "front", "--expert", "a=dense-a", "--expert", "b=dense-b", "-m", "average", "-o", "dense")
    light, dense = load_file("light/model.safetensors"), load_file("dense/model.safetensors")
    assert light.keys() == dense.keys() and all(apart(light[name], dense[name]) < 1e-6 for name in dense)
    cli("fit", "--base", "front", "--expert", "a=a", "--expert", "b=b", "--option", "rank=4", "-o", "second")
