"""Objectives beside their formulas, written out with loops over inputs and classes."""

import math

import pytest
import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.fitting import OBJECTIVES, Predictions, marginal_entropy

N, CLASSES = 6, 4


def draw(seed: int = 0, size: float = 2.0, shape: tuple[int, ...] = (N, CLASSES)) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(logits: Tensor) -> list[list[float]]:
    exps = [[math.exp(x) for x in row] for row in logits.tolist()]
    return [[x / sum(row) for x in row] for row in exps]


def shannon(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def mean_prediction(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def by_hand(name: str, logits: Tensor, teacher: Tensor, labels: Tensor) -> float:
    p, q = probabilities(logits), probabilities(teacher)
    if name == "features":
        pairs = zip(logits.tolist(), teacher.tolist(), strict=True)
        return sum(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / sum(b * b for b in y) for x, y in pairs) / N
    entropy = sum(map(shannon, p)) / N
    return {
        "entropy": entropy,
        "infomax": entropy - shannon(mean_prediction(p)),
        "distill": sum(b * math.log(b / a) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)) / N,
        "cross-entropy": -sum(math.log(p[i][y]) for i, y in enumerate(labels.tolist())) / N,
    }[name]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_formula_and_gradient(name):
    logits, teacher, labels = draw().requires_grad_(), draw(1), torch.arange(N) % CLASSES
    loss = OBJECTIVES[name](Predictions(logits, teacher, labels))
    assert loss.shape == () and float(loss.detach()) == pytest.approx(by_hand(name, logits, teacher, labels), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: OBJECTIVES[name](Predictions(x, teacher, labels)), (logits,))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [1e-30, 1e4])
def test_finite_for_very_small_and_very_large_logits(name, size):
    logits = (draw(size=1) * size).float().requires_grad_()
    teacher = (draw(1, size=1) * size).float()
    loss = OBJECTIVES[name](Predictions(logits, teacher, torch.zeros(N, dtype=torch.long)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_bounds():
    for seed in range(20):
        logits = draw(seed)
        p = Predictions(logits, draw(seed + 100))
        assert 0 <= OBJECTIVES["entropy"](p) <= math.log(CLASSES) + 1e-12
        assert -math.log(CLASSES) - 1e-12 <= OBJECTIVES["infomax"](p) <= 1e-12  # minus the mutual information
        assert OBJECTIVES["distill"](p) > 0 and OBJECTIVES["features"](p) > 0
        assert abs(OBJECTIVES["distill"](Predictions(logits, logits + 3))) < 1e-12  # a shift of logits is the same prediction
        assert OBJECTIVES["features"](Predictions(logits, logits)) == 0


def test_entropy_falls_for_collapse_and_infomax_does_not():
    """One class for every input: the best entropy there is, and the worst information."""
    collapsed = torch.zeros(40, CLASSES)
    collapsed[:, 2] = 50
    sure = 50 * torch.eye(CLASSES).repeat(10, 1)
    unsure = torch.zeros(40, CLASSES)
    entropy = {name: float(OBJECTIVES["entropy"](Predictions(x))) for name, x in (("c", collapsed), ("s", sure), ("u", unsure))}
    assert entropy["c"] == pytest.approx(0, abs=1e-6) and entropy["s"] == pytest.approx(0, abs=1e-6)
    assert entropy["u"] == pytest.approx(math.log(CLASSES))
    infomax = {name: float(OBJECTIVES["infomax"](Predictions(x))) for name, x in (("c", collapsed), ("s", sure), ("u", unsure))}
    assert infomax["c"] == pytest.approx(0, abs=1e-6) and infomax["u"] == pytest.approx(0, abs=1e-6)
    assert infomax["s"] == pytest.approx(-math.log(CLASSES))
    assert float(marginal_entropy(collapsed)) == pytest.approx(0, abs=1e-6)
    assert float(marginal_entropy(sure)) == pytest.approx(math.log(CLASSES)) == pytest.approx(float(marginal_entropy(unsure)))


def test_marginal_entropy_by_hand():
    logits = draw(3)
    assert float(marginal_entropy(logits)) == pytest.approx(shannon(mean_prediction(probabilities(logits))), rel=1e-12)
    assert float(marginal_entropy(logits.exp() * 1e3)) >= 0  # classes of probability 0 count as 0


@pytest.mark.parametrize(
    "name, message", [("distill", "expert's predictions"), ("features", "expert's features"), ("cross-entropy", "no labels")]
)
def test_what_is_missing_is_named(name, message):
    with pytest.raises(UserError, match=message):
        OBJECTIVES[name](Predictions(draw()))


@pytest.mark.parametrize("name", ["entropy", "distill", "cross-entropy", "features"])
def test_means_over_inputs(name):
    """The objective of a batch is the mean of its inputs': micro-batches and processes add up."""
    logits, teacher, labels = draw(), draw(1), torch.arange(N) % CLASSES
    whole = float(OBJECTIVES[name](Predictions(logits, teacher, labels)))
    parts = [float(OBJECTIVES[name](Predictions(logits[i, None], teacher[i, None], labels[i, None]))) for i in range(N)]
    assert whole == pytest.approx(sum(parts) / N, rel=1e-12)
