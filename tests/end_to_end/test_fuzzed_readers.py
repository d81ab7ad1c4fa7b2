"""Whatever is in a file, its reader reads it or raises ``UserError`` in one line; nothing else ever comes out."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import tiny
from damage import damaged, header_only
from paretomerge import fit, load_experts, load_front
from paretomerge.data import read_splits
from paretomerge.errors import UserError
from paretomerge.evaluation import Store
from paretomerge.fitting.loop import _restore
from paretomerge.recipes import read_recipe
from paretomerge.weights import INDEX, SINGLE, open_adapter, open_checkpoint

RECIPE = b"""base: x
experts: {a: y, b: z}
method: ties
options:
  density: 0.5
  scale: {a: 1, b: 2}
dtype: bfloat16
shard_size: 5GB
data:
  a: {path: q.csv, label: l, max_length: 5}
task_tensors: ['x*']
"""
MERGEKIT = b"""merge_method: ties
base_model: x
models:
  - model: y
    parameters: {weight: 0.5, density: 0.1}
  - model: z
    parameters:
      weight:
        - value: 0.2
parameters: {normalize: true, int8_mask: false}
dtype: bfloat16
tokenizer_source: base
"""
IDENTITY = {"kind": "command"}
RUN = {"lr": 0.1, "steps": 3, "patience": 2}


class Phi:
    """What ``_restore`` needs of a set that is fitted."""

    def __init__(self):
        self.phi = torch.zeros(4)


@dataclass(frozen=True)
class Case:
    """A file, and what reads it."""

    file: Path
    read: object
    headers: bool = False


def look_at_all(checkpoint):
    for name in checkpoint:
        assert checkpoint[name].shape == checkpoint.infos[name].shape
    _ = checkpoint.vocabulary


def reopen(file: Path):
    store = Store(file.parent, IDENTITY)
    store.close()


def resume(folder: Path):
    learned = Phi()
    phi = torch.nn.Parameter(learned.phi)
    _restore(folder, learned, torch.optim.Adam([phi]), phi, RUN)
    assert learned.phi.isfinite().all()


def use(folder: Path):
    front = load_front(folder)
    json.dumps(front.summary())
    for weights in (front.at("equal"), front.at("only:a")):
        look_at_all_of(weights)


def look_at_all_of(weights):
    for name in weights:
        assert weights[name].shape == weights.infos[name].shape


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("whole")
    net = tiny.model("llama")
    model = tiny.save(net, folder / "model")
    sharded = tiny.save(net, folder / "sharded", max_shard_size="8KB")
    for task, s in (("a", 1), ("b", 2)):
        lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, rank_pattern={"layers.0.*": 3},
                               alpha_pattern={"layers.1.*": 3})  # fmt: skip
        peft.get_peft_model(tiny.model("llama", s), lora).save_pretrained(folder / task)
    fit(load_experts(model, {task: folder / task for task in "ab"}), rank=1).save(folder / "front")
    assert (folder / "front" / "adapter_config.json").exists()  # it refers to its base
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.5), "c": torch.arange(4)}, folder / "few.safetensors")
    with open(folder / "recipe.yaml", "wb") as file:
        file.write(RECIPE)
    (folder / "mergekit.yaml").write_bytes(MERGEKIT)
    store = Store(folder / "run", IDENTITY)
    store.add((0.5, 0.25), {"a": 1.0}, 2.0)
    store.fail((1.0, 0.0), "exit code 1", 1.0)
    store.close()
    (folder / "states").mkdir()
    (folder / "states" / "config.json").write_text(json.dumps(RUN))
    (folder / "states" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    vectors = {name: torch.ones(4) for name in ("phi", "exp_avg", "exp_avg_sq", "best_phi")}
    save_file({**vectors, "numbers": torch.tensor([2.0, 0, 0.5], dtype=torch.float64)}, folder / "states" / "state.safetensors")
    (folder / "t.csv").write_text('text,label,image\nfoo,1,a.png\n"b\nar",2,b.png\n')
    (folder / "t.jsonl").write_text('{"text": "foo", "label": 1}\n{"text": "b", "label": 2}\n')
    arrays = {"images": np.zeros((3, 4, 4), np.uint8), "labels": np.arange(3)}
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    data = lambda file: read_splits(str(file))  # noqa: E731
    return {
        "tensors": Case(folder / "few.safetensors", lambda f: look_at_all(open_checkpoint(f))),
        "headers": Case(folder / "few.safetensors", lambda f: look_at_all(open_checkpoint(f)), headers=True),
        "model": Case(model / SINGLE, lambda f: look_at_all(open_checkpoint(f.parent)), headers=True),
        "config": Case(model / "config.json", lambda f: look_at_all(open_checkpoint(f.parent))),
        "index": Case(sharded / INDEX, lambda f: look_at_all(open_checkpoint(f.parent))),
        "adapter config": Case(folder / "a" / "adapter_config.json", lambda f: open_adapter(f.parent)),
        "adapter": Case(folder / "a" / "adapter_model.safetensors", lambda f: open_adapter(f.parent), headers=True),
        "front": Case(folder / "front" / "pareto_set.json", lambda f: use(f.parent)),
        "front's tensors": Case(folder / "front" / "pareto_set.safetensors", lambda f: use(f.parent), headers=True),
        "front's adapter config": Case(folder / "front" / "adapter_config.json", lambda f: use(f.parent)),
        "front's adapter": Case(folder / "front" / "adapter_model.safetensors", lambda f: use(f.parent), headers=True),
        "recipe": Case(folder / "recipe.yaml", read_recipe),
        "mergekit": Case(folder / "mergekit.yaml", read_recipe),
        "evaluations": Case(folder / "run" / "evaluations.jsonl", reopen),
        "state": Case(folder / "states" / "state.safetensors", lambda f: resume(f.parent), headers=True),
        "state's bytes": Case(folder / "states" / "state.safetensors", lambda f: resume(f.parent)),
        "run's config": Case(folder / "states" / "config.json", lambda f: resume(f.parent)),
        "table": Case(folder / "t.csv", data),
        "lines": Case(folder / "t.jsonl", data),
        "arrays": Case(folder / "plain.npz", data),
        "packed arrays": Case(folder / "packed.npz", data),
    }  # fmt: skip


NAMES = ("tensors", "headers", "model", "config", "index", "adapter config", "adapter", "front", "front's tensors",
         "front's adapter config", "front's adapter", "recipe", "mergekit", "evaluations", "state", "state's bytes",
         "run's config", "table", "lines", "arrays", "packed arrays")  # fmt: skip


def fuzz(case: Case, examples: int) -> None:
    whole = case.file.read_bytes()
    case.read(case.file)  # the whole file is read, so a refusal is the damage's
    content = st.one_of(header_only(whole) if case.headers else damaged(whole), damaged(whole), st.binary(max_size=60))

    @seed(0)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(content)
    def one(content):
        case.file.write_bytes(content)
        try:
            case.read(case.file)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000

    try:
        one()
    finally:
        case.file.write_bytes(whole)


@pytest.mark.parametrize("name", NAMES)
def test_only_user_errors(cases, name):
    fuzz(cases[name], 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_only_user_errors_for_long(cases, name):
    fuzz(cases[name], 300)
