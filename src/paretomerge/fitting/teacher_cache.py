"""What an expert says of its inputs, asked once: kept in memory, and in the run's folder for when the run goes on.

    RUN/teacher/TASK-fit-0.values.npy      predictions (n, …)
    RUN/teacher/TASK-fit-0.places.npy      of a language model: which classes they belong to
    RUN/teacher/TASK-fit-0.json            written last: the key, and the SHA-256 of each file

The key is the SHA-256 of all that decides the predictions: the model's class, configuration and tensors, every input, and how
they are kept. Files with another key, or with other bytes than they were written with, are made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from paretomerge.data.inputs import Inputs
from paretomerge.errors import UserError
from paretomerge.fitting.top_k import largest
from paretomerge.weights.writing import write_json

_IN_MEMORY = 1 << 29
"""Predictions of more bytes stay in their file, mapped."""
_FORMAT = 1


class Kept(NamedTuple):
    """An expert's predictions on n inputs."""

    values: Tensor
    """(n, …): logits or features; with ``places`` log-probabilities as ``top_k.largest`` gives them."""
    places: Tensor | None


def ask(
    n: int, predict: Callable[[Tensor], Tensor], *, batch_size: int, shape: tuple[int, ...], top: int | None,
    dtype: torch.dtype, file: Path | None, key: Callable[[], str], say: Callable[[str], None],
) -> Kept:  # fmt: skip
    """The predictions on n inputs, from the file if they are there.

    Args:
        n: how many inputs.
        predict: (indices) -> (len(indices), …, classes).
        batch_size: inputs at a time.
        shape: between n and the classes: () or (longest text,); shorter predictions are filled with 0.
        top: keep so many classes; None: all.
        dtype: of what is kept where all classes are.
        file: in whose place, with other endings, they are kept; None: in memory only.
        key: of what decides them; asked for only if there is a file.
        say: is told when they were there.
    """
    wanted = key() if file else ""
    if file and (found := _stored(file, wanted)):
        say(f"the expert's predictions on {n} inputs are those in {file.parent}")
        return found
    rooms: list[Tensor] = []
    for indices in torch.arange(n).split(batch_size):
        out = predict(indices)
        parts = (out.to(dtype),) if top is None or top >= out.shape[-1] else largest(out, top)
        rooms = rooms or [_room((n, *shape, p.shape[-1]), p.dtype, file, i) for i, p in enumerate(parts)]
        for room, part in zip(rooms, parts, strict=True):
            room[(indices, slice(part.shape[1])) if shape else indices] = part.cpu()
    if file:
        _seal(file, rooms, wanted)
    return Kept(rooms[0], rooms[1] if len(rooms) > 1 else None)


def key_of(model: nn.Module, inputs: Inputs, batch_size: int, facts: Iterable[object], tensors: Iterable[Tensor] = ()) -> str:
    """SHA-256 of all that decides what a model says of inputs.

    Args:
        model: as it is asked.
        inputs: all of them are read.
        batch_size: inputs at a time.
        facts: whatever else matters ...
        tensors: ... and these.
    """
    digest = hashlib.sha256(repr((_FORMAT, torch.__version__, type(model).__name__, batch_size, *facts)).encode())
    digest.update(str(getattr(model, "config", "")).encode())
    for name, tensor in model.state_dict().items():
        _add(digest, name, tensor)
    for tensor in tensors:
        _add(digest, "", tensor)
    for indices in torch.arange(len(inputs)).split(batch_size):
        for name, tensor in inputs.batch(indices.tolist()).items():
            _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


_PARTS = ("values", "places")


def _path(file: Path, part: int) -> Path:
    return file.with_name(f"{file.name}.{_PARTS[part]}.npy")


def _header(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _room(shape: tuple[int, ...], dtype: torch.dtype, file: Path | None, part: int) -> Tensor:
    """Zeros, in memory or in a file."""
    if file is None:
        return torch.zeros(shape, dtype=dtype)
    path = _path(file, part)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _header(file).unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # were it a link, what it points to would be written
        mapped = np.lib.format.open_memmap(path, "w+", np.dtype(str(dtype).removeprefix("torch.")), shape)
        with open(path, "r+b") as opened:  # a hole in a file on a full disk is the death of who fills it (SIGBUS)
            os.posix_fallocate(opened.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(f"{path}: the experts' predictions cannot be written ({error.strerror or error})") from error
    return torch.from_numpy(mapped)


def _seal(file: Path, rooms: list[Tensor], key: str) -> None:
    """Say that the files are whole; what is small is in memory from now on."""
    sums = {}
    for i, room in enumerate(rooms):
        array = room.numpy()
        mapped = array if isinstance(array, np.memmap) else array.base
        if isinstance(mapped, np.memmap):
            mapped.flush()
        sums[_PARTS[i]] = _sum(_path(file, i))
        if room.nbytes <= _IN_MEMORY:
            rooms[i] = room.clone()
    write_json(_header(file), {"key": key, "sha256": sums})


def _stored(file: Path, key: str) -> Kept | None:
    """What is in the files, if they are whole and have the key."""
    try:
        header = json.loads(_header(file).read_text(encoding="utf-8"))
        if header["key"] != key or any(header["sha256"][part] != total for part, total in _sums(file, header["sha256"])):
            return None
        found = [_opened(_path(file, i)) for i in range(len(header["sha256"]))]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Kept(found[0], found[1] if len(found) > 1 else None)


def _sums(file: Path, parts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for part in parts:
        yield part, _sum(_path(file, _PARTS.index(part)))


def _sum(path: Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _opened(path: Path) -> Tensor:
    large = path.stat().st_size > _IN_MEMORY
    return torch.from_numpy(np.load(path, mmap_mode="r+" if large else None, allow_pickle=False))
