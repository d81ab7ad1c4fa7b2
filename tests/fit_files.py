"""Families of tiny models on disk, with data for both tasks beside them."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fit_data
from task_data import REVIEWS, WORDS, companions, write_csv


def images(path: Path, seed: int, classes: int) -> None:
    draw = np.random.default_rng(seed)
    fit, test = (draw.integers(0, 256, (n, 20, 20, 3), dtype=np.uint8) for n in (24, 12))
    np.savez(path, fit_images=fit, test_images=test, test_labels=draw.integers(0, classes, 12))


def reviews(path: Path, seed: int, classes: int) -> None:
    write_csv(path, [(f"{text} {' '.join(WORDS[: i % 7])}", i % classes) for i, (text, _) in enumerate(REVIEWS)])


def prose(path: Path, seed: int, classes: int) -> None:
    words = random.Random(seed).choices(WORDS, k=400)
    path.write_text("\n".join(" ".join(words[i : i + 11]) for i in range(0, 400, 11)))


DATA: dict[str, tuple[str, Callable[[Path, int, int], None]]] = {
    "vit": ("npz", images), "bert": ("csv", reviews), "gpt2": ("txt", prose),
}  # fmt: skip


class Family:
    """Models of one kind on disk, and data for both tasks beside them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, fit_data.save(kind, folder)
        companions(folder / "base")
        ending, write = DATA[kind]
        for seed, (task, classes) in enumerate(fit_data.CLASSES.items()):
            write(folder / f"{task}.{ending}", seed, classes)
        self.data = {task: f"{folder / task}.{ending}" for task in fit_data.CLASSES}

    def flags(self, *, data: str = "ab") -> list[str]:
        words = ["--base", f"{self.folder / 'base'}"]
        words += [word for task in "ab" for word in ("--expert", f"{task}={self.folder / task}")]
        return words + [word for task in data for word in ("--data", f"{task}={self.data[task]}")]
