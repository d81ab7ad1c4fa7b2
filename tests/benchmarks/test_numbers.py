"""Scores of single inputs, and comparisons by pairs."""

import doctest
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from benchmarks.claims import methods, numbers, scores
from benchmarks.claims.numbers import Number, lead
from paretomerge.evaluation import measure


def test_the_mean_of_the_scores_is_the_metric(suite):
    on = methods.bench(suite, "held-out", "quick")
    front = methods.SOUPS.make(on, 0)
    for task, given in on.inputs.items():
        model = front.model("equal", head=task, dtype=torch.float32)
        each = scores.scores(model, given, 7)
        assert len(each) == 20 and set(each) <= {0.0, 1.0}
        assert scores.summary(each, given.metric) == measure(model, given)


def test_of_running_text_it_is_the_loss_of_each_block():
    class Model(torch.nn.Module):
        config = None

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(11, 11, generator=torch.Generator().manual_seed(0)))

        def forward(self, input_ids):
            return type("Output", (), {"logits": self.weight[input_ids]})

    blocks = torch.randint(11, (9, 6), generator=torch.Generator().manual_seed(1))

    class Blocks:
        labels = None

        def __len__(self):
            return len(blocks)

        def batch(self, indices):
            return {"input_ids": blocks[indices]}

    task = type("Task", (), {"held_out": Blocks(), "metric": "perplexity", "prompts": None, "name": "t"})
    model = Model()
    each = scores.scores(model, task, 4)
    table = model.weight.detach().double().log_softmax(-1)
    losses = [[-float(table[a, b]) for a, b in pairwise(row)] for row in blocks.tolist()]
    assert each == pytest.approx([-sum(row) / 5 for row in losses], rel=1e-5)
    assert scores.summary(each, "perplexity") == pytest.approx(measure(model, task), rel=1e-6)
    again = scores.unpacked(scores.packed(each, "perplexity"), "perplexity", 9)
    assert np.abs(again - each).max() < 2e-3


def test_packed_scores_come_back():
    rng = np.random.default_rng(0)
    for n in (1, 7, 8, 1000):
        right = rng.integers(0, 2, n).astype(float)
        assert np.array_equal(scores.unpacked(scores.packed(right, "accuracy"), "accuracy", n), right)
    assert doctest.testmod(scores, extraglobs={"np": np}).failed == 0


def of(*right: np.ndarray, std: float | None = None) -> Number:
    return Number(float(np.mean([each.mean() for each in right])), std, 3, sum(map(len, right)), "accuracy", right)


def test_pairs_decide_what_independent_samples_leave_open():
    rng = np.random.default_rng(0)
    one = (rng.random(1000) < 0.8).astype(float)
    worse = one.copy()
    worse[np.flatnonzero(one)[:20]] = 0  # wrong where the first is right, never the other way round
    gain, noise = lead(of(one), of(worse))
    assert gain == pytest.approx(0.02) and gain > noise
    apart = Number(one.mean(), None, 1, 1000, "accuracy"), Number(worse.mean(), None, 1, 1000, "accuracy")
    gain, noise = lead(*apart)
    assert gain == pytest.approx(0.02) and gain < noise
    assert noise == pytest.approx(2 * math.sqrt(sum(p.mean * (1 - p.mean) / 1000 for p in apart)))


def test_the_noise_of_pairs_is_that_of_a_paired_t_test_and_of_the_seeds():
    rng = np.random.default_rng(1)
    one, other = (rng.random(500) < 0.7).astype(float), (rng.random(500) < 0.6).astype(float)
    gain, noise = lead(of(one), of(other))
    assert gain / (noise / 2) == pytest.approx(ttest_rel(one, other).statistic)
    gain, noise = lead(of(one, other), of(other, one))
    assert gain == pytest.approx(0) and noise == pytest.approx(2 * math.sqrt(2 * (one - other).var(ddof=1) / 500) / 2)
    _, more = lead(of(one, other, std=0.03), of(other, one, std=0.04))
    assert more == pytest.approx(math.hypot(noise, 2 * 0.05 / math.sqrt(3)))


def test_perplexities_are_compared_by_their_losses():
    a, b = (Number(math.exp(x), 0.1, 2, 5, "perplexity", (np.full(5, -x) + noise,)) for x, noise in ((2.0, 0), (2.5, 0)))
    gain, noise = lead(a, b)
    assert gain == pytest.approx(0.5)
    assert noise == pytest.approx(2 * math.sqrt((0.1 / math.exp(2)) ** 2 / 2 + (0.1 / math.exp(2.5)) ** 2 / 2))
    assert numbers.bold([b, a]) == 1
