"""merge, the closed form and pick under a limit on memory that counts the page cache, too: models larger than it stream."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.control_group import Group
from commands import PROGRAM
from paretomerge.weights import open_checkpoint

MIB = 2**20
WIDTH = 1024


def model(folder: Path, mib: int, seed: int) -> Path:
    """About so many MiB of bf16 in four shards; the layers are alike, so that it is made in a moment."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"self_attn.{p}_proj.weight": (WIDTH, WIDTH) for p in "qkv"} | {"mlp.up_proj.weight": (4 * WIDTH, WIDTH)}
    layer = {
        name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator) for name, shape in shapes.items()
    }
    layers = max(4, round(mib * MIB / sum(tensor.nbytes for tensor in layer.values())))
    places = {}
    for shard in range(4):
        tensors = {
            f"model.layers.{i}.{name}": tensor.clone() for i in range(shard, layers, 4) for name, tensor in layer.items()
        }
        save_file(tensors, folder / f"model-{shard + 1:05}-of-00004.safetensors")
        places |= dict.fromkeys(tensors, f"model-{shard + 1:05}-of-00004.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaModel"]}))
    return folder


@pytest.mark.parametrize(("mib", "limit"), [(128, 320), pytest.param(1024, 320, marks=pytest.mark.slow)])
def test_models_larger_than_the_memory(tmp_path, mib, limit):
    """Three models of ``mib`` MiB; libraries need 200 MiB or more of the limit for themselves."""
    base, a, b = (model(tmp_path / name, mib, seed) for seed, name in enumerate(("base", "a", "b")))
    experts = ["--base", base, "--expert", f"a={a}", "--expert", f"b={b}", "-q"]
    for words in (
        ["merge", *experts, "-o", tmp_path / "merged"],
        ["merge", *experts, "--method", "ties", "--option", "density=0.2", "-o", tmp_path / "ties"],
        ["fit", *experts, "--option", "rank=4", "-o", tmp_path / "front"],
        ["pick", tmp_path / "front", "-p", "only:a", "-q", "-o", tmp_path / "picked"],
    ):
        try:
            group = Group(limit * MIB)
        except OSError:
            pytest.skip("no control group for memory can be made here")
        try:
            *_, peak = group.run([PROGRAM, *words])
            assert peak <= limit * MIB
        finally:
            time.sleep(0.2)
            group.close()
    theta = [open_checkpoint(folder) for folder in (base, a, b)]
    merged, ties, front, picked = (open_checkpoint(tmp_path / name) for name in ("merged", "ties", "front", "picked"))
    # the layers are alike, so that the whole model's threshold is that of one of them
    layer = [[weights[name].float() for name in weights if ".layers.0." in name] for weights in theta]
    thresholds = []
    for expert in layer[1:]:
        size = torch.cat([(one - start).abs().flatten() for start, one in zip(layer[0], expert, strict=True)])
        thresholds.append(float(size.sort(descending=True).values[len(size) // 5 - 1]))
    for name in ("model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        start, one, two = (weights[name].float() for weights in theta)
        assert torch.equal(merged[name], (start + 0.3 * (one - start) + 0.3 * (two - start)).bfloat16()) or torch.allclose(
            merged[name].float(), start + 0.3 * (one - start) + 0.3 * (two - start), rtol=1e-2
        )
        kept = [(v * (v.abs() >= t)) for v, t in zip((one - start, two - start), thresholds, strict=True)]
        sign = (kept[0] + kept[1]).sign()
        agreeing = [v * (v.sign() == sign) for v in kept]
        voters = sum((v != 0).float() for v in agreeing).clamp(min=1)
        # of entries as large as the threshold, which all layers have, the first alone are kept
        clear = ((one - start).abs() != thresholds[0]) & ((two - start).abs() != thresholds[1])
        assert clear.float().mean() > 0.9
        assert torch.allclose(ties[name].float()[clear], (start + sum(agreeing) / voters)[clear], rtol=1e-2, atol=1e-4)
        assert torch.allclose(front[name].float(), (one + two) / 2, rtol=1e-2, atol=1e-4)
    name = "model.layers.3.mlp.up_proj.weight"  # no target: the same at every preference
    assert torch.equal(picked[name], front[name])
    factors = load_file(tmp_path / "front" / "pareto_set.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    core = (factors[f"{name}.G"][0] - factors[f"{name}.G"][1]) / 2
    assert torch.allclose(
        picked[name].float(), front[name].float() + factors[f"{name}.A"] @ core @ factors[f"{name}.B"], rtol=1e-2, atol=1e-4
    )
