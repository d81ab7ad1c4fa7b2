"""Interpolation on the simplex against what barycentric interpolation must do, and scipy's Delaunay triangulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from paretomerge import preferences
from paretomerge.results import between


def points(K: int, n: int, seed: int) -> list[tuple[float, ...]]:
    return [*(preferences.one_hot(K, k) for k in range(K)), *map(tuple, preferences.dirichlet(K, n, seed=seed).tolist())]


@given(st.integers(2, 6), st.integers(0, 12), st.integers(0, 10**6))
def test_the_weights_are_a_convex_combination_that_gives_gamma_back(K, n, seed):
    gamma = preferences.dirichlet(K, 1, seed=seed + 1)[0]
    known = points(K, n, seed)
    weights = between(gamma, known).weights
    assert all(weight > 0 for weight in weights.values()) and sum(weights.values()) == pytest.approx(1)
    mixed = sum(weight * np.array(known[i]) for i, weight in weights.items())
    assert np.allclose(mixed, gamma, atol=1e-8)
    assert len(weights) <= K


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_linear_metrics_are_interpolated_exactly(K, seed):
    slope = np.random.default_rng(seed).normal(size=K)
    gamma = preferences.dirichlet(K, 1, seed=seed)[0]
    known = points(K, 9, seed)
    assert between(gamma, known).of([float(slope @ p) for p in known]) == pytest.approx(float(slope @ gamma), abs=1e-8)


@pytest.mark.parametrize("K", [3, 4])
def test_the_simplices_are_those_of_delaunay(K):
    known = points(K, 20, seed=3)
    triangulation = Delaunay(np.array(known)[:, :-1] - 0.0)
    flat = np.array(known)

    def chart(p):  # an isometry of the simplex's plane: Delaunay depends on distances
        basis = np.linalg.svd(np.eye(K) - 1 / K)[0][:, : K - 1]
        return np.asarray(p) @ basis

    triangulation = Delaunay(chart(flat))
    for gamma in preferences.dirichlet(K, 25, seed=5):
        found = set(between(gamma, known).weights)
        assert found == set(triangulation.simplices[triangulation.find_simplex(chart(gamma))].tolist())


def test_a_measured_preference_is_itself():
    found = between((1 / 3, 1 / 3, 1 / 3), [(1, 0, 0), (0.333333333333, 0.333333333333, 0.333333333334), (0, 1, 0)])
    assert found.measured and found.weights == {1: 1.0}


def test_outside_of_what_was_measured_nothing_is_said():
    assert between((0.0, 1.0), [(1.0, 0.0), (0.5, 0.5)]) is None
    assert between((0.0, 1.0), []) is None
    assert not between((0.75, 0.25), [(1.0, 0.0), (0.5, 0.5)]).measured
