"""One run of a search: its evaluator opened, its evaluations kept, and left in order when somebody stops it."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from paretomerge.errors import Stopped, UserError
from paretomerge.evaluation.evaluate import sampled, standard_preferences
from paretomerge.evaluation.evaluations import Evaluations
from paretomerge.evaluation.protocols import Evaluator, Work
from paretomerge.evaluation.store import FILE, Store
from paretomerge.evaluation.workers import pool_of
from paretomerge.experts.experts import Experts
from paretomerge.fitting.options import FitRun
from paretomerge.front.provenance import sources_of
from paretomerge.io.leftovers import left_behind
from paretomerge.io.signals import Ended, ended_by_signals
from paretomerge.models.merged import ingredients_of
from paretomerge.results.metrics import row_of
from paretomerge.results.objective import Objective
from paretomerge.results.rows import Row
from paretomerge.sets.searched import Searched
from paretomerge.weights.lazy import Weights, as_bytes

_TRIED = 200
"""Preferences that are tried beside the usual ones to find one for each point of a front."""


@contextmanager
def evaluator_for(
    experts: Experts, evaluator: Evaluator, facts: Mapping[str, Any], run: FitRun
) -> Iterator[Callable[[Weights], Evaluations]]:
    """What makes a search's evaluator from the task vectors that it merges, for the length of a block.

    Args:
        experts: base and experts.
        evaluator: what measures the merged models.
        facts: what a stored evaluation is known by, as JSON: the evaluator's identity, and what the task vectors depend on
            (sources, how they were processed).
        run: its folder (evaluations that it holds are not done again; None: they are kept in memory only), whether there
            must be some (resume), who hears of it, and where evaluations run (see ``pool_of``).

    Raises:
        Stopped: SIGINT, SIGTERM or SIGHUP came; what was measured is kept.
        UserError: nothing to resume.
    """
    folder = run.folder
    if run.resume and (folder is None or not (folder / FILE).exists()):
        raise UserError(f"{folder or 'no folder is given'}: no evaluations to go on from")
    made: list[Evaluations] = []
    with ExitStack() as stack, _stoppable(made, folder):
        store = Store(folder, facts)
        stack.callback(store.close)
        if folder is not None:  # it is ours alone as long as the store is open
            if gone := left_behind(folder):
                run.say(f"removed {len(gone)} checkpoints that a killed run left in {folder}")
            stack.callback(left_behind, folder)  # of workers that were stopped in the middle
        if store.found:
            run.say(f"{store.found} evaluations of earlier runs are in {folder}, and are used again")

        def made_for(vectors: Weights) -> Evaluations:
            work = Work(evaluator, ingredients_of(experts, vectors))
            pool = stack.enter_context(pool_of(work, workers=run.workers, ray=run.ray, gpus=run.gpus))
            made.append(Evaluations(evaluator.objectives, store, pool, report=run.report, say=run.say))
            return made[-1]

        yield made_for


def measured_rows(found: Searched, objectives: Sequence[Objective], seed: int) -> list[Row]:
    """The points of a front that the search has measured, each at a preference that picks it: for ``pick --knee``.

    They are transductive, since the search chose these points by these numbers.
    """
    tasks = found.tasks
    rows: dict[int, list[Row]] = {}
    for text in [*standard_preferences(tasks), *sampled(tasks, _TRIED)]:
        number = found.point(found.preference(text))
        values = found.front.measured[number]
        if number not in rows and np.isfinite(values).all():
            rows[number] = [
                row_of(objective, value, text, method=found.method, split="transductive", seed=seed)
                for objective, value in zip(objectives, values.tolist(), strict=True)
            ]
    return [row for each in rows.values() for row in each]


def facts_of(experts: Experts, *, hashes: bool) -> dict[str, Any]:
    """What merged models depend on: the files by their hashes (of models in memory, their tensors'), and what is merged.

    Args:
        experts: base and experts.
        hashes: of the files; otherwise their sizes and times.
    """
    sources = sources_of(experts, hashes=hashes)
    in_memory = {"": experts.base, **{expert.task: expert.source for expert in experts.experts}}
    files = {}
    for task, source in {"": sources["base"], **sources["experts"]}.items():
        files[task] = (source["files"] if hashes else _states(source)) or _hash_of(in_memory[task])
    merged = hashlib.sha256(" ".join(f"{name} {experts.infos[name]}" for name in experts.merged).encode())
    return {"tasks": list(experts.tasks), "files": files, "merged": merged.hexdigest()[:16]}


def _hash_of(weights: Any) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def _states(source: Mapping[str, Any]) -> dict[str, list[int]]:
    """Where hashes are not wanted: size and time of each file."""
    folder = Path(source["path"])
    states = {name: (folder / name if folder.is_dir() else folder).stat() for name in source["files"]}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


@contextmanager
def _stoppable(made: Sequence[Evaluations], folder: Path | None) -> Iterator[None]:
    """Whatever asks the search to end, folders and processes of an evaluation are cleared away; then ``Stopped``."""
    try:
        with ended_by_signals():
            yield
    except (KeyboardInterrupt, Ended) as asked:
        hint = f"; the same command goes on from there (evaluations in {folder})" if folder else ""
        number = asked.number if isinstance(asked, Ended) else signal.SIGINT
        raise Stopped(f"stopped after {sum(each.done for each in made)} evaluations{hint}", number) from None
