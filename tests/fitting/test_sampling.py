"""Preferences of the steps: what they cover, and that they are functions of (seed, step) alone."""

import pytest
import torch

from paretomerge.fitting import TrainingOptions, coverage, preference_of_step


@pytest.mark.parametrize("sampling", ["dirichlet", "stratified", "corners"])
@pytest.mark.parametrize("n_tasks", [1, 2, 5])
def test_every_step_has_a_preference_of_its_own_that_can_be_had_again(sampling, n_tasks):
    settings = TrainingOptions(sampling=sampling, steps=40, equal_every=0, seed=3)
    gammas = [preference_of_step(step, n_tasks, settings) for step in range(40)]
    for step, gamma in enumerate(gammas):
        assert gamma.dtype == torch.float64 and gamma.min() >= 0 and float(gamma.sum()) == pytest.approx(1)
        assert torch.equal(gamma, preference_of_step(step, n_tasks, settings))
    assert n_tasks == 1 or len({tuple(g.tolist()) for g in gammas}) > 10


def test_stratified_tasks_take_turns():
    settings = TrainingOptions(sampling="stratified", steps=90, equal_every=0)
    assert coverage(3, settings).leads == [30, 30, 30]
    assert coverage(3, TrainingOptions(sampling="dirichlet", steps=90, equal_every=0)).leads != [30, 30, 30]


def test_corners_are_visited_at_about_every_second_step():
    settings = TrainingOptions(sampling="corners", alpha=1.0, steps=400, equal_every=0)
    corners = sum(float(preference_of_step(step, 4, settings).max()) == 1 for step in range(400))
    assert 160 < corners < 240
    assert corners > 5 * sum(
        float(preference_of_step(s, 4, TrainingOptions(alpha=1.0, equal_every=0)).max()) == 1 for s in range(400)
    )


def test_coverage_counts_what_a_step_costs():
    everything = coverage(8, TrainingOptions(alpha=0.1, steps=300, skip_below=0.0, equal_every=0))
    skipping = coverage(8, TrainingOptions(alpha=0.1, steps=300, skip_below=0.01, equal_every=0))
    assert everything.visits == 8
    assert 2.5 < skipping.visits < 4  # METHOD: 3.2 tasks a step
    assert sum(everything.mean) == pytest.approx(1)
