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
