"""PEFT LoRA adapter folders as experts: the task vector of a module is its scaled product ``B A``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.weights.checkpoint import INDEX, SINGLE, read_json, unreadable
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.patterns import scalings
from paretomerge.weights.unchanged import States, states_of, touched

_PREFIX = "base_model.model."
_NOT_PLAIN = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "megatron_config": "Megatron LoRA",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "aLoRA",
    "trainable_token_indices": "training of single tokens",
    "target_parameters": "LoRA of bare parameters (target_parameters)",
}
_MOVES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Ways to start (init_lora_weights) that also subtract B·A from the base."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: ``factors`` by the name of the weight they add to, ``replaced`` tensors that are stored whole."""

    path: Path | None
    """None: in memory."""
    file: Path | None
    config: dict[str, Any]
    factors: dict[str, LowRank]
    """As the file has them, B and A in the orientation in which the base stores W, without their scale."""
    scales: dict[str, float]
    replaced: dict[str, Tensor]
    states: States = frozenset()
    """Of its two files, as they were opened."""

    def product(self, name: str, columns: int) -> LowRank:
        """ΔW of a weight with that many columns, in fp32: a base that stores Wᵀ has the transposed one."""
        factors = self.factors[name]
        left, right = factors if factors.shape[1] == columns else factors.T
        return LowRank(left.float() * self.scales[name], right.float())


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than a model."""
    return (path / "adapter_config.json").exists() and not any((path / file).exists() for file in (SINGLE, INDEX))


def open_adapter(path: Path) -> Adapter:
    """Read a PEFT LoRA folder (any rank, rsLoRA, rank and alpha patterns, embeddings, ``modules_to_save``, biases).

    The scaling is α/r, with rsLoRA α/√r (Kalajdzievski 2023); ``fan_in_fan_out`` (GPT-2's Conv1D) is transposed.

    Raises:
        UserError: not LoRA, DoRA, a damaged or pickled file, factors that do not pair up.
    """
    file = path / "adapter_model.safetensors"
    states = states_of((path / "adapter_config.json", file))
    config = read_json(path / "adapter_config.json")
    _supported(path, config)
    if not file.exists():
        raise UserError(f"{file}: missing; adapters pickled as .bin are not read: save it again with a current peft")
    try:
        tensors = load_file(file)
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        raise unreadable(file, error) from error

    adapter = replace(adapter_from(path, config, tensors), states=states)
    touched(states)
    return adapter


def adapter_from(folder: Path | None, config: dict[str, Any], tensors: dict[str, Tensor]) -> Adapter:
    """An adapter from what its two files hold (``folder`` None: it is in memory); raises as ``open_adapter``."""
    path = folder or Path("adapter in memory")
    if folder is None:
        _supported(path, config)
    file = path / "adapter_model.safetensors" if folder else path
    factors: dict[str, LowRank] = {}
    replaced: dict[str, Tensor] = {}
    for key, a in tensors.items():
        name = key.removeprefix(_PREFIX)
        embedding = name.endswith(".lora_embedding_A")
        if name.endswith(".lora_A.weight") or embedding:
            module = name.removesuffix(".lora_embedding_A").removesuffix(".lora_A.weight")
            partner = (
                key.replace("lora_embedding_A", "lora_embedding_B")
                if embedding
                else (key.removesuffix("lora_A.weight") + "lora_B.weight")
            )
            b = tensors.get(partner)
            if b is None:
                raise UserError(f"{file}: {key} has no {partner.rsplit('.', 2)[-2]} beside it: save the adapter again")
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
                shapes = f"{tuple(a.shape)} and its partner {tuple(b.shape)}"
                raise UserError(
                    f"{file}: {key} {shapes} are no pair of matrices: merge it into a model first (merge_and_unload)"
                )
            # an embedding is stored (tokens, width) but adapted as (B A)ᵀ, and so is Conv1D's (in, out)
            transposed = embedding or bool(config.get("fan_in_fan_out"))
            down, up = (a.T, b.T) if transposed else (b, a)
            factors[module] = LowRank(down, up)
        elif name.endswith(".lora_B.bias"):
            raise UserError(f"{file}: {key}: LoRA with its own bias (lora_bias) is not supported: merge it into a model")
        elif re.search(r"\.lora_(embedding_)?B(\.weight)?$", name):
            continue
        elif ".lora_" in name:
            raise UserError(f"{file}: {key} is no part of plain LoRA: merge it into a model first (merge_and_unload)")
        else:
            # modules_to_save and trained biases: whole tensors under the module's own name
            replaced[name.replace(".modules_to_save.default", "").replace(".base_layer.", ".")] = a
    if not factors and not replaced:
        raise UserError(f"{file}: no LoRA factors in it")
    try:
        scales = scalings(config, {module: product.rank for module, product in factors.items()})
    except ValueError as error:
        why = f"the scaling of a module cannot be told from r, lora_alpha and their patterns ({error})"
        raise UserError(f"{path / 'adapter_config.json'}: {why}: download it again") from error
    trimmed = {f"{module}.weight": _trimmed(product) for module, product in factors.items()}
    of_weights = {f"{module}.weight": scale for module, scale in scales.items()}
    return Adapter(folder, file if folder else None, config, trimmed, of_weights, replaced)


def _supported(path: Path, config: dict[str, Any]) -> None:
    kind = str(config.get("peft_type", "?")).upper()
    file = path / "adapter_config.json"
    if kind != "LORA":
        raise UserError(f"{file}: peft_type {kind} is not LoRA: merge it into a model first (merge_and_unload)")
    for option, label in _NOT_PLAIN.items():
        if config.get(option):
            raise UserError(f"{file}: {label} is not a sum base + B·A: merge it into a model first (merge_and_unload)")
    start = str(config.get("init_lora_weights", True))
    if start.startswith(_MOVES_THE_BASE):
        raise UserError(
            f"{file}: {start} changed the base before it trained: save the adapter again with peft's "
            "path_initial_model_for_weight_conversion, or merge it into a model first (merge_and_unload)"
        )


def _trimmed(product: LowRank) -> LowRank:
    """The factors without the zeros at their end that some tools, ours too, fill all modules up with to one rank."""
    used = (product.left != 0).any(0) | (product.right != 0).any(1)
    rank = int(used.nonzero().max()) + 1 if used.any() else 1
    return LowRank(product.left[:, :rank].contiguous(), product.right[:rank].contiguous())
