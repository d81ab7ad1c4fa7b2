"""Estimates between measured preferences: concave, with an error that says how far off they are, or none at all."""

import numpy as np
import pytest

from paretomerge import preferences
from paretomerge.evaluation import standard_preferences
from paretomerge.results import Estimator, between


def measured_at(K: int, sample: int = 3) -> np.ndarray:
    tasks = [f"t{k}" for k in range(K)]
    return np.array([preferences.parse(spec, tasks) for spec in standard_preferences(tasks, sample)])


def saturating(gammas: np.ndarray, k: int = 0) -> np.ndarray:
    """An accuracy as they are: the first share of a task buys most."""
    return 0.95 - 0.4 * np.exp(-4 * np.asarray(gammas)[..., k])


@pytest.mark.parametrize("K", range(3, 9))
def test_a_concave_metric_is_estimated_better_than_by_its_chords(K):
    known = measured_at(K)
    found = Estimator(known, saturating(known))
    new = preferences.dirichlet(K, 40, seed=1)
    truth = saturating(new)
    ours = np.array([found.at(gamma).value for gamma in new])
    chords = np.array([between(gamma, known).of(saturating(known)) for gamma in new])
    assert np.sqrt(np.mean((ours - truth) ** 2)) < 0.7 * np.sqrt(np.mean((chords - truth) ** 2))
    assert found.way != "linear" and all(found.error <= found.at(gamma).error < 0.1 for gamma in new)


@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize("larger_is_better", [True, False])
def test_a_quadratic_is_found_and_its_error_is_small(K, larger_is_better):
    sign = 1 if larger_is_better else -1

    def quadratic(gammas):
        first, others = gammas[:, 0], gammas[:, 1:]
        return sign * (0.5 + 0.4 * first - 0.3 * first**2 - 0.2 * (first + others[:, 0]) ** 2)

    known, new = measured_at(K, 8), preferences.dirichlet(K, 20, seed=2)
    found = Estimator(known, quadratic(known), larger_is_better=larger_is_better)
    assert [found.at(gamma).value for gamma in new] == pytest.approx(quadratic(new), abs=2e-3)
    assert found.error < 2e-3


def test_where_surrogates_disagree_the_error_is_larger():
    known = measured_at(3)
    found = Estimator(known, saturating(known) + 0.1 * known[:, 1] * known[:, 2])
    for gamma in preferences.dirichlet(3, 10, seed=5):
        first, second = (surrogate(gamma) for surrogate in found._surrogates)
        assert found.at(gamma) == (first, pytest.approx(np.hypot(found.error, first - second)))


def test_every_estimate_of_a_quadratic_is_concave():
    """Noise does not make a valley: between any two preferences the surrogate is above the chord."""
    rng = np.random.default_rng(0)
    known = measured_at(4, 6)
    for seed in range(5):
        found = Estimator(known, saturating(known) + 0.05 * rng.standard_normal(len(known)))
        for way in ("quadratic", "separable"):
            surrogate = found._ways[way](known, found._values)
            for one, other in preferences.dirichlet(4, 20, seed=seed).reshape(10, 2, 4):
                assert surrogate((one + other) / 2) >= (surrogate(one) + surrogate(other)) / 2 - 1e-9


def test_what_is_convex_is_left_to_interpolation():
    known = measured_at(2, 12)
    values = 0.5 + 0.4 * known[:, 0] ** 4
    found = Estimator(known, values)
    assert found.way == "linear"
    assert found.at((0.9, 0.1)).value == pytest.approx(between((0.9, 0.1), known).of(values))


def test_the_error_is_that_at_points_left_out():
    """In two tasks by hand: each inner point from the chord of its neighbours, where that misses least."""
    known = [(1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1)]
    found = Estimator(known, [0.5, 0.2, 0.5, 0.2, 0.5])  # nothing concave is near
    linear = found._left_out()["linear"]
    assert linear == pytest.approx(0.3) and found.error <= linear


@pytest.mark.parametrize(
    "known", [[(1, 0, 0), (0, 1, 0), (0, 0, 1)], [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1 / 3,) * 3], [(1, 0, 0)]]
)
def test_too_few_points_say_nothing(known):
    assert Estimator(known, [0.9] * len(known)).at((0.4, 0.3, 0.3)) is None


def test_hundreds_of_points_take_no_longer_to_leave_out(monkeypatch):
    known = preferences.dirichlet(3, 300, seed=3)
    found = Estimator(known, saturating(known))
    assert found.error < 0.01 and found.at((0.4, 0.3, 0.3)).value == pytest.approx(saturating((0.4, 0.3, 0.3)), abs=0.02)
