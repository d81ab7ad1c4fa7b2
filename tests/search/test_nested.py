"""Nested MAP: which pairs, which weights, and what it costs."""

import numpy as np
import pytest

from paretomerge.results import Objective
from paretomerge.search import box, nested
from search_data import Known

QUICK = {"population": 40, "generations": 30}
COUNTED = {"population": 16, "generations": 5}
"""Where only what is asked for matters, not how good the fronts are."""


@pytest.mark.parametrize("link", ["sigmoid", "softplus", "identity"])
def test_eight_tasks_cost_480_task_evaluations_at_the_most(link):
    known = Known(8, link)
    found = nested(known, box(8), "abcdefgh", np.full((1, 8), 1 / 8), **COUNTED)
    assert found.task_evaluations == known.task_evaluations <= 480
    assert found.points.shape == (1, 8) and np.isfinite(found.predicted).all()
    assert (found.points >= 0).all() and (found.points <= 1).all()


def test_only_the_tasks_of_a_pair_are_asked_for_and_only_their_experts_used():
    known = Known(4, "sigmoid")
    nested(known, box(4), "abcd", np.full((1, 4), 0.25), **COUNTED)
    pairs = [(c, tasks) for c, tasks in known.calls if tasks is not None and len(tasks) == 2]
    assert pairs
    for c, tasks in pairs:
        others = [n for n in range(4) if n not in tasks]
        pair = (c[:, list(tasks)] != 0).any(1)  # else a pair's model that was evaluated, now on the other pair's tasks
        assert (c[pair][:, others] == 0).all()
    # the last pair is two merged groups: its c are products of two numbers, on two fixed directions
    last = known.calls[-1][0]
    assert np.linalg.matrix_rank(last, tol=1e-9) == 2


def test_the_closest_losses_are_paired_in_rounds():
    class Fixed:
        """Losses 0.1, 0.5, 0.12, 0.9 at the experts: a with c, then b with d."""

        objectives = tuple(Objective(name, "error", False, 0, 1) for name in "abcd")

        def __init__(self):
            self.calls = []

        def __call__(self, c, tasks=None):
            self.calls.append((c, tasks))
            wide = np.array([0.1, 0.5, 0.12, 0.9]) + 0.1 * ((1 - c) ** 2)
            return np.where(np.isin(range(4), range(4) if tasks is None else tasks), wide, np.nan)

    fixed = Fixed()
    nested(fixed, box(4), "abcd", np.full((1, 4), 0.25), **COUNTED)
    pairs = [frozenset(np.flatnonzero(c.any(0)).tolist()) for c, _ in fixed.calls if (c != 0).any(0).sum() == 2]
    assert set(pairs) == {frozenset({0, 2}), frozenset({1, 3})}


def test_metrics_of_different_ranges_become_losses_of_one_kind():
    """Accuracy, error, a score of 100, a perplexity: losses 0.1, 0.12, 0.5, 0.55, so neighbours are paired."""

    class Mixed:
        objectives = (
            Objective("a", "accuracy", True, 0, 1),
            Objective("b", "error", False, 0, 1),
            Objective("c", "score", True, -100, 100),
            Objective("d", "perplexity", False, 1, None),
        )

        def __init__(self):
            self.calls = []

        def __call__(self, c, tasks=None):
            self.calls.append((c, tasks))
            at_base = (c == 0).all(1, keepdims=True)
            wide = np.array([0.9, 0.12, 0.0, 11.0]) + 1e-3 * c  # the perplexity is 20 at the base
            wide = np.where(at_base, [0.5, 0.9, -50.0, 20.0], wide)
            return np.where(np.isin(range(4), range(4) if tasks is None else tasks), wide, np.nan)

    mixed = Mixed()
    nested(mixed, box(4), "abcd", np.full((1, 4), 0.25), **COUNTED)
    pairs = [frozenset(np.flatnonzero(c.any(0)).tolist()) for c, _ in mixed.calls if (c != 0).any(0).sum() == 2]
    assert set(pairs) == {frozenset({0, 1}), frozenset({2, 3})}


def test_the_preference_decides():
    known = Known(4, "sigmoid")
    gammas = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25] * 4])
    found = nested(known, box(4), "abcd", gammas, measure=True, **QUICK)
    assert np.array_equal(found.preferences, gammas)
    np.testing.assert_allclose(found.measured, known.truth(found.points))
    assert found.measured[0, 0] > found.measured[2, 0] > found.measured[1, 0]
    assert found.measured[1, 3] > found.measured[2, 3] > found.measured[0, 3]


def test_what_preferences_have_in_common_is_evaluated_once():
    one, two = Known(4, "sigmoid"), Known(4, "sigmoid")
    nested(one, box(4), "abcd", np.array([[0.7, 0.1, 0.1, 0.1]]), **COUNTED)
    found = nested(two, box(4), "abcd", np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]]), **COUNTED)
    assert found.task_evaluations < 2 * one.task_evaluations


def test_a_preference_of_zero_for_a_whole_pair():
    known = Known(4, "sigmoid")
    found = nested(known, box(4), "abcd", np.array([[0.0, 0.0, 0.0, 1.0]]), measure=True, **QUICK)
    assert found.measured[0, 3] > 0.8


def test_comes_near_the_best_of_everything_at_once():
    """On well-behaved metrics nesting costs little: within 5 % of the best loss of a dense search."""
    known = Known(4, "sigmoid")
    gamma = np.full(4, 0.25)
    found = nested(known, box(4), "abcd", gamma[None], choice="weighted-sum", **QUICK)
    best = (known.truth(np.random.default_rng(0).random((50000, 4))) @ gamma).max()
    assert (known.truth(found.points) @ gamma)[0] > 0.9 * best


def test_an_odd_number_of_tasks():
    found = nested(Known(5, "sigmoid"), box(5), "abcde", np.full((1, 5), 0.2), **COUNTED)
    assert found.points.shape == (1, 5) and (found.points > 0).any(1).all()
    assert found.task_evaluations <= 20 * 5 * 3


def test_several_metrics_of_a_task_share_its_weight():
    class Two:
        objectives = (Objective("a", "m", True, 0, 1), Objective("a", "n", False, 1, None), Objective("b", "m", True, 0, 1))

        def __call__(self, c, tasks=None):
            x, y = c.T
            return np.stack([1 - 0.5 * (x - 0.8) ** 2, 1 + (x - 0.8) ** 2 + y, 1 - 0.5 * (y - 0.6) ** 2], 1)

    found = nested(Two(), box(2), "ab", np.array([[0.9, 0.1]]), **QUICK)
    assert found.points[0, 0] > 0.6 and found.points[0, 1] < 0.2  # for b alone it would be (0, 0.6)
    assert len(found.fits) == 3
