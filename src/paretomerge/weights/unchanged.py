"""Files that must stay as they are while they are read: a model that changes under a merge would give half of each.

Who opens a file remembers its state; who reads from it says so (``touched``); who made something of it (a model, a front,
numbers) looks in the end whether all that was read is still in that state (``reading``). No byte is read for this.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from paretomerge.errors import UserError


class State(NamedTuple):
    """What changes with a file's content."""

    device: int
    inode: int
    """Another one: the file was replaced."""
    size: int
    modified: int
    """Nanoseconds."""


States = frozenset[tuple[Path, State]]
"""Files as they were when they were opened."""
_readers: dict[int, set[tuple[Path, State]]] = {}


def state_of(file: Path) -> State:
    """The state of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        facts = os.stat(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    return State(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def states_of(files: Iterable[Path]) -> States:
    """The states of those files that exist."""
    return frozenset((file, state_of(file)) for file in files if file.exists())


def touched(states: States) -> None:
    """These files have been read, or are about to be; their states are from before."""
    for files in list(_readers.values()):
        files |= states


@contextmanager
def reading(*, replaced: bool = False) -> Iterator[set[tuple[Path, State]]]:
    """Files that are read while the block runs, by any thread, are in the end what they were when they were opened.

    Args:
        replaced: bear that another file has taken the place of one; what was opened is then still the old one.

    Yields:
        Those files, as they are touched.

    Raises:
        UserError: one has changed.
    """
    files: set[tuple[Path, State]] = set().union(*list(_readers.values()))  # what the work around this block has read
    _readers[id(files)] = files
    try:
        yield files
    finally:
        del _readers[id(files)]
    check_unchanged(files, replaced=replaced)


def check_unchanged(states: Iterable[tuple[Path, State]], *, replaced: bool = False) -> None:
    """Refuse what was made of files that are no longer what they were. One that was removed is no harm: its content stays.

    Raises:
        UserError: a file has been replaced, or written to.
    """
    for file, before in sorted(states):
        try:
            now = state_of(file)
        except UserError:
            continue
        another = now[:2] != before[:2]
        if now != before and not (another and replaced):
            how = "replaced" if another else "written to"
            raise UserError(
                f"{file}: has been {how} since it was opened, so this could be a mixture of two models: "
                "leave the models alone while they are read, and start again"
            )
