"""Experts of several architectures that differ enough to learn from, and small tasks in memory for them."""

from pathlib import Path

import torch
import transformers as hf

import tiny
from paretomerge.data import Inputs, Prompts, Task, TensorInputs, TextInputs
from paretomerge.experts import Experts, load_experts

BARE = {"vit": hf.ViTModel, "bert": hf.BertModel}
"""Backbones without a head; their experts bring heads of 5 and 3 classes."""
CLASSES = {"a": 5, "b": 3}
KINDS = {
    "vit": "image-classification",
    "resnet": "image-classification",
    "clip": "image-classification",
    "bert": "text-classification",
    "gpt2": "language-modelling",
    "llama": "language-modelling",
}


def save(kind: str, folder: Path, **changes: object) -> Path:
    """A base and the experts a and b, as transformers saves them."""
    size = 0.03 if kind == "resnet" else 0.3
    tiny.save(tiny.model(kind, cls=BARE.get(kind), **changes), folder / "base")
    for seed, (task, classes) in enumerate(CLASSES.items(), 1):
        labels = {"num_labels": classes} if kind in BARE else {}
        net = tiny.model(kind, **changes, **labels)
        if kind in BARE:  # the same backbone, whatever was drawn for the head
            net.base_model.load_state_dict(tiny.model(kind, cls=BARE[kind], **changes).state_dict(), strict=False)
        tiny.save(tiny.perturb(net, seed, size), folder / task)
    return folder


def experts(folder: Path, tasks: str = "ab", **options: object) -> Experts:
    return load_experts(folder / "base", {task: folder / task for task in tasks}, **options)


def inputs(kind: str, n: int, seed: int, classes: int | None = None) -> Inputs:
    """n inputs by chance; texts have 3 to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)
    labels = None if classes is None else torch.randint(classes, (n,), generator=generator)
    if KINDS[kind] == "image-classification":
        return TensorInputs({"pixel_values": 2 * torch.randn(n, 3, 16, 16, generator=generator)}, labels)
    if kind == "bert":
        lengths = torch.randint(3, 10, (n,), generator=generator).tolist()
        return TextInputs(
            {"input_ids": [torch.randint(3, 40, (m,), generator=generator).tolist() for m in lengths]}, 0, labels=labels
        )
    ids = torch.randint(3, 40, (n, 8), generator=generator)
    return TensorInputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)


def tasks(kind: str, n: int = 40, *, labels: bool = False, held_out: int = 0) -> dict[str, Task]:
    """The tasks a and b."""
    made = {}
    prompts = Prompts(TextInputs({"input_ids": [[1, 5 + i, 9, 2] for i in range(4)]}, 0), 4) if kind == "clip" else None
    for seed, (name, classes) in enumerate(CLASSES.items()):
        fit = inputs(kind, n, seed, classes if labels else None)
        rest = inputs(kind, held_out, seed + 10, classes) if held_out else None
        metric = "perplexity" if KINDS[kind] == "language-modelling" else "accuracy"
        made[name] = Task(name, KINDS[kind], fit, rest, metric, prompts=prompts)
    return made
