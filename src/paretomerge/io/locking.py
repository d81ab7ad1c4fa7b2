"""One writer at a time in a folder: a front's, or a run's.

The lock is flock(2) on the folder itself. No lock file travels with a front or stands in the way of ``--overwrite``, and the
system releases the lock when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from paretomerge.errors import UserError
from paretomerge.io.leftovers import sweep

_OWN_FILES = (".state.writing", ".metrics.writing")
"""What a killed fit leaves in its run's folder, beside what ``leftovers`` knows."""


@contextmanager
def locked(folder: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a folder's lock for the length of a block.

    A folder that takes another's place (``--overwrite``) has a lock of its own: who waited for the old one gets the new one's.
    A thread that holds a lock must not ask for it again.

    Args:
        folder: it must exist.
        busy: the line to refuse with while another process, or thread, holds the lock; None: wait.

    Raises:
        UserError: the lock is taken, or the folder cannot be opened.
    """
    with ExitStack() as held:
        try:
            while not _hold(folder, held, wait=busy is None):
                held.close()
        except BlockingIOError:
            raise UserError(busy or "") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be opened ({error.strerror or error})") from error
        yield


def _hold(folder: Path, held: ExitStack, *, wait: bool) -> bool:
    """Lock a folder until ``held`` is closed; whether it is still the folder of that name."""
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError:  # NFS locks no folders
        _hold_file_beside(folder, how, held)
    return os.path.samestat(os.fstat(descriptor), os.stat(folder))


def _hold_file_beside(folder: Path, how: int, held: ExitStack) -> None:
    """Lock a hidden file beside a folder, which is never removed; nothing where there are no locks at all."""
    beside = Path(os.path.realpath(folder))
    file = beside.with_name(f".{beside.name}.lock")
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError:  # a place that cannot be written
        return
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError:
        pass


@contextmanager
def run_folder(folder: Path | None) -> Iterator[None]:
    """A run's folder for this process alone; made if it is missing, and removed again if nothing comes into it.

    Raises:
        UserError: another process runs there, or the folder cannot be made.
    """
    if folder is None:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        busy = f"{folder}: another run is writing there: wait for it, or name another folder (--run)"
        with locked(folder, busy=busy):
            sweep(folder)
            for name in _OWN_FILES:
                with suppress(OSError):
                    (folder / name).unlink()
            try:
                yield
            finally:
                _remove_empty(made[:1])  # while no other process has it
    finally:
        _remove_empty(made[1:])


def _remove_empty(folders: list[Path]) -> None:
    for path in folders:
        with suppress(OSError):  # it is not empty
            path.rmdir()
