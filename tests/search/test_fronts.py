"""Plain and Bayesian MAP, direct search and MOEA/D on metrics whose front is known."""

import numpy as np
import pytest

from paretomerge.errors import UserError
from paretomerge.results import Objective, generational_distance, inverted_generational_distance, losses, win_rate
from paretomerge.search import (
    Counted,
    bayesian,
    bin_scores,
    bins,
    box,
    direct_search,
    draw,
    moead,
    n_bins,
    partitions,
    plain,
    predicted_front,
    sample,
    softmax,
    spread,
)
from search_data import Known


def true_front(known: Known) -> np.ndarray:
    """The metrics at the minimisers of Σ w_k loss_k: as the losses are convex quadratics (seen through monotone links),
    every point of the front is one of these, for some w."""
    rng = np.random.default_rng(0)
    w = rng.dirichlet(np.ones(known.n), 4000)
    w = np.concatenate([w, np.eye(known.n) * (1 - 1e-9) + 1e-9 / known.n])
    left = np.einsum("wk,kij->wij", w, known.hessians)
    right = np.einsum("wk,kij,kj->wi", w, known.hessians, known.best)
    return np.linalg.solve(left, right[..., None])[..., 0]


@pytest.mark.parametrize("link", ["identity", "sigmoid", "softplus"])
@pytest.mark.parametrize("n, baseline", [(2, 200), (3, 300)])
def test_with_the_papers_budget_as_good_as_direct_search(n, baseline, link):
    known = Known(n, link)
    found = plain(known, box(n), generations=60, seed=1)
    assert found.models == {2: 30, 3: 50}[n] and found.task_evaluations == found.models * n == known.task_evaluations
    assert all(fit.r2_held_out > 0.99 for fit in found.fits) and not found.said
    larger = known.objectives[0].larger_is_better
    for seed in range(2):
        direct = direct_search(Known(n, link), box(n), sampling="uniform", anchors=False, seed=seed)
        assert direct.models == baseline
        assert win_rate(known.truth(found.points), direct.measured, maximise=larger) >= 0.47
    inside = true_front(known)
    inside = known.truth(inside[((inside >= 0) & (inside <= 1)).all(1)])
    span = np.ptp(inside, axis=0)
    mine = known.truth(found.points) / span
    assert generational_distance(mine, inside / span) < 0.03
    assert inverted_generational_distance(mine, inside / span) < 0.08


def test_noise_is_smoothed():
    known = Known(2, "sigmoid", noise=0.03)
    found = plain(known, box(2), generations=40)
    assert all(fit.r2_held_out > 0.9 for fit in found.fits)
    direct = direct_search(Known(2, "sigmoid", noise=0.03), box(2))
    assert win_rate(known.truth(found.points), known.truth(direct.points), maximise=True) >= 0.47


@pytest.mark.parametrize("bounds", [None, [0, 0.4], [[0.2, 0.5], [-0.5, 0.3], [0, 1]]])
def test_the_front_stays_in_the_box(bounds):
    within = box(3, bounds)
    found = plain(Known(3), within, evaluations=40, population=50, generations=30)
    assert (found.points >= within.low).all() and (found.points <= within.high).all()
    assert (found.evaluated[0] >= within.low).all() and (found.evaluated[0] <= within.high).all()
    assert len(found.points) > 20


def test_no_point_dominates_another_and_no_point_twice():
    found = plain(Known(3, "sigmoid"), box(3), runs=2, population=50, generations=30)
    loss = losses(found.predicted, Known(3, "sigmoid").objectives)
    dominated = (loss[:, None] >= loss).all(2) & (loss[:, None] > loss).any(2)
    assert not dominated.any()
    assert len(np.unique(found.points, axis=0)) == len(found.points)


def test_the_same_seed_gives_the_same_front():
    quick = {"population": 32, "generations": 10}
    one, same, other = (plain(Known(2, noise=0.02), box(2), seed=seed, **quick).points for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_scales_of_the_metrics_do_not_matter():
    def stretched(c):
        return Known(2).truth(c) * [1.0, 1e4]

    fronts = [
        predicted_front(metrics, Known(2).objectives, box(2), population=32, generations=20)
        for metrics in (Known(2).truth, stretched)
    ]
    np.testing.assert_allclose(fronts[0], fronts[1], atol=1e-6)


def test_points_are_measured_and_spread():
    known = Known(2, "sigmoid", noise=0.02)
    found = plain(known, box(2), measure=10, population=64, generations=40)
    rows = np.flatnonzero(np.isfinite(found.measured).all(1))
    assert len(rows) == 10 and found.models == 40 and found.task_evaluations == 80
    np.testing.assert_array_equal(found.measured[rows], known(found.points[rows]))
    for k in range(2):  # the ends are among them
        assert found.predicted[rows, k].max() == pytest.approx(found.predicted[:, k].max(), abs=0.02)


def test_spread_takes_the_ends_and_then_the_widest_gap():
    x = np.linspace(0, 1, 101)
    assert sorted(spread(np.stack([x, 1 - x], 1), 5)) == [0, 25, 50, 75, 100]
    assert len(set(spread(np.zeros((3, 2)), 2))) == 2
    assert len(spread(np.random.default_rng(0).random((4, 3)), 9)) == 4


def test_a_front_of_one_point_is_said():
    class Agreeing(Known):
        def truth(self, c):
            return np.repeat(super().truth(c)[:, :1], 2, axis=1)

    found = plain(Agreeing(2), box(2), population=40, generations=20)
    assert len(found.points) == 1 and "one point" in found.said[-1]
    assert "one point" in direct_search(Agreeing(2), box(2)).said[-1]


def test_a_poor_surrogate_is_said():
    class Wild(Known):
        def truth(self, c):
            return np.sin(40 * np.asarray(c))

    found = plain(Wild(2), box(2), generations=10)
    assert sum("does not describe it" in line for line in found.said) == 2


class Failing(Known):
    """The first ``failures`` models cannot be evaluated."""

    failures = 3

    def __call__(self, coefficients, tasks=None):
        metrics = super().__call__(coefficients, tasks)
        bad = max(0, self.failures - sum(len(c) for c, _ in self.calls[:-1]))
        metrics[:bad] = np.nan
        return metrics


@pytest.mark.parametrize("search", [plain, direct_search, moead, bayesian])
def test_failed_evaluations_are_left_out(search):
    quick = {"population": 40, "generations": 10}
    options = {plain: quick, bayesian: {**quick, "rounds": 1, "first": 20}, moead: {"generations": 4}}
    found = search(Failing(2), box(2), **options.get(search, {}))
    assert np.isfinite(found.points).all() and len(found.points) > 5
    assert any("3 of" in line for line in found.said)
    assert np.isnan(found.evaluated[1]).any(1).sum() == 3


@pytest.mark.parametrize("search", [plain, direct_search, moead, bayesian])
def test_nothing_but_failures(search):
    class Broken(Failing):
        failures = 10**6

    with pytest.raises(UserError, match="not one of"):
        search(Broken(2), box(2))


def test_direct_search_keeps_the_non_dominated():
    known = Known(3)
    found = direct_search(known, box(3), evaluations=80)
    c = sample(80, box(3))
    metrics = known.truth(c)
    kept = [i for i, x in enumerate(metrics) if not any((y >= x).all() and (y > x).any() for y in metrics)]
    np.testing.assert_array_equal(found.points, c[kept])
    np.testing.assert_array_equal(found.measured, metrics[kept])
    assert np.isnan(found.predicted).all()


def test_moead_comes_near_the_front_in_batches():
    known = Known(2, "sigmoid")
    found = moead(known, box(2))
    assert len(known.calls) <= 20 and max(len(c) for c, _ in known.calls) <= 50
    assert found.models <= 50 * 20
    inside = true_front(known)
    inside = known.truth(inside[((inside >= 0) & (inside <= 1)).all(1)])
    assert generational_distance(found.measured, inside) < 0.02
    assert inverted_generational_distance(found.measured, inside) < 0.05


def test_nothing_is_asked_for_twice():
    known = Known(3)
    counted = Counted(known)
    c = np.random.default_rng(0).random((4, 3))
    first = counted(c, [0])
    assert np.isnan(first[:, 1:]).all() and counted.task_evaluations == 4
    both = counted(np.concatenate([c, c[:1]]))
    np.testing.assert_array_equal(both[:4], known.truth(c))
    assert counted.task_evaluations == 12 == known.task_evaluations and known.calls[-1][1] == [1, 2]
    counted(c, [1])
    assert len(known.calls) == 2
    assert counted.evaluated[0].shape == (4, 3)
    with pytest.raises(ValueError, match="gave"):
        Counted(Mute())(c)


class Mute:
    objectives = (Objective("a", "m"), Objective("b", "m"))

    def __call__(self, coefficients, tasks=None):
        return np.zeros((len(coefficients), 1))


def test_bins_cut_the_angles():
    two = np.array([[1.0, 0.0], [1.0, 0.5], [0.5, 1.0], [0.0, 1.0], [0.0, 0.0], [0.3, 0.3 * np.tan(np.pi / 8) - 1e-9]])
    assert bins(two, box(2)).tolist() == [0, 1, 2, 3, 0, 0]
    assert bins(2 * two - 1, box(2, [-1, 1])).tolist() == [0, 1, 2, 3, 0, 0]
    for n, count in ((2, 4), (3, 16), (4, 8), (8, 128)):
        where = bins(np.random.default_rng(0).random((20000, n)), box(n))
        assert n_bins(n) == count and set(where) <= set(range(count))
        if n < 5:
            assert set(where) == set(range(count))


def test_scores_are_mean_and_half_a_bootstrapped_deviation():
    rng = np.random.default_rng(0)
    squared = np.array([1.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    scores = bin_scores(np.array([0, 0, 1, 1, 1, 1, 1]), squared, 3, rng)
    five = bin_scores(np.zeros(5, int), np.array([0.0, 0.0, 0.0, 0.0, 10.0]), 1, np.random.default_rng(1))[0]
    # four of the five: the mean is 0 with probability 1/5, else 2.5; its deviation is 1
    assert five == pytest.approx(2.0 + 0.5 * 1.0, abs=0.15)
    assert scores[1] == 2.0  # no deviation
    assert scores[0] == 2.0  # 80 % of two points are both
    assert scores[2] == scores[:2].max()  # a bin that nobody has seen
    assert softmax(np.array([0.0, np.log(3)])).tolist() == pytest.approx([0.25, 0.75])


def test_points_are_drawn_where_the_probability_is():
    rng = np.random.default_rng(0)
    drawn = draw(np.array([0.0, 0.9, 0.1, 0.0]), 400, box(2), rng)
    shares = np.bincount(bins(drawn, box(2)), minlength=4) / 400
    assert shares[0] == shares[3] == 0 and 0.85 < shares[1] < 0.95


def test_bayesian_rounds_refresh_the_data():
    known = Known(2, "sigmoid")
    found = bayesian(known, box(2), population=20, generations=2)
    assert [len(c) for c, _ in known.calls] == [6, 3, 3] and found.models == 12
    assert all(fit.points == 12 for fit in found.fits)


def test_bayesian_samples_where_the_surrogate_is_wrong():
    class Bumpy(Known):
        """Quadratic but for the directions near the second axis."""

        def truth(self, c):
            angle = np.arctan2(c[:, 1], c[:, 0])
            bump = np.where(angle > 3 * np.pi / 8, np.sin(25 * c[:, 1]), 0.0)
            return super().truth(c) + bump[:, None]

    shares = []
    for seed in range(8):
        known = Bumpy(2)
        bayesian(known, box(2), first=30, rounds=1, each=20, population=20, generations=2, seed=seed)
        shares.append(np.mean(bins(known.calls[1][0], box(2)) == 3))
    uniform = 0.5 * np.tan(np.pi / 8)
    assert np.mean(shares) > 2 * uniform


def test_lattices():
    assert [partitions(k, 128) for k in range(2, 9)] == [127, 14, 7, 5, 4, 3, 3]
    assert partitions(10, 5) == 1
