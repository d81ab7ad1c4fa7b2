"""Adapters out: one rank and one scaling for all modules, and the model that was picked."""

import json

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
from paretomerge.errors import UserError
from paretomerge.front import write_lora
from paretomerge.weights import LowRank, open_adapter, open_checkpoint

MODULES = {
    "llama": [
        *(f"model.layers.{i}.self_attn.{m}_proj" for i in (0, 1) for m in "qkvo"),
        "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.embed_tokens", "lm_head",
    ],
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_fc"],
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {kind: tiny.save(tiny.model(kind), tmp_path_factory.mktemp(kind) / "base") for kind in MODULES}


def written(base, ranks, folder, **options):
    """An adapter with random factors of these ranks, and θ₀ + L R of its matrices."""
    start, generator = open_checkpoint(base), torch.Generator().manual_seed(0)
    pairs = {}
    for name, rank in ranks.items():
        m, n = start.infos[name].shape
        pairs[name] = LowRank(0.1 * torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator))
    write_lora(
        list(ranks), pairs.__getitem__, folder, config=start.config, base_model=str(base), provenance={"method": "soup"},
        overwrite=True, **options,
    )  # fmt: skip
    return {name: start[name] + pair.left @ pair.right for name, pair in pairs.items()}


@pytest.mark.parametrize("kind", MODULES)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_one_rank_and_no_patterns_whatever_the_ranks(bases, tmp_path, kind, data):
    modules = st.sampled_from([f"{module}.weight" for module in MODULES[kind]])
    ranks = data.draw(st.dictionaries(modules, st.integers(0, 20), min_size=1))
    dense = written(bases[kind], ranks, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == max(1, *ranks.values())
    assert not config.get("rank_pattern") and not config.get("alpha_pattern") and not config.get("use_rslora")
    assert config["target_modules"] == sorted(name.removesuffix(".weight") for name in ranks)
    for name, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items():
        assert tensor.shape[0 if name.endswith(("lora_A.weight", "embedding_A")) else 1] == config["r"]
    net = type(tiny.model(kind)).from_pretrained(bases[kind])
    state = peft.PeftModel.from_pretrained(net, tmp_path / "adapter").merge_and_unload().state_dict()
    before = net.state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, dense.get(name, before[name]), rtol=1e-5, atol=1e-5)


def test_zeros_that_fill_up_are_not_read_again(bases, tmp_path):
    """Sums of adapters have the sum of the ranks: of what was added, not of the padding."""
    written(bases["llama"], {"model.layers.0.self_attn.q_proj.weight": 5, "lm_head.weight": 2}, tmp_path / "adapter")
    factors = open_adapter(tmp_path / "adapter").factors
    assert {name: each.rank for name, each in factors.items()} == {
        "model.layers.0.self_attn.q_proj.weight": 5,
        "lm_head.weight": 2,
    }


def test_numbers_that_are_none_are_not_written(bases, tmp_path):
    start = open_checkpoint(bases["llama"])
    pair = LowRank(torch.full((40, 1), float("inf")), torch.ones(1, 16))
    with pytest.raises(UserError, match=r"lm_head\.lora_B\.weight: .*infinite"):
        write_lora(
            ["lm_head.weight"], lambda name: pair, tmp_path / "adapter", config=start.config, base_model="x",
            provenance={"method": "soup"},
        )  # fmt: skip
    assert not (tmp_path / "adapter").exists()
