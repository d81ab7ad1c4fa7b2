"""The live model behind "try it": one that every visitor borrows in turn, moved to the preference of whoever has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from paretomerge.data.inputs import ImageInputs, TextInputs
from paretomerge.data.labels import head_classes
from paretomerge.data.prompts import Prompts
from paretomerge.errors import UserError
from paretomerge.experts.config import architecture, count
from paretomerge.experts.pretrained import load_beside
from paretomerge.front.front import Front
from paretomerge.models.build import device_of
from paretomerge.models.predict import on_model, predict
from paretomerge.preferences import Preference

Kind = Literal["image", "text", "prompt", "image and classes"]


class Answer(NamedTuple):
    """What the model said, and how long it took."""

    classes: dict[str, float]
    """Class -> probability, most probable first; empty for a language model."""
    text: str
    """The continuation of a prompt."""
    switched: float
    """Seconds to move the model from the last visitor's preference to this one."""
    ran: float
    """Seconds to read the input and answer."""


def kind_of(config: Mapping[str, Any]) -> Kind | None:
    """What a model of this config.json takes; None: nothing that the page can give it."""
    name = architecture(config)
    if "ForImageClassification" in name:
        return "image"
    if "ForSequenceClassification" in name:
        return "text"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "prompt"
    return "image and classes" if name.endswith("Model") and {"text_config", "vision_config"} <= config.keys() else None


class Live:
    """A front's live model, under a lock: each call moves it to its own preference, so visitors do not meet.

    Tasks with a head of their own have a model each, of which those used last stay within ``room`` bytes.
    """

    def __init__(self, front: Front, *, device: str = "auto", room: int = 8 * 2**30) -> None:
        self.front = front
        self.device = device_of(device)
        self._room = room
        self._lock = threading.Lock()
        self._models: dict[str | None, nn.Module] = {}

    @cached_property
    def heads(self) -> dict[str | None, Kind]:
        """The models that can be tried: a task's own, or None for the front's class -> what each takes."""
        with_heads = {task: kind_of(head.config) for task, head in self.front.heads.items() if head.config}
        found: dict[str | None, Kind] = {task: kind for task, kind in with_heads.items() if kind}
        if kind := kind_of(self.front.config):
            found[None] = kind
        return found

    @property
    def positions(self) -> int:
        """Tokens that the model has room for, prompt and answer together."""
        config = self.front.config
        return count(config, "max_position_embeddings", "n_positions") or 10**6

    def ask(
        self, gamma: Preference, head: str | None, given: Any, *, classes: Sequence[str] = (), new_tokens: int = 40
    ) -> Answer:
        """What θ(γ) says.

        Args:
            gamma: the preference.
            head: the task whose model is asked, one of ``heads``.
            given: a PIL image or an array; a text.
            classes: of a zero-shot model, their names.
            new_tokens: of a language model, how many tokens it goes on (greedily).

        Raises:
            UserError: no input; no tokenizer or image processor beside the front.
        """
        kind = self.heads[head]
        if given is None or (isinstance(given, str) and not given.strip()):
            raise UserError("give it a text first" if kind in ("text", "prompt") else "give it an image first")
        with self._lock, torch.inference_mode():
            model = self._model(gamma, head)
            started = time.perf_counter()
            self.front.apply_(model, gamma)
            switched = time.perf_counter() - started
            started = time.perf_counter()
            found = self._run(model, kind, given, classes, new_tokens)
            ran = time.perf_counter() - started
        if isinstance(found, str):
            return Answer({}, found, switched, ran)
        names = list(classes) if kind == "image and classes" else head_classes(self._config(head))
        shares = found.float().softmax(-1).tolist()
        order = sorted(range(len(shares)), key=lambda i: -shares[i])
        return Answer({names[i] if i < len(names) else f"class {i}": shares[i] for i in order}, "", switched, ran)

    def _model(self, gamma: Preference, head: str | None) -> nn.Module:
        model = self._models.pop(head, None)
        if model is None:
            with torch.inference_mode(False):  # its weights are moved outside inference mode, too
                model = self.front.model(gamma, head=head, dtype=torch.float32).to(self.device)
        self._models[head] = model  # at the end: used last
        while len(self._models) > 1 and sum(map(_bytes, self._models.values())) > self._room:
            del self._models[next(iter(self._models))]
        return model

    def _run(self, model: nn.Module, kind: Kind, given: Any, classes: Sequence[str], new_tokens: int) -> Tensor | str:
        """Logits (classes,), or a text."""
        if kind in ("image", "image and classes"):
            config = getattr(model, "config", None)
            config = getattr(config, "vision_config", None) or config
            channels = int(getattr(config, "num_channels", 3))
            batch = ImageInputs([given], self._image_processor, channels).batch([0])
            if kind == "image":
                return predict(model, batch)[0]
            if len(classes) < 2:
                raise UserError("name at least two classes, with commas between them")
            width = 64 if str(self.front.config.get("model_type")).startswith("siglip") else None
            return predict(model, batch, Prompts.of(self._tokenizer, classes, width=width).features(model))[0]
        if kind == "text":
            return predict(model, self._tokens(str(given)))[0]
        tokens = self._tokens(str(given), leaving=new_tokens)
        batch = on_model({name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}, model)
        generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
        pad = next((i for i in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id) if i is not None), 0)
        out = generate(**batch, max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad)
        return str(self._tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))

    def _tokens(self, text: str, leaving: int = 0) -> dict[str, Tensor]:
        """A text as a batch of one; ``leaving``: the beginning of a long prompt makes room for so many tokens at its end."""
        limit = int(min(self._tokenizer.model_max_length, self.positions))
        if leaving >= limit:
            raise UserError(f"the model has room for {limit} tokens in all: ask for fewer new ones")
        options = {"return_attention_mask": False, "verbose": False}
        encoded = self._tokenizer([text], **options, **({} if leaving else {"truncation": True, "max_length": limit}))
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        sequences = {name: [encoded[name][0][leaving - limit :] if leaving else encoded[name][0]] for name in names}
        return TextInputs(sequences, self._tokenizer.pad_token_id or 0).batch([0])

    @cached_property
    def _tokenizer(self) -> Any:
        return load_beside(self.front.companions, "AutoTokenizer")

    @cached_property
    def _image_processor(self) -> Any:
        return load_beside(self.front.companions, "AutoImageProcessor")

    def _config(self, head: str | None) -> Mapping[str, Any]:
        return self.front.config if head is None else self.front.head(head).config


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
