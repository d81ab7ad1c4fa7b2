"""Named tensors that are read or computed one at a time: what every stage hands to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from paretomerge.errors import UserError


class TensorInfo(NamedTuple):
    """What a safetensors header says of a tensor: enough to plan a merge and to lay out its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


PART = 1 << 22
"""Bytes, about, of a piece of a tensor that is read, merged and written at a time."""


class Rows(Protocol):
    """A matrix (m, n) that is read in slices of rows; a slice is valid until the next is asked for."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


class Weights(Mapping[str, Tensor]):
    """A model as a lazy mapping name -> tensor.

    ``infos`` (shapes and dtypes) is known at once; ``weights[name]`` reads or computes that one tensor, each time
    anew, and nothing is kept. A checkpoint on disk, a merge of eight of them and one point of a Pareto set are all
    ``Weights``, so whatever writes, evaluates or compares models holds a single tensor at a time.
    """

    about: Callable[[], Any] | None = None
    """How a merge came about, for ``save``: a call gives a ``front.About``, which writes what belongs beside the weights."""

    def __init__(
        self,
        infos: Mapping[str, TensorInfo],
        read: Callable[[str], Tensor],
        parts: Callable[[str], Iterator[Tensor]] | None = None,
    ) -> None:
        """``read`` gives a tensor; ``parts`` the same in pieces, where that needs less memory."""
        self.infos = dict(infos)
        self._read = read
        self._parts = parts  # no function made here: it would not go through pickle

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Weights:
        """Wrap tensors that are in memory, a ``state_dict`` for instance."""
        if isinstance(tensors, Weights):
            return tensors
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        return cls({name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}, tensors.__getitem__)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.infos:
            raise KeyError(name)
        return self._read(name)

    def save(
        self,
        folder: str | Path,
        *,
        head: str | None = None,
        lora: bool = False,
        config: object = None,
        companions: str | Path | None = None,
        shard_bytes: int = 5 * 10**9,
        overwrite: bool = False,
        progress: Callable[[str, int], None] | None = None,
    ) -> None:
        """Write the model as an ordinary Hugging Face folder, tensor by tensor, with its tokenizer files and a card.

        Args:
            folder: the folder to make; it appears whole or not at all.
            head: where tasks have heads of their own: the task whose model it is to be, or ``"none"``.
            lora: a sum of LoRA experts as one adapter.
            config: instead of the one that the base brings along: a transformers config, a dict or a path.
            companions: instead of the base's, the folder whose tokenizer, processor and generation files are copied.
            shard_bytes: largest file.
            overwrite: replace a folder that paretomerge wrote.
            progress: called after each tensor.

        Raises:
            UserError: no configuration, no head chosen, a folder that exists.
        """
        if self.about is None:
            raise UserError("nothing is known of these weights but their tensors: save them with paretomerge.save")
        self.about().save(
            self, folder, head=head, lora=lora, config=config, companions=companions, shard_bytes=shard_bytes,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip

    def with_about(self, about: Callable[[], Any]) -> Self:
        """The same, that knows how it came about."""
        described = copy(self)
        described.about = about
        return described

    def matrix(self, name: str) -> Rows:
        """Tensor ``name`` as a matrix, its first dimension × the rest, for those who take it slice by slice and once."""
        return self[name].reshape(matrix_shape(self.infos[name].shape))

    def parts(self, name: str) -> Iterator[Tensor]:
        """Tensor ``name`` in consecutive pieces, for those who write or copy it; each is valid until the next is asked for."""
        return self._parts(name) if self._parts else iter((self[name],))

    def copied(self, name: str, dtype: torch.dtype) -> Tensor:
        """Tensor ``name`` in new memory, as ``dtype``."""
        out, at = torch.empty(self.infos[name].shape, dtype=dtype), 0
        for part in self.parts(name):
            out.view(-1)[at : at + part.numel()] = part.reshape(-1)
            at += part.numel()
        return out

    def __contains__(self, name: object) -> bool:
        return name in self.infos  # a Mapping would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.infos.values())

    def replacing(self, infos: Mapping[str, TensorInfo], read: Callable[[str], Tensor]) -> Weights:
        """The same model with the tensors named in ``infos`` read by ``read`` (new names are appended)."""
        return Weights(
            {**self.infos, **infos},
            lambda name: read(name) if name in infos else self._read(name),
            lambda name: iter((read(name),)) if name in infos else self.parts(name),
        )

    def cast(self, dtype: torch.dtype | None) -> Weights:
        """The same model with its floating-point tensors stored as ``dtype`` (``None``: as they are)."""
        if dtype is None:
            return self
        infos = {
            name: TensorInfo(info.shape, dtype if info.dtype.is_floating_point else info.dtype)
            for name, info in self.infos.items()
        }
        return Weights(
            infos,
            lambda name: self._read(name).to(infos[name].dtype),
            lambda name: (part.to(infos[name].dtype) for part in self.parts(name)),
        )

    def renamed(self, rename: Callable[[str], str]) -> Weights:
        """The same tensors under other names (``rename`` must be one to one)."""
        old = {rename(name): name for name in self.infos}
        infos = {new: self.infos[name] for new, name in old.items()}
        return Weights(infos, lambda new: self._read(old[new]), lambda new: self.parts(old[new]))

    def without(self, names: set[str] | frozenset[str]) -> Weights:
        """The same model less some tensors."""
        return Weights({name: info for name, info in self.infos.items() if name not in names}, self._read, self._parts)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(first dimension, product of the others); a vector is a column, a scalar 1 × 1."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def main_dtype(weights: Weights) -> torch.dtype:
    """The floating-point dtype that most entries of a model have."""
    counts: dict[torch.dtype, int] = {}
    for info in weights.infos.values():
        if info.dtype.is_floating_point:
            counts[info.dtype] = counts.get(info.dtype, 0) + info.numel
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32


def as_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor in (C) order as an array (n,) of uint8; numpy knows no bfloat16. A copy only if it has to be."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
