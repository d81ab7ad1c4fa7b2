"""Experts' predictions in memory and in files: what is asked, what is found again, and what is not trusted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paretomerge.data import TensorInputs
from paretomerge.fitting import Kept, ask, key_of, largest
from paretomerge.fitting import teacher_cache as teachers

N = 10


class Asked:
    """A table of logits that counts how often it is asked."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.times = table, 0

    def __call__(self, indices: Tensor) -> Tensor:
        self.times += 1
        return self.table[indices]


def table(*shape: int) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(1))


def kept(of: Asked, file: Path | None, key: str = "k", top: int | None = None, say=lambda line: None) -> Kept:
    shape = tuple(of.table.shape[1:-1])
    return ask(N, of, batch_size=4, shape=shape, top=top, dtype=torch.float32, file=file, key=lambda: key, say=say)


@pytest.mark.parametrize("in_memory", [1 << 29, 10])
@pytest.mark.parametrize("shape, top", [((3,), None), ((5, 30), None), ((5, 30), 4)])
def test_files_give_the_predictions_back(tmp_path, monkeypatch, shape, top, in_memory):
    monkeypatch.setattr(teachers, "_IN_MEMORY", in_memory)
    expert, said = Asked(table(*shape)), []
    first = kept(expert, tmp_path / "teacher" / "a-fit-0", top=top, say=said.append)
    assert expert.times == 3 and said == []
    again = kept(expert, tmp_path / "teacher" / "a-fit-0", top=top, say=said.append)
    assert expert.times == 3 and said == [f"the expert's predictions on 10 inputs are those in {tmp_path / 'teacher'}"]
    alone = kept(Asked(expert.table), None, top=top)
    expected = Kept(expert.table, None) if top is None else Kept(*largest(expert.table, top))
    for found in (first, again, alone):
        assert torch.equal(found.values, expected.values)
        assert (found.places is None) == (top is None)
        assert top is None or torch.equal(found.places, expected.places)


def damage(folder: Path, how: str) -> None:
    values, header = folder / "a-fit-0.values.npy", folder / "a-fit-0.json"
    if how == "no header":  # killed while writing
        header.unlink()
    elif how == "no values":
        values.unlink()
    elif how == "half":
        values.write_bytes(values.read_bytes()[:-20])
    elif how == "other bytes":
        values.write_bytes(values.read_bytes()[:-1] + b"\x7f")
    elif how == "header is no JSON":
        header.write_text("{")
    elif how == "header is another's":
        header.write_text(json.dumps([1]))


@pytest.mark.parametrize("how", ["no header", "no values", "half", "other bytes", "header is no JSON", "header is another's"])
def test_damaged_files_are_made_anew(tmp_path, how):
    expert = Asked(table(3))
    before = kept(expert, tmp_path / "a-fit-0")
    damage(tmp_path, how)
    assert torch.equal(kept(expert, tmp_path / "a-fit-0").values, before.values) and expert.times == 6
    kept(expert, tmp_path / "a-fit-0")
    assert expert.times == 6


def test_another_key_is_another_expert(tmp_path):
    expert = Asked(table(3))
    kept(expert, tmp_path / "a-fit-0")
    other = Asked(1 + expert.table)
    assert torch.equal(kept(other, tmp_path / "a-fit-0", key="other").values, other.table) and other.times == 3
    assert kept(Asked(expert.table), tmp_path / "a-fit-0").values.equal(expert.table)


def test_shorter_predictions_are_filled(tmp_path):
    """Texts of different lengths: what is beyond a batch's longest is 0."""
    whole = table(6, 5)
    ragged = Asked(whole)
    ragged.__class__ = type("Ragged", (Asked,), {"__call__": lambda self, i: whole[i][:, : 2 + 2 * (int(i[0]) // 4)]})
    found = ask(N, ragged, batch_size=4, shape=(6,), top=None, dtype=torch.float32, file=None, key=str, say=print)
    for start, width in ((0, 2), (4, 4), (8, 6)):
        assert torch.equal(found.values[start : start + 4, :width], whole[start : start + 4, :width])
        assert not found.values[start : start + 4, width:].any()


def test_large_predictions_stay_in_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "_IN_MEMORY", 10)
    for _ in range(2):
        found = kept(Asked(table(3)), tmp_path / "a-fit-0").values
        found.numpy()[0, 0] = 7.0
        assert float(np.load(tmp_path / "a-fit-0.values.npy")[0, 0]) == 7.0


# -- keys


def net(**changes: Tensor) -> nn.Module:
    torch.manual_seed(0)
    built = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for name, value in changes.items():
            built.state_dict()[name.replace("__", ".")].copy_(value)
    return built


def test_keys_tell_everything_that_matters():
    inputs = TensorInputs({"x": table(3)})
    other = TensorInputs({"x": table(3)})
    other.tensors["x"][-1, -1] += 1e-6
    models = [net(), net(**{"0__bias": torch.ones(2)}), net(**{"1__running_mean": torch.ones(2)})]
    keys = [key_of(model, inputs, 4, ("fit", 8)) for model in models]
    keys += [key_of(net(), other, 4, ("fit", 8)), key_of(net(), inputs, 5, ("fit", 8)), key_of(net(), inputs, 4, ("fit", 9))]
    keys += [key_of(net(), TensorInputs({"y": table(3)}), 4, ("fit", 8)), key_of(net(), inputs, 4, ("fit", 8), [torch.ones(2)])]
    keys += [key_of(net().bfloat16(), inputs, 4, ("fit", 8))]
    configured = net()
    configured.config = "another activation"
    keys += [key_of(configured, inputs, 4, ("fit", 8))]
    assert len(set(keys)) == len(keys) == 10
    assert key_of(net(), TensorInputs({"x": table(3)}), 4, ("fit", 8)) == keys[0]
