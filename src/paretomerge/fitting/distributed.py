"""Several processes on one fit (``torchrun`` or ``accelerate launch``): they share the batches, and average small gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def joined() -> Iterator[bool]:
    """Join the other processes that the launcher's environment variables tell of; True in the one that writes."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or torch.distributed.is_initialized():
        yield not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        return
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield torch.distributed.get_rank() == 0
        torch.distributed.barrier()  # one that leaves while another still listens makes that one abort
    finally:
        torch.distributed.destroy_process_group()


def summed(tensor: Tensor, device: torch.device) -> Tensor:
    """Σ over all processes, each of which has its share; the device is one whose tensors they can exchange."""
    if world()[1] == 1:
        return tensor
    moved = tensor.to(device)
    torch.distributed.all_reduce(moved)
    return moved.to(tensor.device)


def world() -> tuple[int, int]:
    """(rank, number of processes) of a distributed run; (0, 1) of a plain one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
