"""Zero-shot heads: class names as a model with a text tower reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretomerge.data.inputs import Inputs, TextInputs
from paretomerge.data.labels import spoken
from paretomerge.errors import UserError
from paretomerge.models.predict import on_model, pooled

TEMPLATES = ("a photo of a {}.",)


class Prompts(NamedTuple):
    """A zero-shot head before a model reads it: tokenised prompts, all of the first class first."""

    inputs: Inputs
    n_classes: int

    @staticmethod
    def of(tokenizer: Any, classes: Sequence[str], templates: Sequence[str] = TEMPLATES, width: int | None = None) -> Prompts:
        """Every template filled with every class; ``width``: pad to it, as SigLIP was trained.

        Raises:
            UserError: no classes, or a template without ``{}``.
        """
        if not classes or not templates or not all("{}" in template for template in templates):
            raise UserError("a zero-shot head needs classes, and templates that have {} where the class goes")
        texts = [template.replace("{}", spoken(name)) for name in classes for template in templates]
        ids = tokenizer(texts, truncation=True, max_length=width or min(tokenizer.model_max_length, 10**6))["input_ids"]
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        masked = "attention_mask" in tokenizer.model_input_names
        return Prompts(TextInputs({"input_ids": ids}, pad, width=width, masked=masked), len(classes))

    def features(self, model: nn.Module, batch_size: int = 256) -> Tensor:
        """(classes, dim): the mean of a class's unit text features, of length 1 again; with the model's gradient.

        Raises:
            UserError: the model has no text tower.
        """
        if not hasattr(model, "get_text_features"):
            raise UserError(f"{type(model).__name__} has no text tower: a zero-shot head needs a model such as CLIP")
        read: Any = model.get_text_features
        batches = torch.arange(len(self.inputs)).split(batch_size)
        texts = [pooled(read(**on_model(self.inputs.batch(i.tolist()), model))) for i in batches]
        each = F.normalize(torch.cat(texts), dim=-1).unflatten(0, (self.n_classes, -1))  # (classes, templates, dim)
        return F.normalize(each.mean(1), dim=-1)


@torch.no_grad()
def zero_shot_head(model: nn.Module, tokenizer: Any, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Text features (classes, dim) of unit length, averaged over templates (Radford et al. 2021, §3.1.4)."""
    return Prompts.of(tokenizer, classes, templates).features(model)
