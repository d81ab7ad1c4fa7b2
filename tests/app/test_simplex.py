"""Sliders, rounding and the triangle against what the simplex demands."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretomerge import preferences
from paretomerge.app import CORNERS, at_place, moved, percentages, place

GAMMAS = st.integers(2, 8).flatmap(
    lambda K: st.integers(0, 10**6).map(lambda seed: preferences.dirichlet(K, 1, 0.3, seed)[0].tolist())
)


@given(GAMMAS, st.integers(0, 7), st.floats(-1, 2))
def test_moving_one_share_keeps_the_proportions_of_the_rest(gamma, k, share):
    k %= len(gamma)
    found = moved(gamma, k, share)
    assert math.fsum(found) == pytest.approx(1) and min(found) >= 0
    assert found[k] == pytest.approx(min(1, max(0, share)), abs=1e-9)
    rest = [j for j in range(len(gamma)) if j != k]
    if sum(gamma[j] for j in rest) > 1e-6:
        for i in rest:
            for j in rest:
                assert found[i] * gamma[j] == pytest.approx(found[j] * gamma[i], abs=1e-9)


def test_a_rest_of_nothing_is_shared_alike():
    assert moved((0.0, 1.0, 0.0), 1, 0.4) == pytest.approx((0.3, 0.4, 0.3))
    assert moved((0.0, 1.0), 1, 0.4) == pytest.approx((0.6, 0.4))
    assert moved((1.0,), 0, 0.2) == (1.0,)
    assert moved((0.5, 0.5), 0, float("nan")) == (0.0, 1.0)


@given(GAMMAS)
def test_percentages_sum_to_a_hundred_and_are_near(gamma):
    found = percentages(gamma)
    assert sum(round(10 * value) for value in found) == 1000
    assert all(abs(value / 100 - share) < 0.001 for value, share in zip(found, gamma, strict=True))


@given(st.integers(0, 10**6))
def test_the_triangle_goes_both_ways(seed):
    gamma = preferences.dirichlet(3, 1, 0.5, seed)[0]
    assert at_place(*place(gamma)) == pytest.approx(gamma, abs=1e-9)


def test_corners_are_one_hot():
    for k, corner in enumerate(CORNERS):
        assert at_place(*corner) == pytest.approx(preferences.one_hot(3, k), abs=1e-9)


@given(st.floats(-2, 3), st.floats(-2, 3))
def test_outside_the_nearest_point_is_taken(x, y):
    found = at_place(x, y)
    best = math.dist(place(found), (x, y))
    fine = np.array(preferences.grid(3, 60))
    nearest = min(math.dist(place(gamma), (x, y)) for gamma in fine)
    assert best <= nearest + 1e-9
