"""paretomerge demo, as a user runs it: minutes on a busy machine, so apart from the rest."""

import json

import pytest

from commands import program
from paretomerge import load_front
from paretomerge.evaluation.results import Row, value


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
