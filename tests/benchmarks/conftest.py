"""A suite of two tasks that costs nothing."""

from importlib.util import find_spec

import numpy as np
import pytest

import fit_data
import task_data
from benchmarks.claims.suite import Suite, stamp

if find_spec("sklearn") is None:  # the benchmarks ask for it, so there is nothing to test
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = fit_data.save("vit", tmp_path_factory.mktemp("suite"))
    task_data.companions(folder / "base")
    rng = np.random.default_rng(0)
    for task, classes in fit_data.CLASSES.items():
        sizes = {"fit": 24, "validation": 8, "test": 20}
        arrays = {f"{split}_images": rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8) for split, n in sizes.items()}
        arrays |= {f"{split}_labels": rng.integers(0, classes, n) for split, n in sizes.items()}
        np.savez(folder / f"{task}.npz", **arrays)
    stamp(folder, {})
    return Suite("tiny", folder / "base", {t: folder / t for t in "ab"}, {t: folder / f"{t}.npz" for t in "ab"})
