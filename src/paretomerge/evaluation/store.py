"""Evaluations on disk: a line of JSON each, appended as they come, so that a search that died goes on where it was.

    {"evaluator": "3f0c…", "is": {"kind": "command", …}}                           once for each evaluator
    {"evaluator": "3f0c…", "c": [0.5, 0.25], "metrics": {"a": 0.91}, "seconds": 2.1}
    {"evaluator": "3f0c…", "c": [1.0, 0.25], "failed": "exit code 1: out of memory", "seconds": 0.4}

``evaluator`` is a hash of all that determines a metric beside c: command or data, the processed merge, the experts' files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from paretomerge.errors import UserError
from paretomerge.evaluation.protocols import Point
from paretomerge.io.locking import run_folder
from paretomerge.io.strict_json import as_json

FILE = "evaluations.jsonl"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW  # a link could lead out of the run's folder
_SYNC_EVERY = 0.1
"""Seconds: of evaluations that take less, a power cut may lose that much work; a killed program loses none."""


class Store:
    """What one evaluator has measured so far; without a folder, only in memory."""

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        """Read a run's folder, or make it.

        Args:
            folder: of the run.
            identity: all that determines a metric beside c, as JSON takes it.

        Raises:
            UserError: another process is writing there, or a line that is damaged (a torn last one is dropped).
        """
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        self.key = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
        self.metrics: dict[Point, dict[str, float]] = {}
        self.failures: dict[Point, str] = {}
        """Of this process alone: what failed before is worth another try."""
        self.found = 0
        """How many points were measured by earlier runs."""
        self._descriptor: int | None = None
        self._synced = time.monotonic()
        self._lock = ExitStack()
        if folder is None:
            return
        with ExitStack() as stack:
            stack.enter_context(run_folder(folder))
            try:
                self._descriptor = os.open(folder / FILE, _FLAGS, 0o666)
            except OSError as error:
                raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
            stack.callback(os.close, self._descriptor)
            if not self._read(folder / FILE):
                self._append({"evaluator": self.key, "is": identity})
            self._lock = stack.pop_all()
        self.found = len(self.metrics)

    def add(self, point: Point, metrics: Mapping[str, float], seconds: float) -> None:
        """Keep what was measured."""
        self.metrics.setdefault(point, {}).update(metrics)
        self._append({"evaluator": self.key, "c": point, "metrics": dict(metrics), "seconds": round(seconds, 3)})

    def fail(self, point: Point, message: str, seconds: float) -> None:
        """Keep that and why nothing was."""
        self.failures[point] = message
        self._append({"evaluator": self.key, "c": point, "failed": message, "seconds": round(seconds, 3)})

    def close(self) -> None:
        """Let others write."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            self._descriptor = None
            self._lock.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            return
        # one write: a line is there whole, or torn if the disk is full or the machine stops
        text = (as_json(line, indent=None) + "\n").encode()
        try:
            if os.write(self._descriptor, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(f"the run's folder cannot be written ({error.strerror or error})") from error
        if time.monotonic() - self._synced > _SYNC_EVERY:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()

    def _read(self, file: Path) -> bool:
        """Take in the lines of this evaluator; whether there are any."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # torn by whatever ended the last run; the next line would be glued to it
            assert self._descriptor is not None
            os.ftruncate(self._descriptor, whole)
        known = False
        for number, text in enumerate(content[:whole].splitlines(), 1):
            try:
                line = json.loads(text)
                if line["evaluator"] != self.key:
                    continue
                known = True
                if "metrics" in line:
                    point = as_point(line["c"])
                    measured = {str(task): float(value) for task, value in line["metrics"].items()}
                    self.metrics.setdefault(point, {}).update(measured)
            except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                raise UserError(f"{file}: line {number} is damaged ({error}): delete that line") from error
        return known


def as_point(coefficients: Sequence[float]) -> Point:
    """c as a key: plain floats, and one zero."""
    return tuple(float(c) + 0.0 for c in coefficients)
