"""Exact Pareto optimal search: its linear programs beside brute force over their vertices, and where it ends."""

import importlib.util
import math
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quadratics
from paretomerge.errors import UserError
from paretomerge.fitting import TrainingOptions, exact_pareto, non_uniformity, scalarization

# -- one step


def instance(K, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(K, 6, generator=generator, dtype=torch.float64) * (
        10 ** (torch.randn(K, 1, generator=generator).double() / 2)
    )
    losses = torch.rand(K, generator=generator, dtype=torch.float64) + 0.05
    gamma = torch.rand(K, generator=generator, dtype=torch.float64) + 0.05
    return losses, gamma / gamma.sum(), rows @ rows.T


def best_vertex(objective, rows, bounds):
    """max objective · β over the simplex with rows β ≥ bounds: every vertex is the solution of K equations."""
    K = len(objective)
    rows = np.vstack([np.eye(K), rows / np.abs(rows).max(1, keepdims=True)])
    bounds = np.concatenate([np.zeros(K), bounds])
    best = None
    for tight in combinations(range(len(rows)), K - 1):
        system = np.vstack([np.ones(K), rows[list(tight)]])
        if abs(np.linalg.det(system)) < 1e-12:
            continue
        beta = np.linalg.solve(system, np.concatenate([[1.0], bounds[list(tight)]]))
        if (rows @ beta >= bounds - 1e-9).all():
            best = max(best if best is not None else -math.inf, float(objective @ beta))
    return best


def by_formula(losses, gamma, gram):
    """μ and a, written down a second time."""
    share = (gamma * losses / (gamma * losses).sum()).numpy()
    mu = float(sum(p * math.log(p * len(share)) for p in share))
    return mu, np.array([g * (math.log(p * len(share)) - mu) for g, p in zip(gamma.tolist(), share, strict=True)])


@pytest.mark.parametrize("K", [2, 3, 4])
def test_balance_solves_the_linear_program(K):
    for seed in range(15):
        losses, gamma, gram = instance(K, seed)
        mu, a = by_formula(losses, gamma, gram)
        c = gram.numpy()
        told = {}
        beta = exact_pareto(losses, gamma, gram, epsilon=mu / 2, tell=told.__setitem__).numpy()
        assert told == {"mode": "balance", "non_uniformity": pytest.approx(mu)}
        assert (beta >= 0).all() and beta.sum() == pytest.approx(1)
        ca, size = c @ a, np.abs(c).max(1)
        bounds = {j: 0.0 if not (ca > 0).any() else ca[j] / size[j] for j in range(K) if ca[j] <= 0}
        bounds[int((gamma * losses).argmax())] = 0.0
        kept = sorted(bounds)
        assert ((c @ beta / size)[kept] >= np.array([bounds[j] for j in kept]) - 1e-6).all()
        expected = best_vertex(ca, c[kept], np.array([bounds[j] for j in kept]))
        assert float(ca @ beta) == pytest.approx(expected, rel=1e-6, abs=1e-6 * np.abs(ca).max())


def test_the_largest_objective_does_not_rise_in_balance():
    """A rule of the linear program that few problems touch: of these some dozen, and there it is what stops the objective."""
    touched = 0
    for seed in range(150):
        losses, gamma, gram = instance(4, seed)
        mu, _ = by_formula(losses, gamma, gram)
        c, largest = gram.numpy(), int((gamma * losses).argmax())
        beta = exact_pareto(losses, gamma, gram, epsilon=mu / 2, tell=lambda what, value: None).numpy()
        falls = float(c[largest] @ beta) / np.abs(c[largest]).max()
        assert falls >= -1e-6, seed
        touched += falls < 1e-6
    assert touched >= 5


@pytest.mark.parametrize("K", [2, 3, 4])
def test_descent_solves_the_linear_program(K):
    modes = []
    for seed in range(15):
        losses, gamma, gram = instance(K, seed)
        mu, a = by_formula(losses, gamma, gram)
        c = gram.numpy()
        told = {}
        beta = exact_pareto(losses, gamma, gram, epsilon=2 * mu, tell=told.__setitem__).numpy()
        modes.append(told["mode"])
        ca, size = c @ a, np.abs(c).max(1)
        assert (c @ beta / size >= -1e-6).all()
        rows, bounds = np.vstack([c, ca]), np.append(np.zeros(K), min(0, ca.max()) / np.abs(ca).max())
        expected = best_vertex(c.sum(0), rows, bounds)
        assert (told["mode"] == "descent") == (expected is not None)
        if expected is None:
            expected = best_vertex(c.sum(0), c, np.zeros(K))
        assert float(c.sum(0) @ beta) == pytest.approx(expected, rel=1e-6)
    assert set(modes) <= {"descent", "relaxed descent"} and "descent" in modes


@settings(max_examples=30)
@given(seed=st.integers(0, 20), size=st.sampled_from([1e-20, 1e-6, 1e8]), lift=st.sampled_from([1e-12, 1e6]))
def test_scales_do_not_matter(seed, size, lift):
    losses, gamma, gram = instance(3, seed)
    expected = exact_pareto(losses, gamma, gram)
    torch.testing.assert_close(exact_pareto(losses * lift, gamma, gram * size), expected, rtol=0, atol=1e-6)


@given(seed=st.integers(0, 200), left_out=st.sampled_from(["gamma", "loss"]))
def test_tasks_without_a_share_or_a_loss_take_no_part(seed, left_out):
    losses, gamma, gram = instance(4, seed)
    keep = [0, 1, 3]
    expected = exact_pareto(losses[keep], gamma[keep], gram[keep][:, keep])
    (gamma if left_out == "gamma" else losses)[2] = 0.0 if left_out == "gamma" else math.nan
    found = exact_pareto(losses, gamma, gram)
    assert found[2] == 0 and torch.equal(found[keep], expected)


def test_one_hot_is_that_task_alone():
    losses, _, gram = instance(3, 0)
    assert exact_pareto(losses, torch.tensor([0.0, 1.0, 0.0]), gram).tolist() == [0.0, 1.0, 0.0]


def test_zero_gradients_and_zero_losses():
    losses, gamma, gram = instance(3, 1)
    assert torch.equal(exact_pareto(losses, gamma, torch.zeros(3, 3)), gamma)
    gram[1], gram[:, 1] = 0, 0
    assert exact_pareto(losses, gamma, gram).sum() == pytest.approx(1)
    assert exact_pareto(torch.zeros(3), gamma, gram).sum() == pytest.approx(1)
    assert exact_pareto(torch.full((3,), math.nan), gamma, gram).tolist() == [0.0] * 3


def test_rounding_below_zero_is_zero_and_more_is_refused():
    losses, gamma, gram = instance(2, 3)
    losses[0] = -1e-8
    assert exact_pareto(losses, gamma, gram).isfinite().all()
    with pytest.raises(UserError, match="epo needs objectives that are not negative: use another objective than infomax"):
        exact_pareto(torch.tensor([1.0, -0.1]), gamma, gram)


def test_a_program_that_is_not_solved_is_told_and_gives_the_preference(monkeypatch):
    losses, gamma, gram = instance(3, 2)
    monkeypatch.setattr(scipy.optimize, "linprog", lambda *_, **__: SimpleNamespace(x=None, message="numerical trouble"))
    told = {}
    torch.testing.assert_close(exact_pareto(losses, gamma, gram, tell=told.__setitem__), gamma)
    assert told["mode"] == "linear: numerical trouble"


def test_non_uniformity():
    gamma = torch.tensor([0.2, 0.8, 0.0]).double()
    assert non_uniformity(torch.tensor([4.0, 1.0, 9.0]), gamma) == pytest.approx(0, abs=1e-15)
    # Ŝ = (¾, ¼)
    assert non_uniformity(torch.tensor([12.0, 1.0, 9.0]), gamma) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


# -- where it ends


@pytest.mark.parametrize("K", [2, 3, 4, 5])
def test_quadratics_end_on_the_ray_and_on_the_front(K):
    """S_k = ‖θ − c_k‖², the c_k the corners of a simplex: its hull is the Pareto set, and every moderate ray meets it."""
    centres = 2 * torch.eye(K, dtype=torch.float64)
    gamma = torch.arange(6.0, K + 6).double()
    gamma /= gamma.sum()
    theta = torch.linspace(1, 2, K, dtype=torch.float64)
    weigh = scalarization("epo")
    for step in range(400):
        difference = theta - centres
        losses, gradients = difference.square().sum(1), 2 * difference
        theta = theta - 0.1 * (1 - step / 400) * weigh(losses, gamma, gradients) @ gradients
    losses = (theta - centres).square().sum(1)
    assert non_uniformity(losses, gamma) < 1e-3
    assert float(theta.sum()) == pytest.approx(2, abs=0.02) and (theta > -0.02).all()  # in the hull


def test_in_the_loop(tmp_path):
    """The same through ``fit_``, with Adam; every step tells how it came about."""
    fitted = quadratics.problem(2, (4, 4), names=quadratics.NAMES[:1], rank=4)
    centres = fitted.centres["first.weight"].double()
    gamma = (0.3, 0.7)
    chosen = TrainingOptions(steps=250, lr=0.05, scalarization="epo", checkpoint_every=250, skip_below=None, equal_every=0)
    assert chosen.skip_threshold == 0
    fitted.fit(chosen, preference=gamma, folder=tmp_path)
    theta = fitted.at(*gamma)["first.weight"].double()
    losses = (theta - centres).square().sum((1, 2))
    assert non_uniformity(losses, torch.tensor(gamma).double()) < 1e-3
    apart = (centres[0] - centres[1]).norm()
    assert float(losses.sqrt().sum()) == pytest.approx(float(apart), rel=1e-3)  # between the two
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 250 and all('"mode": "' in line and '"non_uniformity": ' in line for line in lines)


@pytest.mark.parametrize("share", [pytest.param(0.2, marks=pytest.mark.slow), 0.7])
def test_toy_problem(share):
    """Pareto Merging's toy problem, less the two minima: θ = X itself, Adam."""
    place = Path(__file__).parents[2] / "examples" / "toy_front.py"
    spec = importlib.util.spec_from_file_location("toy_front", place)
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    experts = [toy.minimum(k, torch.zeros(2, 2)) for k in (0, 1)]
    ideal = torch.stack([toy.losses(X)[k] for k, X in enumerate(experts)])
    X = torch.nn.Parameter((experts[0] + experts[1]) / 2)
    gamma = torch.tensor([share, 1 - share]).double()
    optimizer, weigh, steps = torch.optim.Adam([X]), scalarization("epo"), 200
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.06 * (1.01 - step / steps)
        values = toy.losses(X) - ideal
        J = torch.stack([torch.autograd.grad(value, X, retain_graph=True)[0].flatten() for value in values])
        X.grad = (weigh(values.detach(), gamma, J).to(J) @ J).view_as(X)
        optimizer.step()
    found = (toy.losses(X) - ideal).detach()
    assert non_uniformity(found, gamma) < 1e-3
    exact = toy.exact_front(601) - ideal
    size = float(exact.max())
    assert float((exact - found).norm(dim=1).min()) < 0.02 * size


def test_tasks_are_not_left_out_of_some_steps():
    with pytest.raises(UserError, match="epo needs every task at every step: leave skip_below out"):
        TrainingOptions(scalarization="epo", skip_below=0.01)
    assert TrainingOptions().skip_threshold == 0.01 and TrainingOptions(scalarization="mgda").skip_threshold == 0
