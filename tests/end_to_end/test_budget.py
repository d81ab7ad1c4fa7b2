"""Estimates of memory and disk: from the formulas of docs/large-models.md, and what check says of them."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tiny
from paretomerge.experts import Options, inspect_experts, load_experts
from paretomerge.fitting import estimates


def save(folder, tensors):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_experts(tmp_path, dtype):
    base = {"a.weight": torch.zeros(40, 30, dtype=dtype), "b.weight": torch.zeros(7, dtype=dtype)}
    changed = {**base, "a.weight": torch.ones(40, 30, dtype=dtype)}
    folders = {task: save(tmp_path / task, changed if task != "base" else base) for task in ("base", "x", "y", "z")}
    experts = load_experts(folders.pop("base"), folders)
    found = {estimate.command: estimate for estimate in estimates(experts)}
    assert list(found) == ["merge", "fit, closed form", "fit on data", "fit on data, store_task_vectors=bfloat16"]
    model, merged = 1207 * dtype.itemsize, 1200 if experts.merged == ("a.weight",) else 1207
    assert all(estimate.read == 4 * model for estimate in found.values())
    assert found["merge"].written == model
    assert found["fit, closed form"].written == model, "no attention"
    of_data = found["fit on data"], found["fit on data, store_task_vectors=bfloat16"]
    low_rank = 4 * (16 * 70 + 3 * 256)
    assert of_data[0].written == model + low_rank
    assert of_data[0].memory - of_data[1].memory == 2 * 3 * merged
    live = 4 * 1207 + 4 * merged + (0 if dtype == torch.float32 else 4 * merged) + 3 * low_rank
    assert of_data[0].memory == 300 * 2**20 + live + 4 * 3 * merged


def test_check_says_them(cli, tmp_path):
    base, experts = tiny.family("llama", tmp_path)
    words = ["check", "--base", base, *(w for task, path in experts.items() for w in ("--expert", f"{task}={path}"))]
    facts = json.loads(cli(*words, "--json"))
    seen = estimates(inspect_experts(base, experts, Options()))
    assert facts["estimates"] == [estimate._asdict() for estimate in seen]
    text = cli(*words)
    assert all(f"{estimate.command}: about" in text for estimate in seen)
