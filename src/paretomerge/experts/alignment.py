"""Which tensor of an expert is which tensor of the base, found from names and shapes alone, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from paretomerge.experts.config_differences import differences
from paretomerge.experts.findings import Finding, some
from paretomerge.experts.matching import Matching, config_of, match, names_of
from paretomerge.experts.tied import has_output, is_embedding, is_output, tied_embedding, tied_in, tied_pairs, ties
from paretomerge.experts.unmatched import more_than_a_head
from paretomerge.experts.vocabularies import token_findings
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.lazy import TensorInfo, Weights
from paretomerge.weights.lora_files import Adapter
from paretomerge.weights.naming import matches

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
class Options:
    """How differences between base and experts are met (see ``load_experts``)."""

    exclude: tuple[str, ...] = ()
    task_tensors: tuple[str, ...] = ()
    vocab: str = "error"
    missing: str = "error"


@dataclass(frozen=True)
class ExpertNames:
    """An expert's part of the alignment: names in the base -> its own, names of its head, and all that both have."""

    names: dict[str, str]
    heads: tuple[str, ...]
    prefix: str
    own: dict[str, str]
    """Names in the base -> its own, of every tensor that it has, merged or not."""


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
    matchings = {task: match(source, base) for task, source in sources.items()}
    for task, source in sources.items():
        findings += _configurations(_label(task, source), source, base)
    findings += token_findings(base, sources)
    tied = tied_pairs(base)
    duplicates = {
        second: first
        for second, first in tied.items()
        if all(tied_in(source, matchings[task].own, second, first) for task, source in sources.items())
    }
    # transformers ties the two again on loading only if the configuration says so; otherwise both must be in the file
    once = config_of(base).get("tie_word_embeddings") is True
    for second, first in tied.items():
        if second in duplicates:
            times = "once" if once else "under both names"
            findings.append(Finding("note", _file(base, second), second, f"tied to {first}: merged once, written {times}"))
        elif not matches(second, options.exclude) and not matches(first, options.exclude) and ties(config_of(base)):
            apart = next(s for task, s in sources.items() if not tied_in(s, matchings[task].own, second, first))
            if second in names_of(apart) or not isinstance(apart, Adapter):
                findings.append(Finding("error", _file(apart, second), second, _untied(second, first)))
            else:
                findings.append(Finding("error", _file(apart, first), first, _alone(first, second)))
    gone = {name for name in tied if once and (name in duplicates or matches(name, options.exclude))}
    infos = {name: info for name, info in base.infos.items() if name not in gone}
    fixed = {name for name, info in infos.items() if is_buffer(name, info) or matches(name, options.exclude)}

    for module, why in _task_heads(base, sources, matchings).items():
        if not matches(f"{module}.", options.exclude):
            options = replace(options, task_tensors=(*options.task_tensors, f"{module}.*"))
            findings.append(Finding("note", _label("base", base), f"{module}.*", f"{why}: kept per task, not merged"))
    experts: dict[str, ExpertNames] = {}
    for task, source in sources.items():
        experts[task] = _align_one(task, source, base, matchings[task], infos, fixed, set(duplicates), options, findings)
    changed = {name for expert in experts.values() for name in expert.names}
    wrong = {(finding.tensor, finding.file) for finding in findings if finding.level == "error"}
    for task, source in sources.items():
        if isinstance(source, Adapter):
            continue
        own = matchings[task].own
        for name in sorted(changed - set(experts[task].names)):
            if name not in own or (name, _file(source, own[name])) not in wrong:
                level: Literal["error", "note"] = "error" if options.missing == "error" else "note"
                cure = "add --missing base to count it as unchanged" if level == "error" else "counts as unchanged"
                findings.append(Finding(level, _label(task, source), name, f"not in this expert: {cure}"))
    merged = tuple(name for name in infos if name in changed)
    known = changed | fixed | set(duplicates)
    alone = [name for name in infos if name not in known and not matches(name, options.task_tensors)]
    if alone and merged and any(not isinstance(source, Adapter) for source in sources.values()):
        findings.append(Finding("note", _file(base, alone[0]), some(alone), "in no expert: copied from the base"))
    if not merged and not any(finding.level == "error" for finding in findings):
        findings.append(Finding("error", _label("base", base), "", "nothing to merge: no tensor is left that an expert has"))
    return Alignment(merged, infos, {} if once else duplicates, experts, tuple(findings))


def _align_one(
    task: str,
    source: Weights | Adapter,
    base: Weights,
    matching: Matching,
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
    if prefix := matching.prefix:
        has = f"without the base's prefix {prefix[1:]!r}" if prefix[0] == "-" else f"with the prefix {prefix!r}"
        findings.append(Finding("note", label, "", f"names its tensors {has}: matched"))
    if matching.renamed and not isinstance(source, Adapter):
        findings.append(Finding("note", label, "", "names its tensors in another style: matched as transformers loads them"))
    if isinstance(source, Checkpoint) and isinstance(base, Checkpoint):
        kinds = base.config.get("model_type"), source.config.get("model_type")
        parts = {part.get("model_type") for part in base.config.values() if isinstance(part, dict)}  # such as CLIP's towers
        if None not in kinds and kinds[0] != kinds[1] and kinds[1] not in parts:
            findings.append(Finding("warning", label, "", f"is a {kinds[1]} model, the base a {kinds[0]} model"))

    names: dict[str, str] = {}
    heads: list[str] = []
    left: list[str] = []
    own_twins = tied_pairs(source if isinstance(source, Weights) else Weights.of(source.replaced))
    transposed = {
        own
        for own, shape in shapes.items()
        if isinstance(source, Adapter) and own in source.factors and shape[0] != shape[1]
        if (there := infos.get(matching.names[own])) and shape[::-1] == there.shape
    }
    for own, shape in shapes.items():
        name = matching.names[own]
        file = _file(source, own)
        if name in fixed or name in duplicates or own in matching.fused or matches(name, options.exclude):
            continue
        if matches(name, options.task_tensors) or matches(own, options.task_tensors):
            heads.append(own)
        elif name not in infos:
            twin = own in own_twins and not (isinstance(source, Adapter) and own in source.factors)
            if twin or (isinstance(source, Weights) and is_buffer(own, source.infos[own])):
                continue
            if (embedding := tied_embedding(name, infos, shape)) and _ties(base):
                if not (isinstance(source, Adapter) and source.config.get("ensure_weight_tying")):
                    findings.append(Finding("error", file, own, _untied(name, embedding)))
                continue
            if isinstance(source, Adapter) and own in source.factors:
                findings.append(Finding("error", file, own, "adapts a weight that the base does not have: wrong base?"))
            heads.append(own)
            left.append(own)
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
    names |= _tied_in_the_expert(source, base, matching, infos, names, fixed | duplicates, options, findings)
    if isinstance(source, Adapter):
        findings += _moved_alone(source, base, matching, infos, names)
    if heads:
        findings.append(Finding("note", label, some(heads), "kept as the head of this task"))
    known = sum(name in base for name in matching.names.values())
    if matching.fused:
        findings.append(_fused(source, base, matching.fused))
    elif not isinstance(source, Adapter) and known * 2 < len(shapes) and not any(f.level == "error" for f in findings):
        message = f"only {known} of its {len(shapes)} tensors are in the base: is it of this base?"
        findings.append(Finding("error", label, "", message))
    elif wrong := more_than_a_head(source, base, matching, left):
        message = "not in the base under any name, and no head: save both models with one version of transformers, or"
        cure = f"{message} add --task-tensors '{wrong[0]}' to keep it with its task"
        findings.append(Finding("error", _file(source, wrong[0]), some(wrong), cure))
    return ExpertNames(names, tuple(heads), matching.prefix, {name: own for name, own in matching.own.items() if name in base})


def _configurations(label: str, source: Weights | Adapter, base: Weights) -> list[Finding]:
    """What an expert's configuration changes in the meaning of its tensors."""
    if not isinstance(source, Checkpoint):
        return []
    findings = []
    for field, values, fatal in differences(source.config, config_of(base)):
        level: Literal["error", "warning"] = "error" if fatal else "warning"
        what = "the same names stand for other tensors" if fatal else "a merged model has the base's value"
        findings.append(Finding(level, label, "config.json", f"{field} is {values}: {what}"))
    return findings


def _tied_in_the_expert(
    source: Weights | Adapter,
    base: Weights,
    matching: Matching,
    infos: Mapping[str, TensorInfo],
    names: Mapping[str, str],
    fixed: set[str],
    options: Options,
    findings: list[Finding],
) -> dict[str, str]:
    """The base's output projection where the expert's is its embedding: names in the base -> own."""
    found: dict[str, str] = {}
    if not isinstance(source, Weights):
        return found
    own = matching.own
    for name in [name for name in infos if is_output(name) and name not in own and name not in fixed]:
        embedding = tied_embedding(name, infos, infos[name].shape)
        if embedding in names and not matches(name, options.task_tensors) and ties(config_of(source)):
            found[name] = names[str(embedding)]
            message = f"is tied to {embedding} in this expert: merged from there"
            findings.append(Finding("note", _file(source, found[name]), name, message))
    return found


def _moved_alone(
    adapter: Adapter, base: Weights, matching: Matching, infos: Mapping[str, TensorInfo], names: Mapping[str, str]
) -> list[Finding]:
    """An embedding that an adapter trained apart from the output projection, though the base stores one tensor for both."""
    own = set(matching.names.values())
    alone = [name for name in names if is_embedding(name) and not any(is_output(n) and n != name for n in (*infos, *own))]
    if not alone or adapter.config.get("ensure_weight_tying") or not _ties(base):
        return []
    return [Finding("error", str(adapter.file), name, _alone(name, "the output projection")) for name in alone]


def _fused(source: Weights | Adapter, base: Weights, fused: Mapping[str, str]) -> Finding:
    """Experts of a mixture that one of the two models has joined in one tensor, the other one by one."""
    own, name = next(iter(fused.items()))
    apart = _label("base", base) if len(own.split(".")) < len(name.split(".")) else _label("", source)
    message = (
        f"is what the base stores as {name}: one has its experts joined, the other one by one. Store both alike: load {apart} "
        "with transformers and save it with save_pretrained(folder, save_original_format=False)"
    )
    return Finding("error", _file(source, own), own, message)


def _ties(base: Weights) -> bool:
    """Whether transformers ties an output projection of the base to its embedding on loading."""
    return ties(config_of(base)) and has_output(config_of(base))


def _untied(second: str, first: str) -> str:
    return f"trained apart from {first}, to which the base ties it: save both models untied, or add --exclude '{second}'"


def _alone(embedding: str, output: str) -> str:
    return (
        f"trained without {output}, to which the base ties it, so that merged into it both would move: untie the base "
        f"(lm_head.weight stored beside it, tie_word_embeddings false), or keep the base's with --exclude '{embedding}'"
    )


def _unfit(*dtypes: torch.dtype) -> str:
    """The first of these in which weights cannot be added, if there is one."""
    return next((str(dtype).removeprefix("torch.") for dtype in dtypes if dtype not in _ADDED), "")


def _task_heads(base: Weights, sources: Mapping[str, Weights | Adapter], matchings: Mapping[str, Matching]) -> dict[str, str]:
    """The base's modules that are heads of different tasks, by transformers' names for classification heads, and why.

    A head is a task's own where its shape differs from the base's, or where the models' labels do: to average rows that stand
    for different classes would be a silent mistake.
    """
    modules = {named[1] for name in base if (named := _CLASSIFIER.match(name))}
    dense = {task: source for task, source in sources.items() if isinstance(source, Weights)}
    labels = [source.config.get("id2label") for source in [base, *dense.values()] if isinstance(source, Checkpoint)]
    found = {}
    for module in modules:
        for task, source in dense.items():
            own = {matchings[task].names[name]: info.shape for name, info in source.infos.items()}
            if any(own.get(n, i.shape) != i.shape for n, i in base.infos.items() if n.startswith(f"{module}.")):
                found[module] = "a classification head of another size"
        if module not in found and len({str(each) for each in labels if each is not None}) > 1:
            found[module] = "a classification head with other labels"
    return found


def _is_vocabulary(name: str, shape: tuple[int, ...], base: tuple[int, ...]) -> bool:
    """Whether two shapes differ in the number of tokens only."""
    return len(shape) == len(base) > 0 and shape[1:] == base[1:] and bool(_VOCABULARY.search(name))


def _file(source: Weights | Adapter, name: str) -> str:
    if isinstance(source, Adapter):
        return str(source.file or "adapter in memory")
    return str(getattr(source, "files", {}).get(name, getattr(source, "path", "in memory")))


def _label(task: str, source: Weights | Adapter) -> str:
    return str(getattr(source, "path", None) or f"expert {task}")
