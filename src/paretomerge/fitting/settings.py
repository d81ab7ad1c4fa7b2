"""How a fit on data runs: one record for the loop, for what it samples, and for the run's folder."""

from __future__ import annotations

from dataclasses import dataclass

from paretomerge.errors import UserError
from paretomerge.fitting.scalarization import SKIPPING, scalarization


@dataclass(frozen=True)
class Settings:
    """How a fit runs; the defaults are recipe R (METHOD), measured best on held-out inputs, ``PAPER`` is the paper's."""

    steps: int = 600
    lr: float = 2e-3
    schedule: str = "cosine"
    """cosine: to a tenth of lr; constant."""
    alpha: float = 0.3
    """Of the Dirichlet distribution of γ."""
    sampling: str = "dirichlet"
    """Of γ: dirichlet, stratified or corners (see ``preference_of_step``)."""
    equal_every: int = 4
    """Every so many steps γ is equal (0: never)."""
    scalarization: str = "linear"
    mu: float = 0.1
    beta: float = 0.0
    skip_below: float | None = None
    """Tasks with a smaller γ_k sit a step out with probability 1 − γ_k / skip_below, and count more when they do not.

    None: 0.01, or 0 for scalarisations whose weights do not vanish with γ_k: they need every task.
    """
    preference: tuple[float, ...] | None = None
    """γ of every step (None: drawn)."""
    clip: float = 0.0
    """Largest norm of a step's gradient (0: not clipped)."""
    seed: int = 0
    checkpoint_every: int = 100
    patience: int = 0
    """Stop when the held-out objective has not improved at so many checkpoints, and keep the best (0: never)."""

    def __post_init__(self) -> None:
        scalarization(self.scalarization)
        if self.skip_below is None:
            object.__setattr__(self, "skip_below", 0.01 if self.scalarization in SKIPPING else 0.0)
        elif self.skip_below and self.scalarization not in SKIPPING:
            raise UserError(f"scalarization {self.scalarization} needs every task at every step: leave skip_below out")
        for name in ("lr", "alpha", "mu", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be positive")
        for name in ("steps", "equal_every", "beta", "skip_below", "clip", "patience"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative")
        if self.schedule not in ("cosine", "constant"):
            raise UserError(f"schedule {self.schedule!r}: choose cosine or constant")
        if self.sampling not in ("dirichlet", "stratified", "corners"):
            raise UserError(f"sampling {self.sampling!r}: choose dirichlet, stratified or corners")
