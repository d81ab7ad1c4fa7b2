"""Fits without a network: K quadratics around known centres, noisy like batches of data, with or without a second process.

As a program (``python quadratics.py FOLDER``) it is one of several processes of such a fit; see ``tests/fitting/test_loop.py``.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretomerge.errors import Stopped
from paretomerge.fitting import Learned, Part, Target, TrainingOptions, fit_, joined, world

NAMES = ("first.weight", "second.weight", "bias")
EXAMPLES = 12


@dataclass
class Quadratics:
    """S_k(θ) = mean over the examples e of a batch of s_k ‖θ − c_k − e‖²; with ``noise`` 0 no example matters."""

    centres: Mapping[str, Tensor]
    """name -> (K, *shape)."""
    scales: tuple[float, ...]
    noise: float = 0.0
    batch: int = 4
    rank: int = 2
    task_wise: bool = False

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        base = {name: torch.zeros_like(c[0]) for name, c in self.centres.items()}
        vectors = {
            name: torch.randn(c.flatten(1).shape, generator=generator, dtype=c.dtype) for name, c in self.centres.items()
        }
        targets = [
            Target(name, ((name, c.shape[1]),), tuple(c.shape[1:]), min(self.rank, *c.shape[1:]))
            for name, c in self.centres.items()
            if c.ndim == 3
        ]
        self.learned = Learned(base, vectors, targets, task_wise=self.task_wise)
        self.learned.phi.copy_(0.3 * torch.randn(self.learned.phi.shape, generator=generator))
        self.weights = {name: nn.Parameter(tensor.clone()) for name, tensor in base.items()}
        self.examples = {name: torch.randn(EXAMPLES, *t.shape, generator=generator, dtype=t.dtype) for name, t in base.items()}
        self.asked: list[tuple[int, int]] = []

    def losses(self, k: int, seed: int) -> Iterator[Part]:
        """This process's examples of the batch, one by one."""
        self.asked.append((k, seed))
        drawn = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(seed))[: self.batch].tolist()
        rank, size = world()
        for i in drawn[rank::size]:
            loss = sum(
                (weight - self.centres[name][k] - self.noise * self.examples[name][i]).square().sum()
                for name, weight in self.weights.items()
            )
            yield Part(self.scales[k] * loss, 1 / len(drawn), {"marginal": float(i)})

    def fit(self, settings: TrainingOptions, **options: Any) -> Tensor:
        fit_(self.learned, self.weights, self.losses, settings, **options)
        return self.learned.phi

    def at(self, *gamma: float) -> dict[str, Tensor]:
        """θ(γ)."""
        weights = {name: torch.empty_like(w) for name, w in self.weights.items()}
        self.learned.build_(weights, torch.tensor(gamma, dtype=torch.float64))
        return weights


def problem(
    K: int = 2,
    shape: tuple[int, int] = (5, 4),
    scales: tuple[float, ...] | None = None,
    names: tuple[str, ...] = NAMES,
    **options: Any,
) -> Quadratics:
    """K centres by chance: two matrices and a vector, or some of them."""
    generator = torch.Generator().manual_seed(K)
    m, n = shape
    shapes = dict(zip(NAMES, ((m, n), (n, m), (n,)), strict=True))
    centres = {name: torch.randn(K, *shapes[name], generator=generator) for name in names}
    return Quadratics(centres, scales or (1.0,) * K, **options)


class Interrupt:
    """A report that does something after a given step, and remembers what it was told."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action
        self.told: list[int] = []

    def __call__(self, done: int, logged: Mapping[str, Any]) -> None:
        self.told.append(done)
        if done == self.step:
            self.action()


DISTRIBUTED = TrainingOptions(steps=30, checkpoint_every=10, equal_every=3, skip_below=0.05, beta=0.01, lr=0.05, seed=3)


def wide() -> Quadratics:
    """Far more weights than φ: (64, 64) twice, rank 1."""
    return problem(2, (64, 64), noise=0.5, rank=1, task_wise=True, batch=5)


def process(folder: Path) -> None:
    """One process of fits of ``wide``: to the end, to a signal that only process 1 gets, and on from there.

    What it found goes to ``folder/ACTION-RANK.pt``.
    """
    sent: list[int] = []
    reduce = torch.distributed.all_reduce

    def recorded(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent.append(tensor.numel())
        return reduce(tensor, *args, **options)

    torch.distributed.all_reduce = recorded
    with joined() as first:
        rank, _ = world()
        assert first == (rank == 0)
        for action in ("run", "stop", "resume"):
            torch.distributed.barrier()  # process 0 has written its state
            sent.clear()
            quadratics = wide()
            stop = Interrupt(13, lambda: signal.raise_signal(signal.SIGTERM) if rank else None)
            report = stop if action == "stop" else Interrupt(0, lambda: None)
            stopped = ""
            run = folder / ("run" if action == "run" else "stopped")
            try:
                quadratics.fit(DISTRIBUTED, folder=run, resume=action == "resume", report=report)
            except Stopped as error:
                stopped = str(error)
            found = {"phi": quadratics.learned.phi, "sent": list(sent), "told": report.told, "stopped": stopped}
            torch.save(found, folder / f"{action}-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    process(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # on a busy machine gloo's threads now and then abort a process that is leaving; what is tested is done
