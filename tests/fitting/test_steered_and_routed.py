"""Steered sets and PWE-MoE fitted on data: where they start, what they learn and keep, and that it can be done again."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fit_data
from commands import contents
from paretomerge import api, load_front
from paretomerge.api import FitRun
from paretomerge.errors import Stopped, UserError
from paretomerge.fitting import PWE_PAPER as PAPER
from paretomerge.fitting import Learned, routed, steered
from paretomerge.front import Front
from quadratics import Interrupt

SHORT = {"steps": 6, "batch_size": 8}
PREFERENCES = [(0.5, 0.5), (1.0, 0.0), (0.31, 0.69)]
METHODS = ("steered", "pwe-moe")
MLP = re.compile(r"layer\.\d\.(intermediate|output)\.dense")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    for kind in ("vit", "gpt2", "clip"):
        fit_data.save(kind, place / kind)
    return place


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[Learned]:
    """The φ of every fit of a test."""
    made = []

    class Kept(Learned):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            made.append(self)

    for module in (steered, routed):
        monkeypatch.setattr(module, "Learned", Kept)
    return made


def fit(place: Path, method: str, run: FitRun | None = None, labels: bool = False, **options) -> Front:
    tasks = fit_data.tasks(place.name, labels=labels)
    return api.fit(fit_data.experts(place), method, data=tasks, run=run, hashes=False, **options)


def built(of: Learned, gamma: tuple[float, ...]) -> dict[str, Tensor]:
    return of.built(torch.tensor(gamma, dtype=torch.float64))


def assert_close(found, expected, step: float) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=step, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "kind, method, options",
    [
        ("vit", "steered", {"rank": 3}),
        ("vit", "steered", {"rank": 0}),
        ("vit", "steered", {"rank": 2, "targets": "attention", "fuse_qkv": True, "task_vector_rank": 3}),
        ("vit", "steered", {"rank": 2, "store_task_vectors": "bfloat16", "beta": 0.1}),
        ("gpt2", "steered", {"rank": 2, "scale": 0.4}),
        ("clip", "steered", {"rank": 2}),
        ("vit", "pwe-moe", {}),
        ("vit", "pwe-moe", {"modules": "mlp", "store_task_vectors": "bfloat16"}),
        ("gpt2", "pwe-moe", {"modules": "all"}),
        ("clip", "pwe-moe", {"modules": ["vision_model.*.mlp"], "scalarization": "smooth-tchebycheff"}),
    ],
)
def test_the_front_is_what_was_learned(folder, learned, tmp_path, kind, method, options):
    """θ(γ) of the loop, of the set in memory and of the folder."""
    front = fit(folder / kind, method, **{**SHORT, **options})
    front.save(tmp_path / "front")
    again = load_front(tmp_path / "front")
    (of,) = learned
    assert front.pareto_set.method == again.pareto_set.method == method
    for gamma in PREFERENCES:
        for found in (front.at(gamma), again.at(gamma)):
            assert_close(found, built(of, gamma), 5e-6)
    assert all(torch.equal(again.at("equal")[name], front.pareto_set.base[name]) for name in front.pareto_set.base)
    stored = {again.pareto_set.stored()[0].infos[name].dtype for name in again.pareto_set.stored()[0] if "task_vec" in name}
    assert stored == {torch.bfloat16 if "store_task_vectors" in options else torch.float32}


def test_both_names_of_a_tied_weight_follow(folder):
    """GPT-2's embedding is its head."""
    for method, options in (("steered", {"rank": 0}), ("pwe-moe", {"modules": "all"})):
        front = fit(folder / "gpt2", method, **SHORT, **options)
        model = front.model("only:a")
        assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)
        assert torch.equal(model.lm_head.weight, front.at("only:a")["transformer.wte.weight"])
        assert not torch.equal(front.at("only:b")["transformer.wte.weight"], front.at("only:a")["transformer.wte.weight"])


# -- steered


@pytest.mark.parametrize("scale", [None, 0.3])
def test_steered_starts_at_the_soup(folder, learned, scale):
    front = fit(folder / "vit", "steered", steps=0, rank=4, scale=scale)
    (of,) = learned
    soup = api.fit(fit_data.experts(folder / "vit"), "soup", scale=scale, hashes=False)
    for gamma in PREFERENCES:
        assert_close(front.at(gamma), {name: soup.at(gamma)[name] for name in soup.pareto_set.varying}, 2e-6)
    closed = api.fit(fit_data.experts(folder / "vit"), rank=4, targets="all", scale=scale, hashes=False).pareto_set.factors
    for target in of.targets:
        a, g, b = (of.view(f"{target.name}.{part}") for part in "AGB")
        assert torch.equal(a, closed[target.name].a) and torch.equal(b, closed[target.name].b) and g.abs().max() == 0


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_truncated_task_vectors(folder, learned, rank):
    """Each matrix at rank R, the error as reported; at equal preference nothing is lost."""
    said = []
    front = fit(folder / "vit", "steered", FitRun(say=said.append), steps=0, rank=0, task_vector_rank=rank)
    experts = fit_data.experts(folder / "vit")
    soup = api.fit(experts, "soup", hashes=False)
    assert_close(front.at("equal"), {name: soup.at("equal")[name] for name in experts.merged}, 2e-6)
    lost = total = 0.0
    for name in experts.merged:
        v = experts.task_vectors(name).double()
        kept = built(learned[0], (1.0, 0.0))[name].double() - built(learned[0], (0.0, 1.0))[name].double()
        gone = (kept - (v[0] - v[1])).reshape(len(kept) if kept.ndim else 1, -1)
        m, n = gone.shape
        if rank * (m + n) >= m * n:
            assert gone.abs().max() < 1e-6
        else:
            tails = [torch.linalg.svdvals(each.view(m, n))[rank:] for each in v]
            assert float(gone.norm()) <= sum(float(tail.norm()) for tail in tails) + 1e-6
            lost += sum(float(tail.square().sum()) for tail in tails)
        total += float(v.square().sum())
    error = front.pareto_set.settings["task_vectors"]["error"]
    assert 0 < error == pytest.approx((lost / total) ** 0.5, abs=2e-5)
    assert [line for line in said if line.startswith(f"task vectors at rank {rank}: error {error:.1%}")]
    stored, whole = front.pareto_set.added_parameters(), soup.pareto_set.added_parameters()
    assert stored < whole + 4 * 2 * len(experts.merged)  # M and b apart


def test_a_base_that_is_handed_over_in_memory_is_not_written_to(folder):
    experts = fit_data.experts(folder / "vit")
    base = {name: experts.base[name].clone() for name in experts.base}
    kept = steered.keep(base, {n: experts.task_vectors(n).flatten(1) for n in experts.merged}, experts.infos, 0.5, 2, None, 0)
    assert all(torch.equal(base[name], experts.base[name]) for name in base)
    assert any(not torch.equal(base[name], kept.base[name]) for name in base)


def test_steering_learns_more_than_the_soup_knows(folder):
    told = []
    run = FitRun(report=lambda done, logged: told.append(logged["losses"]))
    options = {"batch_size": 40, "rank": 4, "lr": 5e-3, "equal_every": 1, "schedule": "constant"}
    fit(folder / "vit", "steered", run, steps=25, **options)
    means = [sum(each.values()) / 2 for each in told]
    assert means[-1] < 0.8 * means[0]


# -- PWE-MoE


def test_routers_start_near_lambda(folder, learned):
    front = fit(folder / "vit", "pwe-moe", start="task-arithmetic", steps=0)
    (of,) = learned
    assert of.view("b1").abs().max() == 0 and of.view("b2").unique().tolist() == [pytest.approx(0.6)]  # two tasks
    for part in ("W1", "W2"):
        assert 0.005 < float(of.view(part).std()) < 0.015
    assert front.pareto_set.settings["scale"] == 0.6
    experts = fit_data.experts(folder / "vit")
    merged = api.merge(experts, "task_arithmetic", scale=0.6)
    for gamma in PREFERENCES:
        assert_close(front.at(gamma), {name: merged[name] for name in experts.merged}, 1e-3)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_routers_start_near_the_soup(folder, learned, scale):
    front = fit(folder / "vit", "pwe-moe", steps=0, scale=scale)
    (of,) = learned
    assert front.pareto_set.settings["scale"] == (scale or 0.5)
    soup = api.fit(fit_data.experts(folder / "vit"), "soup", scale=scale, hashes=False)
    merged = soup.at("equal")
    varying = set(front.pareto_set.varying)
    assert varying < set(soup.pareto_set.varying)
    for gamma in PREFERENCES:
        expected = {name: soup.at(gamma)[name] if name in varying else merged[name] for name in soup.pareto_set.varying}
        assert_close(front.at(gamma), expected, 1e-3)
    for part in ("W1", "W2"):  # as many units that learn from small numbers, as in the paper
        view = of.view(part)
        rest = view[:, 2:] if part == "W1" else view[:, :, 2:]
        assert 0.005 < float(rest.std()) < 0.015


def test_the_rest_is_task_arithmetic(folder, learned):
    front = fit(folder / "vit", "pwe-moe", modules="mlp", scale=0.25, **SHORT)
    (of,) = learned
    assert set(of.task_vectors) == set(front.pareto_set.varying) == {n for n in front.at("equal") if MLP.search(n)}
    assert front.pareto_set.added_parameters() == 2 * 22 + 2 * sum(v.shape[1] for v in of.task_vectors.values())
    merged = api.merge(fit_data.experts(folder / "vit"), "task_arithmetic", scale=0.25)
    one = front.at("only:a")
    assert_close(one, {name: merged[name] for name in merged if not MLP.search(name)}, 1e-6)
    assert max(float((one[name] - merged[name]).abs().max()) for name in of.task_vectors) > 1e-4


def test_routers_learn(folder):
    told = []
    run = FitRun(report=lambda done, logged: told.append(logged["losses"]))
    fit(folder / "vit", "pwe-moe", run, steps=40, batch_size=40, lr=3e-2, equal_every=1, schedule="constant")
    means = [sum(each.values()) / 2 for each in told]
    assert means[-1] < 0.9 * means[0]


def test_preset(folder):
    front = fit(folder / "vit", "pwe-moe", preset="paper", steps=2, labels=True)
    assert {**PAPER, "steps": 2}.items() <= front.pareto_set.settings.items()
    published = {
        "objective": "cross-entropy",
        "lr": 1e-2,
        "batch_size": 16,
        "alpha": 1.0,
        "schedule": "cosine",
        "modules": "mlp",
    }
    assert published.items() <= PAPER.items() and 2000 <= PAPER["steps"] <= 4000
    with pytest.raises(UserError, match="steered has no settings of a paper"):
        fit(folder / "vit", "steered", preset="paper", steps=2)


# -- both


@pytest.mark.parametrize("method", [*METHODS, "training"])
def test_how_much_of_an_expert_is_kept(folder, tmp_path, method):
    """Of a language model's prediction at each token: so many likeliest tokens and the rest, 2 bytes each (null: all)."""
    for top, count in ((4, 5), (None, 40)):
        run = FitRun(tmp_path / f"{method} {top}")
        fit(folder / "gpt2", method, run, objective="distill", teacher_top=top, **{**SHORT, "steps": 1})
        assert {np.load(file).shape[-1] for file in (run.folder / "teacher").glob("*.values.npy")} == {count}


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bytes(folder, tmp_path, method):
    options = {**SHORT, **({"task_vector_rank": 2} if method == "steered" else {})}
    made = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        fit(folder / "vit", method, seed=seed, **options).save(tmp_path / str(number))
        made.append(contents(tmp_path / str(number)))
    assert made[0] == made[1]
    assert all(made[0][file] != made[2][file] for file in ("model.safetensors", "pareto_set.safetensors"))


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_fit_goes_on_to_the_same_bytes(folder, tmp_path, method):
    options = {**SHORT, "checkpoint_every": 2}
    fit(folder / "vit", method, FitRun(tmp_path / "whole"), **options).save(tmp_path / "front")
    run = FitRun(tmp_path / "run", report=Interrupt(3, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(Stopped):
        fit(folder / "vit", method, run, **options)
    fit(folder / "vit", method, FitRun(tmp_path / "run", resume=True), **options).save(tmp_path / "resumed")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "front")


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("steered", {"rank": -1}, "rank must not be negative"),
        ("steered", {"task_vector_rank": 0}, "task_vector_rank must be at least 1"),
        ("steered", {"targets": "*.nothing"}, "no matrix of this model fits"),
        ("pwe-moe", {"modules": "mlps"}, "modules 'mlps': no tensor of this model fits"),
        ("pwe-moe", {"rank": 4}, "unknown option 'rank'"),
        ("pwe-moe", {"objective": "cross-entropy"}, "no labels"),
    ],
)
def test_mistakes(folder, method, options, message):
    with pytest.raises(UserError, match=message) as error:
        fit(folder / "vit", method, **{**SHORT, **options})
    assert "\n" not in str(error.value)
