"""Distilling from the likeliest classes: against the formula, autograd, and the whole divergence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from paretomerge.fitting import OBJECTIVES, Predictions, divergence, largest, top_k


def logits(n: int, classes: int, seed: int, size: float = 2.0, dtype=torch.float64) -> Tensor:
    return size * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def formula(student: Tensor, log_p: Tensor, places: Tensor) -> Tensor:
    """The docstring's, by autograd; log_p may be off 1 by rounding."""
    p = log_p.to(student).softmax(-1)
    q = student.softmax(-1)
    mask = torch.zeros_like(q).scatter(1, places.long(), 1.0)
    rest = (q * (1 - mask)).sum(1, keepdim=True)
    q = torch.cat([q.gather(1, places.long()), rest], 1)
    return (p * (p.log() - q.log())).sum(1).mean()


@given(st.integers(1, 6), st.integers(2, 40), st.integers(0, 1000), st.data())
def test_value_and_gradient_are_the_formulas(n, classes, seed, data):
    count = data.draw(st.integers(1, classes - 1))
    student = logits(n, classes, seed).requires_grad_()
    log_p, places = largest(logits(n, classes, seed + 1), count)
    expected = formula(student, log_p, places)
    (gradient,) = torch.autograd.grad(expected, student)
    found = divergence(student, log_p, places)
    (3 * found).backward()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(student.grad, 3 * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 7, 30])
def test_what_is_missing_is_the_divergence_of_the_rests(count):
    """The chain rule, and the bound on the gradient."""
    teacher, student = logits(5, 50, 1), logits(5, 50, 2).requires_grad_()
    log_p, places = largest(teacher, count)
    whole = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(1)
    out = torch.ones(5, 50, dtype=torch.bool).scatter(1, places.long(), False)
    p, q = teacher.softmax(-1), student.softmax(-1)
    missing = torch.zeros(5, dtype=torch.float64)
    for i in range(5):
        p_rest, q_rest = p[i, out[i]], q[i, out[i]]
        missing[i] = (p_rest * ((p_rest / p_rest.sum()) / (q_rest / q_rest.sum())).log()).sum()
    found = divergence(student, log_p, places)
    torch.testing.assert_close(whole.mean() - found, missing.mean(), rtol=0, atol=3e-3)  # fp16
    assert found < whole.mean()
    one, two = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (whole.mean(), found))
    assert ((one - two).abs().sum(1) * 5 <= 2 * (p * out).sum(1) + 2e-3).all()


def test_all_classes_are_the_whole_divergence():
    teacher, student = logits(4, 9, 3, dtype=torch.float32), logits(4, 9, 4, dtype=torch.float32)
    log_p, places = largest(teacher, 9)
    expected = OBJECTIVES["distill"](Predictions(student, teacher))
    assert float(divergence(student, log_p, places)) == pytest.approx(float(expected), rel=1e-3)
    assert (log_p[:, -1] < -50).all()


def test_nothing_is_to_be_learned_from_oneself():
    teacher = logits(20, 200, 5, size=4.0, dtype=torch.float32)
    student = teacher.clone().requires_grad_()
    log_p, places = largest(teacher, 16)
    loss = OBJECTIVES["distill"](Predictions(student, log_p, places=places))
    loss.backward()
    assert 0 <= float(loss.detach()) < 1e-5 and float(student.grad.abs().sum(1).max()) * 20 < 5e-3


def test_sure_predictions_are_finite():
    """A rest that is nothing, for either model."""
    teacher = torch.tensor([[200.0, 0.0, 0.0, -5.0], [0.0, 0.1, 0.2, 300.0]])
    student = torch.tensor([[0.0, 300.0, 0.0, 0.0], [0.0, 0.1, 0.2, 300.0]], requires_grad=True)
    loss = divergence(student, *largest(teacher, 1))
    loss.backward()
    assert float(loss.detach()) > 10 and loss.isfinite() and student.grad.isfinite().all()


def test_kept_shapes_and_types():
    log_p, places = largest(logits(6, 30, 1).view(2, 3, 30), 4)
    assert (log_p.shape, log_p.dtype) == ((2, 3, 5), torch.float16)
    assert (places.shape, places.dtype) == ((2, 3, 4), torch.int32)
    torch.testing.assert_close(log_p.float().exp().sum(-1), torch.ones(2, 3), rtol=0, atol=2e-3)


def test_chunks_do_not_matter(monkeypatch):
    teacher, student = logits(13, 40, 1), logits(13, 40, 2)
    found = []
    for entries in (1 << 20, 100, 1):
        monkeypatch.setattr(top_k, "_ENTRIES", entries)
        own = student.clone().requires_grad_()
        loss = divergence(own, *largest(teacher, 5))
        loss.backward()
        found.append((float(loss.detach()), own.grad))
    for value, gradient in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-12)
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_have_the_logits_dtype(dtype):
    student = logits(3, 20, 1, dtype=torch.float32).to(dtype).requires_grad_()
    divergence(student, *largest(logits(3, 20, 2), 4)).backward()
    assert student.grad.dtype == dtype
    with torch.no_grad():
        assert divergence(student, *largest(logits(3, 20, 2), 4)) > 0
