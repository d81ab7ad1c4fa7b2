"""Slices of rows of a stored tensor, by plain reads into one buffer: how a model that is larger than the memory streams.

A mapped file shows the same bytes, and serves whole tensors. But a page of it is found one fault at a time, and has to be
unmapped again before the system can drop it; where memory is short, that alone costs many times what reading does.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.weights.hashing import running
from paretomerge.weights.lazy import TensorInfo, as_bytes, matrix_shape

_PAGE = 4096
"""Bytes of a row from which on single rows are read; of shorter ones the map brings no more."""


class StoredRows:
    """The ``Rows`` of a tensor that begins at byte ``start`` of a file."""

    def __init__(self, file: Path, descriptor: int, start: int, info: TensorInfo, whole: Callable[[], Tensor]) -> None:
        """``descriptor``: the open file, closed when this object goes; ``whole`` gives the tensor as a view of its map."""
        weakref.finalize(self, os.close, descriptor)
        self._file, self._descriptor, self._start, self._info, self._whole = file, descriptor, start, info, whole
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, start, info.nbytes, os.POSIX_FADV_SEQUENTIAL)  # fetch twice as far ahead
        self._buffer = torch.empty(0, matrix_shape(info.shape)[1], dtype=info.dtype)
        self._bytes = memoryview(b"")
        self._running = running(file)

    def __getitem__(self, rows: slice) -> Tensor:
        m, n = matrix_shape(self._info.shape)
        first, last, step = rows.indices(m)
        count, width = len(range(first, last, step)), n * self._info.dtype.itemsize
        if count >= m or not n or (step != 1 and width < _PAGE):  # nothing is gained by a copy of it all
            return self._whole().reshape(m, n)[rows]
        if count > len(self._buffer):
            with torch.inference_mode(False):  # whoever reads first may be in it, and whoever reads next may not
                self._buffer = torch.empty(count, n, dtype=self._info.dtype)
            self._bytes = memoryview(as_bytes(self._buffer))
        together = max(1, count) if step == 1 else 1  # rows that lie side by side
        try:
            for i in range(0, count, together):
                self._fill(self._bytes[i * width : (i + together) * width], self._start + (first + i * step) * width)
        except OSError as error:
            raise UserError(f"{self._file}: cannot be read ({error.strerror or error})") from error
        return self._buffer if count == len(self._buffer) else self._buffer[:count]

    def _fill(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            if not (count := os.preadv(self._descriptor, [buffer], offset)):
                raise UserError(shorter(self._file))
            if self._running:
                self._running.passed(offset, buffer[:count])
            buffer, offset = buffer[count:], offset + count


def shorter(file: Path) -> str:
    """The line about a file that ends before its tensors do."""
    return f"{file}: has become shorter since it was opened: leave the models alone while they are read"
