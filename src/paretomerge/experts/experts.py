"""A base, K experts fine-tuned from it, and their task vectors, read in slices of rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.experts.alignment import Options, align
from paretomerge.experts.findings import Finding
from paretomerge.experts.in_memory import config_from, config_of
from paretomerge.experts.in_memory import opened as opened_in_memory
from paretomerge.experts.origins import bases_of_adapters, modules_not_merged, stored_twice
from paretomerge.options import unknown
from paretomerge.weights.checkpoint import local, open_checkpoint
from paretomerge.weights.lazy import TensorInfo, Weights, matrix_shape
from paretomerge.weights.lora_files import Adapter, is_adapter, open_adapter
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.unchanged import touched

CHUNK = 3 << 18
"""Entries of base and experts together that are merged at a time: few enough to stay in cache with what is made of them, and
so many that two cores do not wait for each other between the steps, which are Python."""

_KEPT = 1 << 21
"""Entries of the largest buffer that is kept for the next slice."""

Fill = Callable[[slice, Tensor, Tensor], object]


@dataclass(frozen=True)
class Expert:
    """One fine-tuned model: its task's name, where its weights are, and which of its names are which of the base's."""

    task: str
    source: Weights | Adapter
    names: Mapping[str, str]
    """name in the base -> name in this expert, for the tensors that are merged."""
    heads: tuple[str, ...] = ()
    """This expert's own names of the tensors that stay with its task (a classification head, for instance)."""
    prefix: str = ""
    """What this expert's names carry in front of the base's (``vit.``), or lack (``-vit.``)."""
    own: Mapping[str, str] = field(default_factory=dict)
    """name in the base -> name in this expert, for every tensor that it has, merged or not."""

    @property
    def path(self) -> Path | None:
        return getattr(self.source, "path", None)

    @property
    def config(self) -> dict[str, Any]:
        return {} if isinstance(self.source, Adapter) else config_of(self.source)

    def file(self, name: str) -> str:
        """The file that holds the base's tensor ``name`` in this expert, for messages."""
        if isinstance(self.source, Adapter):
            return str(self.source.file or f"expert {self.task}")
        files = getattr(self.source, "files", {})
        return str(files.get(self.names.get(name, name), f"expert {self.task}"))

    def _touch(self) -> None:
        """An adapter's tensors are views of its file, as a checkpoint's are, which tells that by itself."""
        if isinstance(self.source, Adapter):
            touched(self.source.states)

    def stored(self, name: str) -> Tensor:
        """What this expert's file holds for the base's tensor ``name``: the tensor, or both LoRA factors, flat."""
        self._touch()
        own = self.names[name]
        if not isinstance(self.source, Adapter):
            return self.source[own]
        factors = self.source.factors.get(own)
        return torch.cat([factor.flatten() for factor in factors]) if factors else self.source.replaced[own]

    def whole(self, name: str) -> Tensor | None:
        """θ_k of the base's tensor ``name`` as its file has it; None: this expert lacks it or has it as LoRA factors."""
        self._touch()
        own = self.names.get(name)
        if own is None or (isinstance(self.source, Adapter) and own in self.source.factors):
            return None
        return (self.source.replaced if isinstance(self.source, Adapter) else self.source)[own]

    def pair(self, name: str, shape: tuple[int, ...]) -> LowRank | None:
        """v = θ_k − θ₀ of tensor ``name``, a matrix of ``shape``, as a product in fp32; None: this expert stores it whole.

        Of another vocabulary only the rows that the base has count; those that the expert lacks are zero.
        """
        self._touch()
        if len(shape) != 2:
            return None
        if name not in self.names:
            return LowRank(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
        own = self.names[name]
        if not isinstance(self.source, Adapter) or own not in self.source.factors:
            return None
        return self.source.product(own, shape[1]).with_rows(shape[0])

    def head(self) -> Weights:
        """The tensors that stay with the task, under this expert's own names."""
        self._touch()
        if isinstance(self.source, Adapter):
            return Weights.of({name: self.source.replaced[name] for name in self.heads})
        return self.source.without(frozenset(self.source) - frozenset(self.heads))

    def rows(self, name: str, columns: int) -> Fill | None:
        """How to fill a buffer with rows of v = θ_k − θ₀ for tensor ``name``; None where v is zero.

        The filler takes (rows, base rows in fp32 (m, n), out (m, n)). A tensor with fewer rows than the base's (a smaller
        vocabulary) has v = 0 on the rows it lacks; rows beyond the base's are left out.
        """
        self._touch()
        if name not in self.names:
            return None
        own = self.names[name]
        if isinstance(self.source, Adapter) and own in self.source.factors:
            left, right = self.source.product(own, columns)

            def multiply(rows: slice, base: Tensor, out: Tensor) -> None:
                mine = left[rows].to(out.dtype)
                torch.mm(mine, right.to(out.dtype), out=out[: len(mine)])
                out[len(mine) :] = 0

            return multiply
        source = Weights.of(self.source.replaced) if isinstance(self.source, Adapter) else self.source
        tensor = source.matrix(own)

        def fill(rows: slice, base: Tensor, out: Tensor) -> None:
            mine = tensor[rows]
            torch.sub(mine, base[: len(mine)], out=out[: len(mine)])
            out[len(mine) :] = 0

        return fill


@dataclass(frozen=True)
class Experts:
    """What every merge starts from: θ₀ and the task vectors v_k = θ_k − θ₀, k = 1…K.

    ``merged`` names the tensors that some expert changes; the rest of ``infos`` is copied from the base.
    """

    base: Weights
    experts: tuple[Expert, ...]
    merged: tuple[str, ...]
    infos: Mapping[str, TensorInfo]
    """The tensors of a merged model: the base's, less second copies of tied weights."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Second copies that have to be written: name -> the name of the tensor that is merged for both."""
    findings: tuple[Finding, ...] = ()
    _local: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(expert.task for expert in self.experts)

    def __len__(self) -> int:
        return len(self.experts)

    def stored_as(self, dtype: torch.dtype | None) -> Experts:
        """The same, with merged models stored as ``dtype`` (None: as the base is); what is computed stays fp32."""
        if dtype is None:
            return self
        return replace(
            self, infos={n: i._replace(dtype=dtype) if i.dtype.is_floating_point else i for n, i in self.infos.items()}
        )

    def wide(self, name: str) -> torch.dtype:
        """The dtype in which tensor ``name`` is merged: fp32, or fp64 for a base in fp64."""
        return torch.float64 if self.base.infos[name].dtype == torch.float64 else torch.float32

    def chunks(self, name: str, entries: int | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of tensor ``name`` seen as a matrix (its first dimension × the rest): (rows, base, task vectors).

        base is (m, n), task vectors (K, m, n), both fp32 (fp64 for a model in fp64); both are valid until the next slice
        is asked for. Whole rows, and at least one; a vector is a column and comes whole.
        """
        info = self.infos[name]
        n_rows, columns = matrix_shape(info.shape)
        entries = CHUNK // (len(self) + 1) if entries is None else entries
        step = max(1, n_rows if columns == 1 else min(n_rows, entries // max(1, columns)))
        dtype = self.wide(name)
        base = self.base.matrix(name)
        fills = [expert.rows(name, columns) for expert in self.experts]
        buffer = self._buffer(len(fills) * step * columns, dtype).view(len(fills), step, columns)
        for start in range(0, n_rows, step):
            rows = slice(start, min(start + step, n_rows))
            base_rows = base[rows].to(dtype)
            task_vectors = buffer[:, : len(base_rows)]
            for fill, out in zip(fills, task_vectors, strict=True):
                fill(rows, base_rows, out) if fill else out.zero_()
            yield rows, base_rows, task_vectors

    def task_vectors(self, name: str) -> Tensor:
        """The K task vectors of one whole tensor, (K, *shape) in fp32."""
        shape = (len(self), *self.infos[name].shape)
        for _, _, whole in self.chunks(name, entries=max(1, self.infos[name].numel)):
            found = whole.reshape(shape)
            return found if found.numel() > _KEPT else found.clone()  # a small one is in the buffer
        return torch.zeros(shape, dtype=self.wide(name))  # no rows

    def pairs(self, name: str) -> list[LowRank] | None:
        """The K task vectors of tensor ``name`` as products, where all experts that change it are adapters of rank r_k."""
        found = [expert.pair(name, self.infos[name].shape) for expert in self.experts]
        complete = [pair for pair in found if pair is not None]
        return complete if len(complete) == len(found) else None

    @property
    def factored(self) -> bool:
        """Whether every expert is an adapter and every merged tensor a matrix that they hold as factors."""
        return (
            all(
                isinstance(expert.source, Adapter) and all(own in expert.source.factors for own in expert.names.values())
                for expert in self.experts
            )
            and not self.aliases
        )

    def _buffer(self, entries: int, dtype: torch.dtype) -> Tensor:
        # one buffer a thread, kept: fresh memory for each slice would cost more in page faults than the merge itself
        with torch.inference_mode(False):  # whoever reads first may be in it, and whoever reads next may not
            if entries > _KEPT:
                return torch.empty(entries, dtype=dtype)
            buffer = getattr(self._local, "buffer", None)
            if buffer is None or buffer.numel() < entries or buffer.dtype != dtype:
                self._local.buffer = buffer = torch.empty(entries, dtype=dtype)
            return buffer[:entries]

    def not_finite(self, name: str) -> UserError:
        """The line that says whose NaN or infinity spoils tensor ``name``."""
        sources = [(getattr(self.base, "files", {}).get(name, "base"), self.base[name])]
        sources += [(expert.file(name), expert.stored(name)) for expert in self.experts if name in expert.names]
        for file, tensor in sources:
            if bad := int((~torch.isfinite(tensor)).sum()):
                return UserError(
                    f"{file}: {name}: {bad} of {tensor.numel()} entries are NaN or infinite: "
                    f"save the model again, or keep the base's tensor with --exclude '{name}'"
                )
        return UserError(f"{name}: the merged tensor overflows {self.infos[name].dtype}: store it wider (--dtype float32)")


def load_experts(
    base: str | Path | Mapping[str, Tensor] | nn.Module | None,
    experts: Mapping[str, str | Path | Mapping[str, Tensor] | nn.Module],
    *,
    config: object = None,
    exclude: Sequence[str] = (),
    task_tensors: Sequence[str] = (),
    vocab: str = "error",
    missing: str = "error",
) -> Experts:
    """Open a base and its experts; only headers are read.

    Args:
        base: model folder, ``.safetensors`` file, hub name, live model, or state dict; None: the first expert (weighted
            averages and slerp do not depend on it).
        experts: task name -> the same, or a PEFT LoRA adapter's folder, or a live PEFT model, whose active adapter is the
            expert. What is in memory is not copied: leave it unchanged until the result is saved.
        config: the base's configuration, where it brings none (a state dict, a ``.safetensors`` file): a transformers
            config, a dict, or the path of a config.json. Without one, models cannot be built or loaded by transformers.
        exclude: globs of names that are not merged; the base's tensors are kept.
        task_tensors: globs of names that stay with each task (names that the base lacks always do).
        vocab: ``"error"`` or ``"common"``: merge the rows that base and expert have in common.
        missing: ``"error"`` or ``"base"``: a tensor that an expert lacks counts as unchanged.

    Raises:
        UserError: the first thing that ``inspect_experts`` finds to be wrong.
    """
    for value, name, known in ((vocab, "vocab", ("error", "common")), (missing, "missing", ("error", "base"))):
        if value not in known:
            raise UserError(unknown(name, value, known))
    opened = inspect_experts(base, experts, Options(tuple(exclude), tuple(task_tensors), vocab, missing), config)
    errors = [finding for finding in opened.findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: see paretomerge check)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}")
    return opened


def inspect_experts(
    base: str | Path | Mapping[str, Tensor] | nn.Module | None,
    experts: Mapping[str, str | Path | Mapping[str, Tensor] | nn.Module],
    options: Options,
    config: object = None,
) -> Experts:
    """What ``load_experts`` opens, with its ``findings``, errors among them, instead of an exception for the first."""
    if not isinstance(experts, Mapping):
        raise UserError('experts: name each by its task: {"math": "models/math", "code": "models/code"}')
    if not experts:
        raise UserError("no experts: name at least one (--expert name=PATH)")
    for task in experts:
        preferences.check_task(task)
    sources = {task: _open_expert(path) for task, path in experts.items()}
    if base is None:
        first = next(iter(sources.values()))
        if isinstance(first, Adapter):
            raise UserError(
                f"{first.path or 'the first expert'}: a LoRA adapter needs the model it was trained on: name that as base"
            )
        opened_base = first
    else:
        opened_base = _open_base(base, None if config is None else config_from(config))
    alignment = align(opened_base, sources, options)
    more = [*bases_of_adapters(base, opened_base, sources, options), *modules_not_merged(opened_base)]
    more += stored_twice([opened_base, *sources.values()])
    return Experts(
        base=opened_base,
        experts=tuple(Expert(task, sources[task], a.names, a.heads, a.prefix, a.own) for task, a in alignment.experts.items()),
        merged=alignment.merged,
        infos=alignment.infos,
        aliases=alignment.aliases,
        findings=(*alignment.findings, *more),
    )


def _open_base(base: object, config: dict[str, Any] | None) -> Weights:
    if not isinstance(base, str | Path):
        found = opened_in_memory(base, config, as_base=True)
        assert isinstance(found, Weights)
        return found
    checkpoint = open_checkpoint(base)
    if config is not None:
        if checkpoint.config:
            raise UserError(f"config: {base} brings its own config.json: leave config out")
        checkpoint.config = config
    return checkpoint


def _open_expert(path: object) -> Weights | Adapter:
    if not isinstance(path, str | Path):
        return opened_in_memory(path)
    folder = local(path)
    return open_adapter(folder) if is_adapter(folder) else open_checkpoint(folder)
