"""One reading of measured rows: against values that are known, and brute force."""

import itertools

import numpy as np
import pytest

import fronts
from paretomerge import preferences
from paretomerge.evaluation import standard_preferences
from paretomerge.front import metrics_of
from paretomerge.results import Metric, Point, hypervolume, measured

TASKS = ("a", "b", "c")
SPECS = ["equal", "only:a", "only:b", "only:c", "a=0.5,b=0.3,c=0.2"]


def test_rows_become_points_experts_and_other_models():
    rows = fronts.rows(TASKS, SPECS) + fronts.expert_rows(TASKS) + fronts.rows(TASKS, ["equal"], "pretrained")
    known = measured(rows, TASKS, "pareto-merging")
    assert [point.name for point in known.points] == SPECS
    assert known.experts == {task: {task: 0.95} for task in TASKS}
    assert [point.name for point in known.others] == ["pretrained"]
    assert known.base.name == "equal" and known.complete == known.points
    for point in known.points:
        assert point.values == {task: pytest.approx(fronts.value(point.gamma, k)) for k, task in enumerate(TASKS)}


def test_seeds_are_averaged_and_held_out_rows_are_preferred():
    row = fronts.rows(("a",), ["equal"])[0]
    known = measured([row | {"value": 0.2, "seed": 1}, row | {"value": 0.4}, row | {"value": 0.9, "split": "transductive"}],
                     ("a",), "pareto-merging")  # fmt: skip
    assert known.points[0].values["a"] == pytest.approx(0.3)
    assert known.metrics["a"] == Metric("accuracy", "held-out")


def test_what_cannot_be_used_is_left_out():
    row = fronts.rows(("a", "b"), ["equal"])[0]
    strange = [row | {"value": float("nan")}, row | {"task": "gone"}, row | {"preference": "a=1,gone=1"}]
    known = measured(strange, ("a", "b"), "pareto-merging")
    assert known.points == () and known.best() == () and known.base is None
    assert hypervolume(known, known.complete) is None


def test_a_preference_is_measured_estimated_or_unknown():
    known = measured(fronts.rows(TASKS, SPECS), TASKS, "pareto-merging")
    assert known.at((0.5, 0.3, 0.2)) == {
        task: (pytest.approx(fronts.value((0.5, 0.3, 0.2), k)), None) for k, task in enumerate(TASKS)
    }
    gamma = (0.6, 0.1, 0.3)
    many = measured(fronts.rows(TASKS, standard_preferences(TASKS, 4)), TASKS, "pareto-merging")
    for k, task in enumerate(TASKS):
        assert many.at(gamma)[task].value == pytest.approx(fronts.value(gamma, k), abs=1e-4)
        assert 0 <= many.at(gamma)[task].error < 1e-4
    few = measured(fronts.rows(TASKS, ["equal", "only:a", "only:b", "only:c"]), TASKS, "pareto-merging")
    assert few.at(gamma) == {}, "nobody knows how far off a number would be"
    inner = measured(fronts.rows(TASKS, ["equal", "a=0.5,b=0.3,c=0.2"]), TASKS, "pareto-merging")
    assert inner.at((1, 0, 0)) == {}


def test_only_what_was_measured_is_handed_to_cards():
    known = measured(fronts.rows(TASKS, standard_preferences(TASKS, 4)), TASKS, "pareto-merging")
    assert known.at((0.6, 0.1, 0.3)) and metrics_of(known, (0.6, 0.1, 0.3)) == []
    found = metrics_of(known, preferences.parse("priority:a", TASKS))
    assert [(m["task"], m["value"]) for m in found] == [("a", pytest.approx(0.7)), ("b", 0.6), ("c", 0.6)]
    assert {m["how"] for m in found} == {"measured, held-out"}


def test_domination_is_brute_force_and_knows_directions():
    rng = np.random.default_rng(0)
    names = ("a", "b")
    metrics = {"a": Metric("accuracy", "held-out"), "b": Metric("perplexity", "held-out", False)}
    points = tuple(Point(str(i), (), dict(zip(names, rng.random(2).tolist(), strict=True))) for i in range(30))
    known = measured([], names, "")
    known = type(known)(names, metrics, points, {})

    def beats(p, q):
        return p["a"] >= q["a"] and p["b"] <= q["b"] and p != q

    wanted = [q for q in points if not any(beats(p.values, q.values) for p in points)]
    assert list(known.best()) == wanted


def test_hypervolume_against_counting():
    rng = np.random.default_rng(1)
    metrics = {task: Metric("accuracy", "held-out") for task in TASKS}
    points = tuple(Point(str(i), (), dict(zip(TASKS, rng.random(3).tolist(), strict=True))) for i in range(6))
    known = type(measured([], TASKS, ""))(TASKS, metrics, points, {})
    found = hypervolume(known, points)
    f = np.array([list(p.values.values()) for p in points])
    counted = sum(  # inclusion and exclusion over the boxes from 0
        (-1) ** (size + 1) * np.prod(f[list(chosen)].min(0))
        for size in range(1, 7)
        for chosen in itertools.combinations(range(6), size)
    )
    assert found.value == pytest.approx(counted) and found.reference == dict.fromkeys(TASKS, 0.0)
    assert hypervolume(known, points, {"a": 1.0}).value == 0


def test_the_reference_of_a_loss_is_the_worst_that_is_known():
    rows = [row | {"value": 10 * (1 - row["value"])} for row in fronts.rows(TASKS, SPECS, metric="perplexity")]
    known = measured(rows, TASKS, "pareto-merging")
    worst = {t: max(p.values[t] for p in known.points) for t in TASKS}
    found = hypervolume(known, known.complete)
    assert found.reference == worst and found.value > 0


def test_a_renamed_method_is_found():
    known = measured(fronts.rows(TASKS, SPECS, "mine"), TASKS, "pareto-merging")
    assert len(known.points) == len(SPECS)
    assert preferences.parse(known.points[0].name, TASKS) == pytest.approx(known.points[0].gamma)
