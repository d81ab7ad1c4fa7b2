"""Which tensor of an expert is which tensor of the base, found from names and shapes alone, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from paretomerge.weights.adapter import Adapter
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.lazy import TensorInfo, Weights
from paretomerge.weights.naming import matches, prefix_between, to_base
from paretomerge.weights.tied import tied_embedding, tied_pairs

BUFFER = re.compile(
    r"(^|\.)(running_mean|running_var|num_batches_tracked|position_ids|token_type_ids|inv_freq|rotary_emb\.\w+|masked_bias)$"
)
"""State that is computed, not trained: copied from the base even where it is floating point."""
_ADDED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CLASSIFIER = re.compile(r"^(classifier|score|classification_head|pre_classifier)\.")
_CAUSAL_MASK = re.compile(r"\.attn\.bias$")
_VOCABULARY = re.compile(
    r"(embed_tokens|word_embeddings|tok_embeddings|token_embedding|embed_in|embed_out|wte|lm_head|shared|decoder|predictions|output)"
    r"\.(weight|bias)$"
)


@dataclass(frozen=True)
class Finding:
    """One line of ``paretomerge check``: what was found, where, and the cure."""

    level: Literal["error", "warning", "note"]
    file: str
    tensor: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.tensor, self.message) if part)


@dataclass(frozen=True)
class Options:
    """How differences between base and experts are met (see ``load_experts``)."""

    exclude: tuple[str, ...] = ()
    task_tensors: tuple[str, ...] = ()
    vocab: str = "error"
    missing: str = "error"


@dataclass(frozen=True)
class ExpertNames:
    """An expert's part of the alignment: names in the base -> its own, names of its head, and the prefix between."""

    names: dict[str, str]
    heads: tuple[str, ...]
    prefix: str


@dataclass(frozen=True)
class Alignment:
    """The plan of a merge: what is merged, what a merged model holds, each expert's names, and the findings."""

    merged: tuple[str, ...]
    infos: dict[str, TensorInfo]
    aliases: dict[str, str]
    experts: dict[str, ExpertNames]
    findings: tuple[Finding, ...]


def is_buffer(name: str, info: TensorInfo) -> bool:
    """Whether a tensor is copied from the base: integers, and floating-point state that no optimiser has touched."""
    mask = _CAUSAL_MASK.search(name) and len(info.shape) == 4  # GPT-2's triangle of ones
    return not info.dtype.is_floating_point or bool(BUFFER.search(name)) or bool(mask)


def align(base: Weights, sources: Mapping[str, Weights | Adapter], options: Options) -> Alignment:
    """Match each expert's tensors with the base's and find everything that could go wrong, from headers only."""
    for value, option, allowed in ((options.vocab, "vocab", "common"), (options.missing, "missing", "base")):
        if value not in ("error", allowed):
            raise ValueError(f"{option} is 'error' or '{allowed}', not {value!r}")
    findings: list[Finding] = []
    tied = tied_pairs(base)
    duplicates = {
        second: first
        for second, first in tied.items()
        if all(_tied_too(source, base, second, first) for source in sources.values())
    }
    # transformers ties the two again on loading only if the configuration says so; otherwise both must be in the file
    once = _ties(base)
    for second, first in tied.items():
        if second in duplicates:
            times = "once" if once else "under both names"
            findings.append(Finding("note", _file(base, second), second, f"tied to {first}: merged once, written {times}"))
        elif once and not matches(second, options.exclude):
            apart = next(source for source in sources.values() if not _tied_too(source, base, second, first))
            findings.append(Finding("error", _file(apart, second), second, _untied(second, first)))
    gone = {name for name in tied if once and (name in duplicates or matches(name, options.exclude))}
    infos = {name: info for name, info in base.infos.items() if name not in gone}
    fixed = {name for name, info in infos.items() if is_buffer(name, info) or matches(name, options.exclude)}

    for module, why in _task_heads(base, sources).items():
        if not matches(f"{module}.", options.exclude):
            options = replace(options, task_tensors=(*options.task_tensors, f"{module}.*"))
            findings.append(Finding("note", _label("base", base), f"{module}.*", f"{why}: kept per task, not merged"))
    experts: dict[str, ExpertNames] = {}
    for task, source in sources.items():
        experts[task] = _align_one(task, source, base, infos, fixed, set(duplicates), options, findings)
    changed = {name for expert in experts.values() for name in expert.names}
    for task, source in sources.items():
        if isinstance(source, Adapter):
            continue
        own_file = {to_base(own, experts[task].prefix): _file(source, own) for own in source}
        for name in sorted(changed - set(experts[task].names)):
            if not any(f.level == "error" and f.tensor == name and f.file == own_file.get(name) for f in findings):
                level: Literal["error", "note"] = "error" if options.missing == "error" else "note"
                cure = "add --missing base to count it as unchanged" if level == "error" else "counts as unchanged"
                findings.append(Finding(level, _label(task, source), name, f"not in this expert: {cure}"))
    merged = tuple(name for name in infos if name in changed)
    alone = [
        name for name in infos if name not in changed | fixed | set(duplicates) and not matches(name, options.task_tensors)
    ]
    if alone and merged and any(not isinstance(source, Adapter) for source in sources.values()):
        findings.append(Finding("note", _file(base, alone[0]), _some(alone), "in no expert: copied from the base"))
    if not merged and not any(finding.level == "error" for finding in findings):
        findings.append(Finding("error", _label("base", base), "", "nothing to merge: no tensor is left that an expert has"))
    return Alignment(merged, infos, {} if once else duplicates, experts, tuple(findings))


def _align_one(
    task: str,
    source: Weights | Adapter,
    base: Weights,
    infos: dict[str, TensorInfo],
    fixed: set[str],
    duplicates: set[str],
    options: Options,
    findings: list[Finding],
) -> ExpertNames:
    shapes = (
        {**{n: f.shape for n, f in source.factors.items()}, **{n: tuple(t.shape) for n, t in source.replaced.items()}}
        if isinstance(source, Adapter)
        else {name: info.shape for name, info in source.infos.items()}
    )
    label = _label(task, source)
    live = _live_names(source, base)
    prefix = prefix_between(shapes, live)
    if prefix:
        has = f"without the base's prefix {prefix[1:]!r}" if prefix[0] == "-" else f"with the prefix {prefix!r}"
        findings.append(Finding("note", label, "", f"names its tensors {has}: matched"))
    if isinstance(source, Checkpoint) and isinstance(base, Checkpoint):
        kinds = base.config.get("model_type"), source.config.get("model_type")
        parts = {part.get("model_type") for part in base.config.values() if isinstance(part, dict)}  # such as CLIP's towers
        if None not in kinds and kinds[0] != kinds[1] and kinds[1] not in parts:
            findings.append(Finding("warning", label, "", f"is a {kinds[1]} model, the base a {kinds[0]} model"))

    names: dict[str, str] = {}
    heads: list[str] = []
    own_twins = tied_pairs(source) if isinstance(source, Weights) else {}
    transposed = {
        own
        for own, shape in shapes.items()
        if isinstance(source, Adapter) and own in source.factors and shape[0] != shape[1]
        if (there := infos.get(live.get(to_base(own, prefix), ""))) and shape[::-1] == there.shape
    }
    for own, shape in shapes.items():
        name = live.get(to_base(own, prefix), to_base(own, prefix))
        file = _file(source, own)
        if name in fixed or name in duplicates or matches(name, options.exclude):
            continue
        if matches(name, options.task_tensors) or matches(own, options.task_tensors):
            heads.append(own)
        elif name not in infos:
            if own in own_twins or (isinstance(source, Weights) and is_buffer(own, source.infos[own])):
                continue
            if _ties(base) and (embedding := tied_embedding(name, infos, shape)):
                findings.append(Finding("error", file, own, _untied(name, embedding)))
            elif isinstance(source, Adapter) and own in source.factors:
                findings.append(Finding("error", file, own, "adapts a weight that the base does not have: wrong base?"))
            heads.append(own)
        elif isinstance(source, Weights) and (dtype := _unfit(source.infos[own].dtype, infos[name].dtype)):
            findings.append(
                Finding("error", file, name, f"is stored as {dtype}, to which nothing can be added: save it as bfloat16")
            )
        elif transposed and isinstance(source, Adapter) and own in source.factors and shape[0] == shape[1]:
            message = "is square, and fan_in_fan_out is wrong for others: merge the adapter into a model (merge_and_unload)"
            findings.append(Finding("error", file, own, message))
        elif shape == infos[name].shape or own in transposed:
            names[name] = own
        elif _is_vocabulary(name, shape, infos[name].shape):
            rows = f"{shape[0]} tokens, the base has {infos[name].shape[0]}"
            if options.vocab == "common":
                names[name] = own
                kept = min(shape[0], infos[name].shape[0])
                findings.append(Finding("warning", file, name, f"{rows}: the first {kept} rows are merged"))
            else:
                findings.append(Finding("error", file, name, f"{rows}: add --vocab common to merge the rows they share"))
        else:
            findings.append(
                Finding(
                    "error",
                    file,
                    name,
                    f"shape {list(shape)}, the base has {list(infos[name].shape)}: "
                    f"if it is the task's head, add --task-tensors '{name}'",
                )
            )
    if heads:
        findings.append(Finding("note", label, _some(heads), "kept as the head of this task"))
    known = sum(to_base(own, prefix) in base for own in shapes)
    if not isinstance(source, Adapter) and known * 2 < len(shapes) and not any(f.level == "error" for f in findings):
        message = f"only {known} of its {len(shapes)} tensors are in the base: is it of this base?"
        findings.append(Finding("error", label, "", message))
    return ExpertNames(names, tuple(heads), prefix)


def _live_names(source: Weights | Adapter, base: Weights) -> dict[str, str]:
    """The names under which an expert may know the base's tensors -> the base's names for them.

    An adapter names modules as they are in memory, and transformers may rename a checkpoint's modules on loading.
    """
    same = {name: name for name in base}
    if not isinstance(source, Adapter) or not isinstance(base, Checkpoint) or not base.config.get("architectures"):
        return same
    prefix = prefix_between(source.factors, same)
    if all(to_base(name, prefix) in same for name in source.factors):
        return same
    from paretomerge.weights.architecture import empty_model, live_names  # imports transformers: only where it helps

    return same | {live: name for name, live in live_names(base, empty_model(base.config)).items()}


def _ties(base: Weights) -> bool:
    """Whether transformers ties the base's output projection to its embedding on loading."""
    return isinstance(base, Checkpoint) and base.config.get("tie_word_embeddings") is True


def _untied(second: str, first: str) -> str:
    return f"trained apart from {first}, to which the base ties it: save both models untied, or add --exclude '{second}'"


def _unfit(*dtypes: torch.dtype) -> str:
    """The first of these in which weights cannot be added, if there is one."""
    return next((str(dtype).removeprefix("torch.") for dtype in dtypes if dtype not in _ADDED), "")


def _task_heads(base: Weights, sources: Mapping[str, Weights | Adapter]) -> dict[str, str]:
    """The base's modules that are heads of different tasks, by transformers' names for classification heads, and why.

    A head is a task's own where its shape differs from the base's, or where the models' labels do: to average rows that stand
    for different classes would be a silent mistake.
    """
    modules = {match[1] for name in base if (match := _CLASSIFIER.match(name))}
    dense = [source for source in sources.values() if isinstance(source, Weights)]
    labels = [source.config.get("id2label") for source in [base, *dense] if isinstance(source, Checkpoint)]
    found = {}
    for module in modules:
        for source in dense:
            prefix = prefix_between(source, set(base))
            own = {to_base(name, prefix): info.shape for name, info in source.infos.items()}
            if any(own.get(n, i.shape) != i.shape for n, i in base.infos.items() if n.startswith(f"{module}.")):
                found[module] = "a classification head of another size"
        if module not in found and len({str(each) for each in labels if each is not None}) > 1:
            found[module] = "a classification head with other labels"
    return found


def _is_vocabulary(name: str, shape: tuple[int, ...], base: tuple[int, ...]) -> bool:
    """Whether two shapes differ in the number of tokens only."""
    return len(shape) == len(base) > 0 and shape[1:] == base[1:] and bool(_VOCABULARY.search(name))


def _tied_too(source: Weights | Adapter, base: Weights, second: str, first: str) -> bool:
    """Whether an expert, too, has one tensor under both names (or stores only one of them)."""
    if isinstance(source, Adapter):
        return second not in source.factors and second not in source.replaced
    prefix = prefix_between(source, set(base))
    own = {to_base(name, prefix): name for name in source}
    pairs = tied_pairs(source)
    return second not in own or pairs.get(own[second], own[second]) == pairs.get(own.get(first, ""), own.get(first))


def _file(source: Weights | Adapter, name: str) -> str:
    if isinstance(source, Adapter):
        return str(source.file)
    return str(getattr(source, "files", {}).get(name, getattr(source, "path", "in memory")))


def _label(task: str, source: Weights | Adapter) -> str:
    return str(getattr(source, "path", f"expert {task}"))


def _some(names: Collection[str]) -> str:
    first = sorted(names)[0]
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
