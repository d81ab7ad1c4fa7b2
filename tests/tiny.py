"""Tiny random models of several architectures, with experts near them, saved as transformers saves them."""

from pathlib import Path

import torch
import transformers as hf
from torch import Tensor

TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**{k: v for k, v in TEXT.items() if k != "vocab_size"}, "image_size": 16, "patch_size": 8}
LLAMA = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}  # the defaults lie outside 40 tokens

ARCHITECTURES = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, LLAMA),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, {**ENDS, "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "bert": (hf.BertForSequenceClassification, hf.BertConfig, TEXT),
    "vit": (hf.ViTForImageClassification, hf.ViTConfig, {**VISION, "num_labels": 5}),
    "clip": (
        hf.CLIPModel,
        hf.CLIPConfig,
        {"text_config": {**TEXT, **ENDS}, "vision_config": VISION, "projection_dim": 8},
    ),
    "resnet": (
        hf.ResNetForImageClassification,
        hf.ResNetConfig,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 5},
    ),
}


def model(kind: str, seed: int = 0, cls: type | None = None, **changes: object) -> hf.PreTrainedModel:
    """A random model; `cls` another class of the same family, `changes` to its configuration."""
    default, config, options = ARCHITECTURES[kind]
    torch.manual_seed(seed)
    return (cls or default)(config(**{**options, **changes})).eval()


@torch.no_grad()
def perturb(net: hf.PreTrainedModel, seed: int, size: float = 0.02) -> hf.PreTrainedModel:
    """Move every floating-point tensor, statistics of normalisation included, as fine-tuning does."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*net.parameters(), *net.buffers()]:
        if tensor.is_floating_point():
            tensor.add_(size * torch.rand(tensor.shape, generator=generator).to(tensor))
    return net


def save(net: hf.PreTrainedModel, folder: Path, **options: object) -> Path:
    net.save_pretrained(folder, **options)
    return folder


def family(kind: str, folder: Path, tasks: str = "ab", **changes: object) -> tuple[Path, dict[str, Path]]:
    """A base and one expert per letter, on disk."""
    base = save(model(kind, **changes), folder / "base")
    experts = {t: save(perturb(model(kind, **changes), i + 1), folder / t) for i, t in enumerate(tasks)}
    return base, experts


@torch.no_grad()
def logits(kind: str, net: torch.nn.Module) -> Tensor:
    """What a model says to one fixed input."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 40, (2, 7), generator=generator)
    ids[:, -1] = 2  # where CLIP's text model pools
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    if kind == "clip":
        return net(input_ids=ids, pixel_values=pixels).logits_per_image
    return net(pixel_values=pixels).logits if kind in ("vit", "resnet") else net(input_ids=ids).logits
