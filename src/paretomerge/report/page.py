"""``paretomerge report``: one HTML file that says all about a front, and opens without a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.front.front import FACTS, Front
from paretomerge.front.provenance import versions
from paretomerge.io.plain_text import html as escape
from paretomerge.io.strict_json import compact_json
from paretomerge.report import figures, published
from paretomerge.report.layers import Changes, changes
from paretomerge.report.routing import routers_of, routing
from paretomerge.report.run_log import RunLog, read_run
from paretomerge.report.tables import title
from paretomerge.results.measured import Measured, Point, Volume, hypervolume, measured, short
from paretomerge.results.queries import knee
from paretomerge.weights.checkpoint import read_json

_MATRIX = 8
"""Tasks up to which every two of them get a panel."""


@dataclass(frozen=True)
class Content:
    """What a report shows, gathered once for the page and for the figures of papers."""

    front: Front
    measured: Measured
    volume: Volume | None
    volume_experts: Volume | None
    knee: Point | None
    changes: Changes | None
    run: RunLog | None
    facts: Mapping[str, Any]
    """Of the front's JSON file: the versions that it was made with."""
    paper: str | None = None
    """A published table, as ``published`` names it."""

    @property
    def named(self) -> tuple[Point, ...]:
        """Equal, priority, one-hot, knee: those that were measured for every task."""
        each = [p for p in self.measured.complete if "=" not in p.name]
        if self.knee and self.knee.gamma not in [p.gamma for p in each]:
            each.append(self.knee._replace(name="knee"))
        return tuple(each)


def gather(
    front: Front, *, run: Path | None = None, reference: Mapping[str, float] | None = None, paper: str | None = None
) -> Content:
    """Read what there is to report.

    Args:
        front: the set, with its measured rows.
        run: the folder of the fit's log; None: ``FRONT.run`` beside the front, if there is one.
        reference: of the hypervolume, task -> value in the metric's own unit (accuracy: a share of 1); the others by default.
        paper: a published table (see ``published``); None: the one that the front's recipe names, if it does.

    Raises:
        UserError: a ``paper`` that is not known; a task in ``reference`` that is not measured; a ``run`` without a log.
    """
    known = measured(front.measured, front.tasks, front.pareto_set.method)
    paper = paper or front.pareto_set.settings.get("paper")
    if paper:
        published.figures_of(paper)
    if unknown := [task for task in reference or {} if task not in known.metrics]:
        raise UserError(f"reference: {unknown[0]} is not measured (measured: {', '.join(known.shown) or 'nothing'})")
    log = None
    if run is not None:
        log = read_run(run)
        if log is None:
            raise UserError(f"{run}: no log of a run in it (metrics.jsonl, config.json)")
    elif front.folder is not None:
        folder = front.folder.resolve()
        log = read_run(folder.with_name(folder.name + ".run"))
    volume = hypervolume(known, known.complete, reference)
    own = [Point(task, (), values) for task, values in known.experts.items() if all(t in values for t in known.shown)]
    compared = hypervolume(known, own, volume.reference) if volume and len(own) == len(front.tasks) else None
    bend = None
    if len(known.shown) > 1 and known.complete:
        rows = [row for row in front.own_rows if row["task"] in known.metrics]
        try:
            found = knee([row for row in rows if row["metric"] == known.metrics[row["task"]].name], known.shown)
            bend = next((p for p in known.complete if p.name == found.preference), None)
        except UserError:
            bend = None
    facts = read_json(front.folder / FACTS) if front.folder else {"versions": versions()}
    return Content(front, known, volume, compared, bend, changes(front.pareto_set), log, facts, paper)


def html(content: Content) -> str:
    """The page; plotly's code is in it once, so nothing is fetched."""
    parts = _Parts()
    front, known = content.front, content.measured
    name = title(front)
    _summary(parts, content)
    _metrics(parts, content)
    _published(parts, content)
    _figures(parts, content)
    _volume(parts, content)
    _layers(parts, content)
    _routing(parts, content)
    _training(parts, content)
    _provenance(parts, content)
    heading = f"{name}: {front.pareto_set.method} of {len(front.tasks)} tasks"
    code = files("plotly").joinpath("package_data", "plotly.min.js")
    plotly = code.read_text(encoding="utf-8") if parts.figures else ""
    page = files("paretomerge.report").joinpath("page.html").read_text(encoding="utf-8")
    fields = {
        "title": escape(heading), "heading": escape(name), "subtitle": escape(_subtitle(front, known)),
        "contents": parts.contents(), "body": "\n".join(parts.body), "figures": _script_json(parts.figures),
        "plotly": plotly.replace("</script", "<\\/script"),
    }  # fmt: skip
    before, *rest = page.split("{{")  # one pass: what is put in is not looked at again
    return before + "".join(fields[piece[: piece.index("}}")]] + piece[piece.index("}}") + 2 :] for piece in rest)


class _Parts:
    """Sections, and the figures that they show."""

    def __init__(self) -> None:
        self.body: list[str] = []
        self.figures: list[figures.Figure] = []
        self._titles: list[str] = []

    def section(self, title: str) -> None:
        self._titles.append(title)
        self.body.append(f"<h2 id='part-{len(self._titles)}'>{escape(title)}</h2>")

    def contents(self) -> str:
        return "".join(f"<a href='#part-{i}'>{escape(title)}</a>" for i, title in enumerate(self._titles, 1))

    def text(self, markup: str) -> None:
        """A paragraph of markup: what comes from files is escaped by the caller."""
        self.body.append(f"<p>{markup}</p>")

    def figure(self, drawn: figures.Figure, caption: str) -> None:
        height = drawn["layout"].get("height", 400)
        self.body.append(
            f"<figure><div class='plot' id='plot-{len(self.figures)}' style='height:{height}px'></div>"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
        self.figures.append(drawn)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True, folded: str = "") -> None:
        """Cells are text and escaped here; a cell that starts with ``*`` is set bold (the best of its column)."""
        head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in header)
        lines = []
        for row in rows:
            first, *rest = row
            cells = "".join(
                f"<td><b>{escape(cell[1:])}</b></td>" if numbers and cell.startswith("*") else f"<td>{escape(cell)}</td>"
                for cell in rest
            )
            lines.append(f"<tr><th scope='row'>{escape(first)}</th>{cells}</tr>")
        kind = "numbers" if numbers else "facts"
        thead = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
        made = f"<div class='wide'><table class='{kind}'>{thead}<tbody>{''.join(lines)}</tbody></table></div>"
        self.body.append(f"<details><summary>{escape(folded)}</summary>{made}</details>" if folded else made)


def _subtitle(front: Front, known: Measured) -> str:
    measurements = f"{len(known.points)} measured preferences" if known.points else "not measured yet"
    return f"{front.pareto_set.method}, {len(front.tasks)} tasks ({', '.join(front.tasks)}), {measurements}"


def _summary(parts: _Parts, content: Content) -> None:
    front = content.front
    facts = front.summary()
    counts = facts["parameters"]
    parts.section("What was merged")
    parts.table(
        ("", "model", "head of its own"),
        [
            ("base", facts["sources"]["base"], ""),
            *((task, facts["sources"].get(task, ""), "yes" if task in front.heads else "no") for task in front.tasks),
        ],
        numbers=False,
    )
    stored = (
        f"{counts['base']:,} parameters, and {counts['added']:,} more ({100 * counts['added_share']:.3g} %) for all preferences"
    )
    parts.text(f"Stored: one model of {escape(stored)}; {counts['varying_tensors']} tensors depend on the preference.")
    settings = [(name, _shown(value)) for name, value in front.pareto_set.settings.items()]
    if settings:
        parts.table(("setting", "value"), settings, numbers=False, folded="Settings of the method")


def _metrics(parts: _Parts, content: Content) -> None:
    known = content.measured
    parts.section("Metrics")
    if not known.points:
        parts.text(
            "Nothing is measured yet. <code>paretomerge evaluate FRONT --data TASK=PATH …</code> measures the front on "
            "held-out inputs and records the numbers in it; then make this report again."
        )
        return
    labels = [f"{task}: {known.metrics[task].name}, {known.metrics[task].split}" for task in known.shown]
    named = [p for p in known.points if "=" not in p.name]
    if content.knee and content.knee.gamma not in [p.gamma for p in named]:
        named.append(content.knee._replace(name=f"knee: {short(content.knee.name, known.tasks)}"))
    singles = [*known.others, *(Point(f"expert {task}", (), values) for task, values in known.experts.items())]
    parts.table(("model", *labels), _cells(known, [*named, *singles]))
    parts.text(
        "A row is one model. <i>equal</i>: all tasks count alike (the base merge); <i>priority</i>: one task has "
        f"{preferences.priority_in_words(len(known.tasks))} of the preference; <i>only</i>: one task has all of it. Bold: the "
        "best of the column. One number is a mean over seeds where several were measured."
        + (
            f" The knee, from where a gain in one task costs most in the others, is at "
            f"{escape(short(content.knee.name, known.tasks))}."
            if content.knee
            else ""
        )
    )
    if len(known.points) > len([p for p in named if p in known.points]):
        parts.table(
            ("preference", *labels), _cells(known, known.points), folded=f"All {len(known.points)} measured preferences"
        )


def _published(parts: _Parts, content: Content) -> None:
    if content.paper is None:
        return
    parts.section("Beside the paper")
    found = published.beside(content.paper, content.measured, content.front.pareto_set)
    if found is None:
        parts.text(f"<code>{escape(content.paper)}</code> is about other tasks, or another number of them.")
        return
    first = [*found.ours, *found.theirs[: found.counterparts]]
    parts.text(f"{escape(found.title)}.")
    parts.table(found.header, first or found.theirs)
    if first and found.counterparts < len(found.theirs):
        parts.table(found.header, found.theirs[found.counterparts :], folded="The table's other figures")
    if not found.ours:
        parts.text("Of this front nothing is measured yet that stands in that table.")


def _cells(known: Measured, models: Sequence[Point]) -> list[tuple[str, ...]]:
    best = {
        task: max((known.metrics[task].sign * p.values[task] for p in models if task in p.values), default=0.0)
        for task in known.shown
    }

    def cell(point: Point, task: str) -> str:
        if task not in point.values:
            return "–"
        mark = "*" if known.metrics[task].sign * point.values[task] == best[task] else ""
        return mark + known.metrics[task].text(point.values[task])

    return [(short(p.name, known.tasks), *(cell(p, task) for task in known.shown)) for p in models]


def _figures(parts: _Parts, content: Content) -> None:
    known = content.measured
    if len(known.shown) < 2:
        return
    parts.section("Front")
    tasks = known.shown
    if len(tasks) == 2:
        parts.figure(
            figures.pair(known, *tasks),
            "Every dot is one measured model; up and to the right is better. Filled and joined, the best trade-offs: no other "
            "is at least as good at both tasks.",
        )
        return
    if len(tasks) <= _MATRIX:
        parts.figure(
            figures.pairs(known),
            "Every dot is one measured model, in a panel for every two tasks; up and to the right is better. Filled and "
            "joined, the best trade-offs: no other is at least as good at both tasks of the panel.",
        )
    parts.figure(figures.parallel(known), "Every measured preference as a line across the tasks.")
    if content.named:
        equal = [p for p in content.named if p.name == "equal"]
        others = [p for p in content.named if p.name not in ("equal",)]
        priority = [p for p in others if p.name.startswith("priority")]
        one_hot = [p for p in others if p.name.startswith("only")]
        percent = ", accuracy in %" if all(known.metrics[task].percent for task in tasks) else ""
        for label, chosen in (("priority", priority), ("one-hot", one_hot)):
            if chosen:
                extra = [p for p in others if p.name == "knee"]
                parts.figure(
                    figures.radar(known, [*equal, *chosen, *extra]),
                    f"Equal, {label} and knee preferences{percent}; the scale begins below the worst that was measured.",
                )


def _volume(parts: _Parts, content: Content) -> None:
    known, volume = content.measured, content.volume
    if volume is None or len(known.shown) < 2:
        return
    parts.section("Hypervolume")
    rows = [(f"this front, {volume.points} preferences", f"{volume.value:.4g}")]
    if base := known.base:
        alone = hypervolume(known, [base], volume.reference) if all(t in base.values for t in known.shown) else None
        if alone:
            rows.append(("the base merge alone", f"{alone.value:.4g}"))
    if content.volume_experts:
        rows.append((f"the {content.volume_experts.points} experts", f"{content.volume_experts.value:.4g}"))
    parts.table(("model", "hypervolume"), rows)
    at = ", ".join(f"{task} {known.metrics[task].text(value)}" for task, value in volume.reference.items())
    how = "exact" if volume.exact else "approximated (moocore.hv_approx)"
    unit = "Accuracies count as shares of 1. " if any(m.percent for m in known.metrics.values()) else ""
    parts.text(
        "One number for how far a front reaches, more is better: the volume of all that some measured model is better than in "
        f"every task, {how}, from the reference point {escape(at)}. {unit}"
    )


def _layers(parts: _Parts, content: Content) -> None:
    found = content.changes
    if found is None:
        return
    parts.section("Where the preference acts")
    unit = "rms change"
    layers, kinds = found.by_layer, found.by_kind
    parts.figure(
        figures.heat(
            found.tasks, list(layers), [[layers[c][k] for c in layers] for k in range(len(found.tasks))], unit=unit,
            title="layer", rows_are="",
        ),
        "Root mean square of the change of the weights from the equal to the one-hot preference of a task, by layer.",
    )  # fmt: skip
    parts.figure(
        figures.heat(list(kinds), found.tasks, list(kinds.values()), unit=unit, title="", rows_are=""),
        "The same by kind of matrix.",
    )


def _routing(parts: _Parts, content: Content) -> None:
    of = content.front.pareto_set
    if routers_of(of) is None:
        return
    found = routing(of)
    parts.section("Routing")
    columns = [f"only:{task} → {other}" for task in found.tasks for other in found.tasks]
    weights = found.weights.transpose(0, 1).flatten(1).tolist()  # (modules, preferences · task vectors)
    parts.figure(
        figures.heat(found.modules, columns, weights, unit="coefficient", title="preference → task vector", rows_are=""),
        "How much of each task vector every module gets at the one-hot preferences, modules in order of depth.",
    )


def _training(parts: _Parts, content: Content) -> None:
    run = content.run
    if run is None:
        return
    parts.section("Training")
    parts.figure(
        figures.curves(run.losses, x="step", y=f"loss ({figures.plain(run.settings.get('objective', 'objective'))})"),
        f"Losses of {run.steps} steps, averaged over windows; each step draws its own preference, so single ones vary.",
    )
    parts.table(("setting of the run", "value"), [(n, _shown(v)) for n, v in run.settings.items() if n != "tasks"],
                numbers=False, folded="Settings of the run")  # fmt: skip


def _provenance(parts: _Parts, content: Content) -> None:
    front = content.front
    parts.section("Provenance")
    rows = []
    for name, source in {"base": front.sources["base"], **front.sources["experts"]}.items():
        for number, (file, digest) in enumerate(source["files"].items() or [("", None)]):
            rows.append((name if number == 0 else "", source["path"] if number == 0 else "", file, digest or "not hashed"))
    parts.table(("model", "path", "file", "SHA-256"), rows, numbers=False)
    made = content.facts.get("versions")
    if isinstance(made, Mapping):
        parts.text("Made with " + escape(", ".join(f"{name} {version}" for name, version in made.items())) + ".")


def _shown(value: object, most: int = 300) -> str:
    text = value if isinstance(value, str) else compact_json(value)
    return text if len(text) <= most else f"{text[:most]} … ({len(text)} characters)"


def _script_json(value: object) -> str:
    """JSON that is safe between script tags; numbers to seven digits, of which no number of threads changes any."""
    return compact_json(_rounded(value)).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
