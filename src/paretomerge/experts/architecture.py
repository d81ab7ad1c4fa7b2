"""What transformers knows of a model: its class, its modules, and how it names them once they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from paretomerge.errors import UserError
from paretomerge.experts.config import architecture
from paretomerge.experts.pretrained import one_line
from paretomerge.weights.naming import from_base, prefix_between

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


@dataclass(frozen=True)
class LoadedNames:
    """What becomes of a checkpoint's names when transformers loads it."""

    live: dict[str, str]
    """Checkpoint's name -> name of the same tensor in the loaded model, where one stands for the other unchanged."""
    parts: dict[str, tuple[str, str]]
    """Checkpoint's name -> (renamed, name in the loaded model) of tensors that are joined or cut on loading."""


def live_names(names: Iterable[str], model: nn.Module) -> dict[str, str]:
    """Checkpoint's name -> name of the same tensor in the loaded model, where one stands for the other unchanged.

    Mostly the two are equal up to a prefix; but transformers renames the modules of many architectures on loading (ViT's
    ``attention.attention.query`` is ``attention.q_proj`` in transformers 5), and only its own table knows how.
    """
    return loaded_names(names, model).live


def loaded_names(names: Iterable[str], model: nn.Module) -> LoadedNames:
    """The same, and what is joined or cut: the single experts of a mixture, which transformers 5 keeps in one tensor."""
    names = list(names)
    live = dict.fromkeys(model.state_dict())  # in order: the order of a set changes from process to process
    prefix = prefix_between(live, dict.fromkeys(names))
    found = {name: from_base(name, prefix) for name in names if from_base(name, prefix) in live}
    if len(found) == len(names) or not hasattr(model, "base_model_prefix"):
        return LoadedNames(found, {})
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:
        return LoadedNames(found | _renamed_by_transformers_4(names, model, live), {})
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    state = model.state_dict()
    parts = {}
    for name in names:
        renamed, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if converted is not None:
            parts[name] = rename_source_key(name, renamings, [], model.base_model_prefix, state)[0], renamed
        elif renamed in live:
            found[name] = renamed
    return LoadedNames(found, parts)


def _renamed_by_transformers_4(names: list[str], model: Any, live: Collection[str]) -> dict[str, str]:
    """transformers 4 renames by a table of the class, LayerNorm's gamma and beta, and weight norms."""
    mapping = getattr(type(model), "_checkpoint_conversion_mapping", None) or None
    renamed = model._get_key_renaming_mapping(names, mapping)
    prefix = prefix_between(live, set(renamed.values()))
    return {name: there for name in names if (there := from_base(renamed.get(name, name), prefix)) in live}


def is_head_of(model: PreTrainedModel, of_base: PreTrainedModel | None) -> Callable[[str], bool]:
    """Whether a live name of a model is its head's.

    That is what lies outside of its base model, its output projection, and what the base's class would lack if it were built
    from the same configuration (``of_base``): BERT's pooler in a classifier beside a masked language model.
    """
    inner = model.base_model_prefix if model.base_model is not model else ""
    output = model.get_output_embeddings()
    outputs = {f"{path}." for path, module in model.named_modules() if output is not None and module is output}
    live = set(model.state_dict())
    shared: set[str] | None = None
    if of_base is not None:
        names = set(of_base.state_dict())
        prefix = prefix_between(live, names)
        shared = {from_base(name, prefix) for name in names}

    def is_head(name: str) -> bool:
        if name not in live:
            return False
        outside = bool(inner) and not name.startswith(f"{inner}.")
        return outside or any(name.startswith(path) for path in outputs) or (shared is not None and name not in shared)

    return is_head
