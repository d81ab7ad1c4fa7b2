"""The lines of Python that load a model folder, for its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretomerge.weights.checkpoint import read_json

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "spiece.model")


def loading_code(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Lines that load the model in a folder with its own class, which invents no tensor, and what prepares its inputs.

    They are run in the folder of the card. Empty: the configuration names no class, or one with code of its own.
    """
    architecture = (config.get("architectures") or [None])[0]
    if not isinstance(architecture, str) or not architecture.isidentifier() or config.get("auto_map"):
        return []
    beside = {"tokenizer": "AutoTokenizer"} if any((folder / name).exists() for name in _TOKENIZER) else {}
    file = folder / "preprocessor_config.json"
    kinds = read_json(file) if file.exists() else {}
    if "image_processor_type" in kinds:
        beside["image_processor"] = "AutoImageProcessor"
    elif "feature_extractor_type" in kinds:
        beside["feature_extractor"] = "AutoFeatureExtractor"
    lines = [f"from transformers import {', '.join(sorted({architecture, *beside.values()}))}", ""]
    lines += [f'model = {architecture}.from_pretrained(".")  # the folder of this card']
    return lines + [f'{name} = {loader}.from_pretrained(".")' for name, loader in beside.items()]


def adapter_code(config: Mapping[str, Any], base_model: str) -> list[str]:
    """Lines that load an adapter without a head on its base."""
    architecture = (config.get("architectures") or [None])[0]
    if not isinstance(architecture, str) or not architecture.isidentifier() or config.get("auto_map") or not base_model:
        return []
    return [
        "from peft import PeftModel", f"from transformers import {architecture}", "",
        f"base = {architecture}.from_pretrained({base_model!r})",
        'model = PeftModel.from_pretrained(base, ".")  # the folder of this card',
    ]  # fmt: skip
