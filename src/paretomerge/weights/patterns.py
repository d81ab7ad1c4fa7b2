"""Ranks and scalings per module of a LoRA adapter, as PEFT finds them: by patterns that come with the adapter.

A pattern is a regular expression from a file that may come from anybody, and some take for ever ("(a+)+$"): Python's engine
runs those that cannot (no repetition in them), an engine with a time limit the others.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Any

import regex

_SECONDS = 2.0
"""For all patterns of an adapter together."""
_PLAIN = re.compile(r"[\w.^$-]*")


def scalings(config: Mapping[str, Any], modules: Mapping[str, int]) -> dict[str, float]:
    """α/r, or α/√r (rsLoRA), of each module.

    Args:
        config: an ``adapter_config.json``.
        modules: module -> the rank of its factors, which counts where the configuration names none.

    Raises:
        ValueError: numbers or patterns that are none, a rank that is not that of the factors; the module's name is in it.
    """
    until = time.monotonic() + _SECONDS
    found = {}
    for module, rank in modules.items():
        try:
            alpha = float(_of(config.get("alpha_pattern"), module, config.get("lora_alpha", rank), until))
            nominal = _of(config.get("rank_pattern"), module, config.get("r", rank), until)
            scale = alpha / (math.sqrt(nominal) if config.get("use_rslora") else nominal)
            if not math.isfinite(scale):
                raise ValueError(f"{scale}")
            if nominal != rank:
                raise ValueError(f"r is {nominal}, its tensors have rank {rank}")
            found[module] = scale
        except TimeoutError:
            raise ValueError(f"{module}: its patterns take longer than {_SECONDS:.0f} s to match") from None
        except (TypeError, ValueError, AttributeError, ArithmeticError, re.error, regex.error, RecursionError) as error:
            raise ValueError(f"{module}: {error}") from error
    return found


def _of(patterns: Any, module: str, default: Any, until: float) -> Any:
    """PEFT's rule: the first pattern that is the module's name or a regular expression for its end."""
    for pattern, value in (patterns or {}).items():
        whole = rf"(.*\.)?({pattern})$"
        if _PLAIN.fullmatch(pattern):
            match: Any = re.match(whole, module)
        else:
            match = regex.match(whole, module, timeout=max(1e-3, until - time.monotonic()))
        if match:
            return value
    return default
