"""The vision suite: eight tasks at 28 × 28 on one small transformer that was pretrained on the letters of other scripts.

    python -m benchmarks.claims.vision                 width 128 (1.2 M parameters)
    python -m benchmarks.claims.vision --width 192     2.7 M

Each task has a domain of its own (`domains.py`): clean letters are too easy to show what a merge loses.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import ViTForImageClassification, ViTModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.claims import domains, glyphs, sources, vit
from benchmarks.claims.suite import FOLDER, Suite, digest, stamp, stamped

FASHION = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
TASKS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "fashion": domains.plain,
    "mnist": domains.rotated,
    "digits": domains.hollow,
    "greek": domains.textured,
    "cyrillic": domains.cluttered,
    "arabic": domains.plain,
    "georgian": domains.broken,
    "hebrew": domains.noisy,
}
TRAIN, FIT, VALIDATION, TEST = 12000, 2000, 500, 1000
"""Pictures of a task at most. Where a script has fewer, each to train or fit on is drawn in its domain several times."""
RECIPES = {
    128: vit.Recipe(width=128, pretrain_steps=3000),
    192: vit.Recipe(width=192, pretrain_steps=2000, expert_steps=300),
}


@dataclass
class Pictures:
    """Of one task: images (n, 28, 28) uint8, labels (n,) int64, and each image's number among the task's sources.

    Train, fit, validation and test share no source; of letters, test shares no font family with any of the others.
    """

    classes: list[str]
    images: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    index: dict[str, torch.Tensor]


def rendered() -> dict[str, dict[str, np.ndarray]]:
    """Every script of `glyphs.SCRIPTS`, rendered once (20 s)."""
    code = Path(glyphs.__file__).read_text(), [sources.PINS[name].digest for name in sources.packages("vision")]
    path = FOLDER / "stages" / f"glyphs-{digest(*code)}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        packages = sources.packages("vision")
        found = glyphs.render(sources.fetch(packages), packages)
        np.savez(path.with_suffix(".new.npz"), **{f"{s}/{key}": v for s, data in found.items() for key, v in data.items()})
        path.with_suffix(".new.npz").replace(path)
    scripts: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for name in file.files:
            script, key = name.split("/")
            scripts.setdefault(script, {})[key] = file[name]
    return scripts


def pictures(name: str, scripts: Mapping[str, Mapping[str, np.ndarray]], seed: int = 0) -> Pictures:
    """One task's pictures, split and drawn in its domain."""
    rng = np.random.default_rng([seed, *name.encode()])
    if name == "fashion":
        x, y, test_x, test_y = sources.fashion()
        images, labels, test = (
            np.concatenate([x, test_x]),
            np.concatenate([y, test_y]),
            np.arange(len(y) + len(test_y)) >= len(y),
        )
        classes = FASHION
    elif name == "mnist":
        images, labels = sources.mnist()
        test = np.isin(np.arange(len(labels)), rng.permutation(len(labels))[:2000])
        classes = [str(digit) for digit in range(10)]
    else:
        images, labels, test = (scripts[name][key] for key in ("images", "labels", "test"))
        classes = [glyphs.name_of(letter) for letter in glyphs.SCRIPTS[name]]
    alone = _first_of_equals(images, test)
    rest, test = (rng.permutation(np.flatnonzero(alone & where)) for where in (~test, test))
    n_fit, n_validation = min(FIT, len(rest) // 4), min(VALIDATION, len(rest) // 8)
    index = {
        "test": test[:TEST],
        "fit": rest[:n_fit],
        "validation": rest[n_fit : n_fit + n_validation],
        "train": rest[n_fit + n_validation :][:TRAIN],
    }
    dress, dice = TASKS[name], torch.Generator().manual_seed(int(rng.integers(2**31)))
    views = dict.fromkeys(index, 1)
    if dress is not domains.plain:
        views |= {"train": -(-TRAIN // len(index["train"])), "fit": -(-FIT // len(index["fit"]))}
    drawn = {}
    for split, chosen in index.items():
        drawn[split] = torch.cat([dress(torch.from_numpy(images[chosen]), dice) for _ in range(views[split])])
    return Pictures(
        classes,
        drawn,
        {split: torch.from_numpy(labels[chosen]).repeat(views[split]) for split, chosen in index.items()},
        {split: torch.from_numpy(chosen) for split, chosen in index.items()},
    )


def _first_of_equals(images: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(n,) bool: the first picture of those that are equal; a picture that occurs among the test ones is theirs."""
    seen: set[bytes] = set()
    first = np.zeros(len(images), bool)
    for i in [*np.flatnonzero(test), *np.flatnonzero(~test)]:
        key = images[i].tobytes()
        first[i] = key not in seen
        seen.add(key)
    return first


def write(folder: Path, tasks: Mapping[str, Pictures]) -> None:
    """A .npz per task, as `--data` takes it: images and labels of fit, validation and test, and all numbers of sources."""
    folder.mkdir(parents=True)
    for name, task in tasks.items():
        arrays = {}
        for split in ("fit", "validation", "test"):
            arrays |= {f"{split}_images": task.images[split].numpy(), f"{split}_labels": task.labels[split].numpy()}
        arrays |= {f"{split}_index": index.numpy() for split, index in task.index.items()}
        np.savez_compressed(folder / f"{name}.npz", **arrays)


def suite(width: int = 128) -> Suite:
    """Where the suite's files are, made or not."""
    folder, data = FOLDER / ("vision" if width == 128 else f"vision-{width}"), FOLDER / "vision-data"
    return Suite(
        folder.name,
        folder / "base",
        {task: folder / "experts" / task for task in TASKS},
        {task: data / f"{task}.npz" for task in TASKS},
    )


def build(width: int = 128) -> Suite:
    """Make what is missing of the suite: pictures, the pretrained model, eight experts."""
    recipe, whole = RECIPES[width], suite(width)
    folder, data = whole.base.parent, FOLDER / "vision-data"
    code = digest(*(Path(module.__file__).read_text() for module in (domains, glyphs)))
    made = {"tasks": list(TASKS), "sizes": [TRAIN, FIT, VALIDATION, TEST], "code": code}
    settings = {**made, "recipe": asdict(recipe)}
    if stamped(data, made) and stamped(folder, settings):
        return whole
    scripts = rendered()
    tasks = {name: pictures(name, scripts) for name in TASKS}
    if not stamped(data, made):
        shutil.rmtree(data, ignore_errors=True)
        write(data, tasks)
        stamp(data, made)
    others = {name: script for name, script in scripts.items() if name not in TASKS}
    seen = digest(*(script[key] for script in others.values() for key in ("images", "labels", "test")))
    diet = {key: value for key, value in asdict(recipe).items() if key.startswith(("width", "seed", "pretrain"))}
    stage = FOLDER / "stages" / f"vit-{width}-{digest(diet, seen)}"
    stage.mkdir(parents=True, exist_ok=True)
    pretrained = vit.pretrain(others, recipe, stage)
    tuned = stage / f"experts-{digest(settings)}"
    tuned.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    model = ViTModel(vit.config(width), add_pooling_layer=False)
    model.load_state_dict(pretrained)
    model.save_pretrained(whole.base)
    (whole.base / "preprocessor_config.json").write_text(json.dumps(vit.PREPROCESSOR, indent=2) + "\n")
    for name, task in tasks.items():
        state = vit.finetune(pretrained, task.images["train"], task.labels["train"], name, recipe, tuned)
        names = dict(enumerate(task.classes))
        expert = ViTForImageClassification(vit.config(width, id2label=names, label2id={v: k for k, v in names.items()}))
        expert.load_state_dict(state)
        expert.save_pretrained(whole.experts[name])
    stamp(folder, settings)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, choices=list(RECIPES), default=128)
    arguments = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)  # matrices this small gain nothing from more, and the other cores stay free
    clock = time.time()
    made = build(arguments.width)
    print(f"{made.name}: {FOLDER}, {time.time() - clock:.0f} s, {time.process_time():.0f} CPU s")


if __name__ == "__main__":
    main()
