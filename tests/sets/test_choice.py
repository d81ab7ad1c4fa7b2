"""Which point a preference picks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.sets import choose, normalised

CONCAVE = np.stack([np.sin(np.linspace(0, np.pi / 2, 19)), np.cos(np.linspace(0, np.pi / 2, 19))], 1)  # losses
weights = st.lists(st.floats(0.01, 1), min_size=2, max_size=2).map(lambda w: np.array(w) / sum(w))
fronts = st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).random((30, 3)) * [1, 100, 0.01])


def test_tchebycheff_reaches_every_point_of_a_concave_front_a_weighted_sum_only_its_ends():
    gammas = [np.array([w, 1 - w]) for w in np.linspace(0, 1, 2001)]
    assert {choose(CONCAVE, gamma) for gamma in gammas} == set(range(19))
    assert {choose(CONCAVE, gamma, "weighted-sum") for gamma in gammas} == {0, 18}


@given(fronts, st.sampled_from(["tchebycheff", "weighted-sum"]), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_never_a_dominated_point(front, how, w):
    chosen = front[choose(front, np.array(w) / sum(w), how)]
    assert not ((front <= chosen).all(1) & (front < chosen).any(1)).any()


@given(fronts, st.integers(0, 2), st.sampled_from(["tchebycheff", "weighted-sum"]))
def test_one_hot_picks_the_best_of_that_task(front, k, how):
    # Tchebycheff may give up 10⁻³ of the range for much of the others
    assert normalised(front)[choose(front, np.eye(3)[k], how), k] <= (2e-3 if how == "tchebycheff" else 0)


@given(st.integers(0, 299), st.integers(0, 2))
def test_of_points_that_are_equal_for_the_one_task_that_counts_none_is_dominated(seed, k):
    """Metrics of a few hundred inputs are round numbers, and one-hot preferences see one of them: the small sum decides."""
    front = np.random.default_rng(seed).random((30, 3)).round(1)
    chosen = front[choose(front, np.eye(3)[k])]
    assert not ((front <= chosen).all(1) & (front < chosen).any(1)).any()
    assert choose(np.array([[0, 1], [0, 0.5], [1, 0]]), np.array([1.0, 0.0])) == 1


@given(fronts, st.sampled_from(["tchebycheff", "weighted-sum"]))
def test_units_do_not_matter(front, how):
    w = np.array([0.5, 0.2, 0.3])
    assert choose(front, w, how) == choose(front * [3, 1e-4, 70] + [0, -5, 2], w, how)


@given(weights, weights)
def test_more_weight_never_gives_less(a, b):
    a, b = (a, b) if a[0] <= b[0] else (b, a)
    assert CONCAVE[choose(CONCAVE, b), 0] <= CONCAVE[choose(CONCAVE, a), 0]


def test_a_metric_that_is_the_same_everywhere_has_no_say():
    front = np.array([[0.0, 5.0], [1.0, 5.0]])
    assert choose(front, np.array([0.0, 1.0])) == 0
    assert np.array_equal(normalised(front), [[0, 0], [1, 0]])


def test_a_single_point():
    assert choose(np.array([[3.0, 4.0]]), np.array([0.2, 0.8])) == 0
