"""A shell command as an evaluator: it is given a checkpoint's folder and prints JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from paretomerge.evaluation.command_guard import guarded
from paretomerge.evaluation.outcomes import Failed
from paretomerge.io.signals import handled

_KEPT = 1 << 22
"""Of what a command prints, the last bytes that are looked at."""
_GRACE = 5.0
"""Seconds between asking a command to end and ending it."""
_GATE = 'read -r go <"$2" && exec /bin/sh -c "$1"'
"""For ``/bin/sh``: a command that begins when its guard stands; if we are killed before that, it never does."""


def run(command: str, *, timeout: float | None, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The last JSON object that a command prints.

    The command gets a process group of its own, and whatever is left of it ends with it, or with this process.

    Args:
        command: for ``/bin/sh``.
        timeout: seconds; None: none.
        variables: what its environment holds beside ours.

    Raises:
        Failed: another exit code than 0 (with the end of standard error), no JSON object on standard output, too slow.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, ExitStack() as stack:
        process = None
        try:
            with _held_back():  # an interrupt in here would leave a process that nobody knows
                gate, opener = os.pipe()
                try:
                    process = subprocess.Popen(
                        ["/bin/sh", "-c", _GATE, "sh", command, f"/dev/fd/{gate}"], stdin=subprocess.DEVNULL, stdout=out,
                        stderr=err, start_new_session=True, env={**os.environ, **(variables or {})}, pass_fds=(gate,),
                    )  # fmt: skip
                    stack.enter_context(guarded(process.pid))
                    os.write(opener, b"\n")
                finally:
                    os.close(gate)
                    os.close(opener)
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"took more than {timeout:g} s{_told(err)}") from None
        finally:
            if process is not None:
                with _held_back():
                    _end(process)
        if code:
            how = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
            raise Failed(f"{how}{_told(err)}")
        found = last_object(_tail(out))
        if found is None:
            printed = " ".join(_tail(out)[-200:].split())
            raise Failed(f"printed no JSON object on standard output, but {printed or 'nothing'!r}{_told(err)}")
        return found


def last_object(text: str) -> dict[str, Any] | None:
    """The last JSON object in a text, or None.

    >>> last_object('loading {model}\\n{"a": 1}\\n{"a": {"acc": 0.5},\\n "b": 2}\\ndone')
    {'a': {'acc': 0.5}, 'b': 2}
    """
    decoder, found, start = json.JSONDecoder(), None, text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return found


@contextmanager
def _held_back() -> Iterator[None]:
    """Interrupts come when the block has ended. (Blocked signals would stay blocked in a child.)"""
    came: list[int] = []
    with handled(lambda number, _: came.append(number)):
        yield
    for arrived in came:
        signal.raise_signal(arrived)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command's process group, gently first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)  # also what a command that has ended left running
        except (ProcessLookupError, PermissionError):
            break
        if process.poll() is not None:
            continue
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _KEPT))
    return file.read().decode(errors="replace")


def _told(err: IO[bytes]) -> str:
    """The end of standard error, for a message."""
    lines = [line.strip() for line in _tail(err).splitlines() if line.strip()]
    return f": {' | '.join(lines[-3:])}" if lines else ""
