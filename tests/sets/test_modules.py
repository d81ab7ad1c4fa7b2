"""Which tensors share a router, in the architectures that people merge; and how many numbers that makes."""

import pytest
import torch
import transformers as hf
from packaging.version import Version

import tiny
from paretomerge.errors import UserError
from paretomerge.sets import choose_modules, depth
from paretomerge.sets import coefficient_shapes as shapes
from paretomerge.weights import TensorInfo, is_matrix

RENAMED = Version(hf.__version__).major >= 5
"""Modules have other names in memory since transformers 5; files keep those of transformers 4."""
VIT, MLP, MOE = ("vit.layers.{}", ".mlp", "mlp") if RENAMED else ("vit.encoder.layer.{}", "", "block_sparse_moe")

OTHERS = {
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config(num_layers=2, num_decoder_layers=2)),
    "opt": (hf.OPTForCausalLM, hf.OPTConfig(num_hidden_layers=2)),
    "distilbert": (hf.DistilBertModel, hf.DistilBertConfig(n_layers=2)),
    "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig(num_hidden_layers=2)),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config(num_hidden_layers=2)),
    "swin": (hf.SwinModel, hf.SwinConfig(depths=[1, 1])),
    "vit-b-32": (hf.CLIPVisionModel, hf.CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                 num_attention_heads=12, patch_size=32, projection_dim=512)),
}  # fmt: skip


def infos_of(kind: str) -> dict[str, TensorInfo]:
    """The tensors that transformers makes, without memory for them."""
    with torch.device("meta"):
        if kind in OTHERS:
            cls, config = OTHERS[kind]
            state = cls(config).state_dict()
        else:
            cls, config, options = tiny.ARCHITECTURES[kind]
            state = cls(config(**options)).state_dict()
    return {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in state.items()}


def chosen(kind: str, modules: str | list[str]) -> dict[str, tuple[str, ...]]:
    infos = infos_of(kind)
    return choose_modules(infos, list(infos), modules)


def numbers(groups: int, tasks: int) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes("routed", groups, tasks).values())


@pytest.mark.parametrize("tasks, router, model", [(2, 22, 264), (8, 280, 3360)])
def test_counts_of_the_paper(tasks, router, model):
    mlps = chosen("vit-b-32", "mlp")
    assert len(mlps) == 12 and all(len(names) == 4 for names in mlps.values())
    assert numbers(1, tasks) == router and numbers(len(mlps), tasks) == model
    assert sum(infos_of("vit-b-32")[name].numel for names in mlps.values() for name in names) == 56_669_184  # its 56.7 M
    assert [int(name.split(".")[-2]) for name in mlps] == list(range(12))  # in order of depth, 10 after 9


@pytest.mark.parametrize(
    "kind, mlps, attentions",
    [
        ("llama", "model.layers.{}.mlp", ["model.layers.{}.self_attn"]),
        ("gpt2", "transformer.h.{}.mlp", ["transformer.h.{}.attn"]),
        ("bert", "bert.encoder.layer.{}", ["bert.encoder.layer.{}.attention"]),
        ("vit", f"{VIT}{MLP}", [f"{VIT}.attention"]),
        ("opt", "model.decoder.layers.{}", ["model.decoder.layers.{}.self_attn"]),
        ("distilbert", "transformer.layer.{}.ffn", ["transformer.layer.{}.attention"]),
        ("mixtral", f"model.layers.{{}}.{MOE}", ["model.layers.{}.self_attn"]),
        ("dinov2", "encoder.layer.{}.mlp", ["encoder.layer.{}.attention"]),
    ],
)
def test_blocks(kind, mlps, attentions):
    assert list(chosen(kind, "mlp")) == [mlps.format(i) for i in range(2)]
    assert list(chosen(kind, "attention")) == [a.format(i) for i in range(2) for a in attentions]
    both = chosen(kind, "attention+mlp")
    assert set(both) == set(chosen(kind, "mlp")) | set(chosen(kind, "attention"))


def test_two_towers_and_cross_attention():
    assert len(chosen("clip", "mlp")) == len(chosen("clip", "attention")) == 4
    mlps = chosen("t5", "mlp")
    assert list(mlps) == [f"{side}.block.{i}" for side in ("decoder", "encoder") for i in range(2)]
    assert all("DenseReluDense" in name for names in mlps.values() for name in names)
    attention = chosen("t5", "attention")
    assert len(attention) == 6 and sum("EncDecAttention" in module for module in attention) == 2
    assert all(len(names) == 4 for names in attention.values())
    stages = [f"encoder.layers.0.blocks.0{MLP}", "encoder.layers.0", f"encoder.layers.1.blocks.0{MLP}"]
    assert list(chosen("swin", "mlp")) == stages  # the second is the map between two stages


@pytest.mark.parametrize("kind", [*(k for k in tiny.ARCHITECTURES if k != "resnet"), *OTHERS])
def test_every_matrix_of_a_block_has_one_module_and_norms_have_none(kind):
    infos = infos_of(kind)
    both = choose_modules(infos, list(infos), "attention+mlp")
    names = [name for members in both.values() for name in members]
    assert len(names) == len(set(names))
    in_blocks = {name for name in infos if is_matrix(name, infos[name].shape) and any(p.isdigit() for p in name.split("."))}
    assert {name for name in in_blocks if "relative_position" not in name} <= set(names)
    for name in set(names) - in_blocks:  # biases of these matrices, and stacks of experts
        assert name.removesuffix("bias") + "weight" in in_blocks or len(infos[name].shape) == 3
    assert not [name for name in names if "norm" in name.lower() or ".ln" in name]


@pytest.mark.parametrize("kind", [*tiny.ARCHITECTURES, *OTHERS])
def test_all_takes_every_tensor_once(kind):
    infos = infos_of(kind)
    merged = [name for name in infos if infos[name].dtype.is_floating_point]
    every = choose_modules(infos, list(infos), "all")
    assert sorted(name for names in every.values() for name in names) == sorted(merged)
    if kind != "resnet":
        assert set(choose_modules(infos, list(infos), "attention+mlp").items()) <= set(every.items())


def test_globs_name_modules_or_tensors():
    blocks = chosen("opt", "*.layers.?")
    assert list(blocks) == ["model.decoder.layers.0", "model.decoder.layers.1"]
    assert [len(names) for names in blocks.values()] == [16, 16]
    two = chosen("opt", ["*.fc1", "*.fc2.weight"])
    assert list(two) == [f"model.decoder.layers.{i}.{m}" for i in range(2) for m in ("fc1", "fc2.weight")]
    assert two["model.decoder.layers.0.fc1"] == ("model.decoder.layers.0.fc1.bias", "model.decoder.layers.0.fc1.weight")


def test_only_what_the_experts_change_counts():
    infos = infos_of("opt")
    merged = [name for name in infos if ".fc1." in name]
    assert [len(names) for names in choose_modules(infos, merged, "mlp").values()] == [2, 2]


@pytest.mark.parametrize("kind, modules", [("resnet", "mlp"), ("resnet", "attention"), ("vit", "*.nothing"), ("vit", ["x"])])
def test_nothing_that_fits(kind, modules):
    with pytest.raises(UserError, match="no tensor of this model fits") as error:
        chosen(kind, modules)
    assert "\n" not in str(error.value)


def test_depth_counts():
    names = ["h.10.x", "h.9.x", "h.9.a", "a"]
    assert sorted(names, key=depth) == ["a", "h.9.a", "h.9.x", "h.10.x"]
