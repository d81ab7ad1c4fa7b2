"""Logits of a live model, of its own head or of a zero-shot head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from paretomerge.errors import UserError


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
            logits: Tensor | None = getattr(model(**moved), "logits", None)
        else:
            image = pooled(model.get_image_features(**moved))  # type: ignore[operator]
            logits = F.normalize(image, dim=-1) @ text_head.to(image).T
    except (ValueError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{type(model).__name__} refuses the inputs ({reason}): are tokenizer and processor its own?"
        ) from error
    if logits is None:
        raise UserError(f"{type(model).__name__} has no head that gives logits: its experts bring one, or zero-shot classes")
    if text_head is not None:
        if isinstance(scale := getattr(model, "logit_scale", None), Tensor):
            logits = logits * scale.exp()
        if isinstance(bias := getattr(model, "logit_bias", None), Tensor):
            logits = logits + bias
    return logits


def on_model(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A batch on the model's device, floating-point inputs in its dtype."""
    like = next(model.parameters())
    return {name: x.to(like.device, like.dtype if x.is_floating_point() else None) for name, x in batch.items()}


def pooled(output: Any) -> Tensor:
    """transformers 5 wraps the features of CLIP's towers."""
    return output if isinstance(output, Tensor) else output.pooler_output
