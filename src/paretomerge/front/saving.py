"""Saving merged weights from Python: the same folder that the command ``merge`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paretomerge.errors import UserError
from paretomerge.experts.heads import Head, chosen_head, head_of
from paretomerge.experts.in_memory import config_from
from paretomerge.front.adapter_folder import write_sum_of_adapters
from paretomerge.front.model_folder import write_model
from paretomerge.weights.lazy import Weights
from paretomerge.weights.writing import SHARD_BYTES, Progress


@dataclass(frozen=True)
class About:
    """How merged weights came about: what a model folder holds beside them."""

    config: Mapping[str, Any] = field(default_factory=dict)
    companions: Path | None = None
    """The folder with the tokenizer and the other files."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    """Of the tasks that have one, while the weights are the shared ones."""
    tasks: Sequence[str] = ()
    dtype: torch.dtype | None = None
    """What heads are stored as, too; None: as they are."""

    def save(self, weights: Weights, folder: str | Path, **options: Any) -> None:
        """What ``Weights.save`` calls (see ``front.save``)."""
        save(weights, folder, **options)


def save(
    weights: Weights,
    folder: str | Path,
    *,
    head: str | None = None,
    lora: bool = False,
    config: object = None,
    companions: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
    without_config: bool = False,
) -> None:
    """Write weights as a model folder (see ``Weights.save``); ``without_config``: bare files stay without one."""
    about = weights.about() if weights.about else About(provenance={"method": "weights"})
    own = about.config if config is None else config_from(config)
    if not own and not without_config:
        raise UserError("these weights come without a configuration, and transformers could not load them: give config=…")
    beside = about.companions
    if companions is not None:
        beside = Path(companions).expanduser()
        if not beside.is_dir():
            raise UserError(f"companions: {companions}: no such folder")
    provenance = dict(about.provenance)
    task = chosen_head(about.heads, head, about.tasks)
    if about.heads:
        provenance["head"] = task or "none"
    if task is not None:
        chosen = head_of(about.heads, task, about.tasks)
        weights, own = chosen.on(weights, about.dtype), chosen.config
    if lora:
        write_sum_of_adapters(weights, folder, config=own, provenance=provenance, overwrite=overwrite)
        return
    write_model(
        weights, folder, config=own, companions=beside, provenance=provenance, shard_bytes=shard_bytes,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
