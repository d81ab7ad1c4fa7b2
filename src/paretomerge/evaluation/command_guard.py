"""The end of an evaluator's command when the process that waits for it is killed: by kill -9, for memory, or by Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import DEVNULL, Popen

_GUARD = 'read -r line; kill -TERM "-$1"; sleep 5; kill -KILL "-$1"'
"""For ``/bin/sh``: at the end of standard input, end a process group, gently first."""


@contextmanager
def guarded(group: int) -> Iterator[None]:
    """A process group that ends if this process is killed in the block.

    A shell beside waits for the end of a pipe whose other end we hold: the system closes it, however we end.

    Args:
        group: its number.
    """
    theirs, ours = os.pipe()
    try:
        guard = Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(group)], stdin=theirs, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
        )
        try:
            yield
        finally:
            guard.kill()
            guard.wait()
    finally:
        os.close(theirs)
        os.close(ours)
