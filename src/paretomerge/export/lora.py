"""One preference of a Pareto set as a PEFT LoRA adapter on the front's base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.export.huggingface import PROVENANCE
from paretomerge.sets.low_rank import LowRank
from paretomerge.weights.architecture import empty_model, live_names
from paretomerge.weights.lazy import Weights
from paretomerge.weights.writing import whole_folder, write_json, write_safetensors


def write_lora(
    pareto_set: LowRank,
    preference: Tensor,
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    base_model: str,
    provenance: Mapping[str, Any],
    head: Mapping[str, Tensor] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapter folder of rank exactly r: lora_B = A G_γ, lora_A = B, scaling 1 (both transposed for Conv1D).

    Args:
        pareto_set: the fitted set.
        preference: γ, (K,).
        folder: the folder to make.
        config: config.json of the class that the adapter will be loaded on (the front's, or a task's with its head).
        base_model: for ``base_model_name_or_path``.
        provenance: for ``paretomerge.json``.
        head: a task's own tensors, under that class's names; stored whole (PEFT's ``modules_to_save``).
        overwrite: replace a folder that paretomerge wrote.

    Raises:
        UserError: a target that PEFT cannot adapt, or that the class does not have.
    """
    model = empty_model(config)
    modules = {path: type(module).__name__ for path, module in model.named_modules()}
    names = live_names(pareto_set.varying, model)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    transposed = set()
    for name in pareto_set.varying:
        path = names.get(name, name).removesuffix(".weight")
        kind = modules.get(path)
        if kind not in ("Linear", "Conv1D") or not name.endswith(".weight"):
            raise UserError(
                f"{name}: is {f'a {kind}' if kind else 'no module'} of {config['architectures'][0]}; LoRA adapts Linear "
                "and Conv1D only: pick a checkpoint instead, or fit with other targets"
            )
        left, right = pareto_set.low_rank(name, preference)  # ΔW = left @ right as the base stores W
        if kind == "Conv1D":  # stored (in, out), adapted as (out, in)
            left, right = right.T, left.T
            transposed.add(path)
        key = f"base_model.model.{path}"
        tensors[f"{key}.lora_A.weight"] = right.contiguous()
        tensors[f"{key}.lora_B.weight"] = left.contiguous()
        ranks[path] = right.shape[0]
    for name, tensor in (head or {}).items():
        tensors[f"base_model.model.{name}"] = tensor
    rank = max(ranks.values())
    smaller = {path: r for path, r in ranks.items() if r != rank}
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if _is_causal(config) else None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # scaling α / r = 1
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(transposed),
        "target_modules": sorted(ranks),
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "modules_to_save": sorted({name.rsplit(".", 1)[0] for name in head}) if head else None,
        "use_rslora": False,
        "use_dora": False,
    }
    with whole_folder(folder, overwrite=PROVENANCE if overwrite else None) as temporary:
        write_safetensors(Weights.of(tensors), temporary / "adapter_model.safetensors")
        write_json(temporary / "adapter_config.json", adapter)
        write_json(temporary / PROVENANCE, provenance)


def _is_causal(config: Mapping[str, Any]) -> bool:
    """Whether AutoPeftModelForCausalLM can load the adapter; other classes need no such word."""
    return str(config["architectures"][0]).endswith(("ForCausalLM", "LMHeadModel"))
