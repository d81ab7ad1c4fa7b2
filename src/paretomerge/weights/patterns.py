"""Ranks and scalings per module of a LoRA adapter, as PEFT finds them: by patterns that come with the adapter.

A pattern is a regular expression from a file that may come from anybody, and some take for ever (``(a+)+$``). Plain names,
which nearly all are, are looked up; the others run in an engine that has a time limit.
"""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import regex

_SECONDS = 20.0
"""Of computing, for all patterns of an adapter together: a match of an honest one takes microseconds."""
_NAME = re.compile(r"[\w.-]+")

Dots = tuple[int, ...]
"""Where the dots of a name are: as a regular expression it has any character there."""


def scalings(config: Mapping[str, Any], modules: Mapping[str, int]) -> dict[str, float]:
    """α/r, or α/√r (rsLoRA), of each module.

    Args:
        config: an ``adapter_config.json``.
        modules: module -> the rank of its factors, which counts where the configuration names none.

    Raises:
        ValueError: numbers or patterns that are none or take too long, a rank that is not that of the factors.
    """
    found = {}
    module = ""
    try:
        timed = _timed(_SECONDS)
        alphas, ranks = (_lookup(config.get(name), timed) for name in ("alpha_pattern", "rank_pattern"))
        for module, rank in modules.items():
            alpha, nominal = float(alphas(module, config.get("lora_alpha", rank))), ranks(module, config.get("r", rank))
            scale = alpha / (math.sqrt(nominal) if config.get("use_rslora") else nominal)
            if not math.isfinite(scale):
                raise ValueError(f"{scale}")
            if nominal != rank:
                raise ValueError(f"r is {nominal}, its tensors have rank {rank}")
            found[module] = scale
    except TimeoutError:
        raise ValueError(f"{module or 'patterns'}: the patterns take longer than {_SECONDS:.0f} s to match") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, regex.error, RecursionError, MemoryError) as error:
        raise ValueError(f"{module or 'patterns'}: {error}") from error
    return found


def _lookup(patterns: Any, timed: Callable[..., Any]) -> Callable[[str, Any], Any]:
    """PEFT's rule: the value of the first pattern that is a regular expression for the module's name, or for its end.

    Args:
        patterns: pattern -> value.
        timed: calls a function with its arguments and the seconds that are left.
    """
    # names by their length and dots, so that a module is looked up in a few tables, however many patterns there are
    names: dict[int, dict[Dots, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    others: dict[int, Any] = {}
    values = list((patterns or {}).values())
    for number, pattern in enumerate(patterns or {}):
        if _NAME.fullmatch(pattern):
            dots = tuple(i for i, sign in enumerate(pattern) if sign == ".")
            names[len(pattern)][dots].setdefault(_without(pattern, dots), number)
        else:
            others[number] = timed(_compiled, pattern)

    def of(module: str, default: Any) -> Any:
        first = min(
            (
                table[key]
                for end in _ends(module)
                for dots, table in names.get(len(end), {}).items()
                if (key := _without(end, dots)) in table
            ),
            default=len(values),
        )
        for number, compiled in others.items():
            if number > first:
                break
            if timed(_match, compiled, module):
                return values[number]
        return values[first] if first < len(values) else default

    return of


def _ends(module: str) -> Iterator[str]:
    """``a.b.c``, ``b.c`` and ``c``."""
    yield module
    for place, sign in enumerate(module):
        if sign == ".":
            yield module[place + 1 :]


def _without(name: str, places: Dots) -> str:
    """A name with the same character at some places, whatever stood there."""
    signs = list(name)
    for place in places:
        signs[place] = "."
    return "".join(signs)


def _compiled(pattern: str, _: float) -> Any:
    return regex.compile(rf"(.*\.)?({pattern})$")


def _match(compiled: Any, module: str, left: float) -> Any:
    return compiled.match(module, timeout=left)


def _timed(seconds: float) -> Callable[..., Any]:
    """A caller of functions that together may compute so long; the time in which others compute does not count."""
    left = seconds

    def call(work: Callable[..., Any], *given: Any) -> Any:
        nonlocal left
        started = time.thread_time()
        done = work(*given, left)
        left -= time.thread_time() - started
        if left <= 0:
            raise TimeoutError
        return done

    return call
