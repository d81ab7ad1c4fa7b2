"""Sources that change while they are read: whatever is made of them is refused, and the file is named."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import plain
import tiny
from paretomerge import api, load_front
from paretomerge.errors import UserError
from paretomerge.evaluation import ByCommand, evaluate_by
from paretomerge.experts import load_experts
from paretomerge.front import write_model
from paretomerge.results import Objective
from paretomerge.weights import hashing, open_checkpoint, reading


def replace(file):
    """As most programs save: a new file takes the old one's name."""
    shutil.copyfile(file, file.with_name("new"))
    os.replace(file.with_name("new"), file)


def rewrite(file):
    """As cp and rsync --inplace do."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    with open(file, "r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # clocks of file systems may tick slowly


HOW = {"replaced": replace, "written to": rewrite}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain.models(tmp_path)
    return tmp_path


def opened():
    return load_experts("base.safetensors", {task: f"{task}.safetensors" for task in "ab"})


def write(weights, progress=None):
    write_model(weights, "out", config={}, companions=None, provenance={}, shard_bytes=10**9, progress=progress)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["base", "a", "b"])
def test_in_the_middle_of_a_merge(here, how, name):
    merged, written = api.merge(opened(), "task_arithmetic"), []

    def change(tensor, size):
        if not written:
            HOW[how](here / f"{name}.safetensors")
        written.append(tensor)

    with pytest.raises(UserError, match=rf"^{name}.safetensors: has been {how} since it was opened"):
        write(merged, change)
    assert len(written) == 2 and not list(here.glob("*out*"))


def test_what_is_not_read_any_more_may_change(here):
    """Only what a model is made of counts, and only from when it was opened."""
    before = api.merge(opened(), "average")
    replace(here / "base.safetensors")
    rewrite(here / "a.safetensors")
    write(api.merge(opened(), "task_arithmetic"))  # of the new ones
    with reading():
        dict(api.merge(opened(), "average"))
    with pytest.raises(UserError, match="has been"), reading():
        dict(before)


@pytest.mark.parametrize("how", HOW)
def test_between_a_fit_and_its_writing(here, how):
    """The new file's hash would be recorded for the old one's content."""
    front = api.fit(opened(), "soup")
    HOW[how](here / "a.safetensors")
    with pytest.raises(UserError, match=rf"^a.safetensors: has been {how} since it was opened"):
        front.save("front")
    assert not (here / "front").exists()


@pytest.mark.parametrize("how", HOW)
def test_while_a_closed_form_reads(here, how, monkeypatch):
    from paretomerge.experts import Experts

    chunks = Experts.chunks

    def changing(self, name, *args, **options):
        yield from chunks(self, name, *args, **options)
        if name == "l0.weight":
            HOW[how](here / "b.safetensors")

    monkeypatch.setattr(Experts, "chunks", changing)
    with pytest.raises(UserError, match=rf"^b.safetensors: has been {how}"):
        api.fit(opened(), rank=2, targets="*")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter(tmp_path, monkeypatch, how, file):
    from peft import LoraConfig, get_peft_model

    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.model("llama"), tmp_path / "base")
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(tiny.model("llama"), config).save_pretrained(tmp_path / task)
    front = api.fit(load_experts("base", {"a": "a", "b": "b"}), "soup")
    HOW[how](tmp_path / "a" / file)
    with pytest.raises(UserError, match=rf"^a/{file}: has been {how}"):
        front.save("front")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_models_folder(tmp_path, how, file):
    tiny.family("llama", tmp_path)
    merged = api.merge(load_experts(tmp_path / "base", {t: tmp_path / t for t in "ab"}), "ties")
    HOW[how](tmp_path / "b" / file)
    with pytest.raises(UserError, match=f"b/{file}: has been {how}"):
        write(merged)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("file", ["model.safetensors", "pareto_set.safetensors"])
def test_a_front_while_a_model_is_picked(here, how, file):
    api.fit(opened(), "soup").save("front")
    front = load_front("front")
    HOW[how](here / "front" / file)
    with pytest.raises(UserError, match=rf"^front/{file}: has been {how}"):
        front.pick("equal", "out")
    assert not list(here.glob("*out*"))


@pytest.mark.parametrize("how", HOW)
def test_a_front_after_its_model_was_built(here, how):
    api.fit(opened(), "soup").save("front")
    front = load_front("front")
    weights = front.at("equal")
    HOW[how](here / "front" / "pareto_set.safetensors")
    with pytest.raises(UserError, match=rf"^front/pareto_set.safetensors: has been {how}"):
        front.write_picked(weights, "equal", "out")


def test_a_front_while_it_is_measured(here):
    api.fit(opened(), "soup").save("front")
    objectives = [Objective(task, "acc") for task in "ab"]
    command = (
        "test -d {model}; printf x | dd of=front/model.safetensors bs=1 seek=500 conv=notrunc status=none; "
        'echo \'{"a": 1, "b": 1}\''
    )
    with pytest.raises(UserError, match=r"^front/model.safetensors: has been written to"):
        evaluate_by(load_front("front"), ByCommand(command, objectives), ["equal"])


def test_a_file_that_is_replaced_while_it_is_hashed(here):
    """The digest of one content is never that of the other's state."""
    file = here / "a.safetensors"
    old, new = open_checkpoint(file), load_file(here / "b.safetensors")
    before = hashing.hashes_of([file])
    hashing._known.clear()
    with hashing.hashed_meanwhile([file]):
        old.matrix("l0.weight")[0:2]
        save_file(new, here / "new.safetensors", metadata={"format": "pt"})
        os.replace(here / "new.safetensors", file)
    after = hashing.hashes_of([file])
    assert after != before and after[file] == hashing.hashes_of([here / "b.safetensors"])[here / "b.safetensors"]
