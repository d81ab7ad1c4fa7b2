"""Temporary files and folders under names that nobody else gives, and their removal after their writer was killed.

``.NAME.writing-1a2b3c4d`` becomes ``NAME`` when it is whole. Its writer holds a lock on it (flock), which ends with the
process: what bears such a name and is not locked was left behind, and the next writer of ``NAME`` removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WRITING = re.compile(r"\.(?P<name>.+)\.writing-[0-9a-f]{8}", re.DOTALL)
_REPLACED = re.compile(r"\.(?P<name>.+)\.replaced-[0-9a-f]{8}", re.DOTALL)
_MODEL = "paretomerge-model-"
"""Checkpoints that exist for one evaluation, in the system's temporary folder or in a run's."""
_held: dict[Path, int] = {}
"""Those checkpoints of this process, and the descriptors that hold their locks."""


@contextmanager
def temporary(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """An empty file, or folder, beside ``target``, for what will take its place. What is left of it is removed at the end.

    What killed writers of the same target left is removed first.

    Raises:
        OSError: it cannot be made.
    """
    sweep(target.parent, target.name)
    while True:
        path = target.with_name(f".{target.name}.writing-{secrets.token_hex(4)}")
        if folder:
            path.mkdir()
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        descriptor = _opened(path, folder=folder)
        if descriptor is not None:
            break  # otherwise another writer has taken it for a leftover, in the moment before it was locked
    try:
        yield path
    finally:
        _remove(path)
        os.close(descriptor)


def set_aside(path: Path) -> Path:
    """The name under which ``path`` waits for a moment while another takes its place."""
    return path.with_name(f".{path.name}.replaced-{secrets.token_hex(4)}")


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left in a folder: of one target, or in a folder of ours of all.

    What they had only set aside goes back to its place, if that is empty.
    """
    for path in _entries(folder):
        found = _WRITING.fullmatch(path.name) or _REPLACED.fullmatch(path.name)
        if found is None or (name is not None and found["name"] != name):
            continue
        target = path.with_name(found["name"])
        with _taken(path) as taken:
            if taken and _REPLACED.fullmatch(path.name) and not os.path.lexists(target):
                with suppress(OSError):
                    path.rename(target)
            elif taken:
                _remove(path)


def is_leftover(path: Path) -> bool:
    """Whether this is a temporary file of ours, or a temporary folder that no living process holds."""
    if path.is_symlink() or not _WRITING.fullmatch(path.name):
        return False
    return not path.is_dir() or not is_alive(path)


def is_alive(path: Path) -> bool:
    """Whether a process holds a temporary file or folder, or may hold it where the file system cannot tell."""
    with _taken(path) as taken:
        return not taken


@contextmanager
def _taken(path: Path) -> Iterator[bool]:
    """Take the lock of what nobody holds for the length of a block; False: somebody does, or it cannot be told."""
    try:
        descriptor = os.open(path, _flags(path))
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
        except OSError:
            taken = False
        yield taken
    finally:
        os.close(descriptor)


def folder_for(inside: Path | None) -> Path:
    """An empty folder for one checkpoint; ``remove_folder`` ends it. Those of killed processes are removed first.

    Args:
        inside: a run's folder; None: the system's temporary folder.
    """
    place = Path(tempfile.gettempdir()) if inside is None else inside
    place.mkdir(parents=True, exist_ok=True)
    for path in _models(place):
        with _taken(path) as taken:
            if taken and path.stat().st_uid == os.geteuid():
                _remove(path)
    while True:
        path = Path(tempfile.mkdtemp(prefix=_MODEL, dir=place)).absolute()  # a command may go elsewhere
        descriptor = _opened(path, folder=True)
        if descriptor is not None:
            _held[path] = descriptor
            return path


def remove_folder(path: Path) -> None:
    """Remove a checkpoint's folder."""
    _remove(path)
    if (descriptor := _held.pop(path, None)) is not None:
        os.close(descriptor)


def left_behind(run: Path) -> list[Path]:
    """Checkpoints of a killed search, which are removed. Only for who holds the run's lock: nobody else has any there."""
    found = _models(run)
    for path in found:
        remove_folder(path)
    return found


def _models(place: Path) -> list[Path]:
    return [path for path in _entries(place) if path.name.startswith(_MODEL) and path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    """The files and folders in a folder whose names begin as ours do, without links and special files."""
    try:
        with os.scandir(folder) as entries:
            ours = [entry for entry in entries if entry.name.startswith((".", _MODEL))]
            plain = [e for e in ours if e.is_dir(follow_symlinks=False) or e.is_file(follow_symlinks=False)]
            return sorted(folder / entry.name for entry in plain)
    except OSError:
        return []


def _opened(path: Path, *, folder: bool) -> int | None:
    """A descriptor that holds the lock of what has just been made; None: it was removed before it was locked."""
    try:
        descriptor = os.open(path, _flags(path, folder=folder))
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # whoever takes it for a leftover removes it while we wait
    except OSError:  # a file system without locks, where nobody takes anything for a leftover
        return descriptor
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None


def _flags(path: Path, *, folder: bool | None = None) -> int:
    """NFS locks only what is open for writing, and folders cannot be."""
    is_folder = path.is_dir() if folder is None else folder
    return (os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
