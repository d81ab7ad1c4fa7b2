"""Plotly figures of measured fronts, as plain dicts {data, layout, config}: the page sends them as JSON, the report holds them.

Text that comes from files passes ``plain``: plotly reads a subset of HTML in labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from paretomerge.io.plain_text import printable
from paretomerge.report.style import BASE, CONFIG, CURRENT, EXPERT, GRID, INK, OTHER, PALE, POINT, axis, layout, style
from paretomerge.results.estimate import Reading
from paretomerge.results.measured import Measured, Point, short

Figure = dict[str, Any]
Values = Mapping[str, Reading]
"""Task -> what is known of it: what ``Measured.at`` gives."""


def plain(text: object) -> str:
    """Text that plotly shows as it is."""
    return escape(printable(text), quote=False)


def figure(data: list[dict[str, Any]], **changes: Any) -> Figure:
    """A figure in the common style."""
    return {"data": data, "layout": layout(**changes), "config": CONFIG}


def empty(message: str, height: int = 240) -> Figure:
    """A figure that only says why there is none."""
    note = {"text": plain(message), "showarrow": False, "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"}
    off = {"visible": False}
    return figure([], annotations=[{**note, "font": {"size": 15, "color": PALE}}], xaxis=off, yaxis=off, height=height)


def pair(of: Measured, x: str, y: str, *, current: Values | None = None, height: int = 430) -> Figure:
    """The front of two tasks: measured preferences, those that nothing beats joined; experts, base merge, this preference.

    Args:
        of: what was measured.
        x: the task of the horizontal axis.
        y: the task of the vertical axis.
        current: the metrics of the preference that is being looked at.
        height: in pixels.
    """
    if not of.metrics:
        return empty("nothing is measured yet")
    if x not in of.metrics or y not in of.metrics:
        return empty(f"nothing is measured for {x if x not in of.metrics else y}")
    data = _pair_traces(of, x, y)
    if current and x in current and y in current:
        known = current[x].measured and current[y].measured
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "this preference",
                **_xy(of, x, y, [{task: current[task].value for task in (x, y)}]),
                **{f"error_{name}": _error(of, task, current[task]) for name, task in (("x", x), ("y", y))},
                "marker": {"symbol": "diamond" if known else "diamond-open", "size": 17, "color": CURRENT,
                           "line": {"color": INK if known else CURRENT, "width": 1.5 if known else 3}},
                "hovertemplate": f"this preference ({'measured' if known else 'estimated'})<br>"
                                 f"{_said(of, x, current[x])}, {_said(of, y, current[y])}<extra></extra>",
            }
        )  # fmt: skip
    titles = {task: f"{plain(task)}: {plain(of.metrics[task].label)}" for task in (x, y)}
    return figure(
        data,
        height=height,
        xaxis=axis(titles[x], **_direction(of, x)),
        yaxis=axis(titles[y], **_direction(of, y)),
        hovermode="closest",
    )


def _said(of: Measured, task: str, reading: Reading) -> str:
    """The value, and an estimate's error."""
    value = of.metrics[task].text(reading.value)
    return value if reading.error is None else f"≈ {value} {of.metrics[task].error_text(reading.error)}"


def _error(of: Measured, task: str, reading: Reading) -> dict[str, Any]:
    """The bar of an estimate's error, in the unit of its axis."""
    error = 0.0 if reading.error is None else of.metrics[task].number(reading.error)
    return {"type": "data", "array": [error], "visible": not reading.measured, "color": CURRENT, "thickness": 1.5}


def _pair_traces(of: Measured, x: str, y: str, *, small: bool = False) -> list[dict[str, Any]]:
    """Everything but the current point."""
    points = [point for point in of.points if x in point.values and y in point.values]
    two = Measured((x, y), {t: of.metrics[t] for t in (x, y)}, tuple(points), {})
    best = sorted(two.best(points), key=lambda point: point.values[x])
    names = {id(point) for point in best}
    size = 6 if small else 9

    def dots(label: str, chosen: Sequence[Point], **marker: Any) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "markers", "name": label, **_xy(of, x, y, [p.values for p in chosen]),
            "customdata": [plain(short(p.name, of.tasks)) for p in chosen], "marker": {"size": size, **marker},
            "hovertemplate": "%{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        }  # fmt: skip

    beaten = [point for point in points if id(point) not in names]
    line = {"line": {"color": POINT, "width": 1.2}, "mode": "lines+markers"}
    data = [dots("other measured", beaten, symbol="circle-open", color=POINT)] if beaten else []
    data += [dots("best trade-offs", best, symbol="circle", color=POINT) | line] if best else []
    if (base := of.base) and x in base.values and y in base.values:
        big = {"symbol": "square", "size": 1.4 * size, "color": BASE}
        data.append(dots("base merge (equal)", [base], **big))
    for number, other in enumerate(of.others):
        if x in other.values and y in other.values:
            data.append(
                dots(plain(other.name), [other], symbol=("x", "cross", "star")[number % 3], size=1.3 * size, color=OTHER)
            )
    known = [
        Point(f"expert {task}", (), each) for task, each in of.experts.items() if task in (x, y) and x in each and y in each
    ]
    ends = [(p.values[x], p.values[y]) for p in points]
    for task, ways in ((x, 0), (y, 1)):  # an expert that was measured at its own task alone is a line
        own = of.experts.get(task, {})
        if task in own and not (x in own and y in own) and ends:
            low, high = (function(end[1 - ways] for end in ends) for function in (min, max))
            first_is_high = (of.metrics[(y, x)[ways]].sign > 0) != bool(ways)
            # the label is at the first end, where there are few points: the upper one, or the left one
            line_ends = [{task: own[task], (y, x)[ways]: value} for value in ((high, low) if first_is_high else (low, high))]
            label = f"expert {plain(task)}"
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines" if small else "lines+text",
                    "name": "experts" if small else label,
                    "showlegend": small,
                    **_xy(of, x, y, line_ends),
                    "text": [f"{label}\u00a0\u00a0", ""],
                    "textposition": ("middle left", "top right")[ways],
                    "textfont": {"color": "#00664b", "size": 12},
                    "line": {"color": EXPERT, "dash": ("dot", "dash")[ways], "width": 1.5},
                    "hovertemplate": f"{label}: {of.metrics[task].text(own[task])}<extra></extra>",
                }
            )
    if known:
        data.append(dots("experts", known, symbol="triangle-up", size=1.6 * size, color=EXPERT))
    return data


def pairs(of: Measured) -> Figure:
    """The fronts of every two tasks, as a lower triangle of small panels."""
    tasks = of.shown
    n = len(tasks) - 1
    if n < 1:
        return empty("fewer than two tasks are measured")
    data: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    named: set[str] = set()
    gap = min(0.06, 0.18 / n)
    width = (1 - gap * (n - 1)) / n
    for row in range(n):
        for column in range(row + 1):
            x, y = tasks[column], tasks[row + 1]
            number = row * n + column + 1
            suffix = "" if number == 1 else str(number)
            for trace in _pair_traces(of, x, y, small=n > 1):
                first = trace["name"] not in named  # in the legend once, whichever panel has it
                named.add(trace["name"])
                data.append(
                    trace | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": first, "legendgroup": trace["name"]}
                )
            left, top = column * (width + gap), 1 - row * (width + gap)
            axes[f"xaxis{suffix}"] = axis(
                _unit(of, x) if row == n - 1 else "", domain=[left, left + width], anchor=f"y{suffix}",
                showticklabels=row == n - 1, nticks=5, **_direction(of, x),
            )  # fmt: skip
            axes[f"yaxis{suffix}"] = axis(
                _unit(of, y) if column == 0 else "", domain=[max(0, top - width), top], anchor=f"x{suffix}",
                showticklabels=column == 0, nticks=5, **_direction(of, y),
            )  # fmt: skip
    return figure(data, height=min(1400, max(440, 230 * n + 80)), hovermode="closest", **axes)


def parallel(of: Measured, *, current: Values | None = None, height: int = 430) -> Figure:
    """Parallel coordinates: a line per measured preference across all tasks, experts, base merge and this preference.

    Metrics in one unit share an axis; others are brought to [0, 1], from the worst to the best that is measured.
    """
    tasks = of.shown
    if not tasks:
        return empty("nothing is measured")
    same = len({of.metrics[task].label for task in tasks}) == 1
    models = [*of.points, *of.others, *(Point(task, (), each) for task, each in of.experts.items())]
    known = {task: [of.metrics[task].sign * p.values[task] for p in models if task in p.values] for task in tasks}

    def y(values: Mapping[str, float]) -> list[float | None]:
        found: list[float | None] = []
        for task in tasks:
            if task not in values:
                found.append(None)
            elif same:
                found.append(of.metrics[task].number(values[task]))
            else:
                low, high = min(known[task]), max(known[task])
                found.append((of.metrics[task].sign * values[task] - low) / ((high - low) or 1))
        return found

    def text(values: Mapping[str, float]) -> list[str]:
        return [of.metrics[task].text(values[task]) if task in values else "" for task in tasks]

    x = [plain(task) for task in tasks]
    thin: dict[str, list[Any]] = {"x": [], "y": [], "customdata": []}
    for point in of.points:  # one trace for all: a break between two lines is an empty value
        if point is of.base:
            continue
        name = plain(short(point.name, of.tasks))
        thin["x"] += [*x, None]
        thin["y"] += [*y(point.values), None]
        thin["customdata"] += [*([name, value] for value in text(point.values)), ["", ""]]
    hover = "%{customdata[0]}<br>%{x}: %{customdata[1]}<extra></extra>"
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "name": "measured", **thin, "line": {"color": POINT, "width": 1}, "opacity": 0.45,
         "hovertemplate": hover},
    ]  # fmt: skip

    def line(label: str, values: Mapping[str, float], colour: str, dash: str, symbol: str, width: float) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "lines+markers", "name": label, "x": x, "y": y(values),
            "customdata": [[label, value] for value in text(values)], "hovertemplate": hover,
            "line": {"color": colour, "dash": dash, "width": width}, "marker": {"symbol": symbol, "size": 9, "color": colour},
        }  # fmt: skip

    if base := of.base:
        data.append(line("base merge (equal)", base.values, BASE, "dash", "square", 2))
    own = {task: each[task] for task, each in of.experts.items() if task in each}
    if own:
        data.append(line("each task's expert", own, EXPERT, "dot", "triangle-up", 2) | {"connectgaps": False})
    if current:
        exact = all(reading.measured for reading in current.values())
        values = {task: reading.value for task, reading in current.items()}
        symbol = "diamond" if exact else "diamond-open"
        texts = [_said(of, task, current[task]) if task in current else "" for task in tasks]
        label = "this preference" if exact else "this preference (estimated)"
        own_line = line(label, values, CURRENT, "solid" if exact else "dash", symbol, 3.5)
        data.append(own_line | {"customdata": [[label, value] for value in texts]})
    title = plain(of.metrics[tasks[0]].label) if same else "worst … best measured"
    direction = _direction(of, tasks[0]) if same else {}
    return figure(
        data, height=height, hovermode="closest", yaxis=axis(title, **direction),
        xaxis=axis("", type="category", gridcolor=PALE, range=[-0.3, len(tasks) - 0.7]),
    )  # fmt: skip


def radar(of: Measured, points: Sequence[Point], *, height: int = 460) -> Figure:
    """A polygon per preference, tasks around it; each task from the worst that is measured (inside) to the best (rim)."""
    tasks = of.shown
    if len(tasks) < 3:
        return empty("a radar needs three measured tasks")
    models = [*of.points, *of.others, *(Point(task, (), each) for task, each in of.experts.items())]
    known = {task: [of.metrics[task].sign * p.values[task] for p in models if task in p.values] for task in tasks}
    percent = all(of.metrics[task].percent for task in tasks)
    data = []
    for number, point in enumerate(points):
        look = style(number)
        radii = []
        for task in tasks:
            low, high = min(known[task]), max(known[task])
            raw = point.values[task]
            radii.append(100 * raw if percent else (of.metrics[task].sign * raw - low) / ((high - low) or 1))
        label = plain(short(point.name, of.tasks))
        data.append(
            {
                "type": "scatterpolar", "mode": "lines+markers", "name": label, "r": [*radii, radii[0]],
                "theta": [plain(task) for task in (*tasks, tasks[0])],
                "line": {"color": look.colour, "dash": look.dash, "width": 2},
                "marker": {"symbol": look.symbol, "size": 8, "color": look.colour},
                "customdata": [of.metrics[task].text(point.values[task]) for task in (*tasks, tasks[0])],
                "hovertemplate": f"{label}<br>%{{theta}}: %{{customdata}}<extra></extra>",
            }
        )  # fmt: skip
    low = min(min(known[task]) for task in tasks) if percent else 0.0
    angle = 90 - 180 / len(tasks)  # of the scale: between two tasks
    radial = {
        "range": [max(0.0, 100 * low - 5), 100] if percent else [-0.1, 1.0], "gridcolor": GRID,
        "angle": angle, "tickangle": angle, "nticks": 6, "tickfont": {"size": 11, "color": PALE}, "showline": False,
    }  # fmt: skip
    angular = {"gridcolor": GRID, "linecolor": PALE, "direction": "clockwise"}
    polar = {"radialaxis": radial, "angularaxis": angular, "bgcolor": "white"}
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.12, "yanchor": "top", "font": {"size": 12}}
    return figure(data, height=height, polar=polar, legend=legend, margin={"l": 60, "r": 60, "t": 40, "b": 40})


def heat(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, unit: str, title: str, rows_are: str
) -> Figure:
    """A heat map, light where the value is large.

    Args:
        rows: names from the top down.
        columns: names from the left.
        values: (rows, columns).
        unit: beside the scale.
        title: of the horizontal axis.
        rows_are: of the vertical axis.
    """
    data = {
        "type": "heatmap", "z": [list(row) for row in values], "x": [plain(c) for c in columns], "y": [plain(r) for r in rows],
        "colorscale": "Cividis", "colorbar": {"title": {"text": unit, "side": "right"}, "thickness": 14}, "xgap": 1, "ygap": 1,
        "hovertemplate": "%{y}, %{x}: %{z:.3g}<extra></extra>",
    }  # fmt: skip
    height = min(1200, 150 + 26 * max(4, len(rows)))
    return figure(
        [data], height=height, xaxis=axis(title, type="category", showgrid=False),
        yaxis=axis(rows_are, type="category", autorange="reversed", showgrid=False),
    )  # fmt: skip


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, height: int = 380) -> Figure:
    """Lines by name -> (x values, y values)."""
    data = []
    for number, (name, (xs, ys)) in enumerate(series.items()):
        look = style(number)
        data.append(
            {"type": "scatter", "mode": "lines", "name": plain(name), "x": list(xs), "y": list(ys),
             "line": {"color": look.colour, "dash": look.dash, "width": 2}}
        )  # fmt: skip
    return figure(data, height=height, xaxis=axis(x), yaxis=axis(y), hovermode="x unified")


def _xy(of: Measured, x: str, y: str, values: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {
        "x": [of.metrics[x].number(each[x]) for each in values],
        "y": [of.metrics[y].number(each[y]) for each in values],
    }


def _unit(of: Measured, task: str) -> str:
    """A short title of an axis."""
    return f"{plain(task)}, %" if of.metrics[task].percent else plain(task)


def _direction(of: Measured, task: str) -> dict[str, Any]:
    """Better is always up and to the right: an axis of which less is better is turned round."""
    return {"autorange": "reversed"} if of.metrics[task].sign < 0 else {}
