"""``evaluate``: the metrics of a front's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paretomerge.errors import UserError
from paretomerge.fitting.options import FitRun as FitRun
from paretomerge.front.front import Front
from paretomerge.options import check_options

if TYPE_CHECKING:
    from paretomerge.data.tasks import DataSpec, Task
    from paretomerge.results.objective import Objective
    from paretomerge.results.rows import Row
from paretomerge.api.tasks import load_tasks, tell


def evaluate(
    front: Front,
    data: Mapping[str, Task | DataSpec | str] | None = None,
    *,
    evaluator: Callable[..., Mapping[str, Any]] | str | None = None,
    metrics: Mapping[str, Objective | str] | None = None,
    preferences: Sequence[str] | None = None,
    sample: int = 0,
    experts: bool = False,
    record: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    run: FitRun = FitRun(),
    progress: Callable[[int], Callable[[Row], None] | None] = lambda total: None,
    **options: Any,
) -> list[Row]:
    """Measure a front's models, and record the numbers in its folder.

    Args:
        front: the set. One in memory is measured too, and the rows are returned only.
        data: task -> its inputs with labels (a path will do).
        evaluator: instead of data: a function or a shell command, as in ``fit``.
        metrics: with an evaluator: task -> its metric.
        preferences: what to measure; None: equal, priority and one-hot of every task.
        sample: number of preferences drawn from the whole simplex beside these.
        experts: with data: measure the experts and the pretrained base, too, from their paths.
        record: keep the rows in the front's folder.
        seed: random seed, of the sample and of the choice among inputs.
        batch_size: with data: inputs at a time (64).
        device: with data: where the models run (auto).
        run: workers, and who is told what was found in the data.
        progress: called with the number of rows to come; what it returns is called with each row.
        **options: of the evaluator; see ``paretomerge.evaluation``.

    Returns:
        Rows: method, preference, task, metric, value, split, seed.

    Raises:
        UserError: neither data nor an evaluator, or both; a preference or an option that cannot be read; a front that cannot be
            written (before anything is measured).
        NotRecordedError: recording failed after the measurement; it has the ``rows``, and names the file that keeps them.
    """
    from paretomerge.evaluation.evaluate import evaluate_by, sampled, standard_preferences
    from paretomerge.evaluation.experts import evaluate_sources
    from paretomerge.evaluation.recording import check_recordable, record_or_keep
    from paretomerge.evaluation.resolve import EVALUATORS, evaluator_of, kind_of

    tasks: dict[str, Task] = {}
    names = front.tasks
    placed: dict[str, Any] = {"batch_size": batch_size or 64, "device": device or "auto"}
    if evaluator is None:
        tasks = load_tasks(front, data or {}, keep_labels=bool(options.get("head_steps")), seed=seed)
        if not tasks:
            raise UserError("no inputs to measure on: name them with --data NAME=PATH or a recipe, or an --evaluator")
        names, options = tuple(tasks), {**placed, **options}
        tell(tasks, run.say)
    elif data:
        raise UserError("either --data or --evaluator, one of the two")
    elif batch_size or device:
        raise UserError("--batch-size and --device go with --data: an evaluator has options of its own (--option)")
    elif experts:
        raise UserError("--experts goes with --data")
    options = check_options(EVALUATORS[kind_of(evaluator)], options, "evaluate")
    task_evaluator = evaluator_of(evaluator, tasks=tasks, metrics=metrics or {}, names=names, scratch=None, options=options)
    if preferences:
        wanted = [*preferences, *sampled(front.tasks, sample, seed)]
    else:
        wanted = standard_preferences(front.tasks, sample, seed)
    total = (len(wanted) + experts * (len(front.tasks) + 1)) * len(names)
    keep = record and front.folder is not None
    if keep:
        check_recordable(front, total)
    told = progress(total)
    rows = evaluate_by(
        front, task_evaluator, wanted, splits={name: task.split for name, task in tasks.items()} or None, seed=seed,
        progress=told, workers=run.workers, ray=run.ray, gpus=run.gpus,
    )  # fmt: skip
    if experts:
        rows += evaluate_sources(front, list(tasks.values()), seed=seed, **placed, progress=told)
    if keep:
        record_or_keep(front, rows)
    return rows
