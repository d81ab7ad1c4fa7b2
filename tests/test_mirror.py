"""A folder in the hub's place."""

from pathlib import Path

import pytest

import tiny
from paretomerge.data import read_splits
from paretomerge.errors import UserError
from paretomerge.weights import VARIABLE, local, open_checkpoint


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_models_are_found_in_it(mirror):
    tiny.save(tiny.model("llama"), mirror / "org" / "name")
    assert local("org/name@refs/pr/1") == local("org/name") == mirror / "org" / "name"
    assert len(open_checkpoint("org/name")) > 0
    with pytest.raises(UserError, match="org/other: no such folder here"):
        local("org/other")


def test_data_sets_are_found_in_it(mirror, tmp_path, monkeypatch):
    """As the hub has them: parquet files, and in README.md which of them are which configuration's splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = mirror / "datasets" / "org" / "name"
    lines = ["---", "configs:"]
    for subset in ("one", "two"):
        (folder / subset).mkdir(parents=True)
        lines += [f"- config_name: {subset}", "  data_files:"]
        for split in ("train", "test_matched"):
            rows = datasets.Dataset.from_dict({"text": [f"{subset} {split}"], "label": [1]})
            rows.to_parquet(folder / subset / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {subset}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    for path in ("org/name", str(folder)):
        splits = read_splits(path, "two")
        assert list(splits) == ["train", "test_matched"] and list(splits["train"].columns["text"]) == ["two train"]
    with pytest.raises(UserError, match="cannot be read"):
        read_splits("org/name", "three")
