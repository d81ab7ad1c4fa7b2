"""Where evaluations run: one after the other in this process, or on Ray, in a local cluster or in one at an address.

On Ray the tensors are put into the object store once, one at a time; each worker keeps one set of live models, which it
moves from point to point. A worker on the same machine reads base and task vectors where they lie.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.evaluation.evaluations import Job, Pool
from paretomerge.evaluation.outcomes import Outcome, tried
from paretomerge.evaluation.protocols import Measure, Work
from paretomerge.weights.lazy import TensorInfo, Weights, as_bytes

_LOSSES = 3
"""A job that so many workers died of has failed."""
_SMALLEST_STORE = 80 << 20
"""Bytes: Ray refuses smaller object stores (75 MiB)."""


def in_process(work: Work) -> Pool:
    """One after the other, here; models are built when the first job comes."""
    opened: list[Measure] = []

    def measure() -> Measure:
        if not opened:
            opened.append(work.opened())
        return opened[0]

    def pool(jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        for number, (point, tasks) in enumerate(jobs):
            yield number, tried(measure, point, tasks)

    return pool


@contextmanager
def pool_of(work: Work, *, workers: int = 1, ray: str | None = None, gpus: float = 0.0) -> Iterator[Pool]:
    """Workers for the length of a block.

    Args:
        work: what each does.
        workers: how many; with one and no address, it is this process.
        ray: address of a Ray cluster (``auto``: one that runs on this machine); None: a local one, if there are workers.
        gpus: GPUs a worker has, if only in part.

    Raises:
        UserError: Ray is not installed or has no such cluster or no room; numbers that make no sense.
    """
    if workers < 1 or gpus < 0:
        raise UserError("workers must be at least 1, and gpus not negative")
    if workers == 1 and ray is None:
        yield in_process(work)
        return
    with _cluster(work, workers, ray) as found:
        yield _on_ray(found, work, workers, gpus)


@contextmanager
def _cluster(work: Work, workers: int, address: str | None) -> Iterator[Any]:
    """Ray, started or joined; what was running before goes on afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word to anyone outside
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    on_term = signal.getsignal(signal.SIGTERM)  # Ray takes it when it is imported
    try:
        import ray
    except ImportError as error:
        raise UserError("several workers need Ray: pip install 'paretomerge[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    nbytes = sum(weights.nbytes for weights in work.models.weights().values())
    room = max(_SMALLEST_STORE, int(1.2 * nbytes) + _SMALLEST_STORE // 2)
    local: dict[str, Any] = {"num_cpus": workers, "object_store_memory": room}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, **quiet, **({} if address else local))
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"ray {address or '(local)'}: {str(error).splitlines()[0]}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)
    try:
        yield ray
    finally:
        ray.shutdown()


def _on_ray(ray: Any, work: Work, workers: int, gpus: float) -> Pool:
    room = ray.cluster_resources()
    if gpus and room.get("GPU", 0) < gpus:
        raise UserError(f"ray: {gpus:g} GPUs a worker, and the cluster has {room.get('GPU', 0):g}")
    if workers > (most := int(min(room.get("CPU", 1), room.get("GPU", 0) / gpus if gpus else float("inf")))):
        raise UserError(f"ray: the cluster has room for {most} workers, not for {workers}")
    shipped = {name: _put(ray, weights) for name, weights in work.models.weights().items()}
    rest = ray.put(work.with_models(work.models.without_weights()))
    threads = max(1, torch.get_num_threads() // (workers if room.get("CPU", 1) <= (os.cpu_count() or 1) else 1))
    kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_Worker)

    def started() -> Any:
        return kind.remote(rest, [(name, infos, refs) for name, (infos, refs) in shipped.items()], threads)

    idle = [started() for _ in range(workers)]

    def pool(jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        waiting = list(range(len(jobs)))[::-1]
        running: dict[Any, tuple[int, Any]] = {}
        losses = dict.fromkeys(waiting, 0)
        try:
            while waiting or running:
                while waiting and idle:
                    number, worker = waiting.pop(), idle.pop()
                    running[worker.measure.remote(*jobs[number])] = number, worker
                (ready, *_), _ = ray.wait(list(running), num_returns=1)
                number, worker = running.pop(ready)
                try:
                    outcome = cast(Outcome, ray.get(ready))
                    idle.append(worker)
                except ray.exceptions.RayError as error:  # the worker is gone, with its machine maybe
                    losses[number] += 1
                    idle.append(started())
                    if losses[number] < _LOSSES:
                        waiting.append(number)
                        continue
                    reason = str(error).strip().splitlines()[0]
                    outcome = Outcome({}, f"{_LOSSES} workers were lost over it ({reason})")
                yield number, outcome
        finally:
            for _, worker in running.values():  # somebody stopped before the end
                ray.kill(worker)

    return pool


class _Worker:
    """A process of Ray's that has one set of live models."""

    def __init__(self, work: Work, shipped: Sequence[tuple[str, dict[str, TensorInfo], list[Any]]], threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        found = {}
        for name, infos, refs in shipped:
            arrays = dict(zip(infos, ray.get(refs), strict=True))
            found[name] = _weights(infos, arrays)
        self._work = work.with_models(work.models.with_weights(found))
        self._opened: Measure | None = None

    def measure(self, point: tuple[float, ...], tasks: Sequence[str]) -> Outcome:
        return tried(self._open, point, tasks)

    def _open(self) -> Measure:
        if self._opened is None:
            self._opened = self._work.opened()
        return self._opened


def _put(ray: Any, weights: Weights) -> tuple[dict[str, TensorInfo], list[Any]]:
    """Tensors in the object store, one at a time, as bytes: numpy knows no bfloat16."""
    refs = []
    for name in weights:
        refs.append(ray.put(as_bytes(weights[name])))
    return dict(weights.infos), refs


def _weights(infos: Mapping[str, TensorInfo], arrays: Mapping[str, np.ndarray]) -> Weights:
    """Tensors over the object store's memory, which nobody may write to."""

    def read(name: str) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that the array is read-only
            flat = torch.from_numpy(arrays[name])
        return flat.view(infos[name].dtype).view(infos[name].shape)

    return Weights(infos, read)
