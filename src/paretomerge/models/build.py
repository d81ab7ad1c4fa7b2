"""Weights as a live transformers model, and where it runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.experts.architecture import model_class, transformers_config
from paretomerge.experts.pretrained import one_line
from paretomerge.weights.lazy import Weights, main_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_model(weights: Weights, config: Mapping[str, Any], lent: Collection[int] = ()) -> PreTrainedModel:
    """A live transformers model with these weights, in evaluation mode, in their dtype.

    It owns its parameters: a tensor that is read may be a view of a file's memory map, which whoever moves the model in
    place would overwrite for all other readers. Only those at the addresses ``lent`` are not copied.
    """
    from transformers.utils import logging

    state: dict[str, Tensor] = {}
    for name in weights:
        tensor = weights[name]
        state[name] = tensor if tensor.data_ptr() in lent else tensor.clone()
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        cls, own = model_class(config), transformers_config(config)
        with one_line(f"transformers cannot build {cls.__name__} from the model's config.json and weights"):
            model = cls.from_pretrained(None, config=own, state_dict=state, dtype=main_dtype(weights))
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    return model.eval()


def device_of(name: str) -> torch.device:
    """A device: ``"cpu"``, ``"cuda"``, ``"mps"`` …; ``"auto"``: the best there is, of several each process its own.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        local = os.environ.get("LOCAL_RANK", "0")
        name = f"cuda:{local}" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such device, or a torch that was built without it
        raise UserError(f"device {name!r}: {str(error).splitlines()[0]}") from error
