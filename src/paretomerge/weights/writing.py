"""Checkpoints out: safetensors written tensor by tensor, in shards, into a folder that appears whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.io.leftovers import is_leftover, set_aside, sweep, temporary
from paretomerge.io.locking import locked
from paretomerge.io.strict_json import as_json
from paretomerge.weights.checkpoint import DTYPES, INDEX, SINGLE
from paretomerge.weights.finite import finite
from paretomerge.weights.hashing import Running, hashed_as_written
from paretomerge.weights.lazy import Weights
from paretomerge.weights.unchanged import reading

SHARD_BYTES = 5 * 10**9
"""Hugging Face's usual largest shard."""
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD; of linux/fs.h
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Progress = Callable[[str, int], None]
"""Called after each tensor with its name and bytes."""


def write_safetensors(
    weights: Weights, path: Path, *, workers: int | None = None, hashed: bool = False, progress: Progress | None = None
) -> None:
    """Write one safetensors file; at any time ``workers`` tensors, or pieces of them, are in memory.

    The header is known from ``weights.infos``, so each piece goes to its place as soon as it is computed. ``hashed``: its
    SHA-256 is made meanwhile, for ``hashes_of``.
    """
    # safetensors wants no gaps, and every tensor aligned to its entries: widest first (a stable order otherwise)
    names = sorted(weights.infos, key=lambda name: -weights.infos[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name in names:
        info = weights.infos[name]
        offsets[name] = end
        header[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [end, end := end + info.nbytes],
        }
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    start = 8 + len(encoded)

    with hashed_as_written(path) if hashed else nullcontext() as digest, open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.flush()
        if digest:
            digest.passed(0, memoryview(len(encoded).to_bytes(8, "little") + encoded))

        def put(name: str) -> None:
            info = weights.infos[name]
            first = at = start + offsets[name]
            for part in weights.parts(name):
                if part.dtype != info.dtype or at + part.nbytes > first + info.nbytes:
                    raise AssertionError(f"{name}: planned {info}, got {part.dtype} {tuple(part.shape)}")
                _write_at(file.fileno(), part, at, digest)
                at += part.nbytes
            if at < first + info.nbytes:
                raise AssertionError(f"{name}: planned {info}, got {at - first} bytes")
            if progress:
                progress(name, info.nbytes)

        with one_thread_each(workers, spare=hashed) as pool:
            jobs = [pool.submit(put, name) for name in names]  # in the order of the file, which is that of the base's files
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        file.truncate(start + end)
        os.fsync(file.fileno())


def write_shards(
    weights: Weights,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    hashed: bool = False,
    index: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_bytes`` and their index, as Hugging Face does.

    ``index``: write it for a single file, too. Beside other .safetensors files it must be there: without it engines such as
    vLLM read every such file in the folder.

    Raises:
        UserError: a tensor holds NaN or infinity, or overflows the dtype that it is stored in.
    """
    weights = finite(weights)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, info in weights.infos.items():
        if shards[-1] and filled + info.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += info.nbytes
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = weights.without(frozenset(weights) - frozenset(names))
        write_safetensors(part, folder / file, workers=workers, hashed=hashed, progress=progress)
        weight_map.update(dict.fromkeys(names, file))
    if index or len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": weights.nbytes}, "weight_map": weight_map})


def with_index(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a folder's marker, and in the folder the index that older ones of a single file lack (``write_shards``)."""
    contents = facts.get("contents")
    if (folder / INDEX).exists() or not (folder / SINGLE).is_file() or not isinstance(contents, list):
        return dict(facts)
    with safe_open(folder / SINGLE, framework="pt") as file:
        names = list(file.keys())
    size = (folder / SINGLE).stat().st_size - 8 - _header_size(folder / SINGLE)
    replace_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(names, SINGLE)})
    return {**facts, "contents": sorted([*contents, INDEX])}


def _header_size(file: Path) -> int:
    with open(file, "rb") as stream:
        return int.from_bytes(stream.read(8), "little")


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """JSON as people read it, on disk when this returns."""
    _write(path, _as_text(value))


def write_marker(path: Path, value: Mapping[str, object]) -> None:
    """The JSON file that marks its folder as ours, the last one to be written: it also lists what else is in the folder.

    ``whole_folder`` replaces no folder that holds anything else.
    """
    files = sorted(file.relative_to(path.parent).as_posix() for file in path.parent.rglob("*") if file.is_file())
    write_json(path, {**value, "contents": files})


def replace_json(path: Path, value: Mapping[str, object]) -> None:
    """The same, in the place of an old file: at any time one of the two is there, whole.

    Raises:
        UserError: it cannot be written.
    """
    write_text(path, _as_text(value))


def _as_text(value: Mapping[str, object]) -> str:
    return as_json(value) + "\n"


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:  # names may hold half of a surrogate pair
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """A text file that appears whole: written beside the old one and renamed.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as beside:
            _write(beside, text)
            os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def whole_folder(target: str | Path, *, overwrite: str | None = None) -> Iterator[Path]:
    """A folder to write into, which becomes ``target`` only when the block ends well; until then there is none.

    It is written beside the target and renamed; what it replaces changes places with it in the same moment, under its lock. If
    the process is killed, the target is absent (or the old one), and a ``.NAME.writing-…`` folder is left, which the next
    writer of the target removes. Of several processes that write one target, one wins, whole.

    Args:
        target: the folder to make; its parent is created.
        overwrite: the name of a marker (``write_marker``); a folder that holds it, and nothing that it does not list, is ours
            and may be replaced. None: nothing is replaced.

    Raises:
        UserError: the target exists and may not be replaced, or cannot be written.
    """
    target = Path(target)
    sweep(target.parent, target.name)
    _may_write(target, overwrite)
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = stack.enter_context(temporary(target, folder=True))
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror})") from error
        try:
            with reading():
                yield beside
            _sync(beside)
            with locked(target) if target.is_dir() else nullcontext():
                _may_write(target, overwrite)  # another process may have been there meanwhile
                if overwrite is not None and (target / overwrite).exists():
                    _replace(target, beside)
                else:
                    os.rename(beside, target)  # fails if there is anything but an empty folder
            _sync(target.parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise UserError(f"{target}: exists already: another process has just written it") from error
            named = error.filename if isinstance(error.filename, str) and str(beside) not in error.filename else None
            why = f"{named}: {error.strerror}" if named and Path(named) != target else error.strerror or str(error)
            raise UserError(f"{target}: cannot be written ({why})") from error


def may_write(target: str | Path, overwrite: str | None = None) -> None:
    """Raise the error that ``whole_folder`` would raise, before any work is done."""
    _may_write(Path(target), overwrite)


def _may_write(target: Path, overwrite: str | None) -> None:
    if not target.exists() and not target.is_symlink():
        parent = next(folder for folder in target.absolute().parents if folder.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            why = "may not be written to" if parent.is_dir() else "is no folder"
            raise UserError(f"{target}: cannot be written: {parent} {why}")
        return
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    if overwrite is None:
        raise UserError(f"{target}: exists already: choose another name or add --overwrite")
    if target.is_symlink() or not (target / overwrite).exists():
        raise UserError(f"{target}: is not a folder that paretomerge wrote (no {overwrite} in it), so it is not replaced")
    if strange := _strangers(target, overwrite):
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UserError(f"{target}: holds {strange[0]}{more}, which is not of this front or model: move it elsewhere first")


def _strangers(folder: Path, marker: str) -> list[str]:
    """What is in a folder of ours beside what we wrote there: exports, notes, pictures."""
    try:
        listed = json.loads((folder / marker).read_bytes())["contents"]
        known = {marker, *listed}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):  # a damaged marker, or one without a list
        return []
    left = {path for path in folder.rglob(".*") if is_leftover(path)}
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    found = [path for path in found if left.isdisjoint((path, *path.parents))]
    return sorted(name for path in found if (name := path.relative_to(folder).as_posix()) not in known)


def _replace(target: Path, new: Path) -> None:
    """The new folder in the old one's place; the old one has the name of the new one then."""
    if not _exchange(target, new):  # then there is a moment without either
        old = set_aside(target)
        os.rename(target, old)
        os.rename(new, target)
        os.rename(old, new)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step: Linux' renameat2(2), which Python does not have; whether the system could."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):  # an old kernel, NFS, FUSE …
        return False
    raise OSError(number, os.strerror(number), str(one))


def _write_at(descriptor: int, tensor: Tensor, offset: int, digest: Running | None) -> None:
    if not tensor.numel():
        return
    view = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    while view:
        written = os.pwrite(descriptor, view, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if digest:
            digest.passed(offset, view[:written])
        view, offset = view[written:], offset + written


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def one_thread_each(workers: int | None, *, spare: bool = False) -> Iterator[ThreadPoolExecutor]:
    """Workers that compute on one thread each: cores share tensors, not loops, and none spins waiting for another.

    ``spare``: a core is left to those who hash.
    """
    before = torch.get_num_threads()
    count = workers or max(1, before - spare)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True)
            torch.set_num_threads(before)
