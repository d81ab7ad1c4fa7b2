"""What the commands will need of memory and disk, from headers alone: estimates, with their formulas in docs/large-models.md.

    merge               L + 2 T + A
    fit, closed form    L + A + F + 2 T + D + c (K + 1) 4 min(t, 2²⁰)
    fit on data         L' + A + max(4 P b, 4 P + 4 N + 4 N [base not fp32] + V + 3 F)

L, L' libraries; T largest tensor in fp32 and t its entries; A adapters as they are read; P, N parameters of the model, and
those that are merged; c targets that are decomposed at a time, D their task vectors in fp32; b = 2, with heads 3, copies while
the models are built; F low-rank factors in fp32; V the task vectors: 4 K N, 2 K N in bf16, or the LoRA factors alone in fp32.
Activations come on top. Mapped files do not count: the system drops their pages when memory is short.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.fitting.closed_form import at_a_time
from paretomerge.sets.targets import choose_targets
from paretomerge.weights.lora_files import Adapter

_MIB = 2**20
_LIBRARIES, _WITH_MODELS = 160 * _MIB, 300 * _MIB
"""Anonymous memory of a process that has merged, or run, a tiny model."""
_SLICE = 1 << 20
"""Entries of an expert that the closed form decomposes at a time."""
_RANK = 16


class Estimate(NamedTuple):
    """Of one command, in bytes: peak of anonymous memory; what is read of files once, and written."""

    command: str
    memory: int
    read: int
    written: int


def estimates(experts: Experts) -> list[Estimate]:
    """For merges and fits with their default options; activations of a fit on data, which depend on its batch, are left out."""
    infos = {name: info for name, info in experts.infos.items() if info.dtype.is_floating_point}
    merged = [name for name in experts.merged if name in infos]
    n_all, n = sum(info.numel for info in infos.values()), sum(infos[name].numel for name in merged)
    k = len(experts)
    largest = max((info.numel for info in infos.values()), default=0)
    factors = [f for e in experts.experts if isinstance(e.source, Adapter) for f in e.source.factors.values()]
    adapters = sum(part.nbytes for f in factors for part in f)
    whole = sum(t.nbytes for e in experts.experts if isinstance(e.source, Adapter) for t in e.source.replaced.values())
    sources = [e.source for e in experts.experts if not isinstance(e.source, Adapter)]
    model = sum(info.nbytes for info in experts.infos.values())
    read = experts.base.nbytes + sum(source.nbytes for source in sources) + adapters + whole
    written = 4 * sum(part.numel() for f in factors for part in f) if experts.factored else model
    streaming = _LIBRARIES + 8 * largest + adapters + whole
    attention, every = (_low_rank(experts, targets) for targets in ("attention", "all"))
    side_by_side, deviations = (0, 0) if experts.factored else _decomposed(experts)
    slices = deviations + side_by_side * 4 * (k + 1) * min(largest, _SLICE)
    found = [
        Estimate("merge", streaming, read, model),
        Estimate("fit, closed form", streaming + attention + slices, read, written + attention),
    ]
    heads = any(expert.heads for expert in experts.experts)
    wide = all(experts.base.infos[name].dtype == torch.float32 for name in merged)
    building = 4 * n_all * (3 if heads else 2)
    running = 4 * n_all + 4 * n + (0 if wide else 4 * n) + 3 * every
    thin = 4 * sum(part.numel() for f in factors for part in f)
    if experts.factored:
        kinds = {"fit on data, LoRA factors": thin}
    else:
        kinds = {"fit on data": 4 * k * n, "fit on data, store_task_vectors=bfloat16": 2 * k * n}
    for what, vectors in kinds.items():
        memory = _WITH_MODELS + adapters + whole + max(building, running + vectors)
        found.append(Estimate(what, memory, read, written + every))
    return found


def _decomposed(experts: Experts) -> tuple[int, int]:
    """How many targets are decomposed at a time, and the bytes of their task vectors that are kept meanwhile."""
    try:
        return at_a_time(experts, choose_targets(experts.infos, experts.merged, "attention"))
    except UserError:  # no matrix that fits
        return 0, 0


def _low_rank(experts: Experts, targets: str) -> int:
    """Bytes of A, B and K cores of the default rank, fp32."""
    try:
        chosen = choose_targets(experts.infos, experts.merged, targets, fuse_qkv=False)
    except UserError:  # no matrix that fits
        return 0
    total = 0
    for members in chosen.values():
        m, n = sum(rows for _, rows in members), experts.infos[members[0][0]].shape[1]
        r = min(_RANK, m, n)
        total += 4 * (r * (m + n) + len(experts) * r * r)
    return total
