"""Surrogates: exact where the truth has their form, honest where it has not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from scipy.special import expit

from paretomerge.errors import UserError
from paretomerge.results import Objective
from paretomerge.search import box, features, fit_surrogates, link_of, sample
from search_data import Known, quadratic_values

RANGES = {"identity": (None, None), "sigmoid": (-1.0, 3.0), "softplus": (2.0, None), "softplus below": (None, 2.0)}


@pytest.mark.parametrize("link", RANGES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_recovers_the_numbers_of_a_quadratic(n, link):
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, n))
    a, b, e = a + a.T, rng.normal(size=n), 0.3
    c = sample(60, box(n), anchors=False)
    low, high = RANGES[link]
    y = link_of(low, high).forward(quadratic_values(c, a, b, e))
    fitted = fit_surrogates(c, y[:, None], [Objective("t", "m", True, low, high)])
    found_a, found_b, found_e = fitted.quadratic(0)
    np.testing.assert_allclose(found_a, a, atol=1e-4)
    np.testing.assert_allclose(found_b, b, atol=1e-4)
    assert found_e == pytest.approx(e, abs=1e-4)
    assert np.array_equal(found_a, found_a.T)
    fit = fitted.fits[0]
    assert fit.r2 > 1 - 1e-9 and fit.r2_held_out > 1 - 1e-6 and not fit.said
    assert fit.link == link.split()[0]


def test_the_features_are_those_of_the_quadratic():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 4)), rng.normal(size=4)
    a = a + a.T
    c = rng.normal(size=(9, 4))
    beta = np.concatenate([[0.7], b, a[np.triu_indices(4)]])
    np.testing.assert_allclose(features(c) @ beta, quadratic_values(c, a, b, 0.7), rtol=1e-12)
    assert features(c).shape == (9, 15)


@pytest.mark.parametrize("low, high", list(RANGES.values()))
def test_links_their_inverses_and_derivatives(low, high):
    link = link_of(low, high)
    q = np.linspace(-3, 3, 41)
    np.testing.assert_allclose(link.inverse(link.forward(q))[8:-8], q[8:-8], atol=1e-9)
    step = 1e-6
    numeric = (link.forward(q + step) - link.forward(q - step)) / (2 * step)
    np.testing.assert_allclose(link.derivative(q), numeric, atol=1e-8)
    far = link.forward(np.array([-1e4, 1e4]))
    assert np.isfinite(far).all() and far.min() >= (-np.inf if low is None else low)
    assert far.max() <= (np.inf if high is None else high)


def test_least_squares_is_numpys():
    rng = np.random.default_rng(0)
    c, y = rng.random((40, 3)), rng.random(40)
    fitted = fit_surrogates(c, y[:, None], [Objective("t", "m")])
    expected = np.linalg.lstsq(features(c), y, rcond=None)[0]
    np.testing.assert_allclose(fitted.beta[0], expected, atol=1e-8)


def test_the_fit_through_a_sigmoid_is_scipys():
    rng = np.random.default_rng(0)
    c = rng.random((60, 2))
    y = (expit(3 * c[:, 0] - 2 * c[:, 1]) + 0.03 * rng.normal(size=60)).clip(0, 1)
    fitted = fit_surrogates(c, y[:, None], [Objective("t", "m", True, 0, 1)])
    expected, _ = curve_fit(lambda x, *beta: expit(features(x) @ np.array(beta)), c, y, p0=np.zeros(6))
    np.testing.assert_allclose(fitted(c)[:, 0], expit(features(c) @ expected), atol=1e-5)


def test_all_objectives_at_once_are_each_alone():
    known = Known(3, "sigmoid", noise=0.02)
    c = sample(50, box(3))
    metrics, probe = known(c), np.random.default_rng(1).random((200, 3))
    together = fit_surrogates(c, metrics, known.objectives)
    for k in range(3):
        alone = fit_surrogates(c, metrics[:, [k]], [known.objectives[k]])
        np.testing.assert_allclose(together(probe)[:, k], alone(probe)[:, 0], rtol=1e-12)


def test_a_plain_quadratic_would_leave_the_range_where_the_link_does_not():
    known = Known(2, "sigmoid")
    c = sample(30, box(2))
    everywhere = np.random.default_rng(0).uniform(-1, 2, (500, 2))
    linked = fit_surrogates(c, known(c), known.objectives)
    plain = fit_surrogates(c, known(c), [o._replace(low=None, high=None) for o in known.objectives])
    assert linked(everywhere).min() >= 0 and linked(everywhere).max() <= 1
    assert plain(everywhere).min() < 0
    assert all(a.r2_held_out > b.r2_held_out for a, b in zip(linked.fits, plain.fits, strict=True))


@given(st.integers(1, 9), st.sampled_from(["identity", "sigmoid"]))
def test_too_few_points_are_said_and_still_fitted(count, link):
    known = Known(3, link)
    c = sample(count, box(3), anchors=False)
    fitted = fit_surrogates(c, known(c), known.objectives)
    assert [f"{count} evaluations for 10 parameters" in line for line in fitted.said] == [True] * 3
    assert {fit.link for fit in fitted.fits} == {"identity"}
    np.testing.assert_allclose(fitted(c), known(c), atol=1e-6)  # of the many that pass through the data
    shifted = fit_surrogates(c, known(c) + 100, [o._replace(low=None, high=None) for o in known.objectives])
    np.testing.assert_allclose(shifted(c), known(c) + 100, atol=1e-6)
    if count == 1:
        assert all(np.isnan(fit.r2_held_out) for fit in fitted.fits)


def test_the_constant_does_not_pull_a_short_fit_towards_zero():
    c = np.array([[0.2, 0.2], [0.8, 0.8]])
    fitted = fit_surrogates(c, np.array([[70.0], [72.0]]), [Objective("t", "m")])
    assert 65 < fitted(np.array([[0.0, 0.0]]))[0, 0] < 72


def test_a_fit_that_does_not_converge_falls_back(monkeypatch):
    import scipy.optimize

    def broken(*_, **__):
        raise ValueError("Residuals are not finite in the initial point.")

    monkeypatch.setattr(scipy.optimize, "least_squares", broken)
    known = Known(2, "sigmoid")
    c = sample(30, box(2))
    fitted = fit_surrogates(c, known(c), known.objectives)
    assert len(fitted.said) == 2 and all("plain quadratic" in line for line in fitted.said)
    assert {fit.link for fit in fitted.fits} == {"identity"} and np.isfinite(fitted(c)).all()


def test_data_on_the_bounds():
    c = sample(40, box(2))
    y = (c.sum(1) > 1).astype(float)[:, None]  # all 0 or 1
    fitted = fit_surrogates(c, y, [Objective("t", "m", True, 0, 1)])
    assert np.isfinite(fitted(c)).all() and fitted.fits[0].r2 > 0.8


@pytest.mark.parametrize("bounds", [(None, None), (0.0, 1.0), (0.0, None)])
def test_a_metric_that_is_the_same_everywhere(bounds):
    c = sample(30, box(2))
    fitted = fit_surrogates(c, np.full((30, 1), 0.25), [Objective("t", "m", True, *bounds)])
    np.testing.assert_allclose(fitted(c), 0.25, atol=1e-6)
    assert np.isnan(fitted.fits[0].r2) and np.isnan(fitted.fits[0].r2_held_out)


def test_failed_evaluations_are_left_out_and_said():
    known = Known(2)
    c = sample(30, box(2))
    metrics = known(c)
    metrics[3] = np.nan
    metrics[5, 1] = np.inf
    fitted = fit_surrogates(c, metrics, known.objectives)
    assert [fit.points for fit in fitted.fits] == [29, 28]
    assert "1 of 30" in fitted.said[0] and "2 of 30" in fitted.said[1]
    np.testing.assert_allclose(fitted(c), known.truth(c), atol=1e-9)
    with pytest.raises(UserError, match="b accuracy: not one of 30"):
        fit_surrogates(c, np.stack([metrics[:, 0], np.full(30, np.nan)], 1), known.objectives)


def test_a_robust_loss_bears_outliers():
    known = Known(2, "sigmoid")
    c, probe = sample(40, box(2)), np.random.default_rng(0).random((200, 2))
    metrics = known(c)
    metrics[[4, 17, 30]] = 0.0
    errors = {
        loss: np.abs(fit_surrogates(c, metrics, known.objectives, loss=loss)(probe) - known.truth(probe)).max()
        for loss in ("linear", "soft_l1", "huber", "cauchy")
    }
    assert errors["cauchy"] < 0.02 < errors["linear"]
    assert max(errors["soft_l1"], errors["huber"]) < errors["linear"] / 2


def test_held_out_is_below_in_sample_where_there_is_noise():
    rng = np.random.default_rng(0)
    c = rng.random((12, 2))
    y = c[:, :1] + 0.3 * rng.normal(size=(12, 1))
    fit = fit_surrogates(c, y, [Objective("t", "m")]).fits[0]
    assert fit.r2_held_out < fit.r2 - 0.1
