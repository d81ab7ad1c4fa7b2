"""``paretomerge fit --method react``: a correction on top of a set, from the command line."""

import json
from pathlib import Path

import numpy as np
import transformers as hf

import fit_data
from task_data import companions


def test_on_a_soup(cli, tmp_path):
    place: Path = fit_data.save("vit", tmp_path / "vit")
    companions(place / "base")
    data = []
    for task, classes in fit_data.CLASSES.items():
        draw = np.random.default_rng(classes)
        companions(place / task)
        np.savez(tmp_path / f"{task}.npz", fit_images=draw.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
        data += ["--expert", f"{task}={place / task}", "--data", f"{task}={tmp_path / f'{task}.npz'}"]
    words = ["fit", "--base", place / "base", *data, "--method", "react"]
    out = cli(*words, "--on", "soup", "--output", tmp_path / "front", "--option", "beta=0.1", "--json")
    assert json.loads(out)["settings"]["on"] == {"method": "soup", "options": {}}
    cli("pick", tmp_path / "front", "--head", "a", "-p", "a=3,b=1", "-o", tmp_path / "picked")
    hf.AutoModelForImageClassification.from_pretrained(tmp_path / "picked")
    for flag, said in (("--resume", "nothing to resume"), ("--tensorboard", "no steps to log")):
        assert said in cli.refuses(*words, "--output", "front", flag, "-q")
