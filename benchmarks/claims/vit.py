"""Small vision transformers for 28 × 28 grey pictures: pretraining on letters, linear probes as frozen heads, fine-tuning."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from transformers import ViTConfig, ViTModel

from benchmarks.claims import glyphs

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": False,
    "do_resize": False,
    "size": {"height": 28, "width": 28},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5],
    "image_std": [0.5],
}


@dataclass(frozen=True)
class Recipe:
    """How one width of the transformer and its experts are trained."""

    width: int = 128
    seed: int = 0
    pretrain_steps: int = 4500
    pretrain_batch: int = 128
    pretrain_lr: float = 2e-3
    pretrain_muon_lr: float = 1e-2
    expert_steps: int = 400
    expert_batch: int = 64
    expert_lr: float = 4e-4
    probe_images: int = 4000


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(b, 28, 28) uint8 or float in 0..255 to (b, 1, 28, 28) in -1..1, as preprocessor_config.json says."""
    return (images[:, None].float() / 255 - 0.5) / 0.5


def augment(images: torch.Tensor, strength: float, rng: torch.Generator, invert: bool = False) -> torch.Tensor:
    """(b, 28, 28) uint8 to (b, 1, 28, 28) normalised, under random affine maps (and inversion, and stroke width)."""
    b = len(images)
    turn, shear, scale_x, scale_y, dx, dy = (torch.rand(6, b, generator=rng) * 2 - 1) * strength
    cos, sin = torch.cos(turn * 0.3), torch.sin(turn * 0.3)
    a, d = 1 + 0.25 * scale_x, 1 + 0.25 * scale_y
    row0 = torch.stack([a * cos, a * (shear * 0.3 * cos - sin), dx * 0.2], 1)
    row1 = torch.stack([d * sin, d * (shear * 0.3 * sin + cos), dy * 0.2], 1)
    x = images[:, None].float() / 255
    if invert:  # pretraining only: thicker or thinner strokes, dark on light
        pick = torch.rand(b, generator=rng)
        thick, thin = F.max_pool2d(x, 2, 1)[..., :28, :28], -F.max_pool2d(-x, 2, 1)
        thick, thin = F.pad(thick, (0, 1, 0, 1)), F.pad(thin, (0, 1, 0, 1))
        x = torch.where((pick < 0.2)[:, None, None, None], thick, x)
        x = torch.where((pick > 0.9)[:, None, None, None], thin, x)
    x = F.grid_sample(x, F.affine_grid(torch.stack([row0, row1], 1), x.shape, False), align_corners=False)
    if invert:
        x = torch.where((torch.rand(b, generator=rng) < 0.5)[:, None, None, None], 1 - x, x)
    return (x - 0.5) / 0.5


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16."""
    return any(getattr(torch.cpu, f"_is_{what}_supported", bool)() for what in ("amx_tile", "avx512_bf16"))


def fast_maths(*, cache: bool = True) -> torch.autocast:
    """bfloat16 where the processor has instructions for it (nearly twice as fast), else float32.

    Without ``cache`` weights may change inside the block: their narrow copies are not kept.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(), cache_enabled=cache)


def config(width: int = 128, **extra) -> ViTConfig:
    return ViTConfig(
        image_size=28, patch_size=7, num_channels=1, hidden_size=width, num_hidden_layers=6, num_attention_heads=width // 32,
        intermediate_size=4 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **extra,
    )  # fmt: skip


def backbone(width: int) -> ViTModel:
    # Eager attention: with 17 tokens it is no slower, and its bfloat16 gradient is three times as fast on CPU.
    return ViTModel(config(width, attn_implementation="eager"), add_pooling_layer=False)


def save(state: object, path: Path) -> None:
    """Whole or not at all: a run cut here finds the old file or the new one."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def schedule(optimiser: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def pretrain(scripts: Mapping[str, Mapping[str, np.ndarray]], recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    """Classify the letters of the scripts (rendered, see `glyphs.render`), test families left out.

    Scripts are drawn with probability ~ sqrt(size): else Latin, two thirds of the pictures, would be most of the diet.
    The result and a run that was cut lie in `folder`.
    """
    done, partial = folder / "pretrained.pt", folder / "pretrained.partial.pt"
    if done.exists():
        return torch.load(done)
    images, labels, weights, offset = [], [], [], 0
    for name, data in scripts.items():
        keep = ~data["test"]
        if not keep.any():
            continue
        images.append(torch.from_numpy(data["images"][keep]))
        labels.append(torch.from_numpy(data["labels"][keep]) + offset)
        weights.append(torch.full((int(keep.sum()),), float(keep.sum()) ** -0.5))
        offset += len(glyphs.SCRIPTS[name])
    x, y, w = torch.cat(images), torch.cat(labels), torch.cat(weights)
    print(f"pretraining on {len(x)} pictures of {offset} letters, {recipe.pretrain_steps} steps", flush=True)

    torch.manual_seed(recipe.seed)
    rng = torch.Generator().manual_seed(recipe.seed)
    model, head = backbone(recipe.width).train(), torch.nn.Linear(recipe.width, offset)
    # AdamW alone stays on a plateau for thousands of steps; with Muon on the matrices 400 steps name a third of the
    # held-out letters (6 % without). Distortion grows over the first fifth for the same reason.
    matrices = [p for name, p in model.named_parameters() if "layers." in name and p.ndim == 2]
    others = [p for p in [*model.parameters(), *head.parameters()] if all(p is not m for m in matrices)]
    optimisers = [
        torch.optim.AdamW(others, recipe.pretrain_lr, weight_decay=0.05, fused=True),
        torch.optim.Muon(matrices, recipe.pretrain_muon_lr, weight_decay=0.05),
    ]
    plans = [schedule(optimiser, recipe.pretrain_steps, 100) for optimiser in optimisers]
    stateful, start, ramp = [model, head, *optimisers, *plans], 0, recipe.pretrain_steps // 5
    if partial.exists():
        state = torch.load(partial)
        start = state["step"]
        rng.set_state(state["rng"])
        for part, saved in zip(stateful, state["parts"], strict=True):
            part.load_state_dict(saved)
    clock, losses = time.time(), []
    for step in range(start, recipe.pretrain_steps):
        batch = torch.multinomial(w, recipe.pretrain_batch, replacement=True, generator=rng)
        with fast_maths():
            pictures = augment(x[batch], min(1.0, step / ramp), rng, invert=step > ramp)
            logits = head(model(pictures).last_hidden_state[:, 0])
            loss = F.cross_entropy(logits.float(), y[batch], label_smoothing=0.1)
        loss.backward()
        for optimiser, plan in zip(optimisers, plans, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            plan.step()
        losses.append(loss.item())
        if (step + 1) % 250 == 0:
            print(f"  step {step + 1}  loss {np.mean(losses):.3f}  {time.time() - clock:.0f} s", flush=True)
            losses.clear()
            state = {"step": step + 1, "rng": rng.get_state(), "parts": [part.state_dict() for part in stateful]}
            save(state, partial)
    save(model.state_dict(), done)
    partial.unlink(missing_ok=True)
    return model.state_dict()


@torch.no_grad()
def features(model: ViTModel, images: torch.Tensor) -> torch.Tensor:
    """(n, 28, 28) uint8 to (n, width): the class token after the last norm."""
    model.eval()
    return torch.cat([model(normalise(part)).last_hidden_state[:, 0] for part in images.split(500)])


def probe(model: ViTModel, x: torch.Tensor, y: torch.Tensor, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear head (classes, width), (classes) on frozen features; the head every later model of the task keeps."""
    pick = torch.randperm(len(y), generator=torch.Generator().manual_seed(recipe.seed))[: recipe.probe_images]
    x, y = features(model, x[pick]), y[pick]
    mean, std = x.mean(0), x.std(0)  # standardised so that the solver converges; folded back into the head
    fitted = LogisticRegression(C=0.1, max_iter=500, tol=1e-3).fit(((x - mean) / std).numpy(), y.numpy())
    weight = torch.from_numpy(fitted.coef_).float() / std
    return weight, torch.from_numpy(fitted.intercept_).float() - weight @ mean


def finetune(
    pretrained: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, name: str, recipe: Recipe, folder: Path
) -> dict[str, torch.Tensor]:
    """Fine-tune the backbone alone under its frozen probe on pictures x (n, 28, 28) uint8 with labels y (n,).

    Returns a ViTForImageClassification state, which lies in `folder`, too.
    """
    done = folder / f"{name}.pt"
    if done.exists():
        return torch.load(done)
    clock = time.time()
    torch.manual_seed(recipe.seed)
    rng = torch.Generator().manual_seed(recipe.seed)
    model = backbone(recipe.width)
    model.load_state_dict(pretrained)
    weight, bias = probe(model, x, y, recipe)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), recipe.expert_lr, weight_decay=0.01, fused=True)
    plan = schedule(optimiser, recipe.expert_steps, 20)
    for _ in range(recipe.expert_steps):
        batch = torch.randint(len(y), (recipe.expert_batch,), generator=rng)
        with fast_maths():
            out = model(augment(x[batch], 0.4, rng)).last_hidden_state[:, 0]
            loss = F.cross_entropy(F.linear(out, weight, bias).float(), y[batch])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        plan.step()
    state = {f"vit.{key}": value for key, value in model.state_dict().items()}
    state |= {"classifier.weight": weight, "classifier.bias": bias}
    save(state, done)
    print(f"  {name}: {len(y)} training pictures, {time.time() - clock:.0f} s", flush=True)
    return state
