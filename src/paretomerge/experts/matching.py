"""Which of an expert's names is which of the base's: by the names themselves, else by those of the loaded models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from paretomerge.errors import UserError
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.lazy import Weights
from paretomerge.weights.lora_files import Adapter
from paretomerge.weights.naming import prefix_between, to_base


@dataclass(frozen=True)
class Matching:
    """An expert's own names in the base's naming."""

    names: Mapping[str, str]
    """Own name -> name in the base; a name that the base lacks stands for itself, less a prefix."""
    prefix: str
    """What the expert's names carry in front of the base's (``vit.``), or lack (``-vit.``); empty if ``renamed``."""
    renamed: bool = False
    """Whether the two are only equal in the loaded models, under transformers' names."""
    fused: Mapping[str, str] = field(default_factory=dict)
    """Own name -> name in the base, where one of the two is a part of the other."""

    @property
    def own(self) -> dict[str, str]:
        """Name in the base's naming -> own name."""
        return {name: own for own, name in self.names.items()}


def names_of(source: Weights | Adapter) -> list[str]:
    """The tensors that an expert has, or adds to."""
    return [*source.factors, *source.replaced] if isinstance(source, Adapter) else list(source)


def config_of(source: Weights | Adapter | None) -> Mapping[str, Any]:
    """A model's configuration; empty where there is none (a state dict, a bare file, an adapter)."""
    return source.config if isinstance(source, Checkpoint) else {}


def match(source: Weights | Adapter, base: Weights) -> Matching:
    """An expert's names in the base's naming.

    Equal names, up to a prefix, are enough mostly. Where names are left over on both sides, the two may be stored in different
    namings that transformers loads alike (``LayerNorm.gamma``, the ``language_model.model`` of vision-language models): then
    both go through the names of the loaded model. An adapter has those names anyway.
    """
    names = names_of(source)
    prefix = prefix_between(source.factors or names if isinstance(source, Adapter) else names, set(base))
    plain = Matching({own: to_base(own, prefix) for own in names}, prefix)
    found = set(plain.names.values())
    if all(name in base for name in found) or (not isinstance(source, Adapter) and all(name in found for name in base)):
        return plain
    try:
        live = _match_live(source, names, base)
    except UserError:  # no configuration, or none that transformers can build
        return plain
    matched = sum(name in base for name in live.names.values())
    return live if live.fused or matched > sum(name in base for name in found) else plain


def _match_live(source: Weights | Adapter, names: Collection[str], base: Weights) -> Matching:
    from paretomerge.experts.architecture import empty_model, loaded_names  # imports transformers: only where it helps

    base_names = loaded_names(base, empty_model(config_of(base)))
    there = {name: base_names.live.get(name) or base_names.parts.get(name, (name, ""))[0] for name in base}
    if isinstance(source, Adapter):
        here, parts = {own: own for own in names}, {}
    else:
        config = config_of(source) if config_of(source).get("architectures") else config_of(base)
        own_names = loaded_names(names, empty_model(config))
        parts = own_names.parts
        here = {own: own_names.live.get(own) or parts.get(own, (own, ""))[0] for own in names}
    prefix = prefix_between(set(here.values()), set(there.values()))
    back = {live: name for name, live in there.items()} | {name: name for name in base if isinstance(source, Adapter)}
    found = {own: back.get(to_base(live, prefix), own) for own, live in here.items()}
    joined = {whole: name for name, (_, whole) in base_names.parts.items()}
    fused = {
        own: joined[at] for own, live in here.items() if (at := to_base(live, prefix)) in joined and found[own] not in base
    }
    for own, (_, whole) in parts.items():
        if found[own] not in base and (name := to_base(whole, prefix)) in back:
            fused[own] = back[name]
    return Matching(found, "", renamed=True, fused=fused)
