"""Fits on data, from experts and tasks to a front: what is learned, what is stored, and that both are the same."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fit_data
import oracles
from commands import contents
from paretomerge import api, load_front, preferences
from paretomerge.api import FitRun
from paretomerge.errors import Stopped, UserError
from paretomerge.fitting import (
    ADAMERGING,
    OBJECTIVES,
    PAPER,
    Learned,
    Predictions,
    Problem,
    TrainingOptions,
    adamerging,
    on_data,
    pareto_merging_on_data,
)
from paretomerge.front import Front
from paretomerge.merges import trimmed_and_elected
from paretomerge.models import predict
from quadratics import Interrupt
from states import family, opened

KINDS = ("vit", "bert", "gpt2", "clip", "resnet")
SHORT = {"steps": 6, "batch_size": 8, "rank": 4}
PREFERENCES = [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.31, 0.69), (0.05, 0.95)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    for kind in KINDS:
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

    monkeypatch.setattr(on_data, "Learned", Kept)
    return made


def fit(place: Path, method: str = "pareto-merging", given=None, run: FitRun | None = None, **options) -> Front:
    labels = options.get("objective") == "cross-entropy"
    tasks = given or fit_data.tasks(place.name, labels=labels)
    return api.fit(fit_data.experts(place), method, data=tasks, run=run, hashes=False, **options)


def built(of: Learned, gamma: tuple[float, ...]) -> dict[str, Tensor]:
    weights = {name: torch.empty_like(base) for name, base in of.base.items()}
    of.build_(weights, torch.tensor(gamma, dtype=torch.float64))
    return weights


def logits_of(front: Front, gamma, task: str, inputs) -> Tensor:
    head = task if task in front.heads else None
    with torch.no_grad():
        return predict(front.model(gamma, head=head, dtype=torch.float32), inputs.batch(range(len(inputs))))


def divergence(front: Front, place: Path, gamma) -> float:
    """Mean KL from the experts, at one preference."""
    total = 0.0
    own = api.fit(fit_data.experts(place), "soup", hashes=False)
    for task, each in fit_data.tasks(place.name).items():
        p = Predictions(logits_of(front, gamma, task, each.fit), logits_of(own, f"only:{task}", task, each.fit))
        total += float(OBJECTIVES["distill"](p)) / 2
    return total


# -- the job


def test_fitting_brings_the_models_nearer_to_their_experts(folder):
    place = folder / "vit"
    before = api.fit(fit_data.experts(place), rank=4, targets="all", hashes=False)
    after = fit(place, steps=60, batch_size=16, rank=4, lr=5e-3)
    assert divergence(after, place, "equal") < 0.7 * divergence(before, place, "equal")
    for task in "ab":  # and each of its own expert, where it counts alone
        inputs = fit_data.tasks("vit")[task].fit
        expert = logits_of(api.fit(fit_data.experts(place), "soup", hashes=False), f"only:{task}", task, inputs)
        gaps = [
            float(OBJECTIVES["distill"](Predictions(logits_of(front, gamma, task, inputs), expert)))
            for front, gamma in ((before, f"only:{task}"), (after, f"only:{task}"), (after, "equal"))
        ]
        assert gaps[1] < 0.5 * gaps[0] and gaps[1] < gaps[2]


@pytest.mark.parametrize(
    "kind, options",
    [
        ("vit", {}),
        ("vit", {"fuse_qkv": True, "targets": "attention"}),
        ("vit", {"coefficients": "task", "start": "kaiming", "beta": 0.1}),
        ("vit", {"coefficients": "fixed", "start": "orthonormal", "scale": 0.3}),
        ("vit", {"ties": 0.3, "rank": 0}),
        ("vit", {"scalarization": "epo"}),
        ("bert", {"scalarization": "upgrad"}),
        ("vit", {"targets": ["*intermediate*", "*query*"]}),
        ("bert", {"scalarization": "smooth-tchebycheff"}),
        ("gpt2", {}),
        ("clip", {}),
        ("resnet", {"targets": "all", "rank": 0}),
    ],
)
def test_the_front_is_what_was_learned(folder, learned, tmp_path, kind, options):
    """θ(γ) of the loop, of the set in memory and of the folder, at any γ; and λ in the settings."""
    front = fit(folder / kind, **{**SHORT, **options})
    front.save(tmp_path / "front")
    again = load_front(tmp_path / "front")
    (of,) = learned
    for gamma in PREFERENCES:
        expected = built(of, gamma)
        for found in (front.at(gamma), again.at(gamma)):
            for name, tensor in expected.items():
                torch.testing.assert_close(
                    found[name], tensor, rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
                )
    torch.testing.assert_close(torch.tensor(front.pareto_set.settings["lambda"]), of.view("lambda"), rtol=0, atol=1e-6)
    untouched = set(front.pareto_set.base) - set(of.base)
    base = fit_data.experts(folder / kind).base
    assert all(torch.equal(front.pareto_set.base[name], base[name]) for name in untouched)
    if options.get("coefficients") == "fixed":
        assert of.view("lambda").unique().tolist() == [pytest.approx(0.3)]
    else:
        assert len(of.view("lambda").unique()) > 1


def test_heads_travel(folder, learned, tmp_path):
    """A picked model of a task says what the live model of the fit would."""
    front = fit(folder / "bert", **SHORT)
    front.save(tmp_path / "front")
    gamma = (0.3, 0.7)
    for task, classes in fit_data.CLASSES.items():
        load_front(tmp_path / "front").pick(gamma, tmp_path / task, head=task)
        import transformers

        picked = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / task).eval()
        inputs = fit_data.tasks("bert")[task].fit
        with torch.no_grad():
            said = predict(picked, inputs.batch(range(10)))
        assert said.shape == (10, classes)
        torch.testing.assert_close(said, logits_of(front, gamma, task, inputs)[:10], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["distill", "features", "infomax", "entropy", "cross-entropy"])
@pytest.mark.parametrize("kind", ["vit", "bert", "gpt2"])
def test_every_objective_falls(folder, kind, objective):
    told = []
    run = FitRun(report=lambda done, logged: told.append(logged["losses"]))
    fit(
        folder / kind,
        run=run,
        objective=objective,
        steps=12,
        batch_size=40,
        rank=2,
        lr=8e-3,
        equal_every=1,
        schedule="constant",
    )
    means = [sum(each.values()) / 2 for each in told]
    assert all(map(math.isfinite, means)) and means[-1] < means[0] - 0.01 * abs(means[0]), (means[0], means[-1])


def test_one_expert_alone(folder):
    experts = fit_data.experts(folder / "vit", "a")
    front = api.fit(experts, data={"a": fit_data.tasks("vit")["a"]}, hashes=False, **SHORT)
    assert front.tasks == ("a",) and all(torch.isfinite(t).all() for t in front.at("equal").values())


# -- AdaMerging


@pytest.mark.parametrize("coefficients", ["layer", "task"])
def test_adamerging_is_one_model(folder, learned, tmp_path, coefficients):
    front = fit(folder / "vit", "adamerging", steps=6, coefficients=coefficients)
    (of,) = learned
    assert of.targets == () and of.view("lambda").shape == (len(of.base) if coefficients == "layer" else 1, 2)
    assert float((of.view("lambda") - 0.3).abs().max()) == pytest.approx(6e-3, rel=0.3)  # six steps of Adam at 1e-3 from 0.3
    front.save(tmp_path / "front")
    again = load_front(tmp_path / "front")
    assert list(again.pareto_set.varying) == [] and again.summary()["parameters"]["added"] == 0
    equal = built(of, (0.5, 0.5))
    for gamma in PREFERENCES:
        found = again.at(gamma)
        assert all(torch.equal(found[name], again.at("equal")[name]) for name in found)
        assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in equal.items())
    model = again.apply_(again.model("only:a", head="a"), "only:b")
    assert model.config.num_labels == 5


def test_adamerging_weighs_all_tasks_equally_in_every_step(folder):
    told = []
    fit(folder / "vit", "adamerging", run=FitRun(report=lambda done, logged: told.append(logged)), steps=5)
    assert all(each["gamma"] == [0.5, 0.5] and set(each["losses"]) == {"0", "1"} and each["lr"] == 1e-3 for each in told)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_adamerging_plus_plus_trims_and_elects_as_ties_does(K, density):
    """Each v_k trimmed over the whole model, and zero where the others' sum has another sign."""
    base, experts = family(K)
    of = opened(base, experts)
    found = trimmed_and_elected(of, {name: of.task_vectors(name).reshape(K, -1) for name in of.merged}, density)
    trimmed = [oracles.trim(v, density, "model") for v in oracles.task_vectors(base, experts)]
    for name in of.merged:
        vs = [v[name] if density else torch.zeros_like(v[name]) for v in trimmed]
        elected = torch.sign(sum(vs))
        for k, v in enumerate(vs):
            expected = torch.where(torch.sign(v) == elected, v, 0.0).flatten()
            torch.testing.assert_close(found[name][k].double(), expected, rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("density", [-0.1, 1.5])
def test_densities_that_make_no_sense(folder, density):
    with pytest.raises(UserError, match=r"ties must be in \[0, 1\]"):
        fit(folder / "vit", "adamerging", ties=density, steps=1)


def test_adamerging_plus_plus_learns_on_processed_vectors(folder, learned):
    fit(folder / "vit", "adamerging", steps=2)
    fit(folder / "vit", "adamerging", steps=2, ties=0.2)
    plain, processed = learned
    kept = torch.cat([(v != 0).flatten() for v in processed.task_vectors.values()]).double().mean()
    assert 0.1 < float(kept) <= 0.2 + 1e-3
    for name, v in processed.task_vectors.items():
        assert torch.equal(v[v != 0], plain.task_vectors[name][v != 0])


# -- settings


def test_presets(folder):
    paper = fit(folder / "vit", preset="paper", steps=2)
    assert PAPER.items() <= paper.pareto_set.settings.items() and paper.pareto_set.settings["preset"] == "paper"
    published = {"objective": "entropy", "rank": 16, "alpha": 0.1, "beta": 0.1, "batch_size": 32, "lr": 1e-3, "scale": 0.3,
                 "start": "kaiming", "scalarization": "smooth-tchebycheff", "targets": "attention"}  # fmt: skip
    assert published.items() <= PAPER.items()
    other = fit(folder / "vit", preset="paper", steps=2, rank=2, objective="infomax")
    assert other.pareto_set.settings["rank"] == 2 and other.pareto_set.settings["objective"] == "infomax"
    assert other.pareto_set.settings["beta"] == 0.1
    default = fit(folder / "vit", steps=2).pareto_set.settings
    assert default["preset"] == "recommended" and default["objective"] == "distill" and default["targets"] == "all"
    own = fit(folder / "vit", "adamerging", preset="paper", steps=2).pareto_set.settings
    assert (own["objective"], own["scale"], own["batch_size"], own["lr"]) == ("entropy", 0.3, 16, 1e-3)
    with pytest.raises(UserError, match="unknown preset 'papre', did you mean 'paper'"):
        fit(folder / "vit", preset="papre")


@pytest.mark.parametrize("start", ["closed-form", "orthonormal", "kaiming"])
def test_starts(folder, learned, start):
    fit(folder / "vit", steps=0, rank=4, start=start, scale=0.4)
    (of,) = learned
    closed = api.fit(fit_data.experts(folder / "vit"), rank=4, targets="all", scale=0.4, hashes=False)
    assert of.view("lambda").unique().tolist() == [pytest.approx(0.4)] and len(of.targets) == 12
    for target in of.targets:
        a, g, b = (of.view(f"{target.name}.{part}") for part in "AGB")
        factors = closed.pareto_set.factors[target.name]
        if start == "kaiming":
            assert float(a.abs().max()) <= 1 / math.sqrt(a.shape[1]) and float(b.abs().max()) <= 1 / math.sqrt(b.shape[1])
            assert float(a.abs().min()) > 0 and g.abs().max() == 0
            continue
        torch.testing.assert_close(a, factors.a, rtol=0, atol=0)
        torch.testing.assert_close(b, factors.b, rtol=0, atol=0)
        if start == "orthonormal":
            assert g.abs().max() == 0
        else:
            torch.testing.assert_close(g, factors.g, rtol=0, atol=0)


def test_no_steps_from_the_closed_form_is_the_closed_form(folder):
    none = fit(folder / "vit", steps=0, rank=4)
    closed = api.fit(fit_data.experts(folder / "vit"), rank=4, targets="all", hashes=False)
    for gamma in PREFERENCES:
        one, other = none.at(gamma), closed.at(gamma)
        assert all(torch.allclose(one[name], other[name], atol=2e-6) for name in one)


def test_half_precision(folder, learned):
    exact = fit(folder / "vit", **SHORT)
    for options in ({"store_task_vectors": "bfloat16"}, {"precision": "bfloat16"}):
        rounded = fit(folder / "vit", **SHORT, **options)
        for gamma in ("equal", "only:a"):
            one, other = (torch.cat([front.at(gamma)[n].flatten() for n in learned[0].base]) for front in (exact, rounded))
            moved = torch.cat([(exact.at(gamma)[n] - exact.pareto_set.base[n]).flatten() for n in learned[0].base])
            assert 0 < float((one - other).norm()) < 0.01 * float(one.norm()) + 0.2 * float(moved.norm())
    assert {v.dtype for v in learned[1].task_vectors.values()} == {torch.bfloat16}
    assert {v.dtype for v in learned[2].task_vectors.values()} == {torch.float32}
    # the set is what was learned, with the vectors as they were stored
    torch.testing.assert_close(rounded.at((0.3, 0.7))["layernorm.weight"], built(learned[2], (0.3, 0.7))["layernorm.weight"])


def test_a_base_in_bfloat16(folder, learned):
    experts = fit_data.experts(folder / "vit").stored_as(torch.bfloat16)
    front = api.fit(experts, data=fit_data.tasks("vit"), hashes=False, **SHORT)
    (of,) = learned
    found, expected = front.at((0.2, 0.8)), built(of, (0.2, 0.8))
    assert {info.dtype for info in found.infos.values()} == {torch.bfloat16}
    for name, tensor in expected.items():
        assert float((found[name].float() - tensor).abs().max()) <= 2**-7 * max(1.0, float(tensor.abs().max()))


MISTAKES = [
    ({"rank": -1}, "rank"),
    ({"steps": -1}, "steps"),
    ({"batch_size": 0}, "batch"),
    ({"micro_batch_size": 0}, "micro_batch_size"),
    ({"alpha": 0.0}, "alpha"),
    ({"lr": 0.0}, "lr"),
    ({"lr": math.nan}, "lr must be a number"),
    ({"checkpoint_every": 0}, "checkpoint_every"),
    ({"mu": 0.0}, "mu"),
    ({"device": "gpu"}, "device 'gpu'"),
    ({"objective": "kl"}, "objective must be distill or"),
    ({"ranks": 3}, "unknown option 'ranks'"),
    ({"targets": "*.nothing.*"}, "no matrix of this model fits"),
]


@pytest.mark.parametrize("options, message", MISTAKES)
def test_options_that_make_no_sense(folder, options, message):
    with pytest.raises(UserError, match=message) as error:
        fit(folder / "vit", **{**SHORT, **options})
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(folder):
    with pytest.raises(UserError, match="device 'cuda'"):
        fit(folder / "vit", device="cuda", **SHORT)


def test_data_that_do_not_fit(folder):
    experts, given = fit_data.experts(folder / "vit"), fit_data.tasks("vit")
    with pytest.raises(UserError, match=r"task b has no inputs to fit on: name them with --data b=PATH"):
        api.fit(experts, data={"a": given["a"]})
    with pytest.raises(UserError, match=r"unknown task in data 'c'"):
        api.fit(experts, data={**given, "c": given["a"]})
    with pytest.raises(UserError, match="on: adamerging learns its own coefficients"):
        api.fit(experts, "adamerging", data=given, on="ties")
    with pytest.raises(UserError, match="soup is made in closed form"):
        api.fit(experts, "soup", data=given)
    for options in ({"preset": "paper"}, {"run": FitRun()}):
        with pytest.raises(UserError, match="belong to a fit on data"):
            api.fit(experts, **options)


# -- early stopping, collapse


def test_patience_stops_early_and_keeps_the_best(folder, learned, monkeypatch):
    """Labels by chance: the held-out cross-entropy soon rises while that of the inputs fitted on falls."""
    given = fit_data.tasks("vit", 16, labels=True, held_out=40)
    told, values = [], []
    held_out = Problem.held_out
    monkeypatch.setattr(
        Problem, "held_out", lambda self: values.append((held_out(self), learned[-1].phi.clone())) or values[-1][0]
    )
    options = {
        "objective": "cross-entropy",
        "rank": 4,
        "lr": 3e-2,
        "batch_size": 16,
        "schedule": "constant",
        "checkpoint_every": 2,
    }
    said = []
    run = FitRun(report=lambda done, logged: told.append(done), say=said.append)
    fit(folder / "vit", given=given, run=run, steps=200, patience=2, **options)
    best = min(range(len(values)), key=lambda i: values[i][0])
    assert told[-1] < 200 and len(values) == best + 3
    assert said[-1] == f"stopped early after step {told[-1]}: the held-out objective improves no more; the best is kept"
    assert torch.equal(learned[-1].phi, values[best][1])


def test_collapse_is_told_where_entropy_collapses_and_not_where_it_does_not(folder):
    said = {}
    for objective in ("entropy", "distill"):  # of infomax, too, a step may be far off, and is told
        said[objective] = []
        run = FitRun(say=said[objective].append)
        lr = 0.1 if objective == "entropy" else 0.02  # at 0.1 rounding decides where the other goes
        options = {"steps": 40, "batch_size": 32, "rank": 4, "equal_every": 1, "schedule": "constant"}
        fit(folder / "vit", run=run, objective=objective, lr=lr, **options)
        said[objective] = [line for line in said[objective] if "collapse" in line]
    assert len(said["entropy"]) == 2  # once for each task
    assert any(
        "warning: step " in line and "the predictions of task a collapse to few classes" in line for line in said["entropy"]
    )
    assert all("objective=distill or infomax" in line for line in said["entropy"])
    assert said["distill"] == []


# -- the same again


def saved(front: Front, place: Path) -> dict[str, bytes | None]:
    front.save(place)
    return contents(place)


def test_same_seed_same_bytes(folder, tmp_path):
    torch.manual_seed(1)
    one = saved(fit(folder / "vit", **SHORT, seed=3), tmp_path / "one")
    torch.manual_seed(2)
    assert saved(fit(folder / "vit", **SHORT, seed=3), tmp_path / "two") == one
    other = saved(fit(folder / "vit", **SHORT, seed=4), tmp_path / "three")
    assert other["pareto_set.safetensors"] != one["pareto_set.safetensors"]
    assert other["model.safetensors"] != one["model.safetensors"]


def test_the_order_of_the_data_does_not_matter(folder, tmp_path):
    given = fit_data.tasks("vit")
    one = saved(fit(folder / "vit", **SHORT), tmp_path / "one")
    two = saved(fit(folder / "vit", given=dict(reversed(given.items())), **SHORT), tmp_path / "two")
    assert one["model.safetensors"] == two["model.safetensors"]


@pytest.mark.parametrize("number, step", [(signal.SIGTERM, 1), (signal.SIGINT, 4)])
def test_a_stopped_fit_goes_on_to_the_same_bytes(folder, tmp_path, number, step):
    options = {**SHORT, "checkpoint_every": 2}
    whole = saved(fit(folder / "vit", run=FitRun(tmp_path / "whole"), **options), tmp_path / "front")
    run = FitRun(tmp_path / "run", report=Interrupt(step, lambda: signal.raise_signal(number)))
    with pytest.raises(Stopped, match=f"stopped after step {step} of 6"):
        fit(folder / "vit", run=run, **options)
    for changes, message in (
        ({"lr": 1e-3}, "lr = 0.002, not 0.001"),
        ({"given": fit_data.tasks("vit", 39)}, r"inputs = \[40, 40\], not \[39, 39\]"),
    ):
        with pytest.raises(UserError, match=message):
            fit(folder / "vit", run=FitRun(tmp_path / "run", resume=True), **{**options, **changes})
    resumed = fit(folder / "vit", run=FitRun(tmp_path / "run", resume=True), **options)
    assert saved(resumed, tmp_path / "resumed") == whole
    for file in ("metrics.jsonl", "config.json", "state.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["tasks"] == ["a", "b"] and config["objective"] == "distill" and config["rank"] == 4


def test_micro_batches_do_not_change_the_front(folder):
    whole, parts = fit(folder / "vit", **SHORT), fit(folder / "vit", **SHORT, micro_batch_size=3)
    for gamma in PREFERENCES:
        one, other = whole.at(gamma), parts.at(gamma)
        assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_functions_by_themselves(folder):
    """The two fits are plain functions of experts and tasks."""
    experts, given = fit_data.experts(folder / "vit"), fit_data.tasks("vit")
    one = pareto_merging_on_data(experts, given, rank=2, options=TrainingOptions(steps=2))
    other = adamerging(experts, {**given, "a": replace(given["a"], said=("x",))}, options=replace(ADAMERGING, steps=2))
    with pytest.raises(UserError, match="adamerging has no option equal_every: it is always 1"):
        adamerging(experts, given, options=replace(ADAMERGING, equal_every=4))
    assert one.tasks == other.tasks == ("a", "b")
    assert one.added_parameters() > 0 == other.added_parameters()
    assert preferences.equal(2) == tuple(one.equal.tolist())
