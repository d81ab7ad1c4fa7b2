"""mergekit's configurations (YAML) as recipes, for the merges that both know.

Definitions follow mergekit 0.1.5. Where its defaults differ from ours they are written into the recipe, so that the result is
the same up to rounding, except for what the notices say and for

- arithmetic: always in float32 here, in ``dtype`` there, to which mergekit also rounds the inputs;
- votes that cancel exactly (ties, dare_ties, della): the entry stays as in the base here, the positive side wins there;
- slerp with a tensor of zeros: linear here, at a right angle there.

Relative paths are looked for beside the file first, as in any recipe; mergekit knows the working directory only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paretomerge.errors import UserError
from paretomerge.options import shown, unknown
from paretomerge.recipes.recipe import Recipe

_REQUIRED: Any = object()
_DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class _Method:
    """A mergekit method's parameters with their defaults: shared by all models, and one per model."""

    shared: Mapping[str, Any]
    each: Mapping[str, Any]
    base_is_expert: bool = False


def _on_task_vectors(normalize: bool, rescale: bool = False, **each: float) -> _Method:
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 1.0}
    return _Method(shared, {"weight": _REQUIRED, **each})


_METHODS = {
    "linear": _Method({"normalize": True}, {"weight": _REQUIRED}, base_is_expert=True),
    "slerp": _Method({"t": _REQUIRED}, {}, base_is_expert=True),
    "task_arithmetic": _on_task_vectors(normalize=False),
    "ties": _on_task_vectors(normalize=True, density=1.0),
    "dare_linear": _on_task_vectors(normalize=False, rescale=True, density=1.0),
    "dare_ties": _on_task_vectors(normalize=False, rescale=True, density=1.0),
    "della": _on_task_vectors(normalize=True, rescale=True, density=1.0, epsilon=0.15),
    "della_linear": _on_task_vectors(normalize=False, rescale=True, density=1.0, epsilon=0.15),
}
_PARAMETERS = sorted({name for m in _METHODS.values() for name in (*m.shared, *m.each)} | {"int8_mask"})
_KEYS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source")
_UNSUPPORTED = {
    "slices": "layers cannot be picked or reordered; merge whole models, listed under models",
    "modules": "parts of a model cannot be merged apart; merge whole models, listed under models",
    "chat_template": "the base's is kept",
    "tokenizer": "the base's is kept",
}


def convert(config: Mapping[str, Any], file: str | Path) -> Recipe:
    """The recipe that says what a mergekit configuration says; its ``notices`` tell what is ignored or differs.

    Args:
        config: the parsed YAML.
        file: its name, for messages.

    Raises:
        UserError: what is not supported, by name.
    """
    reader = _Reader(str(file), config)
    name = reader.choice("merge_method", config.get("merge_method"), _METHODS)
    for key in config:
        if key not in _KEYS and config[key] is not None:
            why = _UNSUPPORTED.get(key)
            raise reader.error(f"{key} is not supported: {why}" if why else unknown("key", key, _KEYS))
    method, base = _METHODS[name], config.get("base_model")
    if base is None and name != "linear":
        raise reader.error(f"{name} needs a base_model")
    if base is not None and (not isinstance(base, str) or not base or "+" in base):
        raise reader.error(f"base_model must be the path or name of one model, not {shown(base)}")
    if config.get("tokenizer_source") not in (None, "base", base):
        raise reader.error(f"tokenizer_source: {shown(config['tokenizer_source'])} is not supported: the base's is kept")

    models = reader.models(base, method)
    shared = reader.parameters(config.get("parameters"), "parameters", method)
    experts, settings = reader.experts(models, base, shared, method)
    used = {key: reader.value(shared.get(key, default), default, key) for key, default in method.shared.items()}
    if name == "slerp":
        # the base is at t = 0, wherever it is listed
        experts = dict(sorted(experts.items(), key=lambda item: item[1] != base))
        if len(experts) != 2:
            raise reader.error(f"slerp takes base_model and one other model, not {len(experts)} models")
    dtype = config.get("out_dtype") or config.get("dtype")
    ours, options = reader.options(name, used, settings)
    return Recipe(
        base=base,
        experts=experts,
        method=ours,
        options=options,
        dtype=dtype and reader.choice("dtype", str(dtype).removeprefix("torch."), _DTYPES),
    ).with_notices(reader.notices)


@dataclass
class _Reader:
    """Reads one configuration and collects what there is to say about it."""

    file: str
    config: Mapping[str, Any]
    notices: list[str] = field(default_factory=list)

    def error(self, message: str) -> UserError:
        return UserError(f"{self.file}: {message}")

    def notice(self, message: str) -> None:
        line = f"{self.file}: {message}"
        if line not in self.notices:
            self.notices.append(line)

    def choice(self, key: str, value: object, known: Iterable[str]) -> Any:
        if not isinstance(value, str) or value not in known:
            raise self.error(f"{key} {shown(value)} is not supported: choose {', '.join(known)}")
        return value

    def models(self, base: str | None, method: _Method) -> dict[str, Mapping[str, Any]]:
        """Path -> parameters, in order."""
        listed = self.config.get("models")
        if not isinstance(listed, list) or not listed:
            raise self.error("models must be a list of models to merge")
        models: dict[str, Mapping[str, Any]] = {}
        for entry in listed:
            path = entry.get("model") if isinstance(entry, dict) else None
            if not isinstance(path, str) or not path:
                raise self.error(f"models: each entry needs model: a path or name, not {shown(entry)}")
            for key in entry:
                if key not in ("model", "parameters"):
                    raise self.error(f"{path}: {unknown('key', key, ('model', 'parameters'))}")
            if path in models:
                raise self.error(f"{path} is listed twice (mergekit refuses this, too)")
            models[path] = self.parameters(entry.get("parameters"), path, method)
        if base is not None and method.base_is_expert:
            models.setdefault(base, {})
        return models

    def parameters(self, given: object, where: str, method: _Method) -> dict[str, Any]:
        """The parameters of one scope that have an effect."""
        if given is None:
            return {}
        if not isinstance(given, dict):
            raise self.error(f"{where}: parameters must be a map from name to value")
        effective: dict[str, Any] = {}
        for name, value in given.items():
            if name not in _PARAMETERS:
                raise self.error(f"{where}: {unknown('parameter', name, _PARAMETERS)}")
            if name == "int8_mask":
                self.notice("int8_mask is ignored: it saves mergekit memory and changes no result")
            elif name in method.each or (name in method.shared and where == "parameters"):
                effective[name] = self.constant(value, f"{where}: {name}")
            else:
                self.notice(f"{where}: {name} is ignored: it has no effect there, in mergekit neither")
        return effective

    def constant(self, value: Any, where: str) -> Any:
        """The value that holds for all tensors."""
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = value[0]  # the first condition that applies counts
        if isinstance(value, dict):
            if value.get("filter") not in (None, "*"):
                raise self.error(f"{where}: filter is not supported: one value must hold for all tensors")
            value = value.get("value")
        if isinstance(value, list):
            raise self.error(f"{where}: a list (a gradient over layers) is not supported: one value must hold for all")
        return value

    def value(self, value: Any, default: Any, where: str) -> Any:
        """``value`` as a number, or as true or false where the default is."""
        if value is _REQUIRED:
            raise self.error(f"no {where}")
        is_bool = isinstance(default, bool)
        adapter: TypeAdapter[Any] = TypeAdapter(bool if is_bool else float, config=ConfigDict(allow_inf_nan=False))
        try:
            return adapter.validate_python(value)
        except ValidationError:
            raise self.error(f"{where} must be {'true or false' if is_bool else 'a number'}, not {shown(value)}") from None

    def experts(
        self, models: Mapping[str, Mapping[str, Any]], base: str | None, shared: Mapping[str, Any], method: _Method
    ) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
        """Task name -> path, and parameter -> task name -> number."""
        experts: dict[str, str] = {}
        settings: dict[str, dict[str, float]] = {name: {} for name in method.each}
        for model, own in models.items():
            if model == base and not method.base_is_expert:
                if own:
                    self.notice(f"{model}: {', '.join(own)} is ignored: it is the base")
                continue
            path, _, adapter = model.partition("+")
            if adapter and path != base:
                raise self.error(f"{model}: an adapter of another model than base_model is not supported")
            task = _task_name(adapter or path, experts)
            experts[task] = adapter or path
            for name, default in method.each.items():
                value = own.get(name, shared.get(name, default))
                settings[name][task] = self.value(value, default, f"{name} for {model}")
        if not experts:
            raise self.error("models lists the base only: nothing to merge")
        return experts, settings

    def options(self, name: str, shared: Mapping[str, Any], each: Mapping[str, dict[str, float]]) -> tuple[str, dict[str, Any]]:
        """Our merge and its options."""
        if name == "slerp":
            return "slerp", {"t": shared["t"]}
        weights = each["weight"]
        if name == "linear":
            return "average", {"weights": weights, "normalize": shared["normalize"]}

        total = sum(weights.values())
        unit = total if shared["normalize"] and abs(total) >= 1e-8 else 1.0
        coefficients = {task: shared["lambda"] * weight / unit for task, weight in weights.items()}
        if name == "task_arithmetic":
            return name, {"scale": coefficients}

        density = {task: min(max(share, 0.0), 1.0) for task, share in each["density"].items()}
        drops, elects = min(density.values()) < 1, name in ("ties", "dare_ties", "della")
        if elects and shared["normalize"] and min(weights.values()) < 0:
            raise self.error(
                "a negative weight with normalize: true is not supported: mergekit divides by a sum in which signs cancel"
            )
        if name == "ties":
            if shared["rescale"] and drops:
                raise self.error("rescale: true is not supported for ties")
            return name, {"density": density, "trim": "tensor", "scale": shared["lambda"], **_votes(weights, shared)}

        if drops and shared["rescale"]:
            per = "density" if name.startswith("dare") else "its own probability"
            self.notice(f"{name}: a kept entry is divided by {per}, as in the paper; mergekit restores each tensor's L1 norm")
        drop: dict[str, Any] = {"density": density, "rescale": shared["rescale"]}
        if name == "dare_linear":
            return name, {**drop, "scale": coefficients}
        if name == "dare_ties":
            return name, {**drop, "scale": shared["lambda"], **_votes(weights, shared)}

        windows = {each["epsilon"][task] if share < 1 else 0.0 for task, share in density.items()}
        if len(windows) > 1:
            raise self.error(f"{name}: one epsilon must hold for all models, and no density of 1 beside smaller ones")
        drop["epsilon"] = 2 * windows.pop()  # theirs is half the window
        if elects:
            return "della", {**drop, "scale": shared["lambda"], **_votes(weights, shared)}
        return "della", {**drop, "scale": 1.0, "weights": coefficients, "normalize": False, "elect": False}


def _votes(weights: dict[str, float], shared: Mapping[str, Any]) -> dict[str, Any]:
    return {"weights": weights, "normalize": shared["normalize"]}


def _task_name(path: str, taken: Iterable[str]) -> str:
    """A legal and new name from the last part of a path or hub name: ``org/Math-7B.v1@main`` -> ``Math-7B-v1``."""
    last = path.partition("@")[0].rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
    name = re.sub(r"[^\w-]+", "-", last).strip("-") or "model"
    numbered = (name if number == 1 else f"{name}-{number}" for number in range(1, 10**6))
    return next(candidate for candidate in numbered if candidate not in taken)
