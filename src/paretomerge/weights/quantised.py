"""Quantised checkpoints, which nothing can be added to: packed integers mean nothing without their scales."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretomerge.errors import UserError

_FIELDS = ("quantization_config", "compression_config")
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx"  # GPTQ, AWQ
    r"|SCB|weight_format|(nested_)?absmax|(nested_)?quant_map|quant_state\.\w+"  # bitsandbytes
    r"|weight_scales?(_inv|_2)?|weight_zero_point|weight_packed|weight_global_scale"  # fp8, compressed-tensors, NVFP4
    r"|weight_?_qdata|weight\._data)$"  # torchao, quanto
    r"|_proj_(blocks|scales)$"  # MXFP4
)
"""Names of tensors that only quantised models have."""
_WHOLE = re.compile(r"\.(weight|W_q|codes|Qidxs)$")
_INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32")
"""What weights by these names are never stored as in full precision."""
_NARROW = re.compile(r"F4|F6_\w+|F8_E8M0|[UI]4")

_LOADED = "AutoModelForCausalLM.from_pretrained({path}{how}){then}.save_pretrained(NEW)"
_WAYS = {
    "bitsandbytes": _LOADED.replace("{how}", "").replace("{then}", ".dequantize()"),
    "higgs": _LOADED.replace("{how}", "").replace("{then}", ".dequantize()"),
    "fp8": _LOADED.replace("{how}", ", quantization_config=FineGrainedFP8Config(dequantize=True)").replace("{then}", ""),
    "mxfp4": _LOADED.replace("{how}", ", quantization_config=Mxfp4Config(dequantize=True)").replace("{then}", ""),
    "compressed-tensors": _LOADED.replace(
        "{how}", ", quantization_config=CompressedTensorsConfig(run_compressed=False)"
    ).replace("{then}", ""),
}
"""How transformers writes the model in full precision, where it can."""


def refuse_quantised(path: Path, config: Mapping[str, Any], tensors: Iterable[tuple[Path, str, str]] = ()) -> None:
    """Raise the one line about a quantised model, if this is one.

    Args:
        path: of the model: a folder or a file.
        config: its ``config.json``; {} where there is none.
        tensors: the file, the name and safetensors' dtype of each.

    Raises:
        UserError: the model is quantised, by its configuration or by its tensors.
    """
    method = _configured(config)
    file, by = (path / "config.json", f"quantization_config: {method}") if method else (path, "")
    if not method:
        for place, name, dtype in tensors:
            if _PACKED.search(name) or _NARROW.fullmatch(dtype) or (_WHOLE.search(name) and dtype in _INTEGERS):
                file, method, by = place, "unknown", f"{name} ({dtype})"
                break
        else:
            return
    way = _WAYS.get(method.partition(" ")[0])
    dequantise = f", or dequantise it: {way.replace('{path}', repr(str(path)))}" if way else ", or dequantise it with its tool"
    if by.startswith("quantization_config"):
        dequantise += " (weights that are in full precision already need no quantization_config: remove it)"
    raise UserError(
        f"{file}: the model is quantised ({by}): its numbers mean nothing without their scales. Use the full-precision model "
        f"that it was made of{dequantise}. A LoRA that was trained on it (QLoRA) is merged onto that full-precision base: name "
        "it with --base"
    )


def _configured(config: Mapping[str, Any]) -> str:
    """The method that a configuration, or a part of it (``text_config``), names; nothing if it names none."""
    for part in (config, *(part for part in config.values() if isinstance(part, Mapping))):
        for field in _FIELDS:
            if not (found := part.get(field)):
                continue
            if not isinstance(found, Mapping):
                return "unknown"
            method = str(found.get("quant_method") or found.get("quant_type") or "")
            bits = 4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else found.get("bits")
            method = method or ("bitsandbytes" if bits and "bits" not in found else "unknown")
            return f"{method} {bits} bit" if isinstance(bits, int) else method
    return ""
