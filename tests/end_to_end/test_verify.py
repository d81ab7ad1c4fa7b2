"""paretomerge verify: what changed since a front was made is named, and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest

import fit_data
import tiny
from task_data import companions


@pytest.fixture
def front(cli, tmp_path):
    """A front of its own, whose sources may be harmed."""
    family = tmp_path / "models"
    tiny.family("llama", family)
    cli("fit", "--base", family / "base", "--expert", f"a={family / 'a'}", "--expert", f"b={family / 'b'}", "-o", "front")
    return family


def checks(cli, *words):
    code, out, err = cli.call(["verify", "front", "--json", *map(str, words)])
    found = json.loads(out)
    assert (code == 0) == found["ok"], err
    return {check["what"]: check["state"] for check in found["checks"]}


def flip(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_an_untouched_front_is_as_recorded(cli, front):
    assert "5 of 5 as recorded" in cli("verify", "front")


@pytest.mark.parametrize("name", ["front/model.safetensors", "front/pareto_set.safetensors"])
def test_a_flipped_bit_of_the_front_is_found(cli, front, name):
    flip(Path(name))
    assert checks(cli)[name] == "changed"
    code, out, _ = cli.call(["verify", "front"])
    assert code == 2 and f"changed: {name}: other bytes" in out and "4 of 5 as recorded, 1 not" in out


def test_a_source_that_changed_or_went_is_named(cli, front):
    flip(front / "a" / "model.safetensors")
    (front / "b" / "model.safetensors").unlink()
    code, out, _ = cli.call(["verify", "front"])
    assert code == 2
    assert f"changed: {front / 'a' / 'model.safetensors'}" in out
    assert f"missing: {front / 'b' / 'model.safetensors'}" in out
    assert "3 of 5" in out


def paths(front):
    facts = json.loads(Path(front, "pareto_set.json").read_text())
    return [facts["sources"]["base"]["path"], *(source["path"] for source in facts["sources"]["experts"].values())]


def test_paths_that_were_typed_hold_in_every_directory(cli, front, tmp_path, monkeypatch):
    made_in = Path.cwd()
    monkeypatch.chdir(front.parent)
    words = ["--base", "models/base", "--expert", f"a={front / 'a'}", "--expert", "b=models/../models/b"]
    cli("fit", *words, "-o", made_in / "typed")
    (tmp_path / "another").mkdir()
    monkeypatch.chdir(tmp_path / "another")
    assert "5 of 5 as recorded" in cli("verify", made_in / "typed")


def test_a_front_may_move_together_with_its_sources(cli, tmp_path):
    base, experts = tiny.family("llama", tmp_path / "place" / "models")
    words = [word for task, path in experts.items() for word in ("--expert", f"{task}={path}")]
    cli("fit", "--base", base, *words, "-o", tmp_path / "place" / "front")
    assert paths(tmp_path / "place" / "front") == ["../models/base", "../models/a", "../models/b"]
    (tmp_path / "place").rename(tmp_path / "elsewhere")
    assert "5 of 5 as recorded" in cli("verify", tmp_path / "elsewhere" / "front")
    assert str(tmp_path / "elsewhere" / "models" / "base") in cli("info", tmp_path / "elsewhere" / "front", "--json")


def test_of_sources_elsewhere_the_whole_path_is_recorded(cli, front, tmp_path):
    folder = tmp_path / "deep" / "down" / "front"
    cli("fit", "--base", front / "base", "--expert", f"a={front / 'a'}", "-o", folder)
    assert paths(folder) == [str(front / "base"), str(front / "a")]
    folder.parent.rename(tmp_path / "up")
    assert "4 of 4 as recorded" in cli("verify", tmp_path / "up" / "front")


def test_paths_of_older_fronts_hold_as_they_did(cli, front, monkeypatch):
    """Absolute, or relative to the working directory of then."""
    file = Path("front/pareto_set.json").absolute()
    facts = json.loads(file.read_text())
    for source, path in zip(
        [facts["sources"]["base"], *facts["sources"]["experts"].values()],
        ["models/base", str(front / "a"), str(front / "b")],
        strict=True,
    ):
        source["path"] = path
    file.write_text(json.dumps(facts))
    monkeypatch.chdir(front.parent)
    assert "5 of 5 as recorded" in cli("verify", file.parent)
    monkeypatch.chdir("/")
    code, out, _ = cli.call(["verify", str(file.parent)])
    assert code == 2 and "4 of 5" in out and f"relocate {file.parent} --base PATH" in out


def test_what_moved_is_named_with_the_cure_and_the_cure_works(cli, front, tmp_path):
    (front / "b").rename(tmp_path / "b-now")
    code, out, _ = cli.call(["verify", "front"])
    lines = out.splitlines()
    assert code == 2 and len(lines) == 2 and lines[0].startswith(f"missing: {front / 'b' / 'model.safetensors'}: ")
    assert "paretomerge relocate front --expert b=PATH" in lines[0]
    assert "not the file" in cli.refuses("relocate", "front", "--expert", f"b={front / 'a'}")
    assert "no expert of this front" in cli.refuses("relocate", "front", "--expert", f"c={front / 'a'}")
    assert "what has moved" in cli.refuses("relocate", "front")
    cli("relocate", "front", "--expert", f"b={tmp_path / 'b-now'}")
    assert "5 of 5 as recorded" in cli("verify", "front")
    (front / "base").rename(tmp_path / "base-now")
    cli("relocate", "front", "--base", tmp_path / "base-now")
    assert "5 of 5 as recorded" in cli("verify", "front")


def test_measured_numbers_are_measured_again(cli, tmp_path):
    family = fit_data.save("vit", tmp_path / "models")
    companions(family / "base")
    data = []
    for seed, (task, classes) in enumerate(fit_data.CLASSES.items()):
        draw = np.random.default_rng(seed)
        pixels = draw.integers(0, 256, (30, 20, 20, 3), dtype=np.uint8)
        np.savez(family / f"{task}.npz", test_images=pixels, test_labels=draw.integers(0, classes, 30))
        data += ["--data", f"{task}={family / task}.npz"]
    words = ["--base", family / "base", *(w for t in "ab" for w in ("--expert", f"{t}={family / t}"))]
    cli("fit", *words, "-o", "front")
    assert "no number of these tasks" in cli.refuses("verify", "front", *data)
    cli("evaluate", "front", *data, "--sample", "2")
    assert len(checks(cli, *data)) == 7 + 2 * 7  # files, and both tasks at equal, priority, one-hot and sampled preferences
    assert len(checks(cli, *data, "--points", "3")) == 7 + 2 * 3
    facts = json.loads(Path("front/pareto_set.json").read_text())
    facts["measured"][0]["value"] += 0.01
    Path("front/pareto_set.json").write_text(json.dumps(facts))
    code, out, _ = cli.call(["verify", "front", *map(str, data)])
    assert code == 2 and "changed: accuracy of a at equal: " in out and "is measured" in out
    assert "goes with --data" in cli.refuses("verify", "front", "--points", "2")
