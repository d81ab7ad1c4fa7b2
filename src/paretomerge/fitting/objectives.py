"""What a task wants of the merged model: losses of its logits, most of them without labels.

Logits are (n, classes): n inputs of a classifier, or n tokens that count of a language model; losses are means over n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from paretomerge.errors import UserError
from paretomerge.fitting.top_k import divergence


class Predictions(NamedTuple):
    """What an objective may look at; n entries count."""

    logits: Tensor
    """(n, classes)."""
    teacher: Tensor | None = None
    """The expert's logits on the same inputs, (n, classes); for ``distill``."""
    labels: Tensor | None = None
    """(n,) integers; for ``cross-entropy``."""
    places: Tensor | None = None
    """The classes that ``teacher`` is of, (n, m), where it has only log-probabilities as ``top_k.largest`` gives them."""


Objective = Callable[[Predictions], Tensor]
Name = Literal["distill", "infomax", "entropy", "features", "cross-entropy"]


def entropy(p: Predictions) -> Tensor:
    """Mean Shannon entropy of the predictions (AdaMerging, Yang et al. 2024; Pareto Merging, eq. 5).

    It has a trap: predicting one class for every input has entropy 0. Watch ``marginal_entropy``.
    """
    return _entropy(p.logits).mean()


def infomax(p: Predictions) -> Tensor:
    """Entropy less the entropy of the mean prediction (information maximisation): sure of each input, undecided overall."""
    return entropy(p) - marginal_entropy(p.logits)


def distill(p: Predictions) -> Tensor:
    """KL(expert ‖ merged), mean over inputs: the experts are at hand while fitting, and know more than an entropy does."""
    if p.teacher is None:
        raise UserError("objective distill: the expert's predictions are missing")
    if p.places is not None:
        return divergence(p.logits, p.teacher, p.places)
    return F.kl_div(p.logits.log_softmax(-1), p.teacher.log_softmax(-1), log_target=True, reduction="batchmean")


def cross_entropy(p: Predictions) -> Tensor:
    """Cross-entropy with the labels."""
    if p.labels is None:
        raise UserError("objective cross-entropy: the fit inputs have no labels; use distill, infomax or entropy")
    return F.cross_entropy(p.logits, p.labels)


def features(p: Predictions) -> Tensor:
    """Feature matching: ‖f − f_expert‖² / ‖f_expert‖², mean over inputs; ``logits`` and ``teacher`` hold the features."""
    if p.teacher is None:
        raise UserError("objective features: the expert's features are missing")
    return ((p.logits - p.teacher).square().sum(-1) / p.teacher.square().sum(-1).clamp_min(1e-12)).mean()


OBJECTIVES: dict[str, Objective] = {
    "distill": distill,
    "infomax": infomax,
    "entropy": entropy,
    "features": features,
    "cross-entropy": cross_entropy,
}


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction over (n, classes) logits: 0 when one class is predicted for everything."""
    return shannon(logits.softmax(-1).mean(0))


def shannon(p: Tensor) -> Tensor:
    """Entropy of a distribution; its gradient is finite where p is 0, too."""
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum()


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
