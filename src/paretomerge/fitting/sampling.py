"""Which preference a step of a fit has, and which tasks take part: functions of (seed, step), so that runs can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paretomerge.fitting.settings import Settings
from paretomerge.preferences import dirichlet


def preference_of_step(step: int, n_tasks: int, settings: Settings) -> Tensor:
    """γ of a step, (K,) fp64: a function of (seed, step) alone.

    dirichlet: Dirichlet(α). stratified: the same, with the tasks taking turns at having the largest share. corners: at every
    second step, at random, all of γ on the task with the largest share.
    """
    if settings.preference is not None:
        return torch.tensor(settings.preference, dtype=torch.float64)
    if settings.equal_every and step % settings.equal_every == settings.equal_every - 1:
        return torch.full((n_tasks,), 1 / n_tasks, dtype=torch.float64)
    gamma = dirichlet(n_tasks, 1, settings.alpha, seed_of(settings.seed, step, 1))[0]
    if settings.sampling == "stratified":
        leader, place = step % n_tasks, int(gamma.argmax())
        gamma[[leader, place]] = gamma[[place, leader]]
    elif settings.sampling == "corners" and seed_of(settings.seed, step, 0) % 2:
        gamma = np.eye(n_tasks)[int(gamma.argmax())]
    return torch.from_numpy(gamma)


def tasks_of_step(gamma: Tensor, step: int, settings: Settings) -> tuple[list[int], Tensor]:
    """The tasks that take part, and the factor on each one's weight that keeps the expectation of the step.

    With γ_k < ε a task takes part with probability γ_k / ε, then with its weight times ε / γ_k.
    """
    factors = torch.ones_like(gamma)
    threshold = settings.skip_below
    if not threshold:
        return list(range(len(gamma))), factors
    generator = torch.Generator().manual_seed(seed_of(settings.seed, step, 2))
    draws = torch.rand(len(gamma), generator=generator, dtype=torch.float64)
    chosen = []
    for k, share in enumerate(gamma.tolist()):
        if share >= threshold:
            chosen.append(k)
        elif float(draws[k]) < share / threshold:
            chosen.append(k)
            factors[k] = threshold / share
    return chosen, factors


class Coverage(NamedTuple):
    """Which part of the simplex a fit sees."""

    leads: list[int]
    """Steps at which each task has the largest share (equal preferences apart)."""
    mean: list[float]
    """Mean share of each task."""
    visits: float
    """Mean number of tasks in a step: what a step costs."""


def coverage(n_tasks: int, settings: Settings) -> Coverage:
    """What the preferences of all steps cover, known before the first."""
    gammas = [preference_of_step(step, n_tasks, settings) for step in range(settings.steps)]
    leads = [0] * n_tasks
    for gamma in gammas:
        if float(gamma.max()) > float(gamma.min()):
            leads[int(gamma.argmax())] += 1
    visits = sum(len(tasks_of_step(gamma, step, settings)[0]) for step, gamma in enumerate(gammas))
    mean = torch.stack(gammas).mean(0).tolist() if gammas else [0.0] * n_tasks
    return Coverage(leads, mean, visits / max(1, len(gammas)))


def say_coverage(tasks: Sequence[str], settings: Settings, say: Callable[[str], None]) -> None:
    """Tell what the preferences of the steps cover, and warn of a task that hardly ever leads."""
    covered = coverage(len(tasks), settings)
    shares = ", ".join(f"{task} {count}" for task, count in zip(tasks, covered.leads, strict=True))
    say(f"preferences: largest share by steps: {shares}; {covered.visits:.1f} tasks a step")
    led = sum(covered.leads)
    for task, count in zip(tasks, covered.leads, strict=True):
        if count < led / len(tasks) / 2:
            say(f"warning: few steps prefer {task} ({count} of {led}): use sampling=stratified, or more steps")


def seed_of(*parts: int) -> int:
    """One well-mixed seed from several numbers."""
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))
