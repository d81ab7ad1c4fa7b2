"""Samples of c: inside the box, different, reproducible, with the points that they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.errors import UserError
from paretomerge.search import anchor_points, box, budget, sample

METHODS = ["uniform", "sobol", "grid"]


@given(st.integers(1, 6), st.integers(1, 80), st.sampled_from(METHODS), st.booleans(), st.integers(0, 5))
def test_as_many_different_points_as_asked_for_inside_the_box(n, count, method, anchors, seed):
    low = -np.arange(n) - 0.5
    within = box(n, np.stack([low, low + 2], 1).tolist())
    points = sample(count, within, method, anchors=anchors, seed=seed)
    assert points.shape == (count, n)
    assert len(np.unique(points, axis=0)) == count
    assert (points >= within.low).all() and (points <= within.high).all()
    assert np.array_equal(points, sample(count, within, method, anchors=anchors, seed=seed))


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_matters(method):
    a, b = (sample(30, box(3), method, seed=seed) for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_anchors_come_first():
    points = sample(20, box(3, [0, 2]), anchors=True)
    assert np.array_equal(points[:3], 2 * np.eye(3))
    assert [p[0] for p in points[3:8]] == [1, 0.5, 1.5, 0, 2] and (np.ptp(points[3:8], axis=1) == 0).all()
    assert np.array_equal(sample(2, box(3), anchors=True), np.eye(3)[:2])
    assert len(anchor_points(4)) == 9


def test_a_grid_is_whole():
    points = {tuple(p) for p in sample(12, box(2), "grid").tolist()}
    assert {(x, y) for x in (0, 0.5, 1) for y in (0, 0.5, 1)} <= points
    # two levels would be 256 points: anchors and Sobol points instead of a grid of one
    assert np.array_equal(sample(30, box(8), "grid", anchors=True)[:8], np.eye(8))


def test_sobol_points_are_more_even_than_uniform_ones():
    def largest_gap(method):
        points = sample(64, box(2), method, anchors=False, seed=3)
        probes = np.random.default_rng(0).random((2000, 2))
        return np.linalg.norm(probes[:, None] - points, axis=2).min(1).max()

    assert largest_gap("sobol") < 0.8 * largest_gap("uniform")


def test_boxes():
    assert np.array_equal(box(3).high, np.ones(3))
    within = box(2, [[0, 1], [-1, 0.5]])
    assert within.low.tolist() == [0, -1] and within.high.tolist() == [1, 0.5]
    for wrong in ([1, 0], [0, 0], [0], [[0, 1]] * 2, [0, float("nan")], [[1, 0], [0, 1], [0, 1]]):
        with pytest.raises(UserError, match="box"):
            box(3, wrong)


def test_budgets_are_the_papers():
    assert [budget(n) for n in range(2, 9)] == [30, 50, 60, 85, 100, 140, 250]
    assert budget(1) >= 3 and budget(12) == 5 * 91
