"""Parts of the page as HTML and SVG: pure functions, each escapes what comes from files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape as multiline

from paretomerge.app.live import Answer
from paretomerge.app.simplex import CORNERS, percentages, place
from paretomerge.front.front import Front
from paretomerge.io.plain_text import html as escape
from paretomerge.report.tables import title
from paretomerge.results.estimate import Reading
from paretomerge.results.measured import Measured, Metric, short

Values = Mapping[str, Reading]


def heading(front: Front) -> str:
    """The title and one line of facts."""
    facts = front.summary()
    parameters = facts["parameters"]
    return (
        f"<h1>{escape(title(front))}</h1><p class='pm-facts'>A model for every way to weigh {len(front.tasks)} tasks against "
        f"each other. Weigh them, see what that costs each task, try the model, write it out.<br>Method "
        f"{escape(front.pareto_set.method)}; one model of {_count(parameters['base'])} parameters, and "
        f"{_share(parameters['added_share'])} of that for all preferences.</p>"
    )


def subtitle(text: str, note: str = "") -> str:
    """What a part of the page asks."""
    return f"<h2>{escape(text)}</h2>" + (f"<p class='pm-note'>{escape(note)}</p>" if note else "")


def figure_note(tasks: int) -> str:
    """How to read the figure."""
    two = "Every dot is a measured model; up and to the right is better. Joined: the best trade-offs, no other is at least as "
    two += "good at both tasks."
    every = " All tasks: every line is a measured model across the tasks." if tasks > 2 else ""
    return f"<p class='pm-note'>{two}{every}</p>"


def metrics(of: Measured, gamma: Sequence[float], values: Values) -> str:
    """The table: share, metric at this preference, base merge, expert, and what is missing to the expert."""
    shares = percentages(gamma)
    base = of.base
    with_experts = any(task in of.experts.get(task, {}) for task in of.tasks)
    header = ["task", "share", "this preference", "base merge", *(["its expert", "gap"] * with_experts)]
    rows = []
    for task, share in zip(of.tasks, shares, strict=True):
        cells = [
            f"<th scope='row'>{escape(task)}</th>",
            f"<td class='pm-share'>{_bar(share / 100)}<span>{share:.1f} %</span></td>",
        ]
        metric = of.metrics.get(task)
        if metric is None:
            cells.append("<td colspan='5' class='pm-pale'>not measured</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
            continue
        if task in values:
            value, error = values[task]
            how = "measured" if error is None else "estimated"
            shown = metric.text(value) if error is None else f"≈ {metric.text(value)} {metric.error_text(error)}"
            cells.append(f"<td class='pm-now'><b>{shown}</b> <span class='pm-tag pm-{how}'>{how}</span></td>")
        else:
            cells.append("<td class='pm-now pm-pale'>not measured here</td>")
        cells.append(f"<td>{metric.text(base.values[task]) if base and task in base.values else '–'}</td>")
        if with_experts:
            own = of.experts.get(task, {}).get(task)
            cells.append(f"<td>{metric.text(own) if own is not None else '–'}</td>")
            cells.append(f"<td>{_difference(values[task], own, metric) if own is not None and task in values else '–'}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th scope='col'{' class=pm-share' * (name == 'share')}>{name}</th>" for name in header)
    table = f"<table class='pm-table'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class='pm-wide'>{table}</div>{_note(of, values)}"


def _note(of: Measured, values: Values) -> str:
    """How the numbers of the table came about."""
    if not of.metrics:
        return (
            "<p class='pm-note'>Nothing is measured yet: <code>paretomerge evaluate FRONT --data TASK=PATH …</code> measures "
            "the front and records the numbers in it. Presets, models and exports work without.</p>"
        )
    split = {metric.split for metric in of.metrics.values()}
    said = {
        "held-out": " on inputs that nothing was fitted to (held-out)",
        "transductive": " on inputs of the fit (transductive)",
    }
    where = said.get(next(iter(split)), "") if len(split) == 1 else ""
    named: dict[str, list[str]] = {}
    for task, metric in of.metrics.items():
        named.setdefault(escape(metric.name) + ("" if metric.sign > 0 else " (less is better)"), []).append(escape(task))
    metrics = (
        next(iter(named)) if len(named) == 1 else "; ".join(f"{name} of {', '.join(each)}" for name, each in named.items())
    )
    text = f"{metrics[0].upper()}{metrics[1:]}. {len(of.points)} preferences were measured{where}. "
    text += "Base merge: the one model that you have without a preference, all tasks alike."
    if of.experts:
        text += " Its expert: the model that was fine-tuned for that task alone."
    if any(not reading.measured for reading in values.values()):
        text += (
            " ≈: not measured here, but estimated from the measured preferences; ± is how far off such estimates are at "
            "measured preferences that they were not made from, and more where two ways to estimate disagree. "
            "Measure to be sure."
        )
    return f"<p class='pm-note'>{text}</p>"


def triangle(of: Measured, gamma: Sequence[float]) -> str:
    """Three tasks as an SVG triangle: measured preferences, and this one."""
    size, left, top = 260.0, 60.0, 26.0
    height = size * CORNERS[2][1]

    def at(shares: Sequence[float]) -> tuple[float, float]:
        x, y = place(shares)
        return left + size * x, top + height - size * y

    corners = [at(shares) for shares in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    lines = []
    for step in (0.25, 0.5, 0.75):
        for k in range(3):
            ends = []
            for other in {0, 1, 2} - {k}:
                shares = [0.0, 0.0, 0.0]
                shares[k], shares[other] = step, 1 - step
                ends.append(at(shares))
            (x1, y1), (x2, y2) = ends
            lines.append(f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' class='pm-grid'/>")
    dots = []
    for point in of.points:
        x, y = at(point.gamma)
        dots.append(
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' class='pm-dot'>"
            f"<title>{escape(short(point.name, of.tasks))}</title></circle>"
        )
    x, y = at(gamma)
    labels = [
        f"<text x='{corners[0][0]:.0f}' y='{corners[0][1] + 20:.0f}' text-anchor='middle'>{escape(of.tasks[0])}</text>",
        f"<text x='{corners[1][0]:.0f}' y='{corners[1][1] + 20:.0f}' text-anchor='middle'>{escape(of.tasks[1])}</text>",
        f"<text x='{corners[2][0]:.0f}' y='{corners[2][1] - 9:.0f}' text-anchor='middle'>{escape(of.tasks[2])}</text>",
    ]
    outline = " ".join(f"{cx:.1f},{cy:.1f}" for cx, cy in corners)
    return (
        f"<svg class='pm-triangle' viewBox='0 0 {size + 2 * left:.0f} {top + height + 32:.0f}' role='img' "
        f"aria-label='click to choose a preference' data-left='{left}' data-top='{top}' data-size='{size}' "
        f"data-height='{height}'>"
        f"<polygon points='{outline}' class='pm-area'/>{''.join(lines)}{''.join(dots)}{''.join(labels)}"
        f"<path d='M{x:.1f} {y - 9:.1f}l9 9l-9 9l-9 -9z' class='pm-here'/></svg>"
    )


def answer(found: Answer, preference: str, *, top: int = 5) -> str:
    """What the model said at a preference, with bars; and the milliseconds."""
    times = (
        f"<p class='pm-note'>The model at {escape(preference)}: switched to this preference in "
        f"<b class='pm-ms'>{1000 * found.switched:.1f} ms</b>, answered in {1000 * found.ran:.0f} ms</p>"
    )
    if not found.classes:
        return f"<div class='pm-said'>{multiline(found.text) or '(nothing)'}</div>{times}"
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{_bar(share)}<span>{100 * share:.1f} %</span></td></tr>"
        for name, share in list(found.classes.items())[:top]
    )
    more = f"<p class='pm-note'>the most probable {top} of {len(found.classes)} classes</p>" if len(found.classes) > top else ""
    return f"<table class='pm-table pm-answer'><tbody>{rows}</tbody></table>{more}{times}"


def message(text: str, *, good: bool = False) -> str:
    """A line of news."""
    return f"<p class='pm-message {'pm-good' if good else 'pm-bad'}' role='status'>{escape(text)}</p>" if text else ""


def about(front: Front) -> str:
    """Settings and provenance."""
    settings = {name: value for name, value in front.pareto_set.settings.items() if name != "lambda"}  # that one is a long list
    sources = {"base": front.sources["base"]["path"]} | {
        f"expert {task}": source["path"] for task, source in front.sources["experts"].items()
    }
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in {"folder": front.folder.resolve() if front.folder else "", **sources, **settings}.items()
    )
    return f"<table class='pm-table pm-about'><tbody>{rows}</tbody></table>"


def _bar(share: float) -> str:
    width = 100 * min(1.0, max(0.0, share)) if math.isfinite(share) else 0
    return f"<i class='pm-bar'><i style='width:{width:.1f}%'></i></i>"


def _difference(reading: Reading, own: float, metric: Metric) -> str:
    """Above or below the expert."""
    apart = reading.value - own
    error = "" if reading.error is None else f" {metric.error_text(reading.error)}"
    text = f"{metric.number(apart):+.1f}" if metric.percent else f"{apart:+.3g}"
    unit = "<span class='pm-unit'> points</span>" if metric.percent else ""
    return ("" if reading.measured else "≈ ") + (text.replace("-", "−", 1) if apart < 0 else text) + error + unit


def _share(share: float) -> str:
    """In per cent, with two digits where it is small."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _count(n: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)
