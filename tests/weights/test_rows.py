"""Stored tensors in slices of rows and in pieces: the bytes of the file, whatever happens to it meanwhile."""

import pytest
import torch
from safetensors.torch import save_file

from paretomerge.errors import UserError
from paretomerge.experts import load_experts
from paretomerge.merges import task_arithmetic
from paretomerge.weights import StoredRows, Weights, checkpoint, lazy, open_checkpoint, write_safetensors

SHAPES = {"a": (7, 5), "b": (6, 2, 3), "c": (11,), "d": (), "e": (0, 3), "f": (3, 0), "g": (1, 9)}


def stored(file, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    save_file(tensors, file)
    return tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_slices_are_those_of_the_tensor(tmp_path, dtype):
    tensors = stored(tmp_path / "x.safetensors", dtype)
    weights = open_checkpoint(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        matrix = tensor.reshape(lazy.matrix_shape(tensor.shape))
        rows = weights.matrix(name)
        assert isinstance(rows, StoredRows)
        for part in (
            slice(0, 2),
            slice(2, 4),
            slice(4, 5),
            slice(1, 6),
            slice(0, 99),
            slice(0, 7, 3),
            slice(5, 5),
            slice(9, 3),
        ):
            assert torch.equal(rows[part], matrix[part]), (name, part)


def test_names_come_in_the_order_of_the_file(tmp_path):
    """So it is read once from its beginning to its end; by name, what is read ahead would be for nothing."""
    tensors = {name: torch.ones(4, 2) for name in ("z", "layers.0", "layers.2", "layers.10", "b")}
    tensors["half"] = torch.ones(3).half()
    write_safetensors(Weights.of(tensors), tmp_path / "x.safetensors", workers=2)
    for weights in (open_checkpoint(tmp_path / "x.safetensors"), task_arithmetic(experts_of(tmp_path / "x.safetensors"))):
        assert list(weights) == list(tensors)
    order: list[str] = []
    write_safetensors(weights, tmp_path / "y.safetensors", workers=1, progress=lambda name, _: order.append(name))
    assert order == list(weights)
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def experts_of(file):
    return load_experts(file, {"a": file})


def test_pieces_are_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PART", 24)
    tensors = stored(tmp_path / "x.safetensors")
    weights = open_checkpoint(tmp_path / "x.safetensors")
    for view in (weights, weights.cast(torch.float32), weights.renamed(str.upper), weights.without({"z"})):
        for name, tensor in zip(view, weights.values(), strict=True):
            pieces = [part.clone().flatten() for part in view.parts(name)]
            assert torch.equal(torch.cat([*pieces, tensor.new_empty(0)]), tensor.flatten().to(view.infos[name].dtype))
            assert torch.equal(view.copied(name, torch.float64), tensor.double())
    assert len(list(weights.parts("a"))) == 4 and torch.equal(weights["a"], tensors["a"])


def test_to_ask_for_a_name_reads_nothing():
    def read(name):
        raise AssertionError

    weights = lazy.Weights({"a": lazy.TensorInfo((2,), torch.float32)}, read)
    assert "a" in weights and "b" not in weights


def test_a_file_that_vanishes_or_is_replaced_is_read_from_its_map(tmp_path):
    file = tmp_path / "x.safetensors"
    tensors = stored(file)
    weights = open_checkpoint(file)
    stored(tmp_path / "y.safetensors", seed=1)
    (tmp_path / "y.safetensors").rename(file)
    assert torch.equal(weights.matrix("a")[0:2], tensors["a"][:2])
    file.unlink()
    assert torch.equal(weights.matrix("a")[0:2], tensors["a"][:2])


def test_a_file_that_becomes_shorter_while_it_streams(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1000, 100)}, file)
    rows = open_checkpoint(file).matrix("x")
    assert not rows[0:2].any()
    with open(file, "r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(UserError, match="has become shorter since it was opened"):
        rows[900:902]


@pytest.mark.parametrize("part", [1, 24, 1 << 20])
def test_a_merge_in_pieces_is_the_merge(tmp_path, monkeypatch, part):
    monkeypatch.setattr("paretomerge.merges.streaming.PART", part)
    monkeypatch.setattr("paretomerge.experts.experts.CHUNK", 20)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", "one", "two")}
    base, one, two = (stored(path, torch.float32, seed) for seed, path in enumerate(paths.values()))
    merged = task_arithmetic(load_experts(paths["base"], {"one": paths["one"], "two": paths["two"]}), scale=0.5)
    for name in base:
        expected = (one[name] + two[name]) / 2
        assert torch.allclose(merged[name], expected, atol=1e-6)
        pieces = [piece.clone().flatten() for piece in merged.parts(name)]
        assert torch.equal(torch.cat([*pieces, expected.new_empty(0)]), merged[name].flatten())
