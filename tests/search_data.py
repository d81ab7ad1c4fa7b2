"""Evaluators whose metrics are known functions of c, with no model behind them."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from paretomerge.results import Objective


class Known:
    """metric_k(c) = link(−½ (c − t_k)ᵀ H_k (c − t_k) + height): best at t_k = 0.9 e_k; the calls are written down."""

    def __init__(self, n: int, link: str = "identity", seed: int = 0, names: str = "abcdefgh", noise: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.n, self.link, self.noise = n, link, noise
        self.best = 0.9 * np.eye(n)
        roots = rng.normal(size=(n, n, n)) / n
        self.hessians = roots @ roots.transpose(0, 2, 1) + np.eye(n)
        low, high = {"identity": (None, None), "sigmoid": (0.0, 1.0), "softplus": (1.0, None)}[link]
        name, larger = ("perplexity", False) if link == "softplus" else ("accuracy", True)
        self.objectives = [Objective(names[k], name, larger, low, high) for k in range(n)]
        self.calls: list[tuple[np.ndarray, list[int] | None]] = []

    def quadratic(self, c: np.ndarray) -> np.ndarray:
        d = c[:, None] - self.best
        return 0.5 * np.einsum("pki,kij,pkj->pk", d, self.hessians, d)

    def truth(self, c: np.ndarray) -> np.ndarray:
        loss = self.quadratic(np.asarray(c, dtype=np.float64))
        if self.link == "sigmoid":
            return expit(2 - 4 * loss)
        return 1 + np.log1p(np.exp(5 * loss)) if self.link == "softplus" else 3 - loss

    def __call__(self, coefficients: np.ndarray, tasks: Sequence[int] | None = None) -> np.ndarray:
        self.calls.append((np.array(coefficients), None if tasks is None else list(tasks)))
        metrics = self.truth(coefficients)
        metrics = metrics + self.noise * np.sin(1e4 * metrics)
        if tasks is not None:
            metrics[:, [k for k in range(self.n) if k not in tasks]] = np.nan
        return metrics

    @property
    def task_evaluations(self) -> int:
        return sum(len(c) * (self.n if tasks is None else len(tasks)) for c, tasks in self.calls)


def quadratic_values(c: np.ndarray, a: np.ndarray, b: np.ndarray, e: float) -> np.ndarray:
    """½ cᵀAc + bᵀc + e, by another route than ``features``."""
    return np.array([0.5 * x @ a @ x + b @ x + e for x in c])
