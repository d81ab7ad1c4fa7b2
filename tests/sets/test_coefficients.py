"""Coefficients as functions of the preference, beside their formulas, and their gradients beside autograd."""

import pytest
import torch

from paretomerge.sets import Coefficients, Shared
from paretomerge.sets import coefficient_shapes as shapes
from paretomerge.weights import Weights

KINDS = ("constant", "affine", "routed")
"""With parameters in tensors; the proportional one has its λ among the facts."""
GROUPS = {"one": ("a", "b"), "two": ("c",), "three": ("d", "e", "f")}


def made(kind: str, K: int, seed: int = 0) -> Coefficients:
    generator = torch.Generator().manual_seed(seed)
    parts = {name: torch.randn(shape, generator=generator).double() for name, shape in shapes(kind, 3, K).items()}
    return Coefficients(kind, parts, GROUPS)


def preference(K: int, seed: int = 1) -> torch.Tensor:
    weights = torch.rand(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weights / weights.sum()


def by_hand(kind: str, parts: dict[str, torch.Tensor], row: int, gamma: torch.Tensor) -> torch.Tensor:
    """c(γ) of one group as the paper draws it: layers."""
    p = {name: tensor[row] for name, tensor in parts.items()}
    if kind == "constant":
        return p["lambda"]
    if kind == "affine":
        return torch.nn.functional.linear(gamma, p["M"], p["b"])
    hidden = torch.nn.functional.linear(gamma, p["W1"], p["b1"])
    return torch.nn.functional.linear(torch.where(hidden > 0, hidden, 0.0), p["W2"], p["b2"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [1, 2, 5])
def test_are_the_formulas(kind, K):
    c, gamma = made(kind, K), preference(K)
    found = c.at(gamma)
    assert found.shape == (3, K)
    for row in range(3):
        torch.testing.assert_close(found[row], by_hand(kind, c.parts, row, gamma), rtol=1e-12, atol=1e-12)
    equal = torch.full((K,), 1 / K, dtype=torch.float64)
    for group, names in enumerate(GROUPS.values()):
        for name in names:
            difference = by_hand(kind, c.parts, group, gamma) - by_hand(kind, c.parts, group, equal)
            torch.testing.assert_close(c.between(gamma, equal)[c.row[name]], difference, rtol=1e-12, atol=1e-12)
    assert c.between(gamma, gamma).abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", [1, 2, 5])
def test_gradients_are_what_autograd_finds(kind, K):
    c, gamma = made(kind, K), preference(K)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in c.parts.items()}
    outputs = torch.stack([by_hand(kind, leaves, row, gamma) for row in range(3)])
    d = torch.randn(3, K, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.autograd.grad((outputs * d).sum(), list(leaves.values()))
    found = c.pulled_back(gamma, d)
    assert list(found) == list(c.parts)
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_restored(kind):
    c = made(kind, 3)
    tensors, facts = c.stored()
    names = [name for members in GROUPS.values() for name in members]
    again = Coefficients.restored(kind, tensors, facts, 3, names)
    assert torch.equal(again.at(preference(3)), c.at(preference(3))) and again.groups == GROUPS
    for wrong in (names[1:], [*names, "g"]):
        with pytest.raises(ValueError, match="are not the tensors that vary"):
            Coefficients.restored(kind, tensors, facts, 3, wrong)
    with pytest.raises(ValueError, match="do not fit 3 groups and 2 tasks"):
        Coefficients.restored(kind, tensors, facts, 2, names)
    whole = Weights.of({name: tensors[name].long() for name in tensors})
    with pytest.raises(ValueError, match="do not fit"):
        Coefficients.restored(kind, whole, facts, 3, names)


def test_proportional_ones_are_k_lambda_gamma():
    c = Coefficients.proportional(0.37, ["a", "b"])
    tensors, facts = c.stored()
    assert not len(tensors) and facts == {"scale": 0.37}
    again = Coefficients.restored("proportional", tensors, facts, 3, ["a", "b"])
    gamma, equal = preference(3), torch.full((3,), 1 / 3, dtype=torch.float64)
    assert torch.equal(again.between(gamma, equal)[again.row["b"]], 3 * 0.37 * (gamma - equal))
    torch.testing.assert_close(again.at(gamma)[0], 3 * 0.37 * gamma)
    with pytest.raises(ValueError, match="scale nan"):
        Coefficients.restored("proportional", tensors, {"scale": float("nan")}, 3, ["a"])


def test_any_function_of_the_preference_can_be_shared():
    c = Shared(lambda gamma: gamma.square(), ["a", "b"])
    gamma = preference(3)
    assert c.row == {"a": 0, "b": 0}
    assert torch.equal(c.between(gamma, gamma.flip(0)), (gamma.square() - gamma.flip(0).square())[None])
