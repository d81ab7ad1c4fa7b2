"""A suite: one pretrained model, its experts and their data, as files that `paretomerge` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.claims.sources import CACHE
from paretomerge import api
from paretomerge.data import DataSpec, Task
from paretomerge.experts import Experts, load_experts

FOLDER = CACHE / "suites"
Use = Literal["held-out", "transductive", "validation"]
"""What a task's metric is measured on: the test inputs; these, and fitted on, too; the inputs set apart for searches."""


@dataclass(frozen=True)
class Suite:
    """What ``build`` of a suite's module wrote.

    A task's data hold three splits that share no input: ``fit`` (``train`` in a text's folder), ``validation``, ``test``.
    """

    name: str
    base: Path
    experts: dict[str, Path]
    data: dict[str, Path]
    max_length: int | None = None
    """Tokens of a text at most, or of a language model's block."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.experts)

    def only(self, *tasks: str) -> Suite:
        """The suite of some of its tasks."""
        return replace(self, experts={t: self.experts[t] for t in tasks}, data={t: self.data[t] for t in tasks})

    def __hash__(self) -> int:
        return hash((self.name, self.tasks))

    def opened(self) -> Experts:
        return load_experts(self.base, dict(self.experts))

    def inputs(self, use: Use = "held-out", *, limit: int | None = None, labelled: bool = False) -> dict[str, Task]:
        """Every task's inputs to fit on and to measure on, ready.

        Args:
            use: what is measured on.
            limit: at most so many inputs a task to fit on, and as many to measure on.
            labelled: the fit may see labels.
        """
        specs = {
            task: DataSpec(
                path=str(path), transductive=use == "transductive", evaluate="validation" if use == "validation" else "test",
                fit_inputs=limit, evaluate_inputs=limit, max_length=self.max_length,
            )
            for task, path in self.data.items()
        }  # fmt: skip
        return api.load_tasks(self.opened(), specs, keep_labels=labelled)


def shared(suite: Suite) -> list[str]:
    """What two splits of a task share, in the files as they were written: a line each; none should be there.

    Both the sources' numbers (indices of pictures or texts, names of pages) and the contents are compared.
    """
    found = []
    for task, path in suite.data.items():
        for what, splits in {"sources": _sources(path), "inputs": _contents(path)}.items():
            for one, other in combinations(splits, 2):
                if both := splits[one] & splits[other]:
                    found.append(f"{suite.name}: {task}: {one} and {other} share {len(both)} {what}")
    return found


def _sources(path: Path) -> dict[str, set[object]]:
    """Split -> the numbers or names of its sources, those that the experts were trained on included."""
    if path.is_dir():
        return {split: set(each) for split, each in json.loads((path / "index.json").read_text()).items()}
    with np.load(path) as file:
        return {key.removesuffix("_index"): set(file[key].tolist()) for key in file.files if key.endswith("_index")}


def _contents(path: Path) -> dict[str, set[object]]:
    """Split -> its pictures or texts; of running text the sources' names say it all (licences and headings are everywhere)."""
    if path.is_dir():
        return {
            file.stem: {json.loads(line)["text"] for line in file.read_text().splitlines()} for file in path.glob("*.jsonl")
        }
    with np.load(path) as file:
        named = {key.removesuffix("_images"): key for key in file.files if key.endswith("_images")}
        return {split: {image.tobytes() for image in file[key]} for split, key in named.items()}


def digest(*parts: object) -> str:
    """Eight characters that change with any part (arrays by content, all else by its JSON)."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.tobytes() if hasattr(part, "tobytes") else json.dumps(part, sort_keys=True, default=str).encode())
    return total.hexdigest()[:8]


def stamped(folder: Path, settings: object) -> bool:
    """Whether a folder was made with these settings, and its files are still what they were."""
    try:
        stamp = json.loads((folder / "stamp.json").read_text())
    except (OSError, ValueError):
        return False
    return stamp["settings"] == json.loads(json.dumps(settings)) and stamp["files"] == dict(_hashes(folder))


def stamp(folder: Path, settings: object) -> None:
    """Write down how a folder was made and what is in it; the last step of making it."""
    facts = {"settings": settings, "files": dict(_hashes(folder))}
    (folder / "stamp.json").write_text(json.dumps(facts, indent=1) + "\n")


def _hashes(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "stamp.json":
            yield str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()
