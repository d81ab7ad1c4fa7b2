"""Checkpoints on disk: what is read, and one clear line for everything that cannot be."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from paretomerge.errors import UserError
from paretomerge.experts import load_experts
from paretomerge.weights import INDEX, SINGLE, open_checkpoint

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.5), "c": torch.arange(4)}


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text, (part, text)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.save(tiny.model("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def sharded(tmp_path):
    folder = tiny.save(tiny.model("llama"), tmp_path / "sharded", max_shard_size="8KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    return folder


def test_folder_file_and_shards_hold_the_same(llama, sharded):
    expected = load_file(llama / SINGLE)
    for path in (llama, str(llama), llama / SINGLE, sharded):
        checkpoint = open_checkpoint(path)
        assert dict(checkpoint.infos) == {n: (tuple(t.shape), t.dtype) for n, t in expected.items()}
        assert all(torch.equal(checkpoint[name], expected[name]) for name in expected)
    assert open_checkpoint(llama).config["model_type"] == "llama"
    assert open_checkpoint(llama).vocabulary == 40
    assert open_checkpoint(llama / SINGLE).config == {}
    assert len(open_checkpoint(sharded).sources) > 2


def test_every_shape_and_dtype(tmp_path):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    dtypes += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool]
    state = {}
    for dtype in dtypes:
        for shape in ((), (3,), (0,), (2, 0), (2, 3), (2, 1, 3, 1)):
            state[f"{dtype}{shape}"] = torch.arange(24)[: torch.Size(shape).numel()].view(shape).to(dtype)
    save_file(state, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in state.items():
        assert checkpoint.infos[name] == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(checkpoint[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    assert checkpoint.nbytes == sum(t.nbytes for t in state.values())


def test_only_headers_are_read(tmp_path):
    # a sparse file of 4 GiB: reading it would take seconds
    entries = 2**30
    header = json.dumps({"x": {"dtype": "F32", "shape": [entries], "data_offsets": [0, 4 * entries]}}).encode()
    with open(tmp_path / SINGLE, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * entries)
    assert open_checkpoint(tmp_path).infos["x"].nbytes == 2**32


def test_missing_name_is_a_key_error(llama):
    with pytest.raises(KeyError, match=r"nothing\.weight"):
        open_checkpoint(llama)["nothing.weight"]


def test_missing_shard(sharded):
    gone = sorted(sharded.glob("model-*"))[1]
    gone.unlink()
    with pytest.raises(UserError) as error:
        open_checkpoint(sharded)
    one_line(error, gone, "missing")


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/x.safetensors", "sub/model.safetensors", "..", "", "x.bin"])
def test_index_may_not_leave_its_folder(sharded, file):
    (sharded / "sub").mkdir()
    shutil.copy(next(sharded.glob("model-*")), sharded / "sub" / "model.safetensors")
    shutil.copy(next(sharded.glob("model-*")), sharded.parent / "model.safetensors")
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = file
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError) as error:
        open_checkpoint(sharded)
    one_line(error, sharded / INDEX, repr(file))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 10**5, "\xff\xfe"]
)
def test_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as error:
        open_checkpoint(sharded)
    one_line(error, sharded / INDEX)


def test_index_names_a_tensor_that_is_nowhere(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lost.weight"] = index["weight_map"]["lm_head.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError) as error:
        open_checkpoint(sharded)
    one_line(error, sharded / INDEX, "lost.weight")


def test_a_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("model-*"))[:2]
    name = next(iter(load_file(first)))
    held = load_file(first)[name].clone()
    save_file({**load_file(second), name: torch.zeros(2)}, second)
    assert torch.equal(open_checkpoint(sharded)[name], held)  # the index names the first


def test_a_name_twice_in_one_header(tmp_path):
    entry = '"x":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = ("{" + entry % (0, 4) + "," + entry % (4, 8) + "}").encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError) as error:
        open_checkpoint(tmp_path)
    one_line(error, tmp_path / SINGLE)


def damaged(kind: str, whole: bytes) -> bytes:
    return {
        "empty": b"",
        "short": whole[:5],
        "half a header": whole[:60],
        "half the data": whole[:-7],
        "too long": whole + b"1234",
        "garbage": bytes(range(256)) * 40,
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12\n",
        "huge header": (2**60).to_bytes(8, "little") + whole[8:],
        "no JSON": (20).to_bytes(8, "little") + b"{" * 20,
        "not UTF-8": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    }[kind]


KINDS = [
    "empty",
    "short",
    "half a header",
    "half the data",
    "too long",
    "garbage",
    "text",
    "huge header",
    "no JSON",
    "not UTF-8",
]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path, kind):
    file = tmp_path / SINGLE
    save_file(STATE, file)
    file.write_bytes(damaged(kind, file.read_bytes()))
    for path in (file, tmp_path):
        with pytest.raises(UserError) as error:
            open_checkpoint(path)
        one_line(error, file)


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64", "X"])
def test_dtype_that_is_not_known(tmp_path, dtype):
    header = json.dumps({"odd": {"dtype": dtype, "shape": [8], "data_offsets": [0, 64 if dtype == "C64" else 8]}}).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64 if dtype == "C64" else 8))
    with pytest.raises(UserError) as error:
        open_checkpoint(tmp_path)
    one_line(error, tmp_path / SINGLE)


@pytest.mark.parametrize("what", ["nothing", "empty folder", "text file", "several files", "adapter", "config is no JSON"])
def test_what_is_no_model(tmp_path, what):
    path = tmp_path / "model"
    if what != "nothing":
        path.mkdir()
    if what == "text file":
        path = path / "notes.txt"
        path.write_text("x")
    if what == "several files":
        save_file(STATE, path / "one.safetensors")
        save_file(STATE, path / "two.safetensors")
    if what == "adapter":
        (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if what == "config is no JSON":
        save_file(STATE, path / SINGLE)
        (path / "config.json").write_text("{")
    with pytest.raises(UserError) as error:
        open_checkpoint(path)
    one_line(error, path)


def test_a_hub_name_without_a_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        open_checkpoint("nobody/no-model-of-this-name")
    one_line(error, "nobody/no-model-of-this-name", "not to be had from the hub")


def run_the_command(message: str) -> None:
    command = message.partition("Convert them once: ")[2]
    assert command.startswith("python -c ")
    command = shlex.quote(sys.executable) + command.removeprefix("python")
    subprocess.run(command, shell=True, check=True)


@pytest.mark.parametrize("shards, folder", [(1, 'it\'s a $HOME with "quotes"'), (2, "plain")])
def test_pickles_are_refused_with_a_command_that_converts_them(tmp_path, shards, folder):
    folder = tmp_path / folder
    folder.mkdir()
    shared = torch.randn(3, 4)
    state = {"embed.weight": shared, "head.weight": shared, "transposed": torch.randn(4, 5).T, "bias": torch.ones(2)}
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = list(state)
        for i, part in enumerate((names[:2], names[2:]), 1):
            torch.save({name: state[name] for name in part}, folder / f"pytorch_model-0000{i}-of-00002.bin")
    torch.save({"learning_rate": 1.0}, folder / "training_args.bin")  # what trainers leave there
    with pytest.raises(UserError) as error:
        open_checkpoint(folder)
    one_line(error, folder / "pytorch_model", "not read")
    run_the_command(str(error.value))
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint) == set(state)
    assert all(torch.equal(checkpoint[name], state[name]) for name in state)
    with safe_open(folder / SINGLE, "pt") as handle:
        assert handle.metadata() == {"format": "pt"}  # transformers insists


def test_a_pickled_file_is_refused_with_a_command_too(tmp_path):
    file = tmp_path / "expert.pt"
    torch.save({"x": torch.ones(2)}, file)
    with pytest.raises(UserError) as error:
        load_experts({"x": torch.zeros(2)}, {"a": file})
    one_line(error, file)
    assert shlex.split(str(error.value).partition("Convert them once: ")[2])[3:] == [
        str(tmp_path / "expert.safetensors"),
        str(file),
    ]


def test_a_pickle_is_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "pwned"), "w")

    torch.save({"x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_of_a_tensor_in_two_files_the_index_decides(tmp_path):
    first, second = {"a": torch.zeros(2), "b": torch.ones(2)}, {"a": torch.full((2,), 7.0)}
    save_file(first, tmp_path / "model-1.safetensors")
    save_file(second, tmp_path / "model-2.safetensors")
    with pytest.raises(
        UserError, match=r"index\.json: is missing, and says how the 2 \.safetensors files go together: download it"
    ):
        open_checkpoint(tmp_path)
    for files, value in (({"a": "model-2", "b": "model-1"}, 7.0), ({"a": "model-1", "b": "model-1"}, 0.0)):
        places = {name: f"{file}.safetensors" for name, file in files.items()}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        checkpoint = open_checkpoint(tmp_path)
        assert sorted(checkpoint) == ["a", "b"] and float(checkpoint["a"][0]) == value
        warnings = [str(f) for f in load_experts(tmp_path, {"x": checkpoint}).findings if f.level == "warning"]
        assert any("a: is left out: the index names" in line for line in warnings) == (files["a"] == "model-2")
