"""Top-1 accuracy of a live classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.inference_mode()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, *, batch: int = 256) -> float:
    """Share of inputs whose largest logit is the label.

    Args:
        model: a transformers classifier: its output has ``logits`` (batch, classes).
        inputs: ``pixel_values`` (n, channels, height, width), in the model's dtype.
        labels: (n,) integers.
        batch: inputs at a time.
    """
    right = 0
    for x, y in zip(inputs.split(batch), labels.split(batch), strict=True):
        right += int((model(pixel_values=x).logits.argmax(-1) == y).sum())
    return right / len(labels)
