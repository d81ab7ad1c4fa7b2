"""Exports go where they may, and nowhere else."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import fronts
from commands import contents
from paretomerge.app import export, free_name, target
from paretomerge.errors import UserError
from paretomerge.weights import open_checkpoint


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    return fronts.front(tmp_path_factory.mktemp("exports"), measured=False)


STRANGE = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "/tmp/x",
    ".hidden",
    "a" * 81,
    "a\nb",
    "a b",
    "con",
    "NUL.txt",
    "end.",
    "ä",
    "a\0b",
]


@pytest.mark.parametrize("name", STRANGE)
def test_names_that_are_more_than_a_name_are_refused(front, name):
    before = contents(front.folder.parent)
    with pytest.raises(UserError, match="name: begin with"):
        export(front, (0.5, 0.5), name)
    assert contents(front.folder.parent) == before


def test_a_folder_and_an_adapter_say_the_same(front):
    gamma = (0.7, 0.3)
    folder, adapter = export(front, gamma, "model-1"), export(front, gamma, "adapter.1", lora=True)
    assert folder.parent == adapter.parent == front.folder.resolve() / "exports"
    ids = torch.tensor([[3, 7, 9, 4]])
    with torch.no_grad():
        said = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    assert (said - fronts.logits(front, gamma, ids)).abs().max() < 1e-5
    assert (adapter / "adapter_model.safetensors").exists()
    assert not (adapter / "model.safetensors").exists()
    assert set(open_checkpoint(front.folder)) == set(front.pareto_set.base)  # the front is still what it was


def test_nothing_is_overwritten(front):
    export(front, (1, 0), "taken")
    before = contents(front.folder / "exports")
    with pytest.raises(UserError, match="exists already"):
        export(front, (0, 1), "taken")
    assert contents(front.folder / "exports") == before
    (front.folder / "exports" / "dangling").symlink_to(front.folder.parent / "nowhere")
    with pytest.raises(UserError, match="exists already"):
        export(front, (0, 1), "dangling")
    assert not (front.folder.parent / "nowhere").exists()


def test_a_folder_of_exports_that_leads_elsewhere_is_refused(tmp_path):
    front = fronts.front(tmp_path, measured=False)
    (tmp_path / "elsewhere").mkdir()
    (front.folder / "exports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no ordinary folder"):
        export(front, (1, 0), "x")
    assert not list((tmp_path / "elsewhere").iterdir())
    (front.folder / "exports").unlink()
    (front.folder / "exports").write_text("a file")
    with pytest.raises(UserError, match="no ordinary folder"):
        target(front, "x")


def test_free_names_are_names_and_free(front):
    name = free_name(front, (0.25, 0.75), None, lora=False)
    assert name == "a-25-b-75" and target(front, name)
    export(front, (0.25, 0.75), name)
    assert free_name(front, (0.25, 0.75), None, lora=False) == "a-25-b-75-2"
    assert free_name(front, (1, 0), "a", lora=True) == "only-a-for-a-lora"
