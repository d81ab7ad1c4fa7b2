"""SIGTERM and SIGHUP end a command as Ctrl-C does, after it has cleared away its temporary folders and processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end: ``kill``, a closed terminal or connection."""


class Ended(BaseException):
    """A signal came that asks the process to end.

    It is no ``KeyboardInterrupt``, which the libraries of command lines turn into an exit code of their own.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In the block SIGTERM and SIGHUP raise ``Ended``, once, unless they have a handler already or are ignored (nohup)."""

    def end(number: int, _: Any) -> None:
        for each in ours:  # both come when a terminal is closed: a second one must not cut the clearing short
            signal.signal(each, lambda *_: None)
        raise Ended(number)

    ours = [number for number in ENDING if _is_main() and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def handled(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """In the block Ctrl-C and the signals that ask the process to end call ``handler``; those that are ignored stay so."""
    wanted = [n for n in (signal.SIGINT, *ENDING) if _is_main() and signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _is_main() -> bool:
    """Only the main thread may say what signals do."""
    return threading.current_thread() is threading.main_thread()
