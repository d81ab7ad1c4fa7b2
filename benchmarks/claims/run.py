"""Measure the papers' claims on the offline suites, and write docs/results.md and its figures.

    python -m benchmarks.claims.run                    everything (make claims)
    python -m benchmarks.claims.run --quick            a smoke run on few inputs and steps (make claims-quick)
    python -m benchmarks.claims.run --tables a,d       some tables

Finished cells are kept in claims/MODE.jsonl of the cache; a run that was cut goes on where it stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks.claims import cells, language, report, tables, text, verdicts, vision
from benchmarks.claims.sources import CACHE
from benchmarks.claims.suite import shared

SUITES = {
    "vision": vision.build, "vision-192": lambda: vision.build(192), "text": text.build, "language": language.build,
}  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs"


@cache
def _known(mode: str) -> dict[str, cells.Cell]:
    return {cell.key: cell for make in tables.TABLES.values() for cell in make(mode).cells}


def _work(mode: str, key: str) -> dict[str, Any]:
    """In a process of its own, which gets a cell's key: the functions in a cell cannot be sent."""
    return cells.run(_known(mode)[key])


def _start() -> None:
    torch.set_num_threads(1)  # models this small gain nothing from more; cells run side by side instead
    disable_progress_bar()
    set_verbosity_error()


def compute(wanted: list[cells.Cell], results: cells.Results, workers: int) -> None:
    """Compute the cells that are missing, `workers` at a time, in their order."""
    missing = results.missing(wanted)
    print(f"{len(wanted)} cells, {len(missing)} to compute", flush=True)
    started = time.perf_counter()
    if not missing:
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start) as pool:
        jobs = {pool.submit(_work, cell.mode, cell.key): cell for cell in missing}
        for done, job in enumerate(as_completed(jobs), 1):
            found = job.result()
            results.add(found)
            values = [row["value"] for row in found["rows"] if row["preference"] == "equal"]
            mean = f"equal {sum(values) / len(values):.4f}" if values else ""
            clock = time.perf_counter() - started
            print(
                f"{clock:6.0f} s  {done}/{len(missing)}  {jobs[job]}  {mean}  (made in {found['cost']['cpu_s']} CPU s)",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few inputs, few steps, one seed: whether it runs, no evidence")
    parser.add_argument("--tables", default=",".join(tables.TABLES), help="of " + ",".join(tables.TABLES))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--show", action="store_true", help="compute nothing, show what there is")
    arguments = parser.parse_args()
    names = arguments.tables.split(",")
    if unknown := [name for name in names if name not in tables.TABLES]:
        sys.exit(f"{unknown[0]!r} is no table (tables: {', '.join(tables.TABLES)})")
    _start()
    mode = "quick" if arguments.quick else "full"
    results = cells.Results(CACHE / "claims" / f"{mode}.jsonl")
    chosen = [tables.TABLES[name](mode) for name in names]
    if not arguments.show:
        for name in dict.fromkeys(cell.suite.name for table in chosen for cell in table.cells):
            if problems := shared(SUITES[name]()):
                sys.exit("\n".join(problems))
        wanted = sorted((cell for table in chosen for cell in table.cells), key=lambda cell: cell.seed)
        compute(wanted, results, arguments.workers)  # a run that is cut has a first seed of everything
    folder = DOCS if mode == "full" else CACHE / "claims" / "quick"
    every = [make(mode) for make in tables.TABLES.values()]
    report.write(folder, every, results, verdicts.section(every, results))


if __name__ == "__main__":
    main()
