"""Tied weights: an output projection that is the token embedding under a second name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from paretomerge.weights.lazy import TensorInfo, Weights

_INPUT = re.compile(r"(embed_tokens|wte|word_embeddings|shared|embed_in|tok_embeddings)\.weight$")
_OUTPUT = re.compile(r"(lm_head|embed_out|lm_head\.decoder|predictions\.decoder|embed_tokens|output)\.weight$")


def tied_pairs(weights: Weights) -> dict[str, str]:
    """Names that are stored twice: {second name: first name}, found by role and shape, then byte for byte.

    Only an embedding and a projection of the same shape and dtype are ever compared, so this reads nothing in a
    checkpoint that stores them once.
    """
    pairs: dict[str, str] = {}
    inputs = [name for name in weights if _INPUT.search(name)]
    for output in (name for name in weights if _OUTPUT.search(name)):
        for source in inputs:
            if output in pairs or source in pairs or source == output or weights.infos[source] != weights.infos[output]:
                continue
            if torch.equal(weights[source], weights[output]):
                pairs[output] = source
    for second in pairs:
        while pairs[second] in pairs:  # three names of one tensor: both others point to the first
            pairs[second] = pairs[pairs[second]]
    return pairs


def tied_embedding(name: str, infos: Mapping[str, TensorInfo], shape: tuple[int, ...]) -> str | None:
    """The embedding that an output projection of this name and shape would be tied to."""
    return next((n for n, i in infos.items() if _OUTPUT.search(name) and _INPUT.search(n) and i.shape == shape), None)
