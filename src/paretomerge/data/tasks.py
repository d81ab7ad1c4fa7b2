"""A task: inputs to fit on and inputs held out to measure on, found and prepared from files, folders and data sets."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from paretomerge.data.columns import image_column, label_column, text_columns
from paretomerge.data.inputs import ImageInputs, Inputs, TensorInputs, TextInputs
from paretomerge.data.labels import class_numbers
from paretomerge.data.prompts import TEMPLATES, Prompts, zero_shot_head
from paretomerge.data.sources import Chosen, Split, read_splits
from paretomerge.data.splits import Part, choose
from paretomerge.errors import UserError
from paretomerge.experts.config import architecture as first_architecture
from paretomerge.experts.config import count
from paretomerge.experts.config import part as part_of
from paretomerge.experts.pretrained import Kind as Beside
from paretomerge.experts.pretrained import load_beside
from paretomerge.specs.data_spec import DataSpec, read_prompts

__all__ = ["DataSpec", "Inputs", "Kind", "Prompts", "Task", "load_task", "zero_shot_head"]

Kind = Literal["image-classification", "text-classification", "language-modelling"]

BLOCK = 512
"""Tokens of a language model's block, if neither ``max_length`` nor the model says otherwise."""


@dataclass(frozen=True)
class Task:
    """What a task brings to fitting and measuring."""

    name: str
    kind: Kind
    fit: Inputs | None
    """Without labels, unless they were asked for."""
    held_out: Inputs | None
    """With labels, unless the kind has none."""
    metric: Literal["accuracy", "perplexity"]
    split: Literal["held-out", "transductive"] = "held-out"
    said: tuple[str, ...] = ()
    """What was found automatically, a line each."""
    prompts: Prompts | None = None
    """Of a zero-shot head: ``logits.predict`` needs ``prompts.features(model)``."""


def load_task(
    name: str,
    spec: DataSpec | str | Callable[[], Task],
    *,
    companions: Path | None,
    config: Mapping[str, Any],
    keep_labels: bool = False,
    seed: int = 0,
) -> Task:
    """Find, split and prepare a task's data.

    Measured on are the inputs of ``evaluate``, or the first of ``test`` and ``validation`` that has labels; fitted on are
    those of ``fit``, or the split ``train``. Labelled data in one piece are cut in two halves by chance, the same ones for
    any seed. Where the user names the same inputs for both, or sets ``transductive``, the task and its rows are transductive.

    Args:
        name: the task's.
        spec: the data, its path alone, or a function that returns the task.
        companions: the folder with the tokenizer or the image processor.
        config: config.json of the task's model: its class tells the kind of task, its ``id2label`` the classes' order.
        keep_labels: the fit inputs keep their labels, for cross-entropy.
        seed: of the choice of inputs, those which ``fit_inputs`` and ``evaluate_inputs`` leave.

    Raises:
        UserError: one line, when data, columns, labels, processor or model do not fit together.
    """
    if callable(spec):
        return _called(name, spec, getattr(spec, "__name__", "the function"))
    spec = DataSpec(path=spec) if isinstance(spec, str) else spec
    module, colon, function = spec.path.partition(":")
    if colon and module.replace(".", "_").isidentifier() and function.isidentifier() and not Path(spec.path).exists():
        return _called(name, _imported(module, function), spec.path)
    try:
        return _Preparation(name, spec, companions, config, keep_labels, seed).task()
    except UserError as error:
        raise UserError(f"data of task {name}: {error}") from error


def _imported(module: str, function: str) -> Callable[[], object]:
    """A function of an installed module, or of one in the working directory."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UserError(f"{module}:{function}: cannot be imported ({error})") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UserError(f"{module}:{function}: no such function")
    return found


def _called(name: str, function: Callable[[], object], what: str) -> Task:
    task = function()
    if not isinstance(task, Task):
        raise UserError(f"data of task {name}: {what} returns a {type(task).__name__}, not a Task")
    return replace(task, name=name)


class _Preparation:
    """One call of ``load_task``: what is known, and what was said so far."""

    def __init__(
        self, name: str, spec: DataSpec, companions: Path | None, config: Mapping[str, Any], keep_labels: bool, seed: int
    ) -> None:
        self.name, self.spec, self.companions, self.config = name, spec, companions, config
        self.keep_labels, self.seed = keep_labels, seed
        self.said: list[str] = []
        self.opened: dict[str, Any] = {}

    def say(self, line: str) -> None:
        if line not in self.said:
            self.said.append(line)

    def task(self) -> Task:
        splits = read_splits(self.spec.path, self.spec.subset)
        self.kind, zero_shot = _kind(self.config, next(iter(splits.values())))
        if not self.spec.evaluate and not any(self.spec.label in (None, *split.columns) for split in splits.values()):
            label_column(next(iter(splits.values())), self.spec.label)  # says that there is none
        fit, held_out = choose(splits, self.spec, labelled=self.labelled, ready=self.ready, seed=self.seed, say=self.say)
        transductive = fit is not None and held_out is not None and fit.overlaps(held_out)
        if fit:
            self.say(f"fit: {len(fit.indices)} of {fit.split.where}")
        if held_out:
            same = ", which the fit sees too: transductive" if transductive else ""
            self.say(f"measured: {len(held_out.indices)} of {held_out.split.where}{same}")
        classes: Sequence[str] | None = self.spec.classes
        prompts = None
        if zero_shot:
            file = read_prompts(self.spec.prompts) if self.spec.prompts else None
            classes = classes or (file.classes if file else self.class_names(held_out or fit))
            templates = self.spec.templates or (file.templates if file else TEMPLATES)
            width = 64 if str(self.config.get("model_type")).startswith("siglip") else None
            prompts = Prompts.of(self.loaded("AutoTokenizer"), classes, templates, width)
            self.say(f"zero-shot head: {len(classes)} classes, {len(templates)} templates such as {templates[0]!r}")
        return Task(
            self.name,
            self.kind,
            self.inputs(fit, classes, labelled=self.keep_labels) if fit else None,
            self.inputs(held_out, classes, labelled=True) if held_out else None,
            "perplexity" if self.kind == "language-modelling" else "accuracy",
            "transductive" if transductive else "held-out",
            tuple(self.said),
            prompts,
        )

    def labelled(self, split: Split) -> bool:
        """Whether a split can be measured on; hub data sets hide the labels of a test split as −1."""
        if self.kind == "language-modelling":
            return True
        if self.spec.label is not None and self.spec.label not in split.columns:
            return False
        column = label_column(split, self.spec.label)
        return column is not None and any(value not in (-1, "-1", None, "") for value in split.columns[column])

    def ready(self, split: Split) -> Split:
        """A language model's text as blocks of tokens; lines that are texts by themselves without the blank ones."""
        if self.kind == "language-modelling":
            return self.blocks(split)
        if split.running:
            return Split(split.where, {"text": [line for line in split.columns["text"] if line.strip()]})
        return split

    def blocks(self, split: Split) -> Split:
        """One stream of tokens cut into blocks, each after the model's first token if it has one.

        Documents are joined by the end token; a .txt file is one text. What does not fill the last block is left out.
        """
        tokenizer = self.loaded("AutoTokenizer")
        texts = self.checked(split, self.text_columns(split)[0], range(len(split)))
        documents = ["\n".join(texts)] if split.running else texts
        end = [] if split.running or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        stream = np.fromiter((i for ids in encoded for i in (*ids, *end)), np.int64)
        first = tokenizer("a")["input_ids"][:1]
        start = np.array(first if first == [tokenizer.bos_token_id] else [], np.int64)
        width = self.spec.max_length or min(self.longest(tokenizer) or BLOCK, BLOCK)
        n = len(stream) // (width - len(start)) if width > len(start) else 0
        if not n or width < 2:
            raise UserError(f"{split.where}: {len(stream)} tokens do not fill one block of {width}: set max_length")
        cut = stream[: n * (width - len(start))].reshape(n, -1)
        self.say(f"{split.where}: {len(stream)} tokens in {n} blocks of {width}")
        blocks: Any = np.concatenate([np.tile(start, (n, 1)), cut], axis=1)
        return Split(split.where, {"input_ids": blocks})

    def inputs(self, part: Part, classes: Sequence[str] | None, *, labelled: bool) -> Inputs:
        """What the model's forward takes."""
        if self.kind == "language-modelling":
            blocks: Any = part.split.columns["input_ids"]
            ids = torch.from_numpy(blocks[part.indices])
            return TensorInputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        labels = self.labels(part, classes) if labelled else None
        if self.kind == "text-classification":
            return self.texts(part, labels)
        column = image_column(part.split, self.spec.image)
        if len(part.split.columns) > 1:
            self.say(f"image column: {column}")
        channels = count(part_of(self.config, "vision_config") or self.config, "num_channels") or 3
        images = Chosen(part.split.columns[column], part.indices)
        return ImageInputs(images, self.loaded("AutoImageProcessor"), channels, labels)

    def texts(self, part: Part, labels: Tensor | None) -> TextInputs:
        tokenizer = self.loaded("AutoTokenizer")
        names = self.text_columns(part.split)
        pad = self.config.get("pad_token_id")
        pad = pad if isinstance(pad, int) and pad >= 0 else tokenizer.pad_token_id
        if pad is None:
            raise UserError("neither the model's config.json nor its tokenizer has a pad token (pad_token_id)")
        longest = self.longest(tokenizer)
        given = [self.checked(part.split, name, part.indices) for name in names]
        encoded = tokenizer(*given, truncation=longest is not None, max_length=longest, return_attention_mask=False)
        sequences = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        inputs = TextInputs(sequences, pad, labels=labels)
        full = sum(len(ids) >= (longest or sys.maxsize) for ids in sequences["input_ids"])
        self.say(f"longest text: {inputs.longest} tokens" + (f"; {full} fill all {longest} and may be cut" if full else ""))
        return inputs

    def text_columns(self, split: Split) -> tuple[str, ...]:
        names = text_columns(split, self.spec.text, self.spec.text_pair, self.spec.label)
        if len(split.columns) > 1:
            self.say(f"text column: {' and '.join(names)}")
        return names

    def checked(self, split: Split, name: str, indices: Sequence[int]) -> list[str]:
        texts = list(Chosen(split.columns[name], indices))
        for i, text in zip(indices, texts, strict=True):
            if not isinstance(text, str):
                raise UserError(f"{split.where}: example {i + 1} of column {name} is not text: {text!r}")
        return texts

    def longest(self, tokenizer: Any) -> int | None:
        """The most tokens that user, tokenizer and model allow."""
        positions = count(self.config, "max_position_embeddings", "n_positions")
        limits = (self.spec.max_length, tokenizer.model_max_length, positions)
        return min((limit for limit in limits if limit is not None and limit < 10**9), default=None)

    def labels(self, part: Part, classes: Sequence[str] | None) -> Tensor:
        column = label_column(part.split, self.spec.label)
        if column is None:
            raise UserError(f"{part.split.where}: no column of labels (columns: {', '.join(part.split.columns)})")
        values = Chosen(part.split.columns[column], part.indices)
        names, numbered = part.split.names.get(column), bool(self.spec.prompts and not self.spec.classes)
        numbers, line = class_numbers(values, names, self.config, classes, part.split.where, numbered=numbered)
        self.say(f"label column: {column}")
        self.say(line)
        return numbers

    def class_names(self, part: Part | None) -> Sequence[str]:
        """What the data call their classes, in order."""
        column = label_column(part.split, self.spec.label) if part else None
        if part and column:
            names = part.split.names.get(column) or sorted({str(value) for value in part.split.columns[column]})
            if not any(name.isdecimal() for name in names):
                return names
        raise UserError(f"{self.spec.path}: its classes have no names for a zero-shot head: list them with classes")

    def loaded(self, kind: Beside) -> Any:
        """The tokenizer or image processor beside the weights."""
        if kind not in self.opened:
            self.opened[kind] = load_beside(self.companions, kind)
        return self.opened[kind]


def _kind(config: Mapping[str, Any], split: Split) -> tuple[Kind, bool]:
    """The kind of task, and whether its head is zero-shot: from the model's class; from the data, if it has none."""
    architecture = first_architecture(config)
    if "ForImageClassification" in architecture:
        return "image-classification", False
    if "ForSequenceClassification" in architecture:
        return "text-classification", False
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "language-modelling", False
    if architecture.endswith("Model") and "text_config" in config and "vision_config" in config:
        return "image-classification", True
    if architecture:
        raise UserError(f"{architecture} is no classifier, no language model and no pair of towers such as CLIP")
    if split.images:
        return "image-classification", False
    return ("language-modelling" if split.running else "text-classification"), False
