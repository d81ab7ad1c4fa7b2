"""Training baselines: all parameters, one preference, by the loop that fits sets."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import fit_data
from commands import contents
from paretomerge import api, load_front
from paretomerge.api import FitRun
from paretomerge.errors import UserError
from paretomerge.fitting import Dense, non_uniformity
from paretomerge.front import Front
from paretomerge.models import predict

SHORT = {"steps": 5, "batch_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_data.save("vit", tmp_path_factory.mktemp("family"))


def train(place: Path, run: FitRun | None = None, **options) -> Front:
    tasks = fit_data.tasks("vit", labels=True, held_out=8)
    return api.fit(fit_data.experts(place), "training", data=tasks, run=run, hashes=False, **options)


@torch.no_grad()
def losses(front: Front) -> torch.Tensor:
    """Cross-entropy of each task on its fit inputs."""
    found = []
    for task, each in fit_data.tasks("vit", labels=True).items():
        logits = predict(front.model("equal", head=task, dtype=torch.float32), each.fit.batch(range(len(each.fit))))
        found.append(F.cross_entropy(logits, each.fit.labels))
    return torch.stack(found).double()


def test_dense_is_its_tensors():
    start = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([7.0])}
    dense = Dense(start, 2)
    weights = {name: torch.nn.Parameter(torch.empty_like(tensor)) for name, tensor in start.items()}
    gamma = torch.tensor([0.5, 0.5])
    dense.build_(weights, gamma)
    assert all(torch.equal(weights[name], start[name]) for name in start)
    dense.attach_(weights)
    dense.phi += 1
    assert weights["b"].tolist() == [8] and torch.equal(dense.view("a"), start["a"] + 1)
    assert dense.pull_back({"a": 2 * start["a"], "b": None}, gamma).tolist() == [0, 2, 4, 6, 8, 10, 0]
    assert dense.penalty(gamma)[0] == 0


def test_linear_training_is_adam_on_the_sum(place):
    """Two steps beside a plain loop over a plain model's parameters."""
    found = train(place, steps=2, batch_size=40, lr=1e-3, schedule="constant", preference="a=0.7,b=0.3")
    experts, tasks = fit_data.experts(place), fit_data.tasks("vit", labels=True)
    soup = api.fit(experts, "soup", on=api.merge(experts, "task_arithmetic", scale=0.0), scale=0.0, hashes=False)
    models = {task: soup.model("equal", head=task, dtype=torch.float32) for task in "ab"}  # the base, with heads
    one = models["a"].vit
    models["b"].vit = one
    adam = torch.optim.Adam(one.parameters(), lr=1e-3)
    for _ in range(2):
        adam.zero_grad()
        for task, share in (("a", 0.7), ("b", 0.3)):
            inputs = tasks[task].fit
            (share * F.cross_entropy(predict(models[task], inputs.batch(range(40))), inputs.labels)).backward()
        adam.step()
    expected = one.state_dict()
    trained = found.model("equal", head="a", dtype=torch.float32).vit.state_dict()
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)  # a step is 1e-3


def test_one_task_alone_does_not_look_at_the_other(place, tmp_path):
    found = train(place, FitRun(folder=tmp_path), preference="only:a", **SHORT)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all('"losses": {"0":' in line and '"1":' not in line.split('"watched"')[0] for line in lines)
    assert found.pareto_set.settings["fitted"] == "training"


def test_each_way_lowers_what_it_should(place):
    before = losses(train(place, steps=1, lr=1e-12))
    single = losses(train(place, steps=25, lr=3e-3, preference="only:a"))
    assert single[0] < 0.7 * before[0]
    both = losses(train(place, steps=25, lr=3e-3))
    assert (both < before).all() and both.mean() < single.mean()
    gamma = torch.tensor([0.75, 0.25]).double()
    exact = losses(train(place, steps=40, lr=3e-3, batch_size=40, scalarization="epo", preference="a=3,b=1"))
    assert (exact < before).all() and non_uniformity(exact, gamma) < 0.5 * non_uniformity(before, gamma)
    assert losses(train(place, steps=15, lr=3e-3, scalarization="mgda")).sum() < before.sum()


def test_a_trained_model_is_a_folder_and_resumes(place, tmp_path):
    def stop(done: int, logged) -> None:
        if done == 3:
            import signal

            signal.raise_signal(signal.SIGTERM)

    options = {"steps": 6, "batch_size": 8, "scalarization": "epo", "checkpoint_every": 2}
    train(place, **options).save(tmp_path / "whole")
    with pytest.raises(Exception, match="stopped after step 3"):
        train(place, FitRun(folder=tmp_path / "run", report=stop), **options)
    train(place, FitRun(folder=tmp_path / "run", resume=True), **options).save(tmp_path / "resumed")
    assert contents(tmp_path / "whole") == contents(tmp_path / "resumed")
    opened = load_front(tmp_path / "whole")
    assert all(math.isfinite(float(x)) for x in losses(opened))
    opened.pick("equal", tmp_path / "picked", head="a")
    assert (tmp_path / "picked" / "paretomerge.json").exists()


def test_mistakes(place):
    with pytest.raises(UserError, match="mgda takes no preference"):
        train(place, scalarization="mgda", preference="only:a", **SHORT)
    with pytest.raises(UserError, match="the fit inputs have no labels"):
        api.fit(fit_data.experts(place), "training", data=fit_data.tasks("vit"), hashes=False, **SHORT)
