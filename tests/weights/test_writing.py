"""Checkpoints out: files that others read, and folders that appear whole or not at all."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tiny
from paretomerge.errors import UserError
from paretomerge.weights import DTYPES as NAMED
from paretomerge.weights import (
    INDEX,
    SINGLE,
    TensorInfo,
    Weights,
    may_write,
    open_checkpoint,
    whole_folder,
    write_json,
    write_safetensors,
    write_shards,
)
from states import DTYPES, state


def everything() -> dict[str, torch.Tensor]:
    """Every dtype in every shape, narrow ones between wide ones so that alignment matters."""
    result = {}
    for shape in ((), (3,), (0,), (2, 0, 3), (5, 7), (2, 1, 3, 1)):
        for name, dtype in reversed(NAMED.items()):
            values = torch.arange(40)[: torch.Size(shape).numel()].view(shape)
            result[f'{name} {shape} θ"\\'] = values.to(dtype)
    return result


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    def raw(t):
        return t.contiguous().reshape(-1).view(torch.uint8)

    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))


def test_safetensors_reads_what_we_write(tmp_path):
    tensors = everything()
    write_safetensors(Weights.of(tensors), tmp_path / "x.safetensors")
    read = load_file(tmp_path / "x.safetensors")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert same_bytes(read[name], tensor), name
    with safe_open(tmp_path / "x.safetensors", "pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_tensors_are_aligned(tmp_path):
    write_safetensors(Weights.of(everything()), tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert (8 + size) % 8 == 0
    header = json.loads(raw[8 : 8 + size])
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % NAMED[entry["dtype"]].itemsize == 0, name


def test_views_and_parameters_are_written_as_they_look(tmp_path):
    big = torch.randn(6, 8)
    tensors = {"t": big.T, "rows": big[::2], "column": big[:, 3], "p": torch.nn.Parameter(big), "e": big[0, 0].expand(3, 3)}
    write_safetensors(Weights.of(tensors), tmp_path / "x.safetensors")
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_no_tensors_at_all(tmp_path):
    write_safetensors(Weights.of({}), tmp_path / "x.safetensors")
    assert load_file(tmp_path / "x.safetensors") == {}


def test_workers_write_the_same_bytes(tmp_path):
    tensors = everything() | state(0, shapes={f"layer.{i}": (50 + i, 20) for i in range(30)})
    for workers in (1, 2, 7):
        write_safetensors(Weights.of(tensors), tmp_path / f"{workers}", workers=workers)
        write_shards(Weights.of(tensors), _new(tmp_path / f"shards{workers}"), shard_bytes=9000, workers=workers)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == (tmp_path / "7").read_bytes()
    files = sorted(f.name for f in (tmp_path / "shards1").iterdir())
    assert len(files) > 5
    for workers in (2, 7):
        assert sorted(f.name for f in (tmp_path / f"shards{workers}").iterdir()) == files
        for file in files:
            assert (tmp_path / "shards1" / file).read_bytes() == (tmp_path / f"shards{workers}" / file).read_bytes()


def _new(folder):
    folder.mkdir()
    return folder


def test_progress_tells_every_tensor_and_all_bytes(tmp_path):
    seen = []
    tensors = state(0)
    write_shards(Weights.of(tensors), tmp_path, shard_bytes=500, progress=lambda name, size: seen.append((name, size)))
    assert sorted(seen) == sorted((name, t.nbytes) for name, t in tensors.items())


@pytest.mark.parametrize("shard_bytes", [1, 3000, 10**9])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_transformers_loads_our_shards(tmp_path, shard_bytes, dtype):
    from transformers import LlamaForCausalLM

    net = tiny.model("llama").to(dtype)
    write_shards(Weights.of(net.state_dict()), tmp_path, shard_bytes=shard_bytes)
    net.config.save_pretrained(tmp_path)
    assert (tmp_path / INDEX).exists() == (shard_bytes < 10**9)
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    if shard_bytes == 3000:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in net.state_dict().values())
        sizes = [sum(t.nbytes for t in load_file(file).values()) for file in tmp_path.glob("model-*")]
        largest = max(t.nbytes for t in net.state_dict().values())
        assert len(sizes) > 1 and max(sizes) <= max(3000, largest)


def test_we_read_our_own_shards(tmp_path):
    tensors = everything()
    write_shards(Weights.of(tensors), tmp_path, shard_bytes=100)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint) == set(tensors)
    assert all(same_bytes(checkpoint[name], tensors[name]) for name in tensors)


def test_a_tensor_that_is_not_as_announced_is_not_written(tmp_path):
    wrong = Weights({"x": TensorInfo((2, 3), torch.float32)}, lambda name: torch.zeros(3, 3))
    with pytest.raises(AssertionError, match="x: planned"), whole_folder(tmp_path / "out") as folder:
        write_safetensors(wrong, folder / SINGLE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_one_tensor_is_the_error_of_the_write(tmp_path, workers):
    def read(name):
        if name == "t5":
            raise UserError("x.safetensors: t5: 3 of 4 entries are NaN")
        return torch.zeros(4)

    weights = Weights({f"t{i}": TensorInfo((4,), torch.float32) for i in range(20)}, read)
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match="t5"), whole_folder(tmp_path / "out") as folder:
        write_safetensors(weights, folder / SINGLE, workers=workers)
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "x.json", {"θ": [1, 2.5, None], "b": {"c": "d"}})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"θ": [1, 2.5, None], "b": {"c": "d"}}


# -- folders


def write(target, text="new", **options):
    with whole_folder(target, **options) as folder:
        (folder / "mark.json").write_text("{}")
        (folder / "text").write_text(text)


def test_the_folder_appears_at_the_end(tmp_path):
    with whole_folder(tmp_path / "deep" / "er" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "deep" / "er" / "out").exists()
    assert [f.name for f in (tmp_path / "deep" / "er").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "er" / "out" / "x").read_text() == "1"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "text").read_text() == "new"
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_stays_after_an_error(tmp_path, error):
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), whole_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_replacing_keeps_the_old_one(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(ValueError), whole_folder(tmp_path / "out", overwrite="mark.json") as folder:
        (folder / "text").write_text("new")
        raise ValueError
    assert (tmp_path / "out" / "text").read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def foreign(kind, target):
    """Something that is there already and not ours."""
    if kind == "file":
        target.write_text("precious")
    elif kind == "folder":
        target.mkdir()
        (target / "thesis.tex").write_text("precious")
    elif kind == "link":
        write(target.parent / "elsewhere", "precious")
        target.symlink_to(target.parent / "elsewhere")
    else:
        target.symlink_to(target.parent / "nowhere")


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
@pytest.mark.parametrize("overwrite", [None, "mark.json"])
def test_what_is_not_ours_is_not_replaced(tmp_path, kind, overwrite):
    target = tmp_path / "out"
    foreign(kind, target)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    for attempt in (lambda: may_write(target, overwrite), lambda: write(target, overwrite=overwrite)):
        with pytest.raises(UserError) as error:
            attempt()
        assert str(target) in str(error.value) and "\n" not in str(error.value)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_ours_is_replaced_only_when_asked(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "text").read_text() == "old"
    write(tmp_path / "out", "new", overwrite="mark.json")
    assert (tmp_path / "out" / "text").read_text() == "new"
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as error:
        write(tmp_path / "file" / "out")
    assert str(tmp_path / "file" / "out") in str(error.value)


# A server imports once, then forks a child per write and kills it: twelve moments, from the start to beyond the end (on an
# idle machine), and a thirteenth child that is left alone.
KILLER = """
    import os, shutil, signal, sys, time
    from pathlib import Path
    import torch
    from paretomerge.weights.lazy import TensorInfo, Weights
    from paretomerge.weights.writing import whole_folder, write_json, write_shards

    torch.set_num_threads(1)
    root, overwrite = Path(sys.argv[1]), sys.argv[2] == "overwrite"
    infos = {f"layer.{i}": TensorInfo((64, 64), torch.float32) for i in range(40)}

    def write(target, value):
        def read(name):
            time.sleep(0.002)  # so that most of the time is spent in the middle
            return torch.full((64, 64), value)

        with whole_folder(target, overwrite="mark.json" if overwrite else None) as folder:
            write_shards(Weights(infos, read), folder, shard_bytes=200_000, workers=1)
            write_json(folder / "mark.json", {"value": value})

    start = time.perf_counter()
    write(root / "whole", 1.0)
    duration = time.perf_counter() - start
    for attempt in range(13):
        target = root / f"out{attempt}"
        if overwrite:
            write(target, 1.0)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            write(target, 2.0)
            os._exit(0)
        if attempt < 12:
            time.sleep(duration * attempt / 8)
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


@pytest.mark.parametrize("mode", ["new", "overwrite"])
def test_killed_in_the_middle_the_folder_is_absent_or_whole(tmp_path, mode):
    program = textwrap.dedent(KILLER)
    subprocess.run([sys.executable, "-c", program, str(tmp_path), mode], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    files = sorted(f.name for f in (tmp_path / "whole").iterdir())
    outcomes = []
    for attempt in range(13):
        target = tmp_path / f"out{attempt}"
        if not target.exists():
            outcomes.append("absent")
            continue
        assert sorted(f.name for f in target.iterdir()) == files
        value = json.loads((target / "mark.json").read_text())["value"]
        checkpoint = open_checkpoint(target)
        assert len(checkpoint) == 40
        assert all(torch.equal(checkpoint[name], torch.full((64, 64), value)) for name in checkpoint)
        outcomes.append("old" if mode == "overwrite" and value == 1.0 else "new")
    assert outcomes[0] == ("absent" if mode == "new" else "old") and outcomes[-1] == "new"
    left = [f.name for f in tmp_path.iterdir() if f.name.startswith(".")]
    assert left, "no child was killed in the middle of its work: this shows nothing"
    assert all(".writing-" in name or ".replaced-" in name for name in left)
