"""Numbers that are none: NaN and infinity, which no model, front or adapter of ours may hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.weights.lazy import Weights

_NARROW = (torch.float16, torch.bfloat16)


def finite(weights: Weights) -> Weights:
    """The same, for those who write it: a tensor with NaN or infinity in it is an error when it is read.

    Attention masks of zeros and −∞, which some checkpoints hold, pass.
    """

    def parts(name: str) -> Iterator[Tensor]:
        for part in weights.parts(name):
            check_finite(name, part)
            yield part

    def read(name: str) -> Tensor:
        tensor = weights[name]
        check_finite(name, tensor)
        return tensor

    return Weights(weights.infos, read, parts)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise the line about a tensor that holds NaN or infinity.

    Raises:
        UserError: it does, and is no mask.
    """
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or not tensor.numel():  # 8 bits may have neither
        return
    smallest, largest = torch.aminmax(tensor)  # NaN, if there is one; of bf16 many times faster than a sum
    if smallest.isfinite() and largest.isfinite():
        return
    bad = ~torch.isfinite(tensor)
    if bool((bad & (tensor < 0) | (tensor == 0)).all()):
        return
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype in _NARROW and not tensor.isnan().any():
        raise UserError(f"{name}: overflows {kind}: store it wider (--dtype float32)")
    raise UserError(
        f"{name}: {int(bad.sum())} of {tensor.numel()} entries would be NaN or infinite: the model or front that they come "
        "from is damaged: save the model again, or fit the front again"
    )
