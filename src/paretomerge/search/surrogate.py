"""Quadratic surrogates of the metrics as functions of the merging coefficients (MAP, eqs 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from paretomerge import decompositions
from paretomerge.errors import UserError
from paretomerge.results.objective import Matrix, Objective
from paretomerge.search.link_functions import Link, link_of

Loss = Literal["linear", "soft_l1", "huber", "cauchy"]


class Fit(NamedTuple):
    """How well one metric's surrogate holds."""

    objective: Objective
    link: str
    """identity, sigmoid or softplus: what is in use, after a fall-back."""
    points: int
    parameters: int
    r2: float
    """On the points of the fit; NaN for a metric that is the same everywhere."""
    r2_held_out: float
    """By cross-validation; NaN where that cannot be had."""
    said: tuple[str, ...]
    """What went wrong, a line each."""


@dataclass(frozen=True)
class Surrogates:
    """M̃_k(c) = link_k(½ cᵀ A_k c + b_kᵀ c + e_k), k = 1…K."""

    beta: Matrix
    """(K, F): the F = (N+1)(N+2)/2 numbers of A, b and e, in the order of ``features``."""
    links: tuple[Link, ...]
    fits: tuple[Fit, ...]

    def __call__(self, c: Matrix) -> Matrix:
        """Predicted metrics (P, K) at c (P, N), in the metrics' own units."""
        q = features(c) @ self.beta.T
        return np.stack([link.forward(q[:, k]) for k, link in enumerate(self.links)], 1)

    def quadratic(self, k: int) -> tuple[Matrix, Matrix, float]:
        """A (N, N), symmetric, b (N,) and e of metric k."""
        n = math.isqrt(2 * self.beta.shape[1]) - 1
        b, pairs = self.beta[k, 1 : n + 1], self.beta[k, n + 1 :]
        a = np.zeros((n, n))
        a[np.triu_indices(n)] = pairs
        return a + np.triu(a, 1).T, b, float(self.beta[k, 0])

    @property
    def said(self) -> list[str]:
        return [line for fit in self.fits for line in fit.said]


def features(c: Matrix) -> Matrix:
    """(P, F): 1, c_i, ½ c_i² and c_i c_j (i < j), row by row of A's upper triangle.

    >>> features(np.array([[2.0, 3.0]]))
    array([[1. , 2. , 3. , 2. , 6. , 4.5]])
    """
    i, j = np.triu_indices(c.shape[1])
    return np.concatenate([np.ones((len(c), 1)), c, c[:, i] * c[:, j] * np.where(i == j, 0.5, 1.0)], 1)


def fit_surrogates(
    c: Matrix, metrics: Matrix, objectives: Sequence[Objective], *, loss: Loss = "linear", folds: int = 5, seed: int = 0
) -> Surrogates:
    """Fit one surrogate a metric, and estimate R² on held-out c.

    Unbounded metrics: least squares, in closed form. Bounded ones: non-linear least squares through the link, started from
    the least-squares fit of the inverse-linked data. Where that fails, or there are fewer points than parameters, it is
    said, and the plain quadratic of smallest norm stands in: no metric is ever dropped.

    Args:
        c: (Q, N).
        metrics: (Q, K); NaN and infinities are left out, and that is said.
        objectives: the K metrics with their ranges.
        loss: ρ of scipy's ``least_squares``, its scale estimated from the first residuals; ``"linear"``: plain squares.
            The others bear outliers; they concern metrics with a bound.
        folds: of the cross-validation; points, if there are fewer; 0: none.
        seed: of the folds.

    Raises:
        UserError: not one finite value of a metric.
    """
    design = features(np.asarray(c, dtype=np.float64))
    betas, links, fits = [], [], []
    for k, objective in enumerate(objectives):
        name = f"{objective.task} {objective.metric}"
        good = np.isfinite(metrics[:, k])
        x, y = design[good], metrics[good, k]
        if not len(y):
            raise UserError(f"{name}: not one of {len(good)} evaluations gave a finite number")
        said = [] if good.all() else [f"{name}: {int((~good).sum())} of {len(good)} evaluations gave no finite number"]
        beta, link, problem = _fit(x, y, objective, loss)
        if problem:
            said.append(f"{name}: {problem}; its surrogate is a plain quadratic of smallest norm")
        held_out = r_squared(y, y - held_out_errors(x, y, objective, loss=loss, folds=folds, seed=seed))
        fits.append(Fit(objective, link.name, len(y), x.shape[1], r_squared(y, link.forward(x @ beta)), held_out, tuple(said)))
        betas.append(beta)
        links.append(link)
    return Surrogates(np.array(betas), tuple(links), tuple(fits))


def held_out_errors(
    x: Matrix, y: Matrix, objective: Objective, *, loss: Loss = "linear", folds: int = 5, seed: int = 0
) -> Matrix:
    """y less its prediction by a surrogate that has not seen it, (Q,); NaN where there is only one point, or no fold.

    Args:
        x: ``features`` (Q, F).
        y: the metric (Q,), finite.
        objective: its range.
        loss: as in ``fit_surrogates``.
        folds: as in ``fit_surrogates``.
        seed: of the folds.
    """
    errors = np.full(len(y), np.nan)
    if len(y) > 1 and folds:
        order = np.random.default_rng(seed).permutation(len(y))
        for fold in np.array_split(order, min(folds, len(y))):
            kept = np.setdiff1d(order, fold)
            beta, link, _ = _fit(x[kept], y[kept], objective, loss)
            errors[fold] = y[fold] - link.forward(x[fold] @ beta)
    return errors


def r_squared(truth: Matrix, predicted: Matrix) -> float:
    """1 − Σ (y − ŷ)² / Σ (y − ȳ)²; NaN where y does not vary.

    >>> r_squared(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
    0.5
    """
    total = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - predicted) ** 2).sum()) / total if total > 0 else math.nan


def _fit(x: Matrix, y: Matrix, objective: Objective, loss: Loss) -> tuple[Matrix, Link, str]:
    """β, the link in use, and what kept it from being the declared one (empty: nothing)."""
    plain, link = link_of(None, None), link_of(objective.low, objective.high)
    if len(y) < x.shape[1]:
        return _least_squares(x, y), plain, f"{len(y)} evaluations for {x.shape[1]} parameters"
    if link.name == "identity":
        return _least_squares(x, y), plain, ""
    from scipy.optimize import least_squares

    start = _least_squares(x, link.inverse(y))
    scale = float(np.std(y)) or 1.0
    residuals = (link.forward(x @ start) - y) / scale
    outlier = max(1e-3, 1.4826 * float(np.median(np.abs(residuals))))
    try:
        found = least_squares(
            lambda beta: (link.forward(x @ beta) - y) / scale,
            start,
            jac=lambda beta: link.derivative(x @ beta)[:, None] * x / scale,
            x_scale="jac",
            loss=loss,
            f_scale=outlier,
            max_nfev=200,
        )
    except (ValueError, np.linalg.LinAlgError) as error:
        return _least_squares(x, y), plain, f"no fit through its range ({error})"
    fallback = _least_squares(x, y)
    errors, plain_errors = link.forward(x @ found.x) - y, x @ fallback - y
    if not np.isfinite(found.x).all() or (found.status < 1 and errors @ errors > plain_errors @ plain_errors):
        return fallback, plain, "no fit through its range (it did not converge)"
    return found.x, link, ""


def _least_squares(x: Matrix, y: Matrix) -> Matrix:
    """argmin ‖Xβ − y‖, of all minimisers the one with the smallest A and b: the constant (column 0) is not penalised."""
    centre = x[:, 1:].mean(0)
    slope = decompositions.least_squares(x[:, 1:] - centre, y - y.mean())
    return np.concatenate([[y.mean() - centre @ slope], slope])
