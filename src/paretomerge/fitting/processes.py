"""Several processes on one fit (``torchrun`` or ``accelerate launch``): they share the batches, and average small gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
