"""Every figure is one that plotly accepts, says what it must, and shows names as they are."""

import itertools
import json

import plotly.graph_objects as go
import pytest

import fronts
from paretomerge.evaluation import standard_preferences
from paretomerge.report import STYLES, figures
from paretomerge.results import measured


def known(n: int, metric: str = "accuracy", prefix: str = "task"):
    tasks = [f"{prefix}{i}" for i in range(n)]
    specs = standard_preferences(tasks, 3)
    return measured(fronts.rows(tasks, specs, metric=metric) + fronts.expert_rows(tasks), tasks, "pareto-merging")


def valid(figure: figures.Figure) -> go.Figure:
    json.dumps(figure, allow_nan=False)
    return go.Figure({"data": figure["data"], "layout": figure["layout"]})  # plotly's own check of every name and value


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_plotly_accepts_them(n, metric):
    of = known(n, metric)
    current = of.at([1 / n] * n)
    x, y = of.tasks[0], of.tasks[min(1, n - 1)]
    for figure in (figures.pair(of, x, y, current=current), figures.parallel(of, current=current), figures.pairs(of)):
        valid(figure)
    valid(figures.radar(of, of.complete[:5]))
    valid(figures.empty("nothing"))


def test_an_estimated_point_looks_different_and_says_so():
    of = known(3)
    for gamma, symbol, word in (((1, 0, 0), "diamond", "measured"), ((0.5, 0.37, 0.13), "diamond-open", "estimated")):
        now = figures.pair(of, "task0", "task1", current=of.at(gamma))["data"][-1]
        assert (now["marker"]["symbol"], word in now["hovertemplate"]) == (symbol, True)
        assert now["x"] == [pytest.approx(100 * fronts.value(gamma, 0), abs=0.01)]
        assert now["error_x"]["visible"] == (word == "estimated") == ("±" in now["hovertemplate"])
    line = figures.parallel(of, current=of.at((0.5, 0.37, 0.13)))["data"][-1]
    assert line["y"] == [pytest.approx(100 * fronts.value((0.5, 0.37, 0.13), k), abs=0.01) for k in range(3)]
    assert "estimated" in line["name"] and all("±" in text for _, text in line["customdata"])


def test_every_two_tasks_have_a_panel():
    figure = figures.pairs(known(5))
    titles = {trace["xaxis"] + trace["yaxis"] for trace in figure["data"]}
    assert len(titles) == len(list(itertools.combinations(range(5), 2)))
    shown = [trace["name"] for trace in figure["data"] if trace["showlegend"]]
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_experts_are_named_where_there_are_few_points(metric):
    """An expert measured at its own task alone is a line; its name is at the upper or left end, as the screen shows it."""
    rows = fronts.rows(("a", "b"), ["equal", "only:a", "only:b"], metric=metric)
    rows += [row | {"metric": metric} for row in fronts.expert_rows(("a", "b"))]
    of = measured(rows, ("a", "b"), "pareto-merging")
    lines = {trace["name"]: trace for trace in figures.pair(of, "a", "b")["data"] if trace["mode"] == "lines+text"}
    best, worst = (max, min) if metric == "accuracy" else (min, max)
    assert lines["expert a"]["y"][0] == best(lines["expert a"]["y"]) and not lines["expert a"]["showlegend"]
    assert lines["expert b"]["x"][0] == worst(lines["expert b"]["x"]) and "expert b" in lines["expert b"]["text"][0]


def test_less_is_better_turns_the_axis_round():
    assert figures.pair(known(2, "perplexity"), "task0", "task1")["layout"]["xaxis"]["autorange"] == "reversed"
    assert "autorange" not in figures.pair(known(2), "task0", "task1")["layout"]["xaxis"]


def test_names_are_shown_and_not_read_as_markup():
    text = json.dumps(figures.parallel(known(3, prefix="<b>&")))
    assert "<b>" not in text.replace("<br>", "") and "&lt;b&gt;&amp;" in text


def test_styles_differ_without_colour():
    assert len({style.symbol for style in STYLES}) == len({style.marker for style in STYLES}) == len(STYLES)
    assert len({style.colour for style in STYLES}) == len(STYLES)


def test_what_was_not_measured_is_said():
    of = measured([], ("a", "b"), "")
    for figure in (figures.pair(of, "a", "b"), figures.parallel(of), figures.pairs(of), figures.radar(of, [])):
        assert figure["layout"]["annotations"][0]["text"]
