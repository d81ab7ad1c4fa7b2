"""Which matrices a low-rank term is added to, and which of them share one term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paretomerge.errors import UserError
from paretomerge.weights.lazy import TensorInfo
from paretomerge.weights.naming import matches
from paretomerge.weights.roles import is_matrix, makes_queries_keys_values

_ROLES = (
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_lin",
    "k_lin",
    "v_lin",
    "wq",
    "wk",
    "wv",
    "q",
    "k",
    "v",
)


def choose_targets(
    infos: Mapping[str, TensorInfo], merged: Sequence[str], targets: str | Sequence[str], *, fuse_qkv: bool = False
) -> dict[str, tuple[tuple[str, int], ...]]:
    """The targets, by name, and their member matrices with the rows of each.

    Args:
        infos: the model's tensors.
        merged: names that some expert changes; only these can be targets.
        targets: ``"attention"``: the query, key and value projections, as in the paper's experiments; ``"all"``: every
            matrix; or globs of names.
        fuse_qkv: give the q, k and v matrices of one block one shared term, as if they were one fused matrix: B is stored
            once instead of three times.

    Raises:
        UserError: nothing fits.
    """
    matrices = [name for name in merged if is_matrix(name, infos[name].shape)]
    if targets == "attention":
        chosen = [name for name in matrices if makes_queries_keys_values(name)]
        cure = "use targets=all, or name them with globs"
    elif targets == "all":
        chosen, cure = matrices, "nothing a low-rank term could be added to"
    else:
        globs = [targets] if isinstance(targets, str) else list(targets)
        chosen = [name for name in merged if matches(name, globs) and len(infos[name].shape) == 2]
        cure = f"{matrices[0]} is one, for instance" if matrices else "it has none"
    if not chosen:
        raise UserError(f"targets {targets!r}: no matrix of this model fits: {cure}")
    groups: dict[str, list[str]] = {}
    for name in chosen:
        # matrices can only be stacked if they read inputs of one width
        group = f"{_fused_name(name)}:{infos[name].shape[1]}" if fuse_qkv else name
        groups.setdefault(group, []).append(name)
    return {
        group.split(":")[0] if len(members) > 1 else members[0]: tuple((name, infos[name].shape[0]) for name in members)
        for group, members in groups.items()
    }


def _fused_name(name: str) -> str:
    """The name that q, k and v of one block share: ``….attention.query.weight`` -> ``….attention.{qkv}.weight``."""
    parts = name.split(".")
    for i in range(len(parts) - 1, -1, -1):
        if parts[i].lower() in _ROLES:
            return ".".join([*parts[:i], "{qkv}", *parts[i + 1 :]])
    return name
