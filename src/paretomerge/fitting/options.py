"""How a fit on data trains and runs: the options that its methods share, and where its states go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from paretomerge.errors import UserError
from paretomerge.fitting.objectives import Name as ObjectiveName
from paretomerge.fitting.scalarization import SKIPPING
from paretomerge.fitting.scalarization import Name as Scalarization

Schedule = Literal["cosine", "constant"]
Sampling = Literal["dirichlet", "stratified", "corners"]
Precision = Literal["float32", "bfloat16"]
_CHOICES = {
    "objective": ObjectiveName, "schedule": Schedule, "sampling": Sampling, "scalarization": Scalarization,
    "precision": Precision,
}  # fmt: skip
Report = Callable[[int, Mapping[str, Any]], None]
"""Called after each step with (steps done, what is logged of it)."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a set is fitted on inputs by steps of Adam; the defaults were measured best on held-out inputs (METHOD, recipe R).

    A method has these options beside its own, and may have other defaults.

    Attributes:
        objective: What is minimised per task. distill: the KL divergence to the expert's predictions. entropy: the entropy of
            the model's predictions. infomax: the same less the entropy of their mean over the batch. features: the squared
            distance to the expert's last features. cross-entropy: the loss on the data's labels.
        steps: Number of steps.
        batch_size: Number of inputs per task and step.
        micro_batch_size: Number of inputs per forward and backward pass; null passes a whole batch at once. Smaller values
            save memory and change nothing else.
        lr: Learning rate of Adam.
        schedule: Course of the learning rate: cosine lowers it to a tenth of lr over the steps; constant keeps it.
        alpha: Concentration of the Dirichlet distribution from which each step draws its preference; 1 is uniform, smaller
            values favour the corners.
        sampling: How the preferences are drawn. dirichlet: independently. stratified: with the tasks taking turns at the
            largest share. corners: with one task having the whole preference in half of the steps.
        equal_every: Every step whose number is a multiple of this uses the equal preference; 0 turns this off.
        scalarization: How a step weighs the tasks at a preference. linear: by the preference itself. smooth-tchebycheff:
            by a smooth maximum of the weighted losses. epo: so that the weighted losses become equal. upgrad and
            aligned-mtl: by the preference, after conflicts between the gradients are resolved. mgda: by their common descent
            direction, which ignores the preference.
        mu: Smoothing of smooth-tchebycheff; smaller values are closer to the maximum.
        beta: Weight of the penalty on the size of the low-rank term, the sum of its squared norms over the matrices.
        skip_below: Tasks with a smaller preference are left out of most steps, without bias; 0 never leaves one out. null
            means 0.01 for linear and smooth-tchebycheff, and 0 for the others, which need all tasks in every step.
        clip: Largest norm of a step's gradient; 0 does not clip.
        patience: Stop early when the objective on held-out inputs has not improved at this many checkpoints in a row, and
            keep the best one; 0 never stops early.
        seed: Random seed.
        checkpoint_every: Number of steps between two saved states of the run.
        precision: Precision of the forward and backward passes.
        checkpointing: Recompute each layer's activations in the backward pass instead of keeping them: less memory, more time.
        teacher_top: Language models only: number of most likely tokens that are kept of each prediction of an expert; the
            other tokens count as one. null keeps all tokens, in fp16.
        device: Device of the models: cpu, cuda or mps; auto uses the best one available.
    """

    objective: ObjectiveName = "distill"
    steps: int = 600
    batch_size: int = 32
    micro_batch_size: int | None = None
    lr: float = 2e-3
    schedule: Schedule = "cosine"
    alpha: float = 0.3
    sampling: Sampling = "dirichlet"
    equal_every: int = 4
    scalarization: Scalarization = "linear"
    mu: float = 0.1
    beta: float = 0.0
    skip_below: float | None = None
    clip: float = 0.0
    patience: int = 0
    seed: int = 0
    checkpoint_every: int = 100
    precision: Precision = "float32"
    checkpointing: bool = False
    teacher_top: int | None = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choices):
                raise UserError(f"{name} {value!r}: choose one of {', '.join(get_args(choices))}")
        for name in ("lr", "alpha", "mu", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be positive")
        for name in ("batch_size", "micro_batch_size", "teacher_top"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1")
        for name in ("steps", "equal_every", "beta", "clip", "patience"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative")
        if self.skip_below is not None and self.skip_below < 0:
            raise UserError("skip_below must not be negative")
        if self.skip_below and self.scalarization not in SKIPPING:
            raise UserError(f"scalarization {self.scalarization} needs every task at every step: leave skip_below out")
        if self.objective == "infomax" and not self.whole:
            raise UserError("objective infomax compares the inputs of a batch with each other: leave micro_batch_size out")

    @property
    def whole(self) -> bool:
        """Whether a batch passes at once."""
        return self.micro_batch_size is None or self.micro_batch_size >= self.batch_size

    @property
    def skip_threshold(self) -> float:
        """ε: a task with γ_k < ε takes part in a step with probability γ_k / ε, and then counts ε / γ_k times as much."""
        if self.skip_below is not None:
            return self.skip_below
        return 0.01 if self.scalarization in SKIPPING else 0.0

    def recorded(self) -> dict[str, Any]:
        """What determines the result, as JSON: all but the device; a threshold that was left out is the one in use."""
        known = {**asdict(self), "skip_below": self.skip_threshold}
        return {name: value for name, value in known.items() if name != "device"}


@dataclass(frozen=True)
class FitRun:
    """Where a fit or a search runs, where its states go, and who hears of its progress.

    Attributes:
        folder: Folder of the run's log and states; None keeps none.
        resume: Go on where the run in ``folder`` stopped.
        report: Called after each step or evaluation.
        say: Called with each line that the user should see.
        tensorboard: Also write events for TensorBoard into the folder (extra ``log``).
        workers: Number of models that a search evaluates in parallel; more than one use Ray.
        ray: Address of a Ray cluster; None starts one on this machine.
        gpus: GPUs per worker; fractions are allowed.
    """

    folder: Path | None = None
    resume: bool = False
    report: Report | None = None
    say: Callable[[str], None] = lambda line: None
    tensorboard: bool = False
    workers: int = 1
    ray: str | None = None
    gpus: float = 0.0
