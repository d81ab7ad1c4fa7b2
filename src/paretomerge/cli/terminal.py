"""What a command shows while it works and when it is done: bars on standard error, results on standard output.

Everything that is shown passes here. Names of tasks, tensors, files and metrics come from anybody's files: characters that
would steer the terminal are shown as escapes, none is read as rich's markup, and a long line loses its middle.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretomerge.io.plain_text import line as one_line
from paretomerge.io.plain_text import printable
from paretomerge.io.strict_json import printed_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from paretomerge.results.rows import Row
    from paretomerge.weights.lazy import Weights


@contextmanager
def progress(label: str, tensors: int, nbytes: int, quiet: bool) -> Iterator[Callable[[str, int], None] | None]:
    """A bar on standard error that counts tensors and bytes."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(),
        TextColumn("{task.fields[count]}/{task.fields[tensors]} tensors"),
        DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(label), total=nbytes, count=0, tensors=tensors)

        def tick(name: str, size: int) -> None:
            bar.update(task, advance=size, count=bar.tasks[task].fields["count"] + 1)

        yield tick


@contextmanager
def status(label: str, quiet: bool) -> Iterator[None]:
    """A spinner on standard error."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    with console(stderr=True).status(cell(label)):
        yield


@contextmanager
def fitting_bar(tasks: Sequence[str], quiet: bool) -> Iterator[Callable[[int, Mapping[str, Any]], None] | None]:
    """A bar of steps with the last loss of each task; without a terminal, a line every hundred steps."""
    if quiet:
        yield None
        return
    last: dict[str, float] = {}

    def losses(logged: Mapping[str, Any]) -> str:
        last.update({tasks[int(k)]: value for k, value in logged["losses"].items()})
        return one_line("  ".join(f"{task} {last[task]:.3f}" for task in tasks if task in last))

    if not sys.stderr.isatty():

        def lines(done: int, logged: Mapping[str, Any]) -> None:
            text = losses(logged)
            if done % 100 == 0 or done == logged["steps"]:
                say(f"step {done}/{logged['steps']}  {text}", False)

        yield lines
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, logged: bar.update(task, total=logged["steps"], completed=done, description=losses(logged))


@contextmanager
def searching_bar(quiet: bool) -> Iterator[Callable[[int, Mapping[str, Any]], None] | None]:
    """A counter of evaluations with the last metrics; without a terminal, a line each."""
    if quiet:
        yield None
        return

    def told(count: int, facts: Mapping[str, Any]) -> str:
        values = "  ".join(f"{task} {value:.4g}" for task, value in facts["metrics"].items()) or "failed"
        reused = f" (and {facts['reused']} of earlier runs)" if facts["reused"] else ""
        return f"evaluation {count}{reused}  c = {', '.join(f'{c:.3f}' for c in facts['c'])}  {values}"

    if not sys.stderr.isatty():
        yield lambda count, facts: say(told(count, facts), False)
        return
    with console(stderr=True).status("searching") as spinner:
        yield lambda count, facts: spinner.update(cell(told(count, facts)))


def say(line: object, quiet: bool = False) -> None:
    """Tell the user a line, on standard error."""
    if not quiet:
        print(one_line(line), file=sys.stderr)


def show(line: str) -> None:
    """A line of a result, on standard output."""
    print(one_line(line), flush=True)


def show_json(value: object) -> None:
    """A result for programs, on standard output."""
    print(printed_json(value))


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Where rich draws; text that is passed to it is shown as it is."""
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def cell(text: object) -> Text:
    """Of a table: text as ``say`` shows it, with line ends where it has some."""
    from rich.text import Text

    return Text("\n".join(map(one_line, str(text).split("\n"))))


def done(folder: Path, weights: Weights | None, started: float, quiet: bool, as_json: bool, facts: dict[str, Any]) -> None:
    """The closing line, or the result as JSON."""
    seconds = round(time.perf_counter() - started, 2)
    written = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    if as_json:
        show_json({"output": str(folder), "bytes": written, "seconds": seconds, **facts})
    elif not quiet:
        tensors = f"{len(weights)} tensors, " if weights is not None else ""
        show(f"{folder}: {tensors}{written / 1e6:.1f} MB in {seconds:.1f} s")


def show_rows(rows: Sequence[Row]) -> None:
    """A table of results: a line per preference, a column per task."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    metrics = {row["task"]: f"{row['metric']}, {row['split']}" for row in rows}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("preference")
    for task in tasks:
        table.add_column(cell(f"{task}\n{metrics[task]}"), justify="right")
    own = rows[0]["method"] if rows else ""
    for method, preference in dict.fromkeys((row["method"], row["preference"]) for row in rows):
        found = [row for row in rows if (row["method"], row["preference"]) == (method, preference)]
        values = {row["task"]: f"{row['value']:.4f}" for row in found}
        name = preference if method == own else f"{method} {preference}"
        table.add_row(cell(name), *(values.get(task, "") for task in tasks))
    console().print(table)
