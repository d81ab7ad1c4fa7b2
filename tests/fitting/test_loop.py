"""The loop on quadratics whose Pareto front is known: where it ends, how it stops and goes on, and with whom it shares."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar, nnls

import quadratics
from paretomerge import preferences
from paretomerge.errors import Stopped, UserError
from paretomerge.fitting import (
    Learned,
    Part,
    TrainingOptions,
    check_run,
    fit_,
    lr_of_step,
    preference_of_step,
    seed_of,
    tasks_of_step,
)
from quadratics import Interrupt, problem

# -- the choices of a step


def test_learning_rate():
    settings = TrainingOptions(steps=200, lr=0.3, schedule="cosine")
    rates = [lr_of_step(step, settings) for step in range(200)]
    assert rates[0] == pytest.approx(0.3) and rates[100] == pytest.approx(0.3 * 0.55)
    assert rates[-1] == pytest.approx(0.03, rel=1e-2) and rates == sorted(rates, reverse=True)
    assert {lr_of_step(step, replace(settings, schedule="constant")) for step in range(200)} == {0.3}


def test_preferences_depend_on_seed_and_step_alone():
    settings = TrainingOptions(seed=5, equal_every=0)
    drawn = {step: preference_of_step(step, 4, settings) for step in (9, 3, 0, 3)}
    torch.manual_seed(123)
    for step, gamma in drawn.items():
        assert torch.equal(gamma, preference_of_step(step, 4, replace(settings, steps=7, lr=1.0, beta=3.0)))
        assert gamma.dtype == torch.float64 and (gamma >= 0).all() and float(gamma.sum()) == pytest.approx(1)
        assert not torch.equal(gamma, preference_of_step(step, 4, replace(settings, seed=6)))
        assert not torch.equal(gamma, preference_of_step(step + 1, 4, settings))


@pytest.mark.parametrize("every, expected", [(0, []), (1, list(range(12))), (4, [3, 7, 11])])
def test_every_so_many_steps_are_equal(every, expected):
    gammas = [preference_of_step(step, 3, TrainingOptions(equal_every=every)) for step in range(12)]
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert [step for step, gamma in enumerate(gammas) if torch.equal(gamma, third)] == expected


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_preferences_are_dirichlet(alpha):
    """Mean 1/K, and the variance of each share (K − 1) / (K² (Kα + 1))."""
    gammas = torch.stack([preference_of_step(step, 3, TrainingOptions(alpha=alpha, equal_every=0)) for step in range(3000)])
    torch.testing.assert_close(gammas.mean(0), torch.full((3,), 1 / 3).double(), rtol=0, atol=0.03)
    torch.testing.assert_close(gammas.var(0), torch.full((3,), 2 / (9 * (3 * alpha + 1))).double(), rtol=0.1, atol=0)


def test_leaving_tasks_out_keeps_the_expectation():
    settings = TrainingOptions(skip_below=0.05)
    gamma = torch.tensor([0.0, 0.001, 0.02, 0.0499, 0.05, 0.8791], dtype=torch.float64)
    counts = torch.zeros(6, dtype=torch.float64)
    total = torch.zeros(6, dtype=torch.float64)
    steps = 20_000
    for step in range(steps):
        chosen, factors = tasks_of_step(gamma, step, settings)
        assert chosen == sorted(chosen) and {4, 5} <= set(chosen)
        counts[chosen] += 1
        total[chosen] += factors[chosen]
    expected = (gamma / 0.05).clamp(max=1)
    torch.testing.assert_close(counts / steps, expected, rtol=0, atol=0.01)
    mean = total / steps
    assert mean[0] == 0 and (mean[4:] == 1).all()
    # standard error √((1 − p) / (p n)): 0.05 for p = 0.02
    torch.testing.assert_close(mean[1:4], torch.ones(3).double(), rtol=0, atol=0.2)
    torch.testing.assert_close(mean[2:4], torch.ones(2).double(), rtol=0, atol=0.03)


def test_no_task_is_left_out_when_none_may_be():
    gamma = torch.tensor([0.0, 1e-9, 1.0], dtype=torch.float64)
    chosen, factors = tasks_of_step(gamma, 0, TrainingOptions(skip_below=0.0))
    assert chosen == [0, 1, 2] and factors.tolist() == [1, 1, 1]


def test_seeds_differ_for_different_numbers_in_any_order():
    seeds = {seed_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125 and all(0 <= seed < 2**63 for seed in seeds)


# -- known fronts


def distance(one, other):
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))


def flat(weights):
    """Everything in a row."""
    return torch.cat([tensor.flatten() for tensor in weights.values()]).double()


def centres(fitted):
    return torch.stack([flat({name: c[k] for name, c in fitted.centres.items()}) for k in range(fitted.learned.n_tasks)])


def full(K, scales=None):
    """A square matrix at full rank: θ(γ) can be any function that is linear in γ."""
    return problem(K, (4, 4), scales, names=quadratics.NAMES[:1], rank=4)


@pytest.mark.parametrize("K, skip_below", [(2, 0.0), (2, 0.05), (3, 0.01)])
def test_linear_scalarisation_finds_the_means_of_the_centres(K, skip_below):
    """S_k = ‖θ − c_k‖²: the best θ at γ is Σ_k γ_k c_k, whatever the distribution of γ."""
    fitted = full(K)
    c = centres(fitted)
    size = float(torch.cdist(c, c).max())
    fitted.fit(TrainingOptions(steps=300 if K == 2 else 500, lr=0.1 if K == 3 else 0.05, skip_below=skip_below))
    for gamma in preferences.grid(K, 4):
        best = torch.tensor(gamma, dtype=torch.float64) @ c
        assert float((flat(fitted.at(*gamma)) - best).norm()) < 0.01 * size, gamma


def nearest_on_front(theta, c):
    """The convex hull's nearest point: at least as good as θ in every objective, and Pareto-optimal."""
    one = torch.full((1, len(c)), 1e6, dtype=torch.float64)  # shares that sum to 1
    share, _ = nnls(torch.cat([c.T, one]).numpy(), torch.cat([theta, one[0, :1]]).numpy())
    return torch.from_numpy(share) @ c


@pytest.mark.parametrize("K", [2, 3])
def test_smooth_tchebycheff_reaches_the_front(K):
    """The Pareto-optimal θ of K such quadratics are the convex hull of the centres."""
    fitted = full(K)
    c = centres(fitted)
    size = float(torch.cdist(c, c).max())
    fitted.fit(TrainingOptions(steps=300, lr=0.1, scalarization="smooth-tchebycheff", mu=10.0, alpha=1.0))
    found = torch.stack([flat(fitted.at(*gamma)) for gamma in preferences.grid(K, 4)])
    front = torch.stack([nearest_on_front(theta, c) for theta in found])
    gap = torch.cdist(found, c) - torch.cdist(front, c)  # √S_k above the front
    assert float(gap.min()) > -1e-6 and float(gap.max()) < 0.01 * size
    ends = torch.cdist(front, c).min(0).values  # and from end to end: near each task's own best
    assert float(ends.max()) < 0.15 * size


@pytest.mark.parametrize("mu", [3.0, 10.0])
def test_smooth_tchebycheff_at_one_preference_is_its_minimum(mu):
    """At equal preference alone: the minimum of μ log Σ exp(γ_k S_k / μ) on the segment between two centres."""
    scales = (1.0, 5.0)
    fitted = full(2, scales)
    c = centres(fitted)
    fitted.fit(TrainingOptions(steps=400, lr=0.1, scalarization="smooth-tchebycheff", mu=mu, equal_every=1))
    squared = float((c[1] - c[0]).square().sum())

    def value(t):
        return mu * math.log(sum(math.exp(0.5 * s * squared * x**2 / mu - 50) for s, x in zip(scales, (t, 1 - t), strict=True)))

    t = minimize_scalar(value, bounds=(0, 1), method="bounded", options={"xatol": 1e-9}).x
    assert abs(t - 5 / 6) > 0.02  # which linear scalarisation would give
    best = (1 - t) * c[0] + t * c[1]
    assert float((flat(fitted.at(0.5, 0.5)) - best).norm()) < 0.01 * math.sqrt(squared)


# -- what a run does


def noisy(K=2, **options):
    return problem(K, noise=0.5, **options)


SHORT = TrainingOptions(steps=12, checkpoint_every=5, equal_every=3, lr=0.05, beta=0.01, seed=1)


def test_frozen_parts_stay():
    fitted = noisy()
    before = fitted.learned.phi.clone()
    frozen = ("lambda", "first.weight.B")
    fitted.fit(SHORT, frozen=frozen)
    for part in fitted.learned.parts():
        same = torch.equal(fitted.learned.view(part), fitted.learned.view(part, before))
        assert same == (part in frozen), part


def test_tasks_take_part_as_chosen():
    fitted = noisy(4)
    settings = replace(SHORT, alpha=0.05, skip_below=0.1)
    fitted.fit(settings)
    expected = []
    for step in range(settings.steps):
        chosen, _ = tasks_of_step(preference_of_step(step, 4, settings), step, settings)
        expected += [(k, seed_of(settings.seed, step, 3 + k)) for k in chosen]
    assert fitted.asked == expected and len(expected) < 4 * settings.steps


def test_a_large_penalty_leaves_nothing_of_the_low_rank_part():
    fitted = noisy()
    fitted.fit(TrainingOptions(steps=300, lr=0.05, beta=1e4))
    varying = distance(fitted.at(1, 0), fitted.at(0, 1))
    fitted = noisy()
    fitted.fit(TrainingOptions(steps=300, lr=0.05))
    assert varying < 0.05 * distance(fitted.at(1, 0), fitted.at(0, 1))


def gradients_of(monkeypatch, fitted, settings):
    """What Adam is given in each step."""
    seen = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: (seen.append(self.param_groups[0]["params"][0].grad.clone()), step(self))
    )
    fitted.fit(settings)
    monkeypatch.undo()
    return seen


def test_the_direction_is_that_of_the_scalarised_objective(monkeypatch):
    """One step's gradient beside autograd of Σ_k γ_k S_k(θ(φ)) + β R(φ)."""
    fitted = noisy(3)
    settings = replace(SHORT, steps=1, equal_every=0, skip_below=0.0, alpha=1.0, beta=0.3)
    start = fitted.learned.phi.clone()
    (found,) = gradients_of(monkeypatch, fitted, settings)
    gamma = preference_of_step(0, 3, settings)
    of, phi = fitted.learned, start.clone().requires_grad_()
    total = torch.zeros(())
    weights = {}
    for row, (name, base) in enumerate(of.base.items()):
        weights[name] = base + (of.view("lambda", phi)[row] @ of.task_vectors[name]).view_as(base)
    for target in of.targets:
        a, g, b = (of.view(f"{target.name}.{part}", phi) for part in "AGB")
        term = a @ torch.tensordot(gamma.float(), g, dims=1) @ b
        weights[target.name] = weights[target.name] + term
        total = total + settings.beta * term.square().sum()
    for k in range(3):
        drawn = torch.randperm(quadratics.EXAMPLES, generator=torch.Generator().manual_seed(seed_of(1, 0, 3 + k)))[
            : fitted.batch
        ]
        for i in drawn.tolist():
            for name, weight in weights.items():
                away = weight - fitted.centres[name][k] - 0.5 * fitted.examples[name][i]
                total = total + float(gamma[k]) / fitted.batch * away.square().sum()
    (expected,) = torch.autograd.grad(total, phi)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_steps_are_adams_with_the_papers_moments(monkeypatch):
    """Twelve steps written down a second time: β₁ 0.9, β₂ 0.999, ε 1e-8, both moments corrected for their start at 0."""
    fitted = noisy()
    phi = fitted.learned.phi.clone().double()
    first, second = torch.zeros_like(phi), torch.zeros_like(phi)
    for step, gradient in enumerate(g.double() for g in gradients_of(monkeypatch, fitted, SHORT)):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        size = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        phi -= lr_of_step(step, SHORT) * first / (1 - 0.9 ** (step + 1)) / size
    torch.testing.assert_close(fitted.learned.phi.double(), phi, rtol=1e-4, atol=1e-6)


def test_clipping(monkeypatch):
    free = gradients_of(monkeypatch, noisy(), SHORT)
    clipped = gradients_of(monkeypatch, noisy(), replace(SHORT, clip=2.0))
    assert all(float(g.norm()) > 2 for g in free)
    assert all(float(g.norm()) == pytest.approx(2, rel=1e-5) for g in clipped)
    torch.testing.assert_close(clipped[0], free[0] * 2 / free[0].norm())
    loose = gradients_of(monkeypatch, noisy(), replace(SHORT, clip=1e9))
    assert all(torch.equal(a, b) for a, b in zip(free, loose, strict=True))


def test_skipped_tasks_weigh_more_when_they_do_take_part(monkeypatch):
    """One step's gradient is Σ_k f_k γ_k ∇S_k over the tasks that take part, f_k = ε / γ_k where γ_k < ε."""
    everything = replace(SHORT, steps=1, alpha=0.5, skip_below=0.0, beta=0.0, equal_every=0)
    checked = set()
    for seed in range(100):
        settings = replace(everything, seed=seed, skip_below=0.3)
        gamma = preference_of_step(0, 2, settings)
        chosen, factors = tasks_of_step(gamma, 0, settings)
        kind = (len(chosen), float(factors.max()) > 1)
        if kind in checked:
            continue
        checked.add(kind)
        (found,) = gradients_of(monkeypatch, noisy(), settings)
        each = [gradients_of(monkeypatch, noisy(scales=s), replace(everything, seed=seed))[0] for s in ((1.0, 0.0), (0.0, 1.0))]
        expected = sum(float(factors[k]) * each[k] for k in chosen)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert checked == {(2, False), (2, True), (1, False)}


def test_what_is_written(tmp_path):
    fitted, told = noisy(), []
    fitted.fit(
        SHORT, folder=tmp_path / "run", facts={"tasks": ["a", "b"]}, report=lambda done, logged: told.append((done, logged))
    )
    assert [done for done, _ in told] == list(range(1, 13))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [json.loads(json.dumps(logged)) for _, logged in told]
    assert [line["step"] for line in lines] == list(range(1, 13))
    for step, line in enumerate(lines):
        assert line["gamma"] == preference_of_step(step, 2, SHORT).tolist() and line["lr"] == lr_of_step(step, SHORT)
        assert set(line["losses"]) == {str(k) for k in tasks_of_step(torch.tensor(line["gamma"]), step, SHORT)[0]}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["steps"] == 12 and config["tasks"] == ["a", "b"] and config["scalarization"] == "linear"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "metrics.jsonl", "state.safetensors"]


def test_the_loss_is_the_mean_over_micro_batches(tmp_path):
    fitted = noisy()
    fitted.fit(replace(SHORT, steps=1, skip_below=0), folder=tmp_path)
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    again = noisy()
    again.learned.build_(again.weights, torch.tensor(line["gamma"], dtype=torch.float64))
    for k in range(2):
        parts = [float(part.loss.detach()) for part in again.losses(k, seed_of(SHORT.seed, 0, 3 + k))]
        assert line["losses"][str(k)] == pytest.approx(sum(parts) / len(parts), rel=1e-5)


def test_same_seed_same_phi():
    torch.manual_seed(0)
    one = noisy().fit(SHORT)
    torch.manual_seed(1)
    assert torch.equal(one, noisy().fit(SHORT))
    assert not torch.equal(one, noisy().fit(replace(SHORT, seed=2)))


@pytest.mark.parametrize(
    "changes",
    [{"steps": -1}, {"checkpoint_every": 0}, {"lr": 0.0}, {"alpha": 0.0}, {"mu": 0.0}, {"beta": -1.0}, {"patience": -1}],
)
def test_settings_that_make_no_sense(changes):
    (name,) = changes
    with pytest.raises(UserError, match=name):
        noisy().fit(replace(SHORT, **changes))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_objective_that_is_not_finite_is_an_error(tmp_path, bad):
    fitted = noisy()
    losses = fitted.losses

    def broken(k, seed):
        for part in losses(k, seed):
            yield Part(part.loss * (bad if len(fitted.asked) > 12 else 1), part.share, {})

    with pytest.raises(UserError, match=r"step \d+: .*not finite.*lr"):
        fit_(fitted.learned, fitted.weights, broken, replace(SHORT, checkpoint_every=2), folder=tmp_path)
    assert torch.isfinite(load_file(tmp_path / "state.safetensors")["phi"]).all()


def test_a_step_without_tasks_is_refused():
    with pytest.raises(UserError, match="skip_below must be at most 1 / 2"):
        noisy().fit(replace(SHORT, skip_below=0.6))
    noisy().fit(replace(SHORT, skip_below=0.5))


# -- early stopping


def test_patience_keeps_the_best(tmp_path):
    """The held-out objective, measured at equal preference, gets worse from the third checkpoint on."""
    fitted, values, seen = noisy(), iter([5.0, 3.0, 2.0, 2.5, 4.0, 1.0]), []

    def held_out():
        seen.append((fitted.learned.phi.clone(), {name: w.detach().clone() for name, w in fitted.weights.items()}))
        return next(values)

    told = Interrupt(0, lambda: None)
    settings = replace(SHORT, steps=40, checkpoint_every=4, patience=2)
    phi = fitted.fit(settings, held_out=held_out, report=told, folder=tmp_path)
    assert told.told[-1] == 20 and len(seen) == 5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["held_out"] for line in lines if "held_out" in line] == [5.0, 3.0, 2.0, 2.5, 4.0]
    assert [line["step"] for line in lines if line.get("over")] == [20]
    again = noisy()  # the run is at its end: nothing is measured, nothing is done again
    assert torch.equal(again.fit(settings, held_out=lambda: 1 / 0, folder=tmp_path, resume=True), phi)
    assert torch.equal(phi, seen[2][0]) and not torch.equal(phi, seen[4][0])
    assert distance(seen[4][1], fitted_at(fitted, seen[4][0], 0.5, 0.5)) < 1e-6
    # what comes later has no influence on what was kept, and without patience nothing is measured
    assert torch.equal(
        noisy().fit(replace(settings, steps=40, patience=0)), noisy().fit(replace(settings, patience=0), held_out=held_out)
    )


def fitted_at(fitted, phi, *gamma):
    kept = fitted.learned.phi.clone()
    fitted.learned.phi.copy_(phi)
    weights = fitted.at(*gamma)
    fitted.learned.phi.copy_(kept)
    return weights


def test_patience_measures_the_last_steps_too():
    fitted, values = noisy(), [3.0, 2.0, 1.0]
    last = noisy().fit(replace(SHORT, patience=0))
    phi = fitted.fit(replace(SHORT, patience=5), held_out=lambda: values.pop(0))  # after 5, 10 and 12 steps
    assert values == [] and torch.equal(phi, last)


def test_a_run_that_waits_to_be_resumed_is_not_begun_anew(tmp_path):
    with pytest.raises(Stopped):
        noisy().fit(SHORT, folder=tmp_path, report=Interrupt(7, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(UserError, match=r"holds a run that stopped after step 7 of 12: go on with --resume, .* or remove it$"):
        check_run(tmp_path, SHORT, {}, resume=False)
    check_run(tmp_path, SHORT, {}, resume=True)
    noisy().fit(SHORT, folder=tmp_path, resume=True)
    check_run(tmp_path, SHORT, {}, resume=False)  # it has come to its end
    check_run(tmp_path / "elsewhere", SHORT, {}, resume=False)


def test_patience_is_resumed(tmp_path):
    settings = replace(SHORT, steps=40, checkpoint_every=4, patience=2)

    def held_out(fitted):
        return lambda: abs(float(fitted.learned.phi.sum()) - 1.0)

    whole = noisy()
    whole.fit(settings, held_out=held_out(whole), folder=tmp_path / "whole")
    for step in (9, 11, 12):
        part, rest = noisy(), noisy()
        folder = tmp_path / f"{step}"
        with pytest.raises(Stopped):
            part.fit(
                settings,
                held_out=held_out(part),
                folder=folder,
                report=Interrupt(step, lambda: signal.raise_signal(signal.SIGTERM)),
            )
        rest.fit(settings, held_out=held_out(rest), folder=folder, resume=True)
        assert torch.equal(rest.learned.phi, whole.learned.phi)
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


# -- stopping and going on


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return noisy().fit(SHORT, folder=folder), everything_in(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 5, 7, 11, 12])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, uninterrupted, number, step):
    before = signal.getsignal(number)
    stop = Interrupt(step, lambda: signal.raise_signal(number))
    with pytest.raises(Stopped, match=rf"stopped after step {step} of 12; go on with --resume \(state in .*\)"):
        noisy().fit(SHORT, folder=tmp_path, report=stop)
    assert stop.told[-1] == step and signal.getsignal(number) is before
    told = Interrupt(0, lambda: None)
    phi = noisy().fit(SHORT, folder=tmp_path, resume=True, report=told)
    assert told.told == list(range(step + 1, 13))
    assert torch.equal(phi, uninterrupted[0]) and everything_in(tmp_path) == uninterrupted[1]


def test_stopped_twice_and_killed_between_checkpoints(tmp_path, uninterrupted):
    """A kill leaves lines of steps that the state does not know; they are done, and logged, again."""

    def kill():
        raise KeyboardInterrupt  # not through the handler: as abrupt as a kill

    with pytest.raises(Stopped):
        noisy().fit(SHORT, folder=tmp_path, report=Interrupt(3, lambda: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        noisy().fit(SHORT, folder=tmp_path, resume=True, report=Interrupt(9, kill))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write('{"step": 10, "ste')
    phi = noisy().fit(SHORT, folder=tmp_path, resume=True)
    assert torch.equal(phi, uninterrupted[0]) and everything_in(tmp_path) == uninterrupted[1]


def test_a_run_that_ended_has_nothing_left_to_do(tmp_path, uninterrupted):
    noisy().fit(SHORT, folder=tmp_path)
    told = Interrupt(0, lambda: None)
    assert torch.equal(noisy().fit(SHORT, folder=tmp_path, resume=True, report=told), uninterrupted[0])
    assert told.told == []


def test_without_a_folder_a_stop_says_so():
    with pytest.raises(Stopped, match=r"^stopped after step 3 of 12$"):
        noisy().fit(SHORT, report=Interrupt(3, lambda: signal.raise_signal(signal.SIGINT)))


def test_a_fresh_run_forgets_the_old_one(tmp_path, uninterrupted):
    with pytest.raises(Stopped):
        noisy().fit(replace(SHORT, seed=9), folder=tmp_path, report=Interrupt(6, lambda: signal.raise_signal(signal.SIGINT)))
    noisy().fit(SHORT, folder=tmp_path)
    assert everything_in(tmp_path) == uninterrupted[1]


@pytest.mark.parametrize(
    "changes, facts, named",
    [({"lr": 0.04}, {}, "lr = 0.05, not 0.04"), ({"seed": 2}, {}, "seed = 1, not 2"), ({}, {"tasks": ["b", "a"]}, "tasks"),
     ({}, {"extra": 1}, r"another version of paretomerge, or by another method \(extra\): remove the folder")],
)  # fmt: skip
def test_other_settings_are_refused(tmp_path, changes, facts, named):
    noisy().fit(SHORT, folder=tmp_path, facts={"tasks": ["a", "b"]})
    before = everything_in(tmp_path)
    with pytest.raises(UserError, match=named) as error:
        noisy().fit(replace(SHORT, **changes), folder=tmp_path, resume=True, facts={"tasks": ["a", "b"], **facts})
    assert "\n" not in str(error.value) and ("resume with the same settings" in str(error.value)) == ("extra" not in facts)
    assert everything_in(tmp_path) == before


def test_nothing_to_resume(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no saved state to resume from"):
            noisy().fit(SHORT, folder=folder, resume=True)
    with pytest.raises(UserError):
        noisy().fit(SHORT, resume=True)
    assert everything_in(tmp_path) == {} and not (tmp_path / "absent").exists()


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(os.urandom(200)),
    **{f"without {name}": lambda path, name=name: resaved(path, lambda t: t.pop(name)) for name in
       ("phi", "exp_avg", "exp_avg_sq", "best_phi", "numbers")},
    **{f"short {name}": lambda path, name=name: resaved(path, lambda t: t.update({name: t[name][:1].clone()})) for name in
       ("phi", "exp_avg", "exp_avg_sq", "best_phi", "numbers")},
}  # fmt: skip


def resaved(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused(tmp_path, damage):
    settings = replace(SHORT, patience=9)  # so that there is a best φ to lose
    noisy().fit(settings, folder=tmp_path, held_out=lambda: 0.0)
    DAMAGES[damage](tmp_path / "state.safetensors")
    before = everything_in(tmp_path)
    fitted = noisy()
    with pytest.raises(UserError, match=r"state.safetensors: damaged .*: start again without --resume") as error:
        fitted.fit(settings, folder=tmp_path, resume=True, held_out=lambda: 0.0)
    assert "\n" not in str(error.value) and everything_in(tmp_path) == before


def test_only_what_may_stop_early_keeps_a_second_phi(tmp_path):
    noisy().fit(SHORT, folder=tmp_path)
    assert set(load_file(tmp_path / "state.safetensors")) == {"phi", "exp_avg", "exp_avg_sq", "numbers"}


def test_another_thread_may_fit():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(lambda: noisy().fit(SHORT)).result(), noisy().fit(SHORT))


# -- several processes


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Two processes, as a launcher starts them, that fit, stop and go on; the folder with what each found."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, quadratics.__file__, folder], env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE
                )
            )
            for rank in range(2)
        ]
        try:
            errors = [process.communicate(timeout=100)[1].decode() for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0, 0], errors
    return folder


def found(folder: Path, action: str) -> list[dict]:
    return [torch.load(folder / f"{action}-{rank}.pt") for rank in range(2)]


def test_two_processes_are_one(together, tmp_path):
    single = quadratics.wide()
    single.fit(quadratics.DISTRIBUTED, folder=tmp_path)
    zero, one = found(together, "run")
    assert torch.equal(zero["phi"], one["phi"])
    torch.testing.assert_close(zero["phi"], single.learned.phi, rtol=0, atol=1e-5)
    # only small gradients travel
    assert zero["sent"] == one["sent"]
    assert max(zero["sent"]) == len(single.learned.phi) < 0.1 * sum(w.numel() for w in single.weights.values())
    # one of them writes
    assert sorted(everything_in(together / "run")) == sorted(everything_in(tmp_path))
    lines = [
        [json.loads(line) for line in (of / "metrics.jsonl").read_text().splitlines()] for of in (tmp_path, together / "run")
    ]
    assert len(lines[0]) == len(lines[1]) == quadratics.DISTRIBUTED.steps
    for alone, both in zip(*lines, strict=True):
        assert alone["gamma"] == both["gamma"] and alone["losses"] == pytest.approx(both["losses"], rel=1e-5)


def test_two_processes_stop_and_go_on_together(together):
    """The signal reached one of them."""
    assert [each["stopped"].split(";")[0] for each in found(together, "stop")] == ["stopped after step 13 of 30"] * 2
    zero, one = found(together, "resume")
    assert zero["told"] == one["told"] == list(range(14, 31))
    assert torch.equal(zero["phi"], one["phi"]) and torch.equal(zero["phi"], found(together, "run")[0]["phi"])


def test_alone_no_process_is_waited_for(monkeypatch):
    from paretomerge.fitting import joined, world

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as first:
        assert first and world() == (0, 1) and not torch.distributed.is_initialized()


def test_learned_is_what_the_optimiser_moves():
    """φ's views stay views of φ."""
    fitted = noisy()
    assert isinstance(fitted.learned, Learned)
    view = fitted.learned.view("lambda")
    before = view.clone()
    fitted.fit(SHORT)
    assert not torch.equal(view, before) and torch.equal(view, fitted.learned.view("lambda"))
