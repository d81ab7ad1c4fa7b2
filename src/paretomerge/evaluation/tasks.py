"""A task: inputs to fit on, inputs held out to measure on, and how a live model's logits come about."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from paretomerge.errors import UserError
from paretomerge.evaluation.inputs import ImageInputs, Inputs, TensorInputs, TextInputs
from paretomerge.evaluation.labels import class_numbers, spoken
from paretomerge.evaluation.sources import WHOLE, Chosen, Split, read_splits, split_name

Kind = Literal["image-classification", "text-classification", "language-modelling"]

TEMPLATES = ("a photo of a {}.",)
BLOCK = 512
"""Tokens of a language model's block, if neither ``max_length`` nor the model says less."""
_COLUMNS = {
    "text": ("text", "sentence", "content", "review", "tweet", "document"),
    "image": ("image", "img", "pixels", "file", "file_name", "path"),
    "label": ("label", "labels", "class", "target", "category", "fine_label"),
}
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))


class DataSpec(BaseModel):
    """Where a task's data are; what is left out is found, and said in ``Task.said``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """A file, a folder or a hub data set (see ``sources.read_splits``), or ``module:function``, which returns a Task."""
    subset: str | None = None
    """The configuration of a hub data set."""
    fit: str | None = None
    """A split's name, or other data: to fit on."""
    evaluate: str | None = None
    """A split's name, or other data: to measure on."""
    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    label: str | None = None
    max_length: PositiveInt | None = None
    """Tokens of a text at most; of a block exactly."""
    limit_fit: PositiveInt | None = None
    limit_evaluate: PositiveInt | None = None
    transductive: bool = False
    """Fit on the evaluation inputs, without their labels."""
    classes: list[str] | None = None
    """The data's names of the head's classes, in the head's order; for a zero-shot head, the names to put in templates."""
    templates: list[str] | None = None
    """Prompts of a zero-shot head, each with {} for the class."""


class Prompts(NamedTuple):
    """A zero-shot head before a model reads it: tokenised prompts, all of the first class first."""

    inputs: TextInputs
    n_classes: int

    @staticmethod
    def of(tokenizer: Any, classes: Sequence[str], templates: Sequence[str] = TEMPLATES, width: int | None = None) -> Prompts:
        """Every template filled with every class; ``width``: pad to it, as SigLIP was trained."""
        if not classes or not templates or not all("{}" in template for template in templates):
            raise UserError("a zero-shot head needs classes, and templates that have {} where the class goes")
        texts = [template.replace("{}", spoken(name)) for name in classes for template in templates]
        longest = width or min(tokenizer.model_max_length, 10**6)
        encoded = tokenizer(texts, truncation=True, max_length=longest)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        ids = {"input_ids": encoded["input_ids"]}
        return Prompts(TextInputs(ids, 0 if pad is None else pad, width), len(classes))

    def features(self, model: nn.Module, batch_size: int = 256) -> Tensor:
        """(classes, dim): the mean of a class's unit text features, of length 1 again; with the model's gradient.

        Raises:
            UserError: the model has no text tower.
        """
        if not hasattr(model, "get_text_features"):
            raise UserError(f"{type(model).__name__} has no text tower (get_text_features): a zero-shot head needs CLIP's kind")
        batches = torch.arange(len(self.inputs)).split(batch_size)
        texts = [_pooled(model.get_text_features(**on_model(self.inputs.batch(i.tolist()), model))) for i in batches]
        each = F.normalize(torch.cat(texts), dim=-1).unflatten(0, (self.n_classes, -1))
        return F.normalize(each.mean(1), dim=-1)


def zero_shot_head(model: nn.Module, tokenizer: Any, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Text features (classes, dim) of unit length, averaged over templates (Radford et al. 2021, §3.1.4)."""
    with torch.no_grad():
        return Prompts.of(tokenizer, classes, templates).features(model)


@dataclass(frozen=True)
class Task:
    """What a task wants of a model."""

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
    """Of a zero-shot task."""


def predict(model: nn.Module, batch: Mapping[str, Tensor], text_head: Tensor | None = None) -> Tensor:
    """A live model's logits: (n, classes), of a language model (n, tokens, vocabulary); with gradients.

    Args:
        model: a transformers model with a head; with ``text_head``, one with CLIP's two towers.
        batch: what ``Inputs.batch`` gives; it is moved to the model's device and dtype.
        text_head: (classes, dim) of ``Prompts.features``; logits are the model's scale · cosine (+ SigLIP's bias).

    Raises:
        UserError: the model has no head, or refuses the inputs.
    """
    moved = on_model(batch, model)
    try:
        if text_head is None:
            output = model(**moved)
            if getattr(output, "logits", None) is None:
                raise UserError(f"{type(model).__name__} has no head: its experts bring one, or zero-shot classes")
            return output.logits
        image = _pooled(model.get_image_features(**moved))
    except UserError:
        raise
    except (ValueError, AttributeError) as error:
        raise UserError(f"{type(model).__name__} refuses the inputs: {' '.join(str(error).split())}") from error
    logits = F.normalize(image, dim=-1) @ text_head.to(image).T
    if isinstance(scale := getattr(model, "logit_scale", None), Tensor):
        logits = logits * scale.exp()
    if isinstance(bias := getattr(model, "logit_bias", None), Tensor):
        logits = logits + bias
    return logits


def on_model(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A batch on the model's device, floating-point inputs in its dtype."""
    like = next(model.parameters())
    return {name: x.to(like.device, like.dtype if x.is_floating_point() else None) for name, x in batch.items()}


def _pooled(output: Any) -> Tensor:
    """transformers 5 wraps the features of CLIP's towers."""
    return output if isinstance(output, Tensor) else output.pooler_output


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

    Which inputs are for fitting: those of ``fit``, or the split ``train``; which are held out: those of ``evaluate``, or the
    first of ``test`` and ``validation`` that has labels. Data in one piece are cut in two halves by chance. Where ``fit`` and
    ``evaluate`` name the same inputs, or ``transductive`` is set, the task is transductive, and says so in every row.

    Args:
        name: the task's.
        spec: the data, its path alone, or a function that returns the task.
        companions: the folder with the tokenizer or the image processor.
        config: config.json of the task's model: its class tells the kind of task, its ``id2label`` the classes' order.
        keep_labels: the fit inputs keep their labels, for cross-entropy.
        seed: of the halves and the limits.

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
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UserError(f"{module}:{function}: cannot be imported ({error})") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise UserError(f"{module}:{function}: no such function")
    return found


def _called(name: str, function: Callable[[], object], what: str) -> Task:
    task = function()
    if not isinstance(task, Task):
        raise UserError(f"data of task {name}: {what} returns a {type(task).__name__}, not a paretomerge Task")
    return replace(task, name=name)


class _Part(NamedTuple):
    """Examples for one purpose."""

    split: Split
    indices: np.ndarray
    """(n,), ascending."""

    @property
    def named(self) -> str:
        return f"{len(self.indices)} of {self.split.where}"


class _Preparation:
    """One call of ``load_task``: what is known, and what was said so far."""

    def __init__(
        self, name: str, spec: DataSpec, companions: Path | None, config: Mapping[str, Any], keep_labels: bool, seed: int
    ) -> None:
        self.name, self.spec, self.companions, self.config = name, spec, companions, config
        self.keep_labels, self.seed = keep_labels, seed
        self.said: list[str] = []

    def say(self, line: str) -> None:
        if line not in self.said:
            self.said.append(line)

    def task(self) -> Task:
        splits = read_splits(self.spec.path, self.spec.subset)
        self.kind, self.zero_shot = _kind(self.config, next(iter(splits.values())))
        fit, held_out = self.parts({name: self.ready(split) for name, split in splits.items()})
        same = fit is not None and held_out is not None and fit.split.where == held_out.split.where
        transductive = same and bool(np.isin(fit.indices, held_out.indices).any()) if fit and held_out else False
        for purpose, part in (("fit on", fit), ("transductive, measured on" if transductive else "measured on", held_out)):
            if part:
                self.say(f"{purpose} {part.named}")
        make = {"image-classification": self.images, "text-classification": self.texts, "language-modelling": self.blocks}
        classes = self.classes(held_out or fit) if self.zero_shot else None
        prompts = None
        if classes is not None:
            siglip = str(self.config.get("model_type", "")).startswith("siglip")
            templates = self.spec.templates or TEMPLATES
            prompts = Prompts.of(self.loaded("AutoTokenizer"), classes, templates, 64 if siglip else None)
            self.say(f"zero-shot: {len(classes)} classes, {len(templates)} templates such as {templates[0]!r}")
        build = partial(make[self.kind], classes=classes)
        return Task(
            self.name,
            self.kind,
            build(fit, labelled=self.keep_labels) if fit else None,
            build(held_out, labelled=True) if held_out else None,
            "perplexity" if self.kind == "language-modelling" else "accuracy",
            "transductive" if transductive else "held-out",
            tuple(self.said),
            prompts,
        )

    # which examples

    def parts(self, splits: dict[str, Split]) -> tuple[_Part | None, _Part | None]:
        """The examples for fitting, and those to measure on."""
        spec = self.spec
        held_out = self.named(spec.evaluate, splits, ("test", "validation")) if spec.evaluate else None
        fit = self.named(spec.fit, splits, ("train",)) if spec.fit else None
        alone = next(iter(splits.values())) if len(splits) == 1 else None
        halves = False
        if alone is not None and (held_out is None or fit is None):
            halves = held_out is None and fit is None and self.labelled(alone) and not spec.transductive
            if held_out is None and (self.labelled(alone) or fit is not None):
                held_out = alone
            fit = fit or alone
        for name in ("test", "validation"):
            if held_out is None and name in splits and len(splits) > 1:
                if self.labelled(splits[name]):
                    held_out = splits[name]
                else:
                    self.say(f"{splits[name].where} has no labels, and is not measured on")
        if fit is None:
            rest = [split for split in splits.values() if held_out is None or split.where != held_out.where]
            fit = splits.get("train") or next(iter(rest), None)
        if spec.transductive:
            if held_out is None:
                raise UserError("transductive, but nothing to measure on: name it with evaluate")
            fit = held_out
        if held_out is not None and not self.labelled(held_out):
            raise UserError(f"{held_out.where} has no labels to measure with")
        if halves and fit is not None:
            n = len(fit)
            order = np.random.default_rng([self.seed, 0]).permutation(n)
            self.say(f"{fit.where} has no splits: one half by chance (seed {self.seed}) to fit, the other to measure")
            return self.limited(fit, order[: n // 2], spec.limit_fit, 1), self.limited(fit, order[n // 2 :], spec.limit_evaluate, 2)
        measured = held_out and self.limited(held_out, np.arange(len(held_out)), spec.limit_evaluate, 2)
        if spec.transductive and measured:
            return self.limited(measured.split, measured.indices, spec.limit_fit, 1), measured
        return fit and self.limited(fit, np.arange(len(fit)), spec.limit_fit, 1), measured

    def limited(self, split: Split, indices: np.ndarray, limit: int | None, salt: int) -> _Part:
        if limit is not None and limit < len(indices):
            indices = np.random.default_rng([self.seed, salt]).choice(indices, limit, replace=False)
        if not len(indices):
            raise UserError(f"{split.where}: {len(split)} examples are too few to fit and to measure")
        return _Part(split, np.sort(indices))

    def named(self, name: str, splits: dict[str, Split], usual: Sequence[str]) -> Split:
        """The split of that name, or of the data there."""
        if found := splits.get(name) or splits.get(split_name(name)):
            return found
        try:
            other = read_splits(name)
        except UserError as error:
            raise UserError(f"{name!r} is neither a split ({', '.join(splits)}) nor data ({error})") from None
        for key in (*usual, WHOLE, *(other if len(other) == 1 else ())):
            if key in other:
                return self.ready(other[key])
        raise UserError(f"{name}: has the splits {', '.join(other)}; none of them is called {usual[0]}")

    def labelled(self, split: Split) -> bool:
        """Whether the split can be measured on; hub data sets hide the labels of a test split as −1."""
        if self.kind == "language-modelling":
            return True
        column = self.column(split, "label", needed=False)
        return column is not None and any(value not in (-1, "-1", None, "") for value in split.columns[column])

    def column(self, split: Split, role: str, *, needed: bool = True) -> str | None:
        """The column of a role: the one the user names, or the one that its name or type gives away."""
        given = getattr(self.spec, role)
        columns = split.columns
        if given is not None:
            if given not in columns:
                raise UserError(f"{split.where} has no column {given!r} (columns: {', '.join(columns)})")
            return str(given)
        found: str | None = None
        if role == "image" and len(split.images) == 1:
            found = next(iter(split.images))
        elif role == "text" and (pair := self.pair(split)):
            found = pair[0]
        elif role == "label" and len(split.names) == 1:
            found = next(iter(split.names))
        found = found or next((name for name in _COLUMNS[role] if name in columns), None)
        if found is None and role == "text":
            label = self.column(split, "label", needed=False)
            texts = [name for name, values in columns.items() if name != label and isinstance(values[0], str)]
            found = texts[0] if len(texts) == 1 else None
        if found is None and needed:
            raise UserError(f"{split.where}: which column is the {role}? Name it with {role}: (columns: {', '.join(columns)})")
        if found is not None and len(columns) > 1:
            self.say(f"{role} column: {found}")
        return found

    def pair(self, split: Split) -> tuple[str, str] | None:
        """Columns of a text and its pair."""
        if self.spec.text_pair is not None:
            return (self.spec.text or next(iter(_COLUMNS["text"]))), self.spec.text_pair
        return next((p for p in _PAIRS if set(p) <= set(split.columns)), None) if self.spec.text is None else None

    # what the model takes

    def images(self, part: _Part, *, labelled: bool, classes: Sequence[str] | None) -> Inputs:
        column = self.column(part.split, "image") or ""
        vision = self.config.get("vision_config") or self.config
        channels = int(vision.get("num_channels", 3))
        images = Chosen(part.split.columns[column], part.indices)
        return ImageInputs(images, self.loaded("AutoImageProcessor"), channels, self.labels(part, classes) if labelled else None)

    def texts(self, part: _Part, *, labelled: bool, classes: Sequence[str] | None) -> Inputs:
        tokenizer, columns = self.loaded("AutoTokenizer"), part.split.columns
        pair = self.pair(part.split)
        names = pair or (self.column(part.split, "text") or "",)
        if pair:
            self.say(f"text columns: {pair[0]}, {pair[1]}")
        given = [_checked_texts(part.split, columns, name, part.indices) for name in names]
        pad = self.config.get("pad_token_id")
        pad = tokenizer.pad_token_id if pad is None else pad
        if pad is None:
            raise UserError("neither the model's config.json nor its tokenizer has a pad token (pad_token_id)")
        longest = self.longest(tokenizer)
        encoded = tokenizer(*given, truncation=longest is not None, max_length=longest, return_attention_mask=False)
        sequences = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        inputs = TextInputs(sequences, pad, labels=self.labels(part, classes) if labelled else None)
        full = sum(len(ids) >= (longest or sys.maxsize) for ids in sequences["input_ids"])
        self.say(f"longest text: {inputs.longest} tokens" + (f"; {full} fill all {longest}, and may be cut" if full else ""))
        return inputs

    def blocks(self, part: _Part, *, labelled: bool, classes: Sequence[str] | None) -> Inputs:
        ids = torch.from_numpy(part.split.columns["input_ids"][part.indices]).long()  # type: ignore[call-overload]
        return TensorInputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def ready(self, split: Split) -> Split:
        """A language model's text as blocks of tokens, the model's first token before each; other splits as they are.

        Documents are joined by the end token; a .txt file is one text. What does not fill a last block is left out.
        """
        if self.kind != "language-modelling":
            return split
        tokenizer = self.loaded("AutoTokenizer")
        column = "text" if split.running else self.column(split, "text") or ""
        texts = _checked_texts(split, split.columns, column, np.arange(len(split)))
        documents = ["\n".join(texts)] if split.running else texts
        end = [] if split.running or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        stream = np.fromiter((i for ids in encoded for i in (*ids, *end)), np.int64)
        first = tokenizer("a")["input_ids"][:1]
        start = first if first == [tokenizer.bos_token_id] else []
        width = min(self.longest(tokenizer) or BLOCK, self.spec.max_length or BLOCK)
        n = len(stream) // (width - len(start)) if width > len(start) else 0
        if not n or width < 2:
            raise UserError(f"{split.where}: {len(stream)} tokens do not fill one block of {width}: set max_length")
        blocks = stream[: n * (width - len(start))].reshape(n, -1)
        blocks = np.concatenate([np.tile(np.array(start, np.int64), (n, 1)), blocks], axis=1)
        self.say(f"{split.where}: {len(stream)} tokens, {n} blocks of {width}")
        return Split(split.where, {"input_ids": blocks})  # type: ignore[dict-item]

    def longest(self, tokenizer: Any) -> int | None:
        """The most tokens that user, tokenizer and model allow."""
        positions = self.config.get("max_position_embeddings") or self.config.get("n_positions")
        limits = [self.spec.max_length, tokenizer.model_max_length, positions]
        return min((limit for limit in limits if limit is not None and limit < 10**9), default=None)

    def labels(self, part: _Part, classes: Sequence[str] | None) -> Tensor:
        column = self.column(part.split, "label") or ""
        values = Chosen(part.split.columns[column], part.indices)
        order = classes if classes is not None else self.spec.classes
        numbers, line = class_numbers(values, part.split.names.get(column), self.config, order, part.split.where)
        self.say(line)
        return numbers

    def classes(self, part: _Part | None) -> Sequence[str]:
        """Of a zero-shot head: the user's, or the data's."""
        if self.spec.classes:
            return self.spec.classes
        column = self.column(part.split, "label", needed=False) if part else None
        if part and column:
            names = part.split.names.get(column) or sorted({str(value) for value in part.split.columns[column]})
            if not all(name.isdigit() for name in names):
                return names
        raise UserError(f"{self.spec.path}: the classes have no names: list them with classes:")

    def loaded(self, kind: str) -> Any:
        """The tokenizer or image processor beside the weights."""
        import transformers
        from transformers.utils import logging

        what = "tokenizer" if kind == "AutoTokenizer" else "image processor (preprocessor_config.json)"
        if self.companions is None or not self.companions.is_dir():
            raise UserError(f"the base is no folder with a {what} in it")
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            return getattr(transformers, kind).from_pretrained(str(self.companions))
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{self.companions}: no {what} that transformers can load ({reason})") from error
        finally:
            logging.set_verbosity(level)


def _kind(config: Mapping[str, Any], split: Split) -> tuple[Kind, bool]:
    """The kind of task, and whether its head is zero-shot: from the model's class; from the data, if it has none."""
    names = config.get("architectures") or [""]
    architecture = str(names[0])
    if "ForImageClassification" in architecture:
        return "image-classification", False
    if "ForSequenceClassification" in architecture:
        return "text-classification", False
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "language-modelling", False
    if architecture.endswith("Model") and "text_config" in config and "vision_config" in config:
        return "image-classification", True
    if architecture:
        raise UserError(f"{architecture} is no classifier, language model or pair of towers such as CLIP: give it heads")
    if split.images:
        return "image-classification", False
    return ("language-modelling" if split.running else "text-classification"), False


def _checked_texts(split: Split, columns: Mapping[str, Sequence[Any]], name: str, indices: np.ndarray) -> list[str]:
    if name not in columns:
        raise UserError(f"{split.where} has no column {name!r} (columns: {', '.join(columns)})")
    values = columns[name]
    texts = [values[int(i)] for i in indices]
    for i, text in zip(indices, texts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"{split.where}: row {int(i) + 1} of column {name} is not text: {text!r}")
    return texts
