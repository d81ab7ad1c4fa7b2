"""The weights of the K small gradients beside autograd of the scalarisations' formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import MGDAWeighting

from paretomerge.errors import UserError
from paretomerge.fitting import linear, scalarization, shortest, smooth_tchebycheff

NOTHING = torch.empty(0, 0)
gammas = st.integers(1, 6).flatmap(lambda K: st.lists(st.floats(1e-6, 1), min_size=K, max_size=K))


def autograd(formula, losses: Tensor) -> Tensor:
    losses = losses.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(formula(losses), losses)
    return gradient


@given(weights=gammas, mu=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_smooth_tchebycheff_is_autograd_of_the_formula(weights, mu, seed):
    gamma = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    losses = 3 * torch.rand(len(gamma), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = autograd(lambda s: mu * torch.log(torch.exp(gamma * s / mu - 300).sum()) if mu < 0.02
                        else mu * torch.log(torch.exp(gamma * s / mu).sum()), losses)  # fmt: skip
    found = smooth_tchebycheff(losses, gamma, NOTHING, mu=mu)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@given(weights=gammas)
def test_linear_is_autograd_of_the_formula(weights):
    gamma = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    losses = torch.linspace(-2, 2, len(gamma), dtype=torch.float64)
    assert torch.equal(linear(losses, gamma, NOTHING), autograd(lambda s: (gamma * s).sum(), losses))


@pytest.mark.parametrize("huge", [1e6, 1e300])
def test_huge_losses_do_not_overflow(huge):
    gamma = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    losses = torch.tensor([huge, 2 * huge, -huge], dtype=torch.float64)
    assert torch.equal(smooth_tchebycheff(losses, gamma, NOTHING), torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64))
    equal = smooth_tchebycheff(
        torch.full((3,), huge, dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64), NOTHING
    )
    torch.testing.assert_close(equal, torch.full((3,), 1 / 9, dtype=torch.float64))


def test_a_small_mu_is_the_worst_task_and_a_large_one_linear():
    gamma = torch.tensor([0.4, 0.6], dtype=torch.float64)
    losses = torch.tensor([2.0, 1.0], dtype=torch.float64)  # γS = 0.8, 0.6
    torch.testing.assert_close(smooth_tchebycheff(losses, gamma, NOTHING, mu=1e-3), torch.tensor([0.4, 0.0]).double())
    torch.testing.assert_close(smooth_tchebycheff(losses, gamma, NOTHING, mu=1e6), gamma / 2, rtol=1e-6, atol=0)


def test_skipped_tasks():
    """They have NaN losses: weight 0, and exp(0) in the sum."""
    gamma = torch.tensor([0.7, 0.295, 0.005], dtype=torch.float64)
    losses = torch.tensor([1.0, 3.0, math.nan], dtype=torch.float64)
    assert linear(losses, gamma, NOTHING).tolist() == [0.7, 0.295, 0.0]
    expected = autograd(lambda s: 0.1 * torch.log(torch.exp(gamma[:2] * s / 0.1).sum() + 1), losses[:2])
    found = smooth_tchebycheff(losses, gamma, NOTHING, mu=0.1)
    torch.testing.assert_close(found[:2], expected, rtol=1e-12, atol=0)
    assert found[2] == 0
    whole = smooth_tchebycheff(losses.nan_to_num(2.0), gamma, NOTHING, mu=0.1)
    torch.testing.assert_close(found[:2], whole[:2], rtol=0.01, atol=0)  # its γ is small: it hardly counts


def test_by_name():
    gamma, losses = torch.tensor([0.4, 0.6]).double(), torch.tensor([2.0, 1.0]).double()
    assert torch.equal(scalarization("linear")(losses, gamma, NOTHING), gamma)
    named = scalarization("smooth-tchebycheff", 0.3)(losses, gamma, NOTHING)
    assert torch.equal(named, smooth_tchebycheff(losses, gamma, NOTHING, mu=0.3))
    assert not torch.equal(named, smooth_tchebycheff(losses, gamma, NOTHING, mu=0.1))
    with pytest.raises(UserError, match="choose linear, smooth-tchebycheff, epo, mgda, upgrad or aligned-mtl"):
        scalarization("tchebycheff")


# -- from the Gram matrix


def gradients(K, seed, P=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, P, generator=generator, dtype=torch.float64) + 0.3


@given(K=st.integers(1, 6), seed=st.integers(0, 999), size=st.sampled_from([1e-15, 1.0, 1e9]))
def test_mgda_is_the_shortest_vector_of_the_hull(K, seed, size):
    """Its inner product with every gradient is at least its own square, and no smaller vector has that property."""
    J = gradients(K, seed) * size
    w = scalarization("mgda")(torch.ones(K), torch.full((K,), 1 / K), J)
    assert (w >= 0).all() and float(w.sum()) == pytest.approx(1)
    d = w @ J
    assert float((J @ d).min()) == pytest.approx(float(d @ d), rel=1e-6, abs=1e-12 * float(J.square().sum()))


def test_mgda_is_torchjds():
    J = gradients(4, 3)
    slow = MGDAWeighting(epsilon=1e-9, max_iters=20_000)(J @ J.T)
    torch.testing.assert_close(shortest(J @ J.T), slow, rtol=0, atol=1e-3)
    assert float((shortest(J @ J.T) @ J).norm()) <= float((slow @ J).norm())


@given(K=st.integers(1, 5), seed=st.integers(0, 999), small=st.sampled_from([0.0, 1e-9, 1.0]))
def test_upgrad_raises_no_objective_and_is_linear_without_conflict(K, seed, small):
    J = gradients(K, seed)
    J[0] *= small
    gamma = torch.linspace(1, 2, K).double()
    gamma /= gamma.sum()
    d = scalarization("upgrad")(torch.ones(K), gamma, J) @ J
    assert float((J @ d).min()) >= -1e-5 * float(J.square().sum())
    agreeing = J.abs()
    found = scalarization("upgrad")(torch.ones(K), gamma, agreeing)
    torch.testing.assert_close(found @ agreeing, gamma @ agreeing, rtol=1e-9, atol=1e-9)


def test_aligned_mtl_balances_the_gradients():
    """With orthogonal gradients of any lengths, each contributes γ_k of the smallest length."""
    J = torch.diag(torch.tensor([1.0, 10.0, 3.0])).double()
    gamma = torch.tensor([0.2, 0.5, 0.3]).double()
    torch.testing.assert_close(scalarization("aligned-mtl")(torch.ones(3), gamma, J) @ J, gamma)


@pytest.mark.parametrize("name", ["epo", "mgda", "upgrad", "aligned-mtl"])
def test_tasks_without_a_loss_and_zero_gradients(name):
    J = gradients(3, 5)
    gamma, losses = torch.tensor([0.4, 0.3, 0.3]).double(), torch.tensor([1.0, math.nan, 2.0]).double()
    J[1] = 0
    found = scalarization(name)(losses, gamma, J)
    two = scalarization(name)(losses[[0, 2]], gamma[[0, 2]], J[[0, 2]])
    assert found[1] == 0
    torch.testing.assert_close(found[[0, 2]], two, rtol=1e-9, atol=1e-12)
    assert scalarization(name)(losses, gamma, 0 * J).isfinite().all()


def test_mgda_ends_at_a_pareto_stationary_point():
    for K in (2, 3, 4, 5):
        centres = torch.randn(K, 6, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
        theta = torch.full((6,), 3.0).double()
        weigh = scalarization("mgda")
        for _ in range(300):
            J = 2 * (theta - centres)
            theta = theta - 0.1 * weigh(torch.ones(K), torch.full((K,), 1 / K), J) @ J
        J = 2 * (theta - centres)
        assert float((weigh(torch.ones(K), torch.full((K,), 1 / K), J) @ J).norm()) < 1e-5
