"""A task's inputs: what a model's forward takes, a batch at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from paretomerge.errors import UserError

_KEPT_BYTES = 2**28
"""Of processed images that are kept in memory, so that measuring many models reads small data once."""


@runtime_checkable
class Inputs(Protocol):
    """n inputs, with labels or without; the same indices give the same batch each time."""

    @property
    def labels(self) -> Tensor | None:
        """(n,) int64."""

    def __len__(self) -> int:
        """n."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward; the first dimension of each is len(indices)."""


class TensorInputs:
    """Inputs in memory: images that are ready, or blocks of tokens.

    Args:
        tensors: keyword argument of forward -> (n, …).
        labels: (n,) int64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], labels: Tensor | None = None) -> None:
        self.tensors = dict(tensors)
        self.labels = labels
        sizes = {name: len(tensor) for name, tensor in self.tensors.items()} | (
            {} if labels is None else {"labels": len(labels)}
        )
        if len(set(sizes.values())) != 1:
            raise UserError(f"inputs of different lengths: {', '.join(f'{name} {n}' for name, n in sizes.items())}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return {name: tensor[chosen] for name, tensor in self.tensors.items()}


class Rows:
    """Some of other inputs, in this order.

    Args:
        inputs: n of them.
        indices: (m,) of these.
    """

    def __init__(self, inputs: Inputs, indices: Tensor) -> None:
        self._inputs = inputs
        self._indices = indices

    @property
    def labels(self) -> Tensor | None:
        labels = self._inputs.labels
        return None if labels is None else labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self._inputs.batch(self._indices[torch.as_tensor(indices, dtype=torch.long)].tolist())


class ImageInputs:
    """Images that are read and processed when a batch wants them.

    They are brought to the model's number of channels first (grey or RGB). A processor whose mean and deviation are for
    another number of channels normalises with their averages.

    Args:
        images: n of: a path, an (h, w) or (h, w, channels) uint8 array, or a PIL image.
        processor: a transformers image processor.
        channels: of the model: 1 or 3.
        labels: (n,) int64.
    """

    def __init__(self, images: Sequence[Any], processor: Any, channels: int, labels: Tensor | None = None) -> None:
        self._images = images
        self._processor = processor
        self._channels = channels
        self.labels = labels
        self._options: dict[str, Any] = {"do_convert_rgb": False, "input_data_format": "channels_last"}
        for name in ("image_mean", "image_std"):
            values = getattr(processor, name, None)
            if isinstance(values, list | tuple) and len(values) != channels:
                self._options[name] = [float(np.mean(values))] * channels
        self._kept: dict[int, Tensor] = {}
        self._room = _KEPT_BYTES

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``pixel_values`` (len(indices), channels, height, width), fp32.

        Raises:
            UserError: an image that cannot be read; images of different sizes, and a processor that does not resize.
        """
        wanted = dict.fromkeys(int(i) for i in indices if int(i) not in self._kept)
        fresh: dict[int, Tensor] = {}
        if wanted:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1, len(wanted))) as pool:  # decoding leaves Python's lock
                arrays = list(pool.map(self._read, wanted))
            pixels = self._processor(arrays, return_tensors=None, **self._options)["pixel_values"]
            fresh = {i: torch.from_numpy(np.ascontiguousarray(p)).float() for i, p in zip(wanted, pixels, strict=True)}
        images = [fresh[i] if i in fresh else self._kept[i] for i in map(int, indices)]
        if len(shapes := {tuple(image.shape) for image in images}) > 1:
            raise UserError(f"images of different sizes {sorted(shapes)}: set do_resize in preprocessor_config.json")
        for i, image in fresh.items():
            if (room := self._room - image.nbytes) >= 0:
                self._kept[i], self._room = image, room
        return {"pixel_values": torch.stack(images)}

    def _read(self, index: int) -> np.ndarray:
        """(h, w, channels) uint8."""
        from PIL import Image

        image = self._images[index]
        mode = "L" if self._channels == 1 else "RGB"
        try:
            if isinstance(image, str | Path):
                with Image.open(image) as opened:
                    image = opened.convert(mode)
            else:
                if isinstance(image, np.ndarray):
                    image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
                image = image.convert(mode)
        except Exception as error:  # whatever a damaged one makes go wrong in Pillow
            raise UserError(f"{self._images[index]}: is not an image that can be read ({error})") from error
        array = np.asarray(image)
        return array[..., None] if array.ndim == 2 else array


class TextInputs:
    """Tokenised texts of different lengths, padded on the right to the longest of each batch.

    Args:
        sequences: keyword argument (``input_ids``, ``token_type_ids``) -> n sequences of ids.
        pad: the id that fills ``input_ids``; other arguments are filled with 0.
        width: pad to this length instead.
        masked: the model wants an ``attention_mask``.
        labels: (n,) int64.
    """

    def __init__(
        self,
        sequences: Mapping[str, Sequence[Sequence[int]]],
        pad: int,
        *,
        width: int | None = None,
        masked: bool = True,
        labels: Tensor | None = None,
    ) -> None:
        self.labels = labels
        self._pad = {"input_ids": pad}
        self._width = width
        self._masked = masked
        lengths = torch.tensor([len(ids) for ids in sequences["input_ids"]])
        self._ends = lengths.cumsum(0)
        self._lengths = lengths
        flat = {name: np.fromiter((i for row in rows for i in row), np.int32) for name, rows in sequences.items()}
        self._flat = {name: torch.from_numpy(ids) for name, ids in flat.items()}

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self._lengths.max())

    def __len__(self) -> int:
        return len(self._lengths)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and what else the tokenizer made, each (len(indices), longest) int64."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        lengths, starts = self._lengths[chosen], (self._ends - self._lengths)[chosen]
        mask = torch.arange(self._width or int(lengths.max())) < lengths[:, None]
        places = torch.where(mask, starts[:, None] + torch.arange(mask.shape[1]), 0)
        padded = {"attention_mask": mask.long()} if self._masked else {}
        for name, flat in self._flat.items():
            padded[name] = torch.where(mask, flat[places].long(), self._pad.get(name, 0))
        return padded
