"""Tied weights: an output projection that is the token embedding under a second name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from paretomerge.errors import UserError
from paretomerge.weights.lazy import TensorInfo, Weights
from paretomerge.weights.lora_files import Adapter

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
    if not _OUTPUT.search(name):
        return None
    return next((n for n, i in infos.items() if n != name and _INPUT.search(n) and i.shape == shape), None)


def tied_in(source: Weights | Adapter, own: Mapping[str, str], second: str, first: str) -> bool:
    """Whether an expert, too, has one tensor under both of the base's names (or stores only one of them).

    An adapter that trained one of them alone has not, unless PEFT was asked to keep them tied.

    Args:
        source: the expert.
        own: the base's names -> the expert's.
        second: the base's second name of the tensor.
        first: its first.
    """
    if isinstance(source, Adapter):
        trained = [own[name] for name in (first, second) if name in own]
        if not trained or source.config.get("ensure_weight_tying"):
            return True
        whole = [source.replaced[name] for name in trained if name in source.replaced and name not in source.factors]
        return len(whole) == 2 and torch.equal(*whole)
    pairs = tied_pairs(source)
    return second not in own or pairs.get(own[second], own[second]) == pairs.get(own.get(first, ""), own.get(first))


def is_embedding(name: str) -> bool:
    """Whether a tensor is the table of input tokens, by its name."""
    return bool(_INPUT.search(name))


def is_output(name: str) -> bool:
    """Whether a tensor is an output projection, by its name."""
    return bool(_OUTPUT.search(name))


def ties(config: Mapping[str, Any]) -> bool:
    """Whether transformers ties the output projection of such a model to its embedding on loading.

    Where config.json does not say so (older ones leave defaults out), the default of the model's own class counts.
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return _in_transformers(config, lambda model: model.config.tie_word_embeddings is True)


def has_output(config: Mapping[str, Any]) -> bool:
    """Whether the class that a configuration names projects to tokens at all; a bare backbone does not."""
    return _in_transformers(config, lambda model: model.get_output_embeddings() is not None)


def _in_transformers(config: Mapping[str, Any], question: Callable[[Any], bool]) -> bool:
    if not config.get("architectures"):
        return False
    from paretomerge.experts.architecture import empty_model  # imports transformers: only where config.json leaves it open

    try:
        return bool(question(empty_model(config)))
    except (UserError, AttributeError, NotImplementedError):
        return False
