"""Configurations in which the same tensors mean other things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LAYERS = {
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "depth",
    "depths",
}  # fmt: skip
_HEADS = {
    "num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads", "encoder_attention_heads",
    "decoder_attention_heads", "num_kv_heads", "n_head_kv", "multi_query", "head_dim", "d_kv", "attention_head_dim",
}  # fmt: skip
_OTHER = {
    "hidden_act", "hidden_activation", "activation_function", "activation", "feed_forward_proj", "mlp_hidden_act",
    "afn", "rope", "partial_rotary_factor", "rotary_pct", "rotary_dim", "rope_local_base_freq", "rope_interleave",
    "position_embedding_type", "alibi", "sliding_window", "use_sliding_window", "max_window_layers",
    "sliding_window_pattern", "layer_types", "no_rope_layers", "no_rope_layer_interval", "attention_chunk_size",
    "is_decoder", "new_decoder_architecture", "parallel_attn", "use_parallel_residual", "do_layer_norm_before",
    "apply_residual_connection_post_layernorm", "normalize_before", "scale_embedding", "scale_embeddings",
    "use_qk_norm", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "attention_multiplier",
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "num_experts_per_tok", "norm_topk_prob", "n_group", "topk_group",
    "routed_scaling_factor", "scoring_func", "topk_method", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
    "layernorm_epsilon", "norm_eps", "norm_epsilon", "relative_attention_num_buckets",
    "relative_attention_max_distance", "patch_size", "temporal_patch_size", "spatial_merge_size", "image_token_id",
    "image_token_index", "vision_feature_layer", "vision_feature_select_strategy", "feat_extract_norm",
    "do_stable_layer_norm", "conv_stride", "hidden_act_type", "layerscale_value", "pooling_type",
}  # fmt: skip
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
"""Ways in which versions of transformers write one thing; compared together."""


def differences(config: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """The fields that give the same tensors another meaning: (field, "… here, … in the base", whether nothing can be merged).

    Depths and numbers of heads say which rows and tensors belong together; activations, rotary positions and their like what is
    computed from them. Values that only one file names are compared with the default of transformers' class.
    """
    part = _part(config, base)
    if part is None or not list(_compare(config, part)):
        return
    from paretomerge.experts.architecture import transformers_config

    try:
        config, part = (transformers_config(each).to_dict() for each in (config, part))
    except Exception:  # a kind that transformers does not know, values of wrong types: as they are, where both are given
        yield from ((field, said, fatal) for field, said, fatal, both in _compare(config, part) if both)
        return
    yield from ((field, said, fatal) for field, said, fatal, _ in _compare(config, part))


def _part(config: Mapping[str, Any], base: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What of the base's configuration the expert's stands beside: all, or that of a tower; None: nothing."""
    kind = config.get("model_type")
    if kind is None or kind == base.get("model_type"):
        return base if kind is not None else None
    return next((part for part in base.values() if isinstance(part, dict) and part.get("model_type") == kind), None)


def _compare(config: Mapping[str, Any], base: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, bool, bool]]:
    """(field, what differs, whether nothing can be merged, whether both name it)."""
    here, there = _fields(config), _fields(base)
    for field in [*here, *(field for field in there if field not in here)]:
        one, other = here.get(field), there.get(field)
        if isinstance(one, dict) and isinstance(other, dict) and field.endswith("_config"):
            yield from _compare(one, other, f"{path}{field}.")
        elif one != other and (field in _LAYERS or field in _HEADS or field in _OTHER):
            both = one is not None and other is not None
            if field == "rope":
                for name in sorted({**_dict(one), **_dict(other)}):
                    mine, its = (_dict(each).get(name, "default") for each in (one, other))
                    if mine != its:
                        yield f"{path}{name}", f"{_shown(mine)} here, {_shown(its)} in the base", False, both
                continue
            fatal = field in _LAYERS | _HEADS
            if both or not fatal:  # null: as another field has it, whose shapes will tell
                yield f"{path}{field}", f"{_shown(one)} here, {_shown(other)} in the base", fatal, both


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration, with all that says how positions rotate under one name."""
    found = {field: value for field, value in config.items() if field not in _ROPE}
    scaling: dict[str, Any] = next(
        (config[key] for key in ("rope_parameters", "rope_scaling") if isinstance(config.get(key), dict)), {}
    )
    rope = {"rope_type" if key == "type" else key: value for key, value in scaling.items()}
    if isinstance(theta := config.get("rope_theta"), int | float):
        rope.setdefault("rope_theta", theta)
    if rope.get("rope_type") == "default":
        del rope["rope_type"]
    if rope:
        found["rope"] = rope
    return found


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: object) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
