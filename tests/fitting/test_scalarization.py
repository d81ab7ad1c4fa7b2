"""The weights of the K small gradients beside autograd of the scalarisations' formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.fitting.scalarization import linear, scalarization, smooth_tchebycheff

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
    with pytest.raises(UserError, match="choose linear or smooth-tchebycheff"):
        scalarization("tchebycheff")
