"""Models that are in memory: state dicts, live torch and transformers models, and PEFT models as adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from paretomerge.errors import UserError
from paretomerge.experts.live_tensors import live_tensors, unwrapped
from paretomerge.weights.checkpoint import read_json
from paretomerge.weights.lazy import TensorInfo, Weights
from paretomerge.weights.lora_files import Adapter, adapter_from


class InMemory(Weights):
    """Tensors in memory, with the ``config`` of their model ({} where there is none) and the folder it was loaded from."""

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], companions: Path | None = None) -> None:
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        versions = {name: _version(tensor) for name, tensor in tensors.items()}

        def read(name: str) -> Tensor:
            if _version(tensors[name]) != versions[name]:  # by apply_ on this very model, or by training it
                raise UserError(
                    f"{name}: this model in memory was changed after load_experts: load the experts again, and "
                    "save a front before its own base is changed"
                )
            return tensors[name].cpu()

        super().__init__({name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}, read)
        self.config = dict(config)
        self.companions = companions


def opened(model: object, config: Mapping[str, Any] | None = None, *, as_base: bool = False) -> Weights | Adapter:
    """What ``load_experts`` takes beside paths.

    Args:
        model: a mapping from names to tensors, or a live model; one with PEFT adapters is an adapter, or as a base the
            model under them.
        config: config.json of a model that brings none.
        as_base: it is the base.

    Raises:
        UserError: something else; a quantised model; adapters that are merged into their base, or several that are active.
    """
    if isinstance(model, Weights):
        if config is None:
            return model
        described: Any = copy(model)
        described.config = dict(config)
        return cast(Weights, described)
    if isinstance(model, Mapping):
        if wrong := [name for name, tensor in model.items() if not isinstance(tensor, Tensor)]:
            raise UserError(f"{wrong[0]}: {type(model[wrong[0]]).__name__} is no tensor: give a state dict or a live model")
        return InMemory(cast(Mapping[str, Tensor], model), config or {})
    if not isinstance(model, nn.Module):
        raise UserError(f"{type(model).__name__} is no model: give a path, a hub name, a state dict or a live model")
    live: Any = unwrapped(model)
    if any(getattr(module, "merged_adapters", None) for module in live.modules()):
        raise UserError("the PEFT model has adapters merged into its base: call unmerge_adapter() first")
    if hasattr(live, "peft_config") and not as_base:
        return _adapter(live)
    return _live(live.get_base_model() if hasattr(live, "get_base_model") else live, config)


def config_from(config: object) -> dict[str, Any]:
    """A config.json's content from a transformers configuration, a mapping, a config.json or the folder with one."""
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, str | Path):
        path = Path(config).expanduser()
        return read_json(path / "config.json" if path.is_dir() else path)
    if hasattr(config, "to_json_string"):
        return dict(json.loads(config.to_json_string(use_diff=True)))
    raise UserError(f"config: {type(config).__name__} is no configuration: give a transformers config, a dict or a config.json")


def config_of(weights: object) -> dict[str, Any]:
    """The configuration that a model came with; {}: none."""
    return dict(getattr(weights, "config", {}))


def companions_of(weights: object) -> Path | None:
    """The folder with the tokenizer and the other files of a model, if there is one."""
    path = getattr(weights, "companions", None) or getattr(weights, "path", None)
    return path if path and path.is_dir() else None


def _live(model: Any, config: Mapping[str, Any] | None) -> InMemory:
    """A live model, under the names and with the configuration that ``save_pretrained`` would write."""
    tensors: Mapping[str, Tensor] = _without_adapters(live_tensors(model, to_read=True))
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        return InMemory(tensors, config or {})
    if config is not None:
        raise UserError(f"config: {type(model).__name__} brings its own configuration: leave config out")
    own = {**config_from(model.config), "architectures": [type(model).__name__]}
    own.pop("quantization_config", None)
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        tensors = {key: tensor for key, tensor in tensors.items() if key != name}
    tensors = _once(tensors, getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4 does not rename
        pass
    else:
        tensors = revert_weight_conversion(model, dict(tensors))
    folder = Path(str(getattr(model, "name_or_path", "") or ""))
    return InMemory(tensors, own, folder if str(folder) != "." and folder.is_dir() else None)


def _once(tensors: Mapping[str, Tensor], tied: Iterable[str]) -> dict[str, Tensor]:
    """The tensors less second names of tied ones, which transformers makes again on loading."""
    patterns = list(tied)
    second = {name for name in tensors if any(re.search(rf"^(.*\.)?{pattern}$", name) for pattern in patterns)}
    first = {tensor.data_ptr() for name, tensor in tensors.items() if name not in second}
    return {name: tensor for name, tensor in tensors.items() if name not in second or tensor.data_ptr() not in first}


def _without_adapters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the model under its PEFT adapters, by their own names."""
    named = {name: name.replace(".base_layer.", ".").replace(".original_module.", ".") for name in tensors}
    ours = (".lora_", ".modules_to_save.")
    return {named[name]: tensor for name, tensor in tensors.items() if not any(part in name for part in ours)}


def _adapter(model: Any) -> Adapter:
    """The active adapter of a live model."""
    from peft import get_peft_model_state_dict

    active = model.active_adapters
    active = list(active() if callable(active) else active)
    if len(active) != 1:
        raise UserError(f"the PEFT model has {len(active)} active adapters ({', '.join(active)}): set_adapter to one of them")
    config = {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in model.peft_config[active[0]].to_dict().items()
    }
    tensors = get_peft_model_state_dict(model, adapter_name=active[0], save_embedding_layers=False)
    return adapter_from(None, config, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
