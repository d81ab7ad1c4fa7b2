"""Measures of fronts against brute force, closed forms and pymoo."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymoo.indicators.gd import GD
from pymoo.indicators.hv import HV
from pymoo.indicators.igd import IGD
from scipy.stats import spearmanr

from paretomerge.results import quality as m

fronts = st.tuples(st.integers(1, 25), st.integers(2, 4), st.integers(0, 200)).map(
    lambda t: np.random.default_rng(t[2]).integers(0, 8, t[:2]).astype(float)
)


def dominates(a, b) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(fronts)
def test_non_dominated_by_brute_force(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert m.non_dominated(points).tolist() == expected
    assert m.non_dominated(-points, maximise=True).tolist() == expected
    assert m.dominated_fraction(points) == pytest.approx(1 - np.mean(expected))


def test_mixed_directions():
    points = np.array([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
    assert m.non_dominated(points, maximise=[True, False]).tolist() == [False, True, False]
    assert m.dominated_fraction(points, maximise=[True, False]) == pytest.approx(2 / 3)
    assert m.hypervolume(points, [0.0, 3.0], maximise=[True, False]).value == 4.0
    assert m.win_rate(points[1:2], points[:1], maximise=[True, False]) == 0.75


def test_dominated_by_another_front():
    assert m.dominated_fraction([[1, 1], [3, 3]], by=[[2, 2]]) == 0.5
    assert m.dominated_fraction([[1, 1]], by=[[1, 1]]) == 0


@given(fronts)
def test_hypervolume_is_pymoos_and_that_of_counted_cells(points):
    reference = np.full(points.shape[1], 8.0)
    found = m.hypervolume(points, reference)
    assert found.exact and found.reference == tuple(reference)
    assert found.value == pytest.approx(HV(ref_point=reference)(points))
    # coordinates are whole numbers, so the volume is a number of unit cells
    cells = np.array(list(product(range(8), repeat=points.shape[1])))
    assert found.value == (points[:, None] <= cells).all(2).any(0).sum()


def test_hypervolume_of_a_quarter_circle():
    t = np.linspace(0, np.pi / 2, 2001)
    front = np.stack([np.cos(t), np.sin(t)], 1)
    assert m.hypervolume(front, [0, 0], maximise=True).value == pytest.approx(np.pi / 4, abs=1e-3)
    assert m.hypervolume([[2.0, 2.0]], [1, 1]).value == 0  # not better than the reference


def test_hypervolume_in_one_dimension():
    assert m.hypervolume([[3.0], [1.0], [2.0], [1.0]], [4]) == m.Hypervolume(3.0, (4.0,), True)
    assert m.hypervolume([[3.0], [1.0]], [0], maximise=True).value == 3
    assert m.hypervolume([[3.0]], [2]).value == 0


def test_hypervolume_in_seven_dimensions():
    rng = np.random.default_rng(0)
    few = rng.random((20, 7))
    assert m.hypervolume(few, np.ones(7)).exact
    many = rng.random((120, 7))
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    rough = m.hypervolume(1 - many, np.ones(7), seed=1)
    assert not rough.exact and rough == m.hypervolume(1 - many, np.ones(7), seed=1)
    samples = rng.random((100_000, 7))
    inside = np.zeros(len(samples), bool)
    for point in 1 - many:
        inside |= (samples >= point).all(1)
    assert rough.value == pytest.approx(inside.mean(), abs=4 * math.sqrt(inside.mean() / 100_000) + 1e-3)


@given(fronts, st.integers(0, 50))
def test_distances_are_pymoos(points, seed):
    reference = np.random.default_rng(seed).random((7, points.shape[1])) * 8
    assert m.generational_distance(points, reference) == pytest.approx(GD(reference)(points))
    assert m.inverted_generational_distance(points, reference) == pytest.approx(IGD(reference)(points))


def test_distances_by_hand():
    points, reference = [[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0], [6.0, 8.0]]
    assert m.generational_distance(points, reference) == pytest.approx((0 + math.sqrt(18)) / 2)
    assert m.inverted_generational_distance(points, reference) == pytest.approx((0 + 1 + 5) / 3)


@given(fronts, st.integers(0, 50))
def test_win_rate_by_three_loops(points, seed):
    baseline = np.random.default_rng(seed).integers(0, 8, (6, points.shape[1])).astype(float)
    won = [float(x < y) + 0.5 * float(x == y) for a in points for b in baseline for x, y in zip(a, b, strict=True)]
    assert m.win_rate(points, baseline) == pytest.approx(np.mean(won))
    assert m.win_rate(points, baseline) + m.win_rate(baseline, points) == pytest.approx(1)
    assert m.win_rate(points, points) == pytest.approx(0.5)
    assert m.win_rate(points, points, ties=0) <= 0.5
    assert m.win_rate(-points, -baseline, maximise=True) == m.win_rate(points, baseline)


def test_win_rate_of_large_fronts_draws_points():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3000, 3)), rng.normal(0.5, 1, (3000, 3))
    whole, drawn = m.win_rate(a, b, sample=3000), m.win_rate(a, b, seed=1)
    assert whole == pytest.approx(drawn, abs=0.06) and drawn != m.win_rate(a, b, seed=2)
    assert drawn == m.win_rate(a, b, seed=1)


@given(fronts)
def test_preference_weighted_sum_by_two_loops(points):
    found = m.preference_weighted_sum(points, seed=4)
    assert len(found.values) == 20
    assert found.mean == pytest.approx(np.mean(found.values)) and found.std == pytest.approx(np.std(found.values, ddof=1))
    gammas = np.random.default_rng(0).dirichlet(np.ones(points.shape[1]), 5)
    best = [max(sum(g * x for g, x in zip(gamma, point, strict=True)) for point in points) for gamma in gammas]
    assert m.preference_weighted_sum(points, gammas).values == pytest.approx(best)
    mixed = m.preference_weighted_sum(points, gammas, maximise=[False] + [True] * (points.shape[1] - 1))
    signed = points * np.array([-1] + [1] * (points.shape[1] - 1))
    assert mixed.values == pytest.approx([max(signed @ gamma) for gamma in gammas])


def test_r_squared():
    rng = np.random.default_rng(0)
    truth = rng.random((50, 3))
    predicted = truth + 0.1 * rng.normal(size=truth.shape)
    expected = [1 - np.mean((t - p) ** 2) / np.var(t) for t, p in zip(truth.T, predicted.T, strict=True)]
    np.testing.assert_allclose(m.r_squared(truth, predicted), expected)
    np.testing.assert_allclose(m.r_squared(truth, truth), 1)
    np.testing.assert_allclose(m.r_squared(truth, np.broadcast_to(truth.mean(0), truth.shape)), 0, atol=1e-12)
    assert np.isnan(m.r_squared([[1.0], [1.0]], [[1.0], [2.0]]))[0]


def test_spread():
    even, uneven = np.linspace(0, 1, 11), np.linspace(0, 1, 11) ** 3
    assert m.spread(np.stack([even, 1 - even], 1)) == m.Spread((1.0, 1.0), pytest.approx(0, abs=1e-12))
    gaps = np.diff(uneven) * 2
    nearest = [min([*gaps[max(0, i - 1) : i + 1]]) for i in range(11)]
    assert m.spread(np.stack([uneven, 1 - uneven], 1)).spacing == pytest.approx(np.std(nearest, ddof=1))
    assert m.spread([[1.0, 2.0]]) == m.Spread((0.0, 0.0), 0.0)


def test_rays_run_from_equal_to_one_hot():
    rays = m.rays(4, 7)
    assert rays.shape == (4, 7, 4)
    np.testing.assert_allclose(rays.sum(2), 1)
    np.testing.assert_allclose(rays[:, 0], 0.25)
    np.testing.assert_allclose(rays[:, -1], np.eye(4))
    assert all((np.diff(rays[k, :, k]) > 0).all() for k in range(4))


@given(st.integers(0, 200), st.integers(2, 5), st.integers(3, 8))
def test_alignment_is_scipys_rank_correlation(seed, tasks, steps):
    values = np.random.default_rng(seed).random((tasks, steps)).round(1)
    shares = m.rays(tasks, steps)
    found = m.preference_alignment(values)
    for k in range(tasks):
        if np.ptp(values[k]) == 0:
            assert np.isnan(found[k])
        else:
            assert found[k] == pytest.approx(spearmanr(shares[k, :, k], values[k]).statistic)
    down = m.preference_alignment(values, maximise=False)
    np.testing.assert_allclose(down, -found)
