"""paretomerge report and explore, as a user types them."""

import json
import sys

import pytest
from transformers import AutoModelForCausalLM

import fronts
from paretomerge import api, load_front
from paretomerge.evaluation import measure
from paretomerge.results import measured, value


def test_report(cli, tmp_path):
    fronts.front(tmp_path, ("a", "b", "c"))
    said = json.loads(cli("report", tmp_path / "front", "-o", "out/r.html", "--figures", "figs", "--json"))
    assert said["output"] == "out/r.html" and 3e6 < said["bytes"]["out/r.html"] < 6e6  # most of it plotly.js
    names = {file.name for file in (cli.here / "figs").iterdir()}
    assert {"front.png", "front.pdf", "parallel.pdf", "radar-one-hot.png", "layers.pdf"} <= names
    assert (cli.here / "figs" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (cli.here / "figs" / "front.pdf").read_bytes().startswith(b"%PDF")
    assert "exists already" in cli.refuses("report", tmp_path / "front", "-o", "out/r.html")
    cli("report", tmp_path / "front", "-o", "out/r.html", "--overwrite", "--quiet")


def test_experts_are_measured_beside_the_front(cli, tmp_path):
    front = fronts.front(tmp_path, measured=False)
    (tmp_path / "text.txt").write_text("the cat sat on the mat .\n" * 300)
    said = cli(
        "evaluate", front.folder, "--experts", "--data", f"a={tmp_path / 'text.txt'}", "--data", f"b={tmp_path / 'text.txt'}"
    )
    assert "expert only:b" in said and "pretrained equal" in said
    rows = [row for row in load_front(front.folder).measured if row["task"] == "a"]
    task = api.load_tasks(front, {"a": str(tmp_path / "text.txt")})["a"]
    for name, method, preference in (("base", "pretrained", "equal"), ("expert-1", "expert", "only:b")):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        assert value(rows, method, preference, "a") == pytest.approx(measure(model, task), rel=1e-4)
    known = measured(load_front(front.folder).measured, front.tasks, "pareto-merging")
    assert set(known.experts) == {"a", "b"} and known.metrics["a"].sign == -1
    cli("pick", front.folder, "--knee", "-o", "knee")  # asks the front's own rows alone
    (tmp_path / "expert-1").rename(tmp_path / "gone")
    assert "expert-1" in cli.refuses("evaluate", front.folder, "--experts", "--quiet", "--data", f"a={tmp_path / 'text.txt'}")


def test_mistakes(cli, tmp_path, monkeypatch):
    fronts.front(tmp_path, measured=False)
    assert "no log of a run" in cli.refuses("report", tmp_path / "front", "--run", tmp_path)
    assert "is not measured" in cli.refuses("report", tmp_path / "front", "--reference", "a=0.5")
    assert "not a front" in cli.refuses("report", tmp_path)
    assert "cannot be written" in cli.refuses("report", tmp_path / "front", "-o", tmp_path / "front" / "config.json" / "x.html")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'paretomerge[app]'" in cli.refuses("explore", tmp_path / "front")
