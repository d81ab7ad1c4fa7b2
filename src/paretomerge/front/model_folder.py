"""Merged weights as an ordinary Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretomerge.front.card import model_card
from paretomerge.front.loading_code import loading_code
from paretomerge.weights.companions import copy_companions
from paretomerge.weights.lazy import Weights, main_dtype
from paretomerge.weights.writing import Progress, whole_folder, write_json, write_marker, write_shards

PROVENANCE = "paretomerge.json"
"""The file that says how a folder came about, and marks it as ours."""


def write_model(
    weights: Weights,
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    companions: Path | None,
    provenance: Mapping[str, Any],
    shard_bytes: int,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model folder: sharded safetensors, configuration, tokenizer and processor files, card, provenance.

    Args:
        weights: the model, read tensor by tensor.
        folder: the folder to make; it appears whole or not at all.
        config: for ``config.json`` (its dtype is set to that of the weights); empty: none is written.
        companions: the folder whose tokenizer, generation and processor files are copied.
        provenance: for ``paretomerge.json`` and the model card.
        shard_bytes: largest shard.
        overwrite: replace a folder that paretomerge wrote.
        progress: called after each tensor.
    """
    with whole_folder(folder, overwrite=PROVENANCE if overwrite else None) as temporary:
        write_shards(weights, temporary, shard_bytes=shard_bytes, progress=progress)
        write_companions(temporary, config, companions, weights)
        (temporary / "README.md").write_text(model_card(provenance, loading_code(config, temporary)), encoding="utf-8")
        write_marker(temporary / PROVENANCE, provenance)


def write_companions(folder: Path, config: Mapping[str, Any], companions: Path | None, weights: Weights) -> None:
    """The files beside the weights that make a folder a model: configuration, tokenizer, generation, processor."""
    if companions and companions.is_dir():
        copy_companions(companions, folder)
    if config:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        name = str(main_dtype(weights)).removeprefix("torch.")
        write_json(folder / "config.json", {**config, key: name})
