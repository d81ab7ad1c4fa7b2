"""A fit's losses as TensorBoard shows them, beside metrics.jsonl: ``tensorboard --logdir RUN``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paretomerge.errors import UserError
from paretomerge.fitting.distributed import world
from paretomerge.fitting.options import Report


@contextmanager
def events(folder: Path | None, tasks: Sequence[str], also: Report | None = None) -> Iterator[Report]:
    """A report that writes each step's objectives, marginal entropies, preference and learning rate into the run's folder.

    Steps that a resumed run does again replace those of before. Of several processes the first writes.

    Args:
        folder: of the run.
        tasks: their names, in order.
        also: is called, too.

    Raises:
        UserError: no folder, or tensorboard is not installed.
    """
    if folder is None:
        raise UserError("tensorboard: the run has no folder to write events into")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(f"tensorboard is not installed ({error}): pip install 'paretomerge[log]'") from error
    writer: Any = None

    def report(done: int, logged: Mapping[str, Any]) -> None:
        nonlocal writer
        if also:
            also(done, logged)
        if world()[0]:
            return
        if writer is None:
            writer = SummaryWriter(str(folder), purge_step=done)
        writer.add_scalar("lr", logged["lr"], done)
        for k, value in logged["losses"].items():
            writer.add_scalar(f"objective/{tasks[int(k)]}", value, done)
        for k, watched in logged["watched"].items():
            for what, value in watched.items():
                writer.add_scalar(f"{what}/{tasks[int(k)]}", value, done)
        for task, share in zip(tasks, logged["gamma"], strict=True):
            writer.add_scalar(f"preference/{task}", share, done)

    try:
        yield report
    finally:
        if writer is not None:
            writer.close()
