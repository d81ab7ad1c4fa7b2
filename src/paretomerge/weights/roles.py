"""What a tensor does in its model, told from its name and shape."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TABLE = re.compile(r"(embed|wte|wpe|lm_head|(^|\.)shared\.|relative_attention_bias|classifier|(^|\.)score\.)")
_QKV = re.compile(
    r"(^|[._])(q|k|v|qkv|q_proj|k_proj|v_proj|qkv_proj|q_lin|k_lin|v_lin|query|key|value|query_key_value|c_attn|q_attn"
    r"|in_proj|in_proj_weight|wq|wk|wv|wqkv)(\.weight)?$",
    re.IGNORECASE,
)


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a linear map: two dimensions, and no table of tokens, positions or classes."""
    return len(shape) == 2 and min(shape) > 1 and not is_table(name)


def is_table(name: str) -> bool:
    """Whether a tensor holds a row for each token, position or class."""
    return bool(_TABLE.search(name))


def makes_queries_keys_values(name: str) -> bool:
    """Whether a matrix projects to queries, keys or values, by the names that the common architectures use."""
    return bool(_QKV.search(name))
