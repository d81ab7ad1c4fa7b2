"""paretomerge demo, as a user runs it: minutes on a busy machine, so apart from the rest."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from commands import program
from paretomerge import fit, load_experts, load_front
from paretomerge.data import ImageInputs
from paretomerge.demo import assets
from paretomerge.results import Row, value


@pytest.mark.slow
def test_demo(tmp_path):
    done = program("demo", "--json", "--quiet", "-o", tmp_path / "demo")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert all(row.keys() == Row.__annotations__.keys() and row["split"] == "held-out" for row in rows)
    assert all(0 <= row["value"] <= 1 for row in rows)
    front = load_front(tmp_path / "demo" / "front")
    assert {row["task"] for row in rows} == set(front.tasks)
    for task in front.tasks:  # at scale 1/K the soup's one-hot preferences are the experts, up to rounding
        expert, soup = (value(rows, method, f"only:{task}", task) for method in ("expert", "soups"))
        assert abs(expert - soup) < 0.01
    assert (tmp_path / "demo" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "demo" / "images").glob("*.png"))) == 3 * len(front.tasks)
    refused = program("demo", "-o", tmp_path / "demo")
    assert refused.returncode == 2 and "exists already" in refused.stderr


def test_a_pick_loads_by_the_line_that_everybody_types(cli):
    """``pipeline("image-classification", model="my-classifier")(image)``: pipelines make three channels of every picture."""
    from transformers import pipeline

    root = assets()
    names = ("digits", "fashion")
    fit(load_experts(root / "pretrained", {name: root / "experts" / name for name in names}), "soup").save(cli.here / "front")
    cli("pick", "front", "-p", "digits=1,fashion=9", "--head", "fashion", "-o", "my-classifier", "-q")
    classify = pipeline("image-classification", model=str(cli.here / "my-classifier"))
    with np.load(root / "data" / "fashion.npz") as data:
        pictures = [Image.fromarray(pixels) for pixels in data["test_images"][:20]]
        labels = [classify.model.config.id2label[int(label)] for label in data["test_labels"][:20]]
    said = {mode: [classify(picture.convert(mode))[0]["label"] for picture in pictures] for mode in ("L", "RGB")}
    assert said["L"] == said["RGB"] and sum(map(str.__eq__, said["L"], labels)) >= 15
    assert classify(Image.new("RGB", (300, 200), "red"))[0]["label"] in labels  # a picture of any size
    front = load_front(cli.here / "front")
    inputs = ImageInputs(pictures, AutoImageProcessor.from_pretrained(front.folder), 3).batch(range(20))
    with torch.no_grad():
        best = front.model("digits=1,fashion=9", head="fashion", dtype=torch.float32)(**inputs).logits.argmax(-1).tolist()
    assert [classify.model.config.id2label[i] for i in best] == said["L"]  # what evaluate measures
