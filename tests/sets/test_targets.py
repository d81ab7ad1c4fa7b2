"""Which matrices get a low-rank term, in the architectures that people merge."""

import pytest
import torch

import tiny
from paretomerge.errors import UserError
from paretomerge.sets import choose_targets
from paretomerge.weights import TensorInfo, is_matrix, makes_queries_keys_values, open_checkpoint


@pytest.fixture(scope="module")
def infos(tmp_path_factory):
    """Tensors of each architecture as transformers saves them."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: open_checkpoint(tiny.save(tiny.model(kind), folder / kind)).infos for kind in tiny.ARCHITECTURES}


def size(chosen, infos, K=2, r=2):
    """Numbers that A, B and G hold."""
    return sum(sum(rows for _, rows in m) * r + K * r * r + r * infos[m[0][0]].shape[1] for m in chosen.values())


@pytest.mark.parametrize("kind, blocks", [("llama", 2), ("bert", 2), ("vit", 2), ("clip", 4)])
def test_attention(infos, kind, blocks):
    infos = infos[kind]
    apart = choose_targets(infos, list(infos), "attention")
    fused = choose_targets(infos, list(infos), "attention", fuse_qkv=True)
    assert len(apart) == 3 * blocks and all(members == ((name, infos[name].shape[0]),) for name, members in apart.items())
    assert len(fused) == blocks and all(len(members) == 3 for members in fused.values())
    assert sorted(name for members in fused.values() for name, _ in members) == sorted(apart)
    # as many numbers as for one matrix of all their rows
    whole = {
        name: TensorInfo((sum(rows for _, rows in m), infos[m[0][0]].shape[1]), torch.float32) for name, m in fused.items()
    }
    assert size(fused, infos) == size({name: ((name, info.shape[0]),) for name, info in whole.items()}, whole)
    assert size(fused, infos) < size(apart, infos)


def test_attention_of_gpt2_is_fused_already(infos):
    infos = infos["gpt2"]
    apart = choose_targets(infos, list(infos), "attention")
    assert [name.split(".", 3)[-1] for name in apart] == ["attn.c_attn.weight"] * 2
    assert choose_targets(infos, list(infos), "attention", fuse_qkv=True) == apart


def test_a_resnet_has_no_attention(infos):
    with pytest.raises(UserError, match="no matrix of this model fits"):
        choose_targets(infos["resnet"], list(infos["resnet"]), "attention")


@pytest.mark.parametrize("kind, count", [("llama", 14), ("gpt2", 8), ("bert", 13), ("vit", 12)])
def test_all(infos, kind, count):
    chosen = choose_targets(infos[kind], list(infos[kind]), "all")
    assert len(chosen) == count
    assert not [name for name in chosen if "embed" in name or "wte" in name or "lm_head" in name or "classifier" in name]


def test_globs(infos):
    infos = infos["llama"]
    assert list(choose_targets(infos, list(infos), "*layers.0*up_proj*")) == ["model.layers.0.mlp.up_proj.weight"]
    assert list(choose_targets(infos, list(infos), ["lm_head.weight"])) == ["lm_head.weight"]
    for wrong in ("attn", ["*norm.weight"], []):
        with pytest.raises(UserError) as error:
            choose_targets(infos, list(infos), wrong)
        assert "\n" not in str(error.value)


def test_only_what_an_expert_changes(infos):
    infos = infos["llama"]
    merged = [name for name in infos if "layers.1" in name]
    assert len(choose_targets(infos, merged, "attention")) == 3


def test_only_inputs_of_one_width_are_fused():
    shapes = {"cross.q_proj.weight": (8, 16), "cross.k_proj.weight": (8, 24), "cross.v_proj.weight": (8, 24)}
    infos = {name: TensorInfo(shape, torch.float32) for name, shape in shapes.items()}
    chosen = choose_targets(infos, list(infos), "attention", fuse_qkv=True)
    assert sorted(len(members) for members in chosen.values()) == [1, 2]
    assert {name for members in chosen.values() for name, _ in members} == set(shapes)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "transformer.h.0.attn.c_attn.weight",
        "bert.encoder.layer.0.attention.self.value.weight",
        "distilbert.transformer.layer.0.attention.k_lin.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "gpt_neox.layers.0.attention.query_key_value.weight",
        "transformer.blocks.0.attn.Wqkv.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "blocks.0.attn.qkv.weight",
        "visual.transformer.resblocks.0.attn.in_proj_weight",
        "layers.0.attention.wk.weight",
        "down.attn1.to_q.weight",
    ],
)
def test_names_of_queries_keys_and_values(name):
    assert makes_queries_keys_values(name) and is_matrix(name, (8, 8))


@pytest.mark.parametrize(
    "name",
    ["h.0.attn.c_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight", "q_proj.bias", "layer.0.output.dense.weight"],
)
def test_names_of_others(name):
    assert not makes_queries_keys_values(name)


@pytest.mark.parametrize(
    "name, shape, matrix",
    [
        ("model.layers.0.mlp.shared_experts.up_proj.weight", (8, 4), True),
        ("mlp.score_proj.weight", (8, 4), True),
        ("shared.weight", (8, 4), False),
        ("score.weight", (8, 4), False),
        ("wte.weight", (8, 4), False),
        ("text_model.embeddings.token_embedding.weight", (8, 4), False),
        ("dense.weight", (8, 1), False),
        ("conv.weight", (8, 4, 3, 3), False),
        ("bias", (8,), False),
    ],
)
def test_linear_maps(name, shape, matrix):
    assert is_matrix(name, shape) == matrix
