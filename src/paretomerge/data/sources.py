"""Where examples come from: files, folders and data sets, read as splits of named columns."""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paretomerge.errors import UserError
from paretomerge.weights.hub import mirrored

WHOLE = "all"
"""The name of the one split of data that has no splits."""
_ALIASES = {
    **dict.fromkeys(("train", "training", "fit"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Split:
    """Examples as columns of equal length; an image is a path, an (h, w) or (h, w, channels) uint8 array, or a PIL image."""

    where: str
    """For messages, and to tell whether two splits are the same."""
    columns: Mapping[str, Sequence[Any]]
    images: frozenset[str] = frozenset()
    """Columns that hold images."""
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Columns of class numbers whose classes the data names."""
    running: bool = False
    """The rows are the lines of one text."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def split_name(name: str) -> str:
    """The usual name of a split: ``val`` is ``validation``, ``fit`` is ``train``; others as they are."""
    return _ALIASES.get(name.lower(), name)


def read_splits(path: str, subset: str | None = None) -> dict[str, Split]:
    """The splits that a path or a hub data set holds; one called ``all`` where there are none.

    Args:
        path: a folder of ``datasets.save_to_disk``; an image folder (one sub-folder per class, or ``train/``, ``test/`` … of
            those; or images without classes); a folder with ``train.csv``, ``test.csv`` …; a .csv, .tsv, .jsonl, .txt or .npz
            file; a data set on the hub, or a copy of its repository (a folder with .parquet files below it).
        subset: the hub data set's configuration.

    Raises:
        UserError: nothing there, unreadable, empty, or of another kind; or ``datasets`` is needed and not installed.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        splits = _folder(place, subset)
    elif place.exists():
        splits = _file(place)
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) and place.suffix.lower() not in _READERS:
        folder = mirrored(path, "datasets")
        splits = _hub(path, subset) if folder is None else _folder(folder, subset)
    else:
        raise UserError(f"{path}: no such file or folder")
    for name, split in splits.items():
        if not len(split):
            raise UserError(f"{split.where}: the split {name} is empty" if name != WHOLE else f"{split.where}: is empty")
    return splits


def _folder(folder: Path, subset: str | None) -> dict[str, Split]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _of_dataset(_datasets(str(folder)).load_from_disk(str(folder)), str(folder))
    if next(folder.rglob("*.parquet"), None):
        return _hub(str(folder), subset)
    files = [file for file in sorted(folder.iterdir()) if file.stem.lower() in _ALIASES and file.suffix.lower() in _READERS]
    if files:
        return {split_name(file.stem): _file(file)[WHOLE] for file in files}
    inside = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    if inside and all(entry.name.lower() in _ALIASES for entry in inside):
        return {split_name(entry.name): _image_folder(entry) for entry in inside}
    return {WHOLE: _image_folder(folder)}


def _image_folder(folder: Path) -> Split:
    classes = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    found = [(file, entry.name) for entry in classes for file in sorted(entry.rglob("*")) if _is_image(file.name)]
    if not classes:
        plain = [file for file in sorted(folder.iterdir()) if _is_image(file.name)]
        columns: dict[str, Sequence[Any]] = {"image": plain}
    else:
        columns = {"image": [file for file, _ in found], "label": [name for _, name in found]}
    if not columns["image"]:
        raise UserError(f"{folder}: no data: neither images, nor train and test files, nor a folder that datasets saved")
    return Split(str(folder), columns, frozenset({"image"}))


def _is_image(name: object) -> bool:
    return isinstance(name, str) and name.lower().endswith(_IMAGES)


def _file(path: Path) -> dict[str, Split]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: data are read from {', '.join(_READERS)} files, image folders and saved datasets")
    try:
        return reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8") from error


def _table(path: Path) -> dict[str, Split]:
    """CSV and TSV, with a header."""
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise UserError(f"{path}: the header names a column twice ({', '.join(header)})")
            rows = []
            for row in lines:
                if len(row) not in (0, len(header)):
                    raise UserError(f"{path}: line {lines.line_num} has {len(row)} fields, the header {len(header)}")
                rows += [row] if row else []
        except csv.Error as error:
            raise UserError(f"{path}: line {lines.line_num}: {error}") from None
    return {WHOLE: _with_images(path, {name: [row[i] for row in rows] for i, name in enumerate(header)} or {"": []})}


def _json_lines(path: Path) -> dict[str, Split]:
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number} is not JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, nested too deeply
                raise UserError(f"{path}: line {number} cannot be read ({error})") from None
            if row is not None and not isinstance(row, dict):
                raise UserError(f"{path}: line {number} is not an object with columns")
            rows += [row] if row else []
    names = dict.fromkeys(name for row in rows for name in row)
    return {WHOLE: _with_images(path, {name: [row.get(name) for row in rows] for name in names} or {"": []})}


def _with_images(path: Path, columns: dict[str, list[Any]]) -> Split:
    """A table, whose columns of image names become paths beside the file."""
    images = {name for name, values in columns.items() if values and all(map(_is_image, values))}
    found = {name: [path.parent / value for value in values] if name in images else values for name, values in columns.items()}
    return Split(str(path), found, frozenset(images))


def _text(path: Path) -> dict[str, Split]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return {WHOLE: Split(str(path), {"text": lines}, running=True)}


def _arrays(path: Path) -> dict[str, Split]:
    """``images`` and ``labels``, or ``fit_images``, ``test_images``, ``test_labels`` …"""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError:
        raise
    except Exception as error:  # whatever zipfile, zlib and numpy make of a damaged one
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None
    splits = {}
    for name, images in arrays.items():
        if match := re.fullmatch(r"(?:(\w+)_)?images", name):
            if images.dtype != np.uint8 or images.ndim not in (3, 4):
                raise UserError(f"{path}: {name} must be uint8 of shape (n, height, width[, channels]), not {images.dtype}")
            labels = arrays.get(name.removesuffix("images") + "labels")
            if labels is not None and labels.shape != images.shape[:1]:
                raise UserError(f"{path}: {len(images)} {name}, but labels of shape {labels.shape}")
            columns = {"image": images} | ({} if labels is None else {"label": labels.tolist()})
            split = split_name(match[1] or WHOLE)
            splits[split] = Split(f"{path}[{name}]", columns, frozenset({"image"}))
    if not splits:
        raise UserError(
            f"{path}: no images in it (arrays: {', '.join(arrays)}); fit_images, test_images and test_labels are read"
        )
    return splits


_READERS = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".txt": _text, ".npz": _arrays}


def _datasets(what: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        hint = "reading it needs the library datasets: pip install 'paretomerge[data]'"
        raise UserError(
            f"{what}: {hint}" if Path(what).exists() else f"{what}: no such file; as a hub data set, {hint}"
        ) from None


def _hub(name: str, subset: str | None) -> dict[str, Split]:
    library = _datasets(name)
    # datasets before 4 ran code that a data set brings along, and asked on the terminal
    options = {"trust_remote_code": False} if int(library.__version__.partition(".")[0]) < 4 else {}
    try:
        found = library.load_dataset(name, subset, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        problem = "cannot be read" if Path(name).exists() else "no such file, and the hub gives no data set of that name"
        raise UserError(f"{name}: {problem} ({reason})") from error
    return _of_dataset(found, name)


def _of_dataset(found: Any, where: str) -> dict[str, Split]:
    if not isinstance(found, dict):  # a DatasetDict is one
        return {WHOLE: _split(found, where)}
    return {split_name(name): _split(dataset, f"{where}[{name}]") for name, dataset in found.items()}


def _split(dataset: Any, where: str) -> Split:
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    images = frozenset(name for name, kind in kinds.items() if kind == "Image")
    names = {name: dataset.features[name].names for name, kind in kinds.items() if kind == "ClassLabel"}
    return Split(where, {name: _Column(dataset, name, lazy=name in images) for name in kinds}, images, names)


class _Column(Sequence[Any]):
    """A column of a ``datasets.Dataset``: images are decoded one at a time, anything else is read at its first use."""

    def __init__(self, dataset: Any, name: str, *, lazy: bool) -> None:
        self._dataset = dataset.select_columns([name])
        self._name = name
        self._lazy = lazy

    @cached_property
    def _values(self) -> list[Any]:
        return list(self._dataset[:][self._name])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index][self._name] if self._lazy else self._values[index]


class Chosen(Sequence[Any]):
    """Some entries of a column, read when they are asked for."""

    def __init__(self, column: Sequence[Any], indices: Sequence[int]) -> None:
        self._column = column
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._column[int(self._indices[index])]
