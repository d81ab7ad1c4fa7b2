"""What the page shows of one preference, and where its buttons lead: all that needs neither gradio nor a browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paretomerge import preferences
from paretomerge.app import panels
from paretomerge.app.exports import free_name
from paretomerge.app.simplex import moved, percentages
from paretomerge.errors import UserError
from paretomerge.front.front import Front
from paretomerge.preferences import Preference
from paretomerge.report.figures import Figure, pair, parallel
from paretomerge.results.measured import Measured, measured, short
from paretomerge.results.queries import best_with
from paretomerge.results.queries import knee as knee_of
from paretomerge.results.rows import Row

TWO, ALL = "two tasks", "all tasks"
WHOLE = "none: the base’s own class"
UNCHOSEN = "choose a task"
CHECKPOINT, LORA = "Hugging Face folder", "LoRA adapter"
KNEE = "knee"


class Fields(NamedTuple):
    """What is chosen on the page beside the preference."""

    figure: str
    """TWO or ALL."""
    x: str
    y: str
    head: str
    """For the export: a task, WHOLE or UNCHOSEN."""
    kind: str
    """For the export: CHECKPOINT or LORA."""


class Shown(NamedTuple):
    """All that depends on the preference."""

    gamma: Preference
    address: str
    """The preference as the fragment of the page's address."""
    shares: list[float]
    """Of the sliders, in %."""
    triangle: str
    """SVG, for three tasks."""
    table: str
    figure: Figure
    news: str
    export_name: str


class View:
    """A front and its measured rows; nothing in it changes, so all visitors share it."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.tasks = front.tasks
        self.measured: Measured = measured(front.measured, front.tasks, front.pareto_set.method)
        self.equal = preferences.equal(len(self.tasks))
        """The preference that everyone begins with."""
        self.measured.at(moved(self.equal, 0, 0.123))  # the first estimate fits the surrogates: now, while nobody waits

    @property
    def figure_tasks(self) -> tuple[str, ...]:
        """Tasks that an axis can have."""
        return self.measured.shown or self.tasks

    @property
    def first(self) -> Fields:
        """What is chosen at first."""
        tasks = self.figure_tasks
        return Fields(TWO, tasks[0], tasks[min(1, len(tasks) - 1)], unchosen(self.front), CHECKPOINT)

    def shown(self, gamma: Preference, fields: Fields, news: str = "") -> Shown:
        """The page at a preference."""
        values = self.measured.at(gamma)
        if fields.figure == TWO:
            figure = pair(self.measured, fields.x, fields.y, current=values)
        else:
            figure = parallel(self.measured, current=values)
        return Shown(
            gamma,
            self.address(gamma),
            percentages(gamma),
            panels.triangle(self.measured, gamma) if len(self.tasks) == 3 else "",
            panels.metrics(self.measured, gamma, values),
            figure,
            news,
            free_name(self.front, gamma, head_of(fields.head), lora=fields.kind == LORA),
        )

    def named(self, name: str) -> tuple[Preference, str]:
        """The preference of a preset, and news of it: what ``preferences.parse`` reads, or ``knee``.

        Raises:
            UserError: it cannot be read, or nothing is measured for a knee.
        """
        if name != KNEE:
            return preferences.parse(name, self.tasks), ""
        found = knee_of(self._rows(), self.measured.shown or self.tasks)
        text = (
            f"{short(found.preference, self.tasks)}: the knee of {found.points} measured preferences, from where a gain in one "
            "task costs most in the others"
        )
        return preferences.parse(found.preference, self.tasks), text

    def best(self, maximise: str, bounds: Sequence[str | None]) -> tuple[Preference, str]:
        """The measured preference that is best at one task among those that are good enough at the others, and news of it.

        Args:
            maximise: a task.
            bounds: for each measured task what is typed beside "at least"; empty asks for nothing.

        Raises:
            UserError: a bound is no number; no measured preference is good enough.
        """
        at_least = {}
        for task, text in zip(self.measured.shown, bounds, strict=True):
            if text and text.strip():
                try:
                    value = float(text.strip().removesuffix("%").replace(",", "."))
                except ValueError:
                    raise UserError(f"{task}: {text.strip()!r} is not a number") from None
                at_least[task] = value / 100 if self.measured.metrics[task].percent else value
        metrics = self.measured.metrics
        found = best_with(
            self._rows(), self.tasks, at_least=at_least, maximise=maximise, shown=lambda task, value: metrics[task].text(value)
        )
        return (
            preferences.parse(found.preference, self.tasks),
            f"{short(found.preference, self.tasks)}: the best {maximise}, {metrics[maximise].text(found.values[maximise])}, of "
            f"the {found.points} measured preferences{' that are good enough' if at_least else ''}",
        )

    def address(self, gamma: Preference) -> str:
        """Short, and read as the same preference but for the seventh digit."""
        return ",".join(f"{task}={round(share, 6):g}" for task, share in zip(self.tasks, gamma, strict=True))

    def _rows(self) -> list[Row]:
        """The rows of the set alone, in the metrics that are shown, as the queries want them."""
        known = self.measured.metrics
        return [row for row in self.front.own_rows if row["task"] in known and row["metric"] == known[row["task"]].name]


def preference_of(tasks: Sequence[str], gamma: Sequence[float]) -> str:
    """In words, rounded as the sliders are: ``math 70 %, code 30 %``."""
    return ", ".join(f"{task} {share:g} %" for task, share in zip(tasks, percentages(gamma), strict=True) if share)


def head_of(choice: str) -> str | None:
    """The task of a menu's choice."""
    return None if choice in (WHOLE, UNCHOSEN) else choice


def unchosen(front: Front) -> str:
    """What the export's menu of heads shows at first: where tasks have heads, people have to choose."""
    return UNCHOSEN if front.heads else WHOLE
