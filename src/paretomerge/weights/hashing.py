"""SHA-256 of files while others read or write them, so that no byte comes from the disk twice.

SHA-256 takes a file in order. Who reads or writes it in order hands over copies of the pieces, which a thread beside hashes.
Where several work on it at a time, the pieces that come too early are read again once those before them are hashed, from the
page cache if there is room.
"""

from __future__ import annotations

import hashlib
import heapq
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

from paretomerge.errors import UserError
from paretomerge.weights.unchanged import State, check_unchanged, state_of

_GAP = 1 << 20
"""Bytes that nobody may have read (a header, norms) and that are read to go on from there."""
_WAITING = 1 << 27
"""Bytes that have been read beyond a larger gap until it is read, too: sooner they fall out of the page cache."""
_PIECE = 1 << 20
_PIECES = 4
"""Pieces of a file that may wait to be hashed; then those who bring them wait."""

_known: dict[tuple[Path, State], str] = {}
"""Once for each state of a file: a search asks for it, and the front that it makes again."""
_running: dict[Path, Running] = {}


class Running:
    """The SHA-256 of one file, as far as it is known."""

    def __init__(self, file: Path, *, gap: int = _GAP) -> None:
        """``gap`` = 0: of a file that is being written, where nothing may be read that has not come."""
        self.file, self._gap = file, gap
        self._sum, self._done = hashlib.sha256(), 0
        self._expected = 0
        self._came: Queue[tuple[int, int, bytes | None] | None] = Queue(_PIECES)
        self._ahead: list[tuple[int, int]] = []  # a heap of (start, stop)
        self._beyond = 0  # bytes in it
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failed: UserError | None = None

    def passed(self, start: int, data: memoryview) -> None:
        """These bytes have been read or written; from any thread."""
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, daemon=True)
                    self._thread.start()
        stop, next_ = start + len(data), 0 <= start - self._expected <= self._gap
        if next_:
            self._expected = stop
        self._came.put((start, stop, bytes(data) if next_ else None))

    def stop(self) -> None:
        """No more pieces come."""
        if self._thread is not None:
            self._came.put(None)
            self._thread.join()
            self._thread = None

    def finish(self) -> str:
        """The digest of the whole file, in hexadecimal."""
        self.stop()
        if self._failed:
            raise self._failed
        self._hash_to(state_of(self.file).size)
        return self._sum.hexdigest()

    def _work(self) -> None:
        while (piece := self._came.get()) is not None:
            try:
                if self._failed is None:
                    self._take(*piece)
            except UserError as error:
                self._failed = error  # and go on: whoever brings pieces would wait for ever

    def _take(self, start: int, stop: int, data: bytes | None) -> None:
        if data is not None and 0 <= start - self._done <= self._gap:
            self._hash_to(start)
            if start == self._done:
                self._sum.update(data)
                self._done = stop
        if stop > self._done:
            heapq.heappush(self._ahead, (start, stop))
            self._beyond += stop - start
        while self._ahead:
            start, stop = self._ahead[0]
            if start > self._done + self._gap and not (self._gap and self._beyond > _WAITING):
                break
            heapq.heappop(self._ahead)
            self._beyond -= stop - start
            self._hash_to(stop)

    def _hash_to(self, stop: int) -> None:
        if stop <= self._done:
            return
        try:
            with open(self.file, "rb", buffering=0) as stream:
                stream.seek(self._done)
                buffer = memoryview(bytearray(min(_PIECE, stop - self._done)))
                while self._done < stop and (count := stream.readinto(buffer[: stop - self._done])):
                    self._sum.update(buffer[:count])
                    self._done += count
        except OSError as error:  # vanished since it was opened
            raise UserError(f"{self.file}: cannot be read ({error.strerror or error})") from error


def running(file: Path) -> Running | None:
    """The hash of ``file`` that is being made, for those who read or write it."""
    return _running.get(file)


@contextmanager
def hashed_meanwhile(files: Iterable[Path]) -> Iterator[None]:
    """Hash files while the block reads them; ``hashes_of`` knows them afterwards."""
    before = {file: state_of(file) for file in set(files)}
    begun = {file: Running(file) for file, state in before.items() if (file, state) not in _known and file not in _running}
    _running.update(begun)
    try:
        yield
    finally:
        for file, each in begun.items():
            del _running[file]
            each.stop()
    _finish({each: before[file] for file, each in begun.items()})


@contextmanager
def hashed_as_written(file: Path) -> Iterator[Running]:
    """Hash a file while the block writes it; ``hashes_of`` knows it afterwards."""
    begun = Running(file, gap=0)
    try:
        yield begun
    finally:
        begun.stop()
    _known[file, state_of(file)] = begun.finish()


def hashes_of(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of the files' bytes, in hexadecimal.

    Raises:
        UserError: a file cannot be read, or changes while it is hashed.
    """
    states = {file: state_of(file) for file in sorted(set(files))}
    _finish({Running(file): state for file, state in states.items() if (file, state) not in _known})
    check_unchanged(states.items())
    return {file: _known[file, state] for file, state in states.items()}


def _finish(begun: Mapping[Running, State]) -> None:
    """Remember the digests of those files that are still what they were."""
    with ThreadPoolExecutor(2) as pool:
        for (each, state), digest in zip(begun.items(), pool.map(Running.finish, begun), strict=True):
            if state_of(each.file) == state:
                _known[each.file, state] = digest
