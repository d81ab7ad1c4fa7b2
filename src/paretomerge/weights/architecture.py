"""What transformers knows of a model: its class, its modules, and how it names them once they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from paretomerge.errors import UserError
from paretomerge.weights.configuration import architecture
from paretomerge.weights.naming import from_base, prefix_between
from paretomerge.weights.pretrained import one_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def model_class(config: Mapping[str, Any]) -> Any:
    """The transformers class that a configuration names first.

    Raises:
        UserError: it names none, or one that this version of transformers does not have.
    """
    import transformers

    if not (name := architecture(config)):
        raise UserError('the model\'s config.json names no architecture: add its class under "architectures"')
    with one_line(f"{name}: transformers cannot load its code"):
        found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UserError(f"{name}: not in transformers {transformers.__version__}: load the folder with its own code")
    return found


def transformers_config(config: Mapping[str, Any]) -> Any:
    """A transformers configuration object from the JSON of a config.json."""
    from transformers import AutoConfig

    fields = dict(config)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise UserError("the model's config.json has no model_type: transformers cannot build it")
    with one_line("transformers cannot read the model's config.json"):
        return AutoConfig.for_model(kind, **fields)


def empty_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """The model that a configuration describes, on the meta device: modules and names, no memory."""
    cls = model_class(config)
    with one_line(f"transformers cannot build {cls.__name__} from the model's config.json"), torch.device("meta"):
        return cls(transformers_config(config))


def live_names(names: Iterable[str], model: nn.Module) -> dict[str, str]:
    """Checkpoint's name -> name of the same tensor in the loaded model, where one stands for the other unchanged.

    Mostly the two are equal up to a prefix; but transformers 5 renames the modules of many architectures on loading (ViT's
    ``attention.attention.query`` is ``attention.q_proj`` there), and only its own table knows how.
    """
    names = list(names)
    live = dict.fromkeys(model.state_dict())  # in order: the order of a set changes from process to process
    prefix = prefix_between(live, dict.fromkeys(names))
    found = {name: from_base(name, prefix) for name in names if from_base(name, prefix) in live}
    if len(found) == len(names) or not hasattr(model, "base_model_prefix"):
        return found
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 does not rename
        return found
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    state = model.state_dict()
    for name in names:
        renamed, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if converted is None and renamed in live:
            found[name] = renamed
    return found
