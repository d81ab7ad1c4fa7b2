"""One dense gradient and K small ones give the same step."""

import math

import pytest
import torch
from torch import Tensor

from paretomerge.fitting import Part, by_one_gradient, by_small_gradients, relative_weight, scalarization
from quadratics import problem


def both(name: str, gamma: list[float], chosen: list[int], factors: list[float], mu: float = 0.1, sizes=(1.0, 1.0, 1.0)):
    of = problem(len(gamma))
    learned = of.learned
    shares = torch.tensor(gamma, dtype=torch.float64)
    learned.build_(of.weights, shares)

    def parts(k: int) -> list[Part]:
        loss: Tensor = sum((w - of.centres[n][k]).square().mean() for n, w in of.weights.items())
        return [Part(sizes[k] * loss, 1.0, {"seen": k})]

    arguments = learned, of.weights, parts, chosen, shares, torch.tensor(factors, dtype=torch.float64)
    weigh = scalarization(name, mu)
    relative = relative_weight(name, mu, whole=True)
    found = by_small_gradients(*arguments, weigh), by_one_gradient(*arguments, weigh, relative)
    assert all(w.grad is None for w in of.weights.values())
    return found


CASES = [
    ([0.2, 0.5, 0.3], [0, 1, 2], [1.0, 1.0, 1.0]),
    ([0.004, 0.896, 0.1], [0, 1, 2], [2.5, 1.0, 1.0]),
    ([0.001, 0.899, 0.1], [1, 2], [1.0, 1.0, 1.0]),
    ([0.0, 1.0, 0.0], [0, 1, 2], [1.0, 1.0, 1.0]),
]


@pytest.mark.parametrize("gamma, chosen, factors", CASES)
@pytest.mark.parametrize(
    "name, mu, sizes",
    [
        ("linear", 0.1, (1.0, 1.0, 1.0)),
        ("smooth-tchebycheff", 0.1, (1.0, 1.0, 1.0)),
        ("smooth-tchebycheff", 0.01, (1.0, 3.0, 0.1)),  # exponents of hundreds: the sum is scaled down on the way
        ("smooth-tchebycheff", 0.01, (40.0, 0.5, 20.0)),
    ],
)
def test_both_ways_are_the_same(gamma, chosen, factors, name, mu, sizes):
    small, one = both(name, gamma, chosen, factors, mu, sizes)
    torch.testing.assert_close(one.values, small.values, rtol=0, atol=0, equal_nan=True)
    size = float(small.vector.abs().max())
    assert size > 0
    torch.testing.assert_close(one.vector, small.vector, rtol=1e-4, atol=1e-6 * size)
    assert one.watched == small.watched == {k: {"seen": k} for k in chosen} and not one.culprits
    assert [not math.isnan(value) for value in small.values] == [k in chosen for k in range(3)]


@pytest.mark.parametrize("name", ["linear", "smooth-tchebycheff"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named(name, bad):
    small, one = both(name, [0.2, 0.5, 0.3], [0, 1, 2], [1.0, 1.0, 1.0], sizes=(1.0, bad, 1.0))
    assert small.culprits == one.culprits == [1]


def test_what_needs_all_gradients():
    assert relative_weight("smooth-tchebycheff", whole=False) is None
    assert relative_weight("linear", whole=False) is not None
    assert relative_weight("anything-else", whole=True) is None
