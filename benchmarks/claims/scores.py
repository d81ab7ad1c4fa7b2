"""How good a model is on each single input, so that two models are compared on the same inputs, pair by pair."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from paretomerge.data import Task
from paretomerge.evaluation import batches


@torch.inference_mode()
def scores(model: nn.Module, task: Task, size: int) -> np.ndarray:
    """(n,) of the held-out inputs: 1 where the class is right, else 0; of running text less the mean loss of a block's tokens.

    ``summary`` of it is the task's metric as ``evaluation.measure`` has it, where all blocks are of one length.
    """
    inputs = task.held_out
    assert inputs is not None
    found = []
    for indices, logits in batches(model, inputs, size, None):
        if task.metric == "perplexity":
            tokens = inputs.batch(indices)["input_ids"][:, 1:]
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens.flatten(), reduction="none")
            found.append(-loss.view(tokens.shape).mean(1))
        else:
            assert inputs.labels is not None
            found.append((logits.argmax(-1) == inputs.labels[indices]).float())
    return torch.cat(found).double().numpy()


def summary(found: np.ndarray, metric: str) -> float:
    """Accuracy, or perplexity."""
    return math.exp(-found.mean()) if metric == "perplexity" else float(found.mean())


def packed(found: np.ndarray, metric: str) -> str:
    """Text for a line of JSON: a bit for an input, of running text a half-precision number."""
    return b64encode(found.astype(np.float16) if metric == "perplexity" else np.packbits(found.astype(bool))).decode()


def unpacked(text: str, metric: str, n: int) -> np.ndarray:
    """(n,) again, float64.

    >>> unpacked(packed(np.array([1.0, 0.0, 1.0]), "accuracy"), "accuracy", 3)
    array([1., 0., 1.])
    """
    raw = b64decode(text)
    if metric == "perplexity":
        return np.frombuffer(raw, np.float16).astype(np.float64)
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=n).astype(np.float64)
