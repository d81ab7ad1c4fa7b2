"""Thin differences to a base as a PEFT LoRA adapter: one preference of a Pareto set, or a merge of adapters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paretomerge.decompositions import of_tensor
from paretomerge.errors import UserError
from paretomerge.experts.architecture import empty_model, live_names
from paretomerge.experts.config import architecture
from paretomerge.front.card import model_card
from paretomerge.front.loading_code import adapter_code
from paretomerge.front.model_folder import PROVENANCE
from paretomerge.weights.adapted import Adapted
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.finite import finite
from paretomerge.weights.lazy import TensorInfo, Weights
from paretomerge.weights.low_rank import LowRank, Truncated
from paretomerge.weights.writing import whole_folder, write_json, write_marker, write_safetensors

PairOf = Callable[[str], LowRank]
"""The base's name of a matrix -> what is added to it: L (m, r) and R (r, n), as the base stores the matrix."""


def write_lora(
    names: Collection[str],
    pair: PairOf,
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    base_model: str,
    provenance: Mapping[str, Any],
    head: Mapping[str, Tensor] | None = None,
    rank: int | None = None,
    overwrite: bool = False,
) -> float:
    """Write an adapter folder that adds L R to some matrices of a base; one matrix at a time is in memory.

    Args:
        names: the matrices.
        pair: what is added to each.
        folder: the folder to make.
        config: config.json of the class that the adapter will be loaded on (the front's, or a task's with its head).
        base_model: for ``base_model_name_or_path``.
        provenance: for ``paretomerge.json``.
        head: a task's own tensors, under that class's names; stored whole (PEFT's ``modules_to_save``).
        rank: the largest rank, by truncated SVD; None: the pairs as they are.
        overwrite: replace a folder that paretomerge wrote.

    Returns:
        The relative error in the adapted matrices together (Frobenius) that ``rank`` costs.

    Raises:
        UserError: a matrix that PEFT cannot adapt, or that the class does not have.
    """
    losses: dict[str, Truncated] = {}

    @lru_cache(maxsize=8)  # a matrix has two tensors: it is computed once for both
    def smaller(name: str) -> LowRank:
        if rank is None:
            return pair(name)
        with of_tensor(name):
            found = pair(name).truncated(rank)
        losses[name] = found._replace(product=LowRank(torch.empty(0), torch.empty(0)))
        return found.product

    tensors, adapter = adapter_files(names, smaller, config=config, base_model=base_model, head=head)
    with whole_folder(folder, overwrite=PROVENANCE if overwrite else None) as temporary:
        write_safetensors(tensors, temporary / "adapter_model.safetensors")
        write_json(temporary / "adapter_config.json", adapter)
        code = [] if head else adapter_code(config, base_model)
        (temporary / "README.md").write_text(model_card({**provenance, "adapter_of": base_model}, code), encoding="utf-8")
        write_marker(temporary / PROVENANCE, provenance)
    total = sum(each.total for each in losses.values())
    return (sum(each.lost for each in losses.values()) / total) ** 0.5 if total else 0.0


def write_sum_of_adapters(
    merged: Weights, folder: str | Path, *, config: Mapping[str, Any], provenance: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write a merge of LoRA experts as one adapter on their base, exactly: its rank is the sum of theirs.

    Raises:
        UserError: no sum of adapters (another merge, or experts that also hold whole tensors).
    """
    if not isinstance(merged, Adapted) or not isinstance(merged.origin, Checkpoint):
        raise UserError(
            "--lora: only average and task_arithmetic of LoRA experts that hold no whole tensors (modules_to_save, lm_head, "
            "biases) are a LoRA again: leave it out"
        )
    base = str(merged.origin.path.resolve())
    write_lora(
        sorted(merged.changed), merged.pair, folder, config=config, base_model=base, provenance=provenance, overwrite=overwrite
    )


def adapter_files(
    names: Collection[str],
    pair: PairOf,
    *,
    config: Mapping[str, Any],
    base_model: str,
    head: Mapping[str, Tensor] | None = None,
) -> tuple[Weights, dict[str, Any]]:
    """What adapter_model.safetensors and adapter_config.json hold: lora_B = L, lora_A = R, scaling 1 (see ``write_lora``).

    All modules get the same rank r = alpha: zeros fill up smaller factors. Not every engine reads ranks and scalings per
    module (``rank_pattern``, ``alpha_pattern``): llama.cpp divides one alpha by each tensor's own rank, vLLM reads no pattern.

    Both are transposed for Conv1D, which stores (in, out), and for embeddings, whose factors have names of their own.
    ``pair`` is asked once for the ranks, and again for the tensors when they are read.
    """
    model = empty_model(config)
    modules = {path: type(module).__name__ for path, module in model.named_modules()}
    live = live_names(names, model)
    kinds: dict[str, str] = {}
    paths: dict[str, str] = {}
    shapes: dict[str, tuple[int, int]] = {}
    rank = 1
    for name in names:
        path = live.get(name, name).removesuffix(".weight")
        kind = modules.get(path)
        if kind not in ("Linear", "Conv1D", "Embedding") or not name.endswith(".weight"):
            raise UserError(
                f"{name}: is {f'a {kind}' if kind else 'no module'} of {architecture(config)}; LoRA adapts Linear, "
                "Conv1D and Embedding only: pick a checkpoint instead, or fit with other targets"
            )
        if kind == "Embedding" and model.get_output_embeddings() and getattr(model.config, "tie_word_embeddings", False):
            raise UserError(f"{name}: is tied to the output, which an adapter would not change: pick a checkpoint instead")
        left, right = pair(name)  # ΔW = left @ right as the base stores W
        kinds[name], paths[name], shapes[name] = kind, path, (left.shape[0], right.shape[1])
        rank = max(rank, left.shape[1])
    infos: dict[str, TensorInfo] = {}
    readers: dict[str, Callable[[], Tensor]] = {}
    for name, (m, n) in shapes.items():
        embedding, transposed = kinds[name] == "Embedding", kinds[name] != "Linear"
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        a, b = f"base_model.model.{paths[name]}.{a}", f"base_model.model.{paths[name]}.{b}"
        readers[a] = partial(_factor, pair, name, rank, "left" if transposed else "right", transposed)
        readers[b] = partial(_factor, pair, name, rank, "right" if transposed else "left", transposed)
        infos[a] = TensorInfo((rank, m if transposed else n), torch.float32)
        infos[b] = TensorInfo((n if transposed else m, rank), torch.float32)
    own = Weights.of({f"base_model.model.{name}": tensor for name, tensor in (head or {}).items()})
    return finite(own.replacing(infos, lambda name: readers[name]())), {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if _is_causal(config) else None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # scaling α / r = 1
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": "Conv1D" in kinds.values(),
        "target_modules": sorted(paths.values()),
        "modules_to_save": sorted({name.rsplit(".", 1)[0] for name in head}) if head else None,
        "use_rslora": False,
        "use_dora": False,
    }


def _factor(pair: PairOf, name: str, rank: int, side: Literal["left", "right"], transposed: bool) -> Tensor:
    """L (m, r) or R (r, n) of a matrix, filled up with zeros to ``rank``, transposed if so."""
    found = pair(name)
    missing = rank - found.rank
    if side == "left":
        factor = torch.nn.functional.pad(found.left, (0, missing))
    else:
        factor = torch.nn.functional.pad(found.right, (0, 0, 0, missing))
    return (factor.T if transposed else factor).contiguous()


def _is_causal(config: Mapping[str, Any]) -> bool:
    """Whether AutoPeftModelForCausalLM can load the adapter; other classes need no such word."""
    return architecture(config).endswith(("ForCausalLM", "LMHeadModel"))
