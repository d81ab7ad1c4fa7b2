"""Which tensors share a router: the modules that PWE-MoE upscales, found from the names of a state dict.

A block is a numbered part of a model (``encoder.layers.3``) that holds attention, or is numbered once and holds none. Its
attention module is what lies under a part called attention or attn; its MLP is its other matrices. Biases go with their
matrices; norms belong to neither. So no architecture has to be known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from paretomerge.errors import UserError
from paretomerge.weights.lazy import TensorInfo
from paretomerge.weights.naming import matches
from paretomerge.weights.roles import is_table

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|_)ln(_|$)", re.IGNORECASE)


def choose_modules(
    infos: Mapping[str, TensorInfo], merged: Sequence[str], modules: str | Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """module's name -> its tensors, in order of depth.

    Args:
        infos: the model's tensors.
        merged: names that some expert changes; only these count.
        modules: ``"mlp"``: every MLP; ``"attention"``: every attention block; ``"attention+mlp"``; ``"all"``: these, and
            every other module that has tensors of its own; or globs of modules' or tensors' names (``*.layers.?``), of
            which the shortest name that fits is a module.

    Raises:
        UserError: nothing fits.
    """
    of_model = _attention_and_mlps([name for name in merged if infos[name].dtype.is_floating_point], infos)
    groups: dict[str, list[str]] = {}
    for name in sorted(of_model, key=depth):
        kind, module = of_model[name]
        if modules == "all":
            chosen: str | None = module or name.rpartition(".")[0] or name
        elif modules in ("mlp", "attention", "attention+mlp"):
            chosen = module if kind and kind in modules else None
        else:
            globs = [modules] if isinstance(modules, str) else list(modules)
            chosen = next((part for part in _prefixes(name) if matches(part, globs)), None)
        if chosen:
            groups.setdefault(chosen, []).append(name)
    if not groups:
        hint = "name modules with globs" if isinstance(modules, str) else f"{merged[0]} is a tensor, for instance"
        raise UserError(f"modules {modules!r}: no tensor of this model fits: use modules=all, or {hint}")
    return {module: tuple(names) for module, names in groups.items()}


def depth(name: str) -> list[tuple[int, str]]:
    """A key by which layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _attention_and_mlps(names: Sequence[str], infos: Mapping[str, TensorInfo]) -> dict[str, tuple[str, str]]:
    """name -> (``"attention"``, ``"mlp"`` or nothing, its module)."""
    blocks_of = {name: [part for part in _prefixes(name) if part.rpartition(".")[2].isdigit()] for name in names}
    with_attention = {block for name in names if _attention(name) for block in blocks_of[name]}
    found = dict.fromkeys(names, ("", ""))
    for name in names:
        if not blocks_of[name] or not _is_linear(name, infos):
            continue
        if attention := _attention(name):
            module = "attention", attention
        else:
            block = [block for block in blocks_of[name] if block in with_attention][-1:] or blocks_of[name][:1]
            module = "mlp", _mlp(name, block[0])
        for each in (name, _bias_of(name)):
            if each in found:
                found[each] = module
    return found


def _mlp(name: str, block: str) -> str:
    """The block's MLP as a module: its own name where it has one (``….mlp``, ``….ffn``), otherwise that of the block."""
    first = name[len(block) + 1 :].split(".")[0]
    return f"{block}.{first}" if re.search(r"mlp|ffn|feed_?forward|moe", first, re.IGNORECASE) else block


def _attention(name: str) -> str:
    """The attention module that a tensor lies in, or nothing; a norm may be named after it (``self_attn_layer_norm``)."""
    for part in _prefixes(name)[:-1]:
        last = part.rpartition(".")[2]
        if _ATTENTION.search(last) and not _NORM.search(last) and re.search(r"(^|\.)\d+\.", part):
            return part
    return ""


def _is_linear(name: str, infos: Mapping[str, TensorInfo]) -> bool:
    """A matrix, or a stack of matrices (experts), and no table."""
    shape = infos[name].shape
    return len(shape) in (2, 3) and min(shape) > 1 and not is_table(name)


def _bias_of(matrix: str) -> str:
    return matrix[: -len("weight")] + "bias" if matrix.endswith("weight") else matrix + "_bias"


def _prefixes(name: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
