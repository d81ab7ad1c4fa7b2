"""ReACT: its closed form beside fp64 on features taken from transformers' own models, and what is folded where."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

import fit_data
import tiny
from commands import contents
from paretomerge import api, load_front
from paretomerge.api import FitRun
from paretomerge.errors import UserError
from paretomerge.evaluation import FrontModels, evaluate
from paretomerge.fitting import react, rotation
from paretomerge.fitting.react import _BETAS, _Grams, _KeptApart
from paretomerge.front import front_of
from paretomerge.models import predict
from paretomerge.sets import Corrected

KINDS = ("vit", "bert", "clip", "resnet", "llama")
AUTO = {
    "vit": hf.AutoModelForImageClassification, "bert": hf.AutoModelForSequenceClassification, "clip": hf.AutoModel,
    "resnet": hf.AutoModelForImageClassification, "llama": hf.AutoModelForCausalLM,
}  # fmt: skip
GAMMA = (0.8, 0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    for kind in (*KINDS, "gpt2"):
        fit_data.save(kind, place / kind)
    return place


def corrected(place: Path, on: str = "soup", n: int = 40, **options) -> Corrected:
    tasks = fit_data.tasks(place.name, n)
    return api.fit(fit_data.experts(place), "react", data=tasks, on=on, hashes=False, **options).pareto_set


@torch.no_grad()
def features(kind: str, net: torch.nn.Module, inputs) -> Tensor:
    """Last features by the model's own parts, (n, d)."""
    batch = inputs.batch(range(len(inputs)))
    if kind == "vit":
        return net.vit(**batch).last_hidden_state[:, 0]
    if kind == "bert":
        return net.bert(**batch).pooler_output
    if kind == "clip":
        return net.vision_model(**batch).pooler_output @ net.visual_projection.weight.T
    if kind == "resnet":
        return net.resnet(**batch).pooler_output.flatten(1)
    return net.model(**batch).last_hidden_state.flatten(0, 1)


def closed_form(place: Path, gamma, beta: float, corners: bool) -> tuple[Tensor, Tensor]:
    """W_γ of the formula, from whole feature matrices; and these, of the merged model at equal preference, (d, n)."""
    experts, tasks = fit_data.experts(place), fit_data.tasks(place.name)
    soup = api.fit(experts, "soup", hashes=False)
    kind = place.name

    def z(preference: str, task: str) -> Tensor:
        net = soup.model(preference, head=task if task in soup.heads else None, dtype=torch.float32)
        return features(kind, net, tasks[task].fit).double().T

    means = {}
    for task in "ab":
        if kind == "resnet":  # running statistics are the expert's own
            net = hf.ResNetForImageClassification.from_pretrained(place / task).eval()
            y = features(kind, net, tasks[task].fit).double().T
        else:
            y = z(f"only:{task}", task)
        for preference in ("equal", f"only:{task}"):
            x = z(preference, task)
            means[task, preference] = x @ x.T / x.shape[1], y @ x.T / x.shape[1]
    d = len(x)
    scale = beta * sum(float(means[t, "equal"][0].trace()) for t in "ab") / (2 * d)
    top = bottom = torch.zeros(d, d, dtype=torch.float64)
    for task, share in zip("ab", gamma, strict=True):
        s = max(0.0, 2 * share - 1) if corners else 0.0
        for preference, part in (("equal", 1 - s), (f"only:{task}", s)):
            gram, cross = means[task, preference]
            u, _, vh = torch.linalg.svd(cross)
            top = top + share * part * (cross + scale * u @ vh)
            bottom = bottom + share * part * (gram + scale * torch.eye(d).double())
    return top @ torch.linalg.inv(bottom), torch.cat([z("equal", task) for task in "ab"], 1)


@pytest.mark.parametrize("kind, statistics", [*((kind, "corners") for kind in KINDS), ("vit", "equal")])
def test_closed_form(folder, kind, statistics):
    place = folder / kind
    found = corrected(place, beta=0.1, statistics=statistics)
    for gamma in ((0.5, 0.5), GAMMA, (0.0, 1.0)):
        expected, z = closed_form(place, gamma, 0.1, statistics == "corners")
        w = found.correction(torch.tensor(gamma).double())
        assert float(((w - expected) @ z).norm()) < 1e-3 * float((expected @ z).norm())
        if gamma == (0.5, 0.5):  # at a soup's one-hot there may be nothing to correct
            assert float(((expected - torch.eye(len(w))) @ z).norm()) > 5e-3 * float((expected @ z).norm())


def test_without_beta_it_is_least_squares(folder):
    """One-hot, more inputs than features: argmin ‖W Z^mtl − Z^ind‖."""
    experts, tasks = fit_data.experts(folder / "vit"), fit_data.tasks("vit")
    mean = api.merge(experts, "task_arithmetic", scale=0.3)
    found = react(experts, tasks, on=mean, beta=0.0)
    ta = front_of(found.inner, experts, hashes=False)
    soup = api.fit(experts, "soup", hashes=False)
    for k, task in enumerate("ab"):
        z = features("vit", ta.model("equal", head=task), tasks[task].fit).double()
        y = features("vit", soup.model(f"only:{task}", head=task), tasks[task].fit).double()
        best = float((z @ torch.linalg.lstsq(z, y).solution - y).norm())
        w = found.correction(torch.eye(2).double()[k])
        assert best * (1 - 1e-6) <= float((z @ w.T - y).norm()) < 1.001 * best < float((z - y).norm())


@pytest.mark.parametrize("n", [40, 6])
def test_nothing_is_corrected_where_the_merged_model_is_the_expert(folder, n):
    """A soup's one-hot models are the experts; with 6 inputs, 16 features are not determined."""
    found = corrected(folder / "vit", n=n, beta=0.01)
    for one_hot in torch.eye(2).double():
        torch.testing.assert_close(found.correction(one_hot), torch.eye(16).double(), rtol=0, atol=1e-3)


def test_a_large_beta_gives_rotations(folder):
    found = corrected(folder / "vit", beta=1e6)
    w = found.correction(torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(w @ w.T, torch.eye(16).double(), rtol=0, atol=1e-3)


def test_rotation_is_procrustes():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 30, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(rotation(q @ z @ z.T), q)
    few = z[:, :2]
    turned = rotation(few @ few.T)  # two inputs, and they do not move: nor does anything else
    torch.testing.assert_close(turned, torch.eye(5).double(), rtol=0, atol=1e-4)


def test_beta_is_chosen_by_reconstruction(folder):
    said: list[str] = []
    experts, tasks = fit_data.experts(folder / "vit"), fit_data.tasks("vit", 60)
    found = react(experts, tasks, say=said.append)
    assert found.settings["beta"] in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    assert said[0] == "a: 60 features of width 16" and said[-1].startswith(f"beta {found.settings['beta']:g}: at equal")


def test_beta_is_chosen_on_features_kept_apart():
    """Fitted on few features, the smallest β is the best for these and too small for all others."""
    generator = torch.Generator().manual_seed(0)
    d, turned = 12, rotation(torch.randn(12, 12, generator=generator, dtype=torch.float64))

    def features(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, d, generator=generator, dtype=torch.float64)
        return z, z @ turned.T + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)

    def grams(z: Tensor, y: Tensor) -> _Grams:
        sums = _Grams.empty(d, torch.device("cpu"))
        sums.add(z, y)
        return sums

    tasks = [(features(15), features(100)) for _ in range(2)]
    sums = [[(grams(*most), grams(*few))] for most, few in tasks]
    turns = [[rotation(most.means()[1])] for ((most, _),) in sums]
    apart = _KeptApart(sums, turns)

    def missed(beta: float, features: list[tuple[Tensor, Tensor]]) -> float:
        """W of the features for the fit, written down a second time, on some features."""
        means = [(z.T @ z / len(z), y.T @ z / len(z)) for (z, y), _ in tasks]
        pull = beta * sum(float(c.trace()) for c, _ in means) / (2 * d)
        c = sum(c for c, _ in means) + 2 * pull * torch.eye(d, dtype=torch.float64)
        w = sum(t + pull * turn for (_, t), (turn,) in zip(means, turns, strict=True)) @ torch.linalg.inv(c)
        return sum(float((z @ w.T - y).square().sum() / y.square().sum()) for z, y in features) / 2

    for beta in _BETAS:
        assert apart.missed(beta) == pytest.approx(missed(beta, [few for _, few in tasks]))
    chosen = min(_BETAS, key=apart.missed)
    assert chosen > min(_BETAS, key=lambda beta: missed(beta, [most for most, _ in tasks]))


@pytest.mark.parametrize(
    "kind, shared, heads",
    [
        ("vit", {}, {task: {"classifier.weight": "input"} for task in "ab"}),
        ("bert", {}, {task: {"classifier.weight": "input"} for task in "ab"}),
        ("clip", {"visual_projection.weight": "output"}, {}),
        ("resnet", {"classifier.1.weight": "input"}, {}),
        ("llama", {"lm_head.weight": "input"}, {}),
    ],
)
def test_picked_models_have_the_correction_folded_in(folder, kind, shared, heads, tmp_path):
    """Logits are those of the uncorrected model's corrected features; saved, reopened, applied and picked alike."""
    place = folder / kind
    experts, tasks = fit_data.experts(place), fit_data.tasks(kind)
    front = api.fit(experts, "react", data=tasks, on="soup", beta=0.1, hashes=False)
    soup = api.fit(experts, "soup", hashes=False)
    found = front.pareto_set
    assert (found.shared, found.heads) == (shared, heads)
    front.save(tmp_path / "front")
    opened = load_front(tmp_path / "front")
    json.dumps(opened.summary())
    measured = FrontModels(opened.pareto_set, tuple("ab"), opened.config, opened.heads).live(torch.device("cpu"))
    measured.move_((0.0, 1.0))
    measured.move_(GAMMA)  # what evaluate looks at
    for task in "ab":
        inputs, head = tasks[task].fit, task if task in front.heads else None
        plain = soup.model(GAMMA, head=head, dtype=torch.float32)
        z = features(kind, plain, inputs) @ found.correction(torch.tensor(GAMMA).double()).float().T
        moved = opened.apply_(opened.model("equal", head=head, dtype=torch.float32), "only:b")
        models = [front.model(GAMMA, head=head, dtype=torch.float32), opened.apply_(moved, GAMMA), measured.models[task]]
        opened.pick(GAMMA, tmp_path / f"picked-{task}", head=head)
        models.append(AUTO[kind].from_pretrained(tmp_path / f"picked-{task}").eval())
        for model in models:
            if kind == "clip":
                torch.testing.assert_close(features(kind, model, inputs), z, rtol=1e-3, atol=1e-4)
                continue
            layer = {"llama": "lm_head", "resnet": "classifier.1"}.get(kind, "classifier")
            head_map = plain.get_submodule(layer)
            with torch.no_grad():
                expected = torch.nn.functional.linear(z, head_map.weight, head_map.bias)
                logits = predict(model, inputs.batch(range(len(inputs)))).flatten(0, -2)
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_a_front_is_measured_and_reproduced(folder, tmp_path):
    tasks = fit_data.tasks("vit", held_out=20)
    for name in ("one", "two"):
        api.fit(fit_data.experts(folder / "vit"), "react", data=tasks, on="soup").save(tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    front = load_front(tmp_path / "one")
    rows = evaluate(front, list(tasks.values()), ["equal", "only:a"])
    assert len(rows) == 4 and all(np.isfinite(row["value"]) for row in rows)


def test_on_a_fitted_front(folder, tmp_path):
    experts, tasks = fit_data.experts(folder / "vit"), fit_data.tasks("vit")
    api.fit(experts, data=tasks, steps=3, rank=2, batch_size=8, hashes=False).save(tmp_path / "fitted")
    front = api.fit(experts, "react", data=tasks, on=str(tmp_path / "fitted"), hashes=False)
    assert front.pareto_set.inner.method == "pareto-merging" and front.pareto_set.statistics.infos["targets"].shape[0] == 2
    front.save(tmp_path / "corrected")
    assert load_front(tmp_path / "corrected").pareto_set.inner.factors.keys() == front.pareto_set.inner.factors.keys()
    with pytest.raises(UserError, match="corrected one already"):
        api.fit(experts, "react", data=tasks, on=str(tmp_path / "corrected"))
    with pytest.raises(UserError, match=r"moves by a whole tensor in this front \(react\)"):
        front.pick_lora("only:a", tmp_path / "lora", head="a")


def test_mistakes(folder, tmp_path):
    experts, tasks = fit_data.experts(folder / "vit"), fit_data.tasks("vit")
    for options, words in (
        ({"beta": -1.0}, "beta must not be negative"),
        ({"inputs": 0}, "batch_size and inputs must be at least 1"),
        ({"on": "tsi"}, "unknown merge, set or front's folder in on 'tsi'"),
        ({"run": FitRun(resume=True)}, "there is nothing to resume"),
    ):
        with pytest.raises(UserError, match=words):
            api.fit(experts, "react", data=tasks, **options)
    with pytest.raises(UserError, match="task b has no inputs to fit on"):
        react(experts, {"a": tasks["a"]})
    with pytest.raises(UserError, match="is tied to its embeddings"):
        corrected(folder / "gpt2")
    front = api.fit(experts, "react", data=tasks, hashes=False)
    with pytest.raises(UserError, match=r"build the model with front\.model"):
        front.apply_(tiny.model("vit"), "equal")
