"""Thin differences to a base as a PEFT LoRA adapter: one preference of a Pareto set, or a merge of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.export.huggingface import PROVENANCE
from paretomerge.weights.adapted import Adapted, Pair, compressed
from paretomerge.weights.architecture import empty_model, live_names
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.lazy import Weights
from paretomerge.weights.writing import whole_folder, write_json, write_safetensors


def write_lora(
    pairs: Mapping[str, Pair],
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    base_model: str,
    provenance: Mapping[str, Any],
    head: Mapping[str, Tensor] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapter folder that adds L R to some matrices of a base.

    Args:
        pairs: the base's name -> L (m, r) and R (r, n), as the base stores the matrix.
        folder: the folder to make.
        config: config.json of the class that the adapter will be loaded on (the front's, or a task's with its head).
        base_model: for ``base_model_name_or_path``.
        provenance: for ``paretomerge.json``.
        head: a task's own tensors, under that class's names; stored whole (PEFT's ``modules_to_save``).
        overwrite: replace a folder that paretomerge wrote.

    Raises:
        UserError: a target that PEFT cannot adapt, or that the class does not have.
    """
    tensors, adapter = adapter_files(pairs, config=config, base_model=base_model, head=head)
    with whole_folder(folder, overwrite=PROVENANCE if overwrite else None) as temporary:
        write_safetensors(tensors, temporary / "adapter_model.safetensors")
        write_json(temporary / "adapter_config.json", adapter)
        write_json(temporary / PROVENANCE, provenance)


def write_sum_of_adapters(
    merged: Weights, folder: str | Path, *, config: Mapping[str, Any], provenance: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write a merge of LoRA experts as one adapter on their base, exactly: its rank is the sum of theirs, or less.

    Raises:
        UserError: no sum of adapters (another merge, or experts that also hold whole tensors).
    """
    if not isinstance(merged, Adapted) or not isinstance(merged.origin, Checkpoint):
        raise UserError("--lora: only average and task_arithmetic of LoRA experts alone are a LoRA again: leave it out")
    pairs = {name: compressed(pair).pair for name, pair in merged.pairs().items()}
    base = str(merged.origin.path.resolve())
    write_lora(pairs, folder, config=config, base_model=base, provenance=provenance, overwrite=overwrite)


def adapter_files(
    pairs: Mapping[str, Pair], *, config: Mapping[str, Any], base_model: str, head: Mapping[str, Tensor] | None = None
) -> tuple[Weights, dict[str, Any]]:
    """What adapter_model.safetensors and adapter_config.json hold: lora_B = L, lora_A = R, scaling 1 (see ``write_lora``).

    Both are transposed for Conv1D, which stores (in, out), and for embeddings, whose factors have names of their own.
    """
    model = empty_model(config)
    modules = {path: type(module).__name__ for path, module in model.named_modules()}
    names = live_names(pairs, model)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    transposed = False
    for name, (left, right) in pairs.items():  # ΔW = left @ right as the base stores W
        path = names.get(name, name).removesuffix(".weight")
        kind = modules.get(path)
        if kind not in ("Linear", "Conv1D", "Embedding") or not name.endswith(".weight"):
            raise UserError(
                f"{name}: is {f'a {kind}' if kind else 'no module'} of {config['architectures'][0]}; LoRA adapts Linear, "
                "Conv1D and Embedding only: pick a checkpoint instead, or fit with other targets"
            )
        if kind == "Embedding" and model.get_output_embeddings() and getattr(model.config, "tie_word_embeddings", False):
            raise UserError(f"{name}: is tied to the output, which an adapter would not change: pick a checkpoint instead")
        key = f"base_model.model.{path}"
        if kind != "Linear":
            left, right = right.T, left.T
        transposed = transposed or kind == "Conv1D"
        a, b = ("lora_embedding_A", "lora_embedding_B") if kind == "Embedding" else ("lora_A.weight", "lora_B.weight")
        tensors[f"{key}.{a}"] = right.contiguous()
        tensors[f"{key}.{b}"] = left.contiguous()
        ranks[path] = right.shape[0]
    for name, tensor in (head or {}).items():
        tensors[f"base_model.model.{name}"] = tensor
    rank = max(ranks.values())
    smaller = {path: r for path, r in ranks.items() if r != rank}
    return Weights.of(tensors), {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if _is_causal(config) else None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # scaling α / r = 1
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": sorted(ranks),
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "modules_to_save": sorted({name.rsplit(".", 1)[0] for name in head}) if head else None,
        "use_rslora": False,
        "use_dora": False,
    }


def _is_causal(config: Mapping[str, Any]) -> bool:
    """Whether AutoPeftModelForCausalLM can load the adapter; other classes need no such word."""
    return str(config["architectures"][0]).endswith(("ForCausalLM", "LMHeadModel"))
