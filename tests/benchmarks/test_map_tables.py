"""MAP's tables: what is measured of a search's front, and how it becomes win rates, distances and weighted sums."""

from types import SimpleNamespace

import numpy as np
import pytest

import fit_data
import task_data
from benchmarks.claims import cells, language, map_report, map_tables, methods, report, searches, verdicts, vision
from benchmarks.claims.suite import Suite, stamp
from benchmarks.claims.table import Table
from paretomerge import preferences
from paretomerge.evaluation import sampled

MAP = searches.search("MAP", "map", evaluations=10, population=8, generations=2, measure=0)
DIRECT = searches.search("direct search", "direct-search", evaluations=12)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """In fp32, so that numbers can be compared."""
    monkeypatch.setattr(searches, "FAST", {"batch_size": 20})


def test_what_direct_search_measured_is_measured_again(suite):
    on = methods.bench(suite, "held-out", "quick")
    front = DIRECT.make(on, 0)
    known = front.pareto_set.front
    again = searches.metrics_at(on, front, searches.judged(on, 100), known.points)
    np.testing.assert_array_equal(again, known.measured)
    found = cells.run(cells.Cell(suite, DIRECT, how="points", mode="quick"))
    assert sorted(map(tuple, map_report.points(found))) == sorted(map(tuple, known.measured))
    assert len(map_report.points(found, "held-out")) == min(len(known.points), searches.POINTS["quick"])


def test_a_search_sees_validation_inputs_and_is_measured_on_test_inputs(suite):
    on = methods.bench(suite, "held-out", "quick")
    validation = suite.inputs("validation", labelled=True)
    for task, given in searches.judged(on, 100).items():
        assert given.fit.labels.tolist() == given.held_out.labels.tolist() == validation[task].held_out.labels.tolist()
    found = cells.run(cells.Cell(suite, MAP, how="searched", mode="quick"))
    unseen = suite.inputs()
    front = MAP.make(on, 0)
    drawn = np.random.default_rng(0).permutation(len(front.pareto_set.front.points))[: searches.POINTS["quick"]]
    expected = searches.metrics_at(on, front, unseen, front.pareto_set.front.points[drawn])
    np.testing.assert_array_equal(map_report.points(found, "held-out"), expected)
    assert map_report._facts(found, "evaluations") == [10] and len(map_report._facts(found, "R2")) == 2
    assert {row["split"] for row in found["rows"] if not row["preference"].startswith("point")} == {"held-out"}


def test_models_that_preferences_choose(suite):
    standard = cells.run(cells.Cell(suite, methods.EXPERTS))["rows"]
    own = {row["task"]: row["value"] for row in standard if row["preference"].startswith("only")}
    experts = cells.run(cells.Cell(suite, methods.EXPERTS, how="chosen", mode="quick"))
    assert {row["task"]: row["value"] for row in experts["rows"]} == own
    one = cells.run(cells.Cell(suite, methods.PRETRAINED, how="chosen", mode="quick"))
    assert {row["preference"] for row in one["rows"]} == {"equal"}
    soups = cells.run(cells.Cell(suite, methods.SOUPS, how="chosen", mode="quick"))
    assert len({row["preference"] for row in soups["rows"]}) == searches.PREFERENCES["quick"]
    found = map_report.Sums([experts])
    for text in sampled("ab", searches.PREFERENCES["quick"]):
        gamma = preferences.parse(text, "ab")
        assert found.of[text] == pytest.approx(gamma[0] * own["a"] + gamma[1] * own["b"])


def test_nested_search_is_asked_for_some_of_the_preferences_that_all_methods_are(suite):
    nested = searches.search("nested MAP", "map-nested", preferences=searches.asked, population=8, generations=2, evaluations=6)
    found = cells.run(cells.Cell(suite, nested, how="chosen", mode="quick", seed=1))
    assert {row["preference"] for row in found["rows"]} == {sampled("ab", 2)[1]}


def test_the_point_with_the_best_sum_is_chosen():
    known = np.array([[0.9, 0.1], [0.6, 0.6], [0.2, 0.95]])
    front = SimpleNamespace(
        preferences=None,
        measured=np.full_like(known, np.nan),
        predicted=known,
        metrics=[SimpleNamespace(larger_is_better=True)] * 2,
    )
    assert [searches.best_sum(SimpleNamespace(front=front), np.array([x, 1 - x])) for x in (0.9, 0.5, 0.1)] == [0, 1, 2]
    front.metrics = [SimpleNamespace(larger_is_better=False)] * 2
    assert searches.best_sum(SimpleNamespace(front=front), np.array([0.9, 0.1])) == 2
    front.measured[0] = (0.1, 0.1)
    assert searches.best_sum(SimpleNamespace(front=front), np.array([0.9, 0.1])) == 0, "what was measured counts"


def found_of(points, metric="accuracy", tasks="ab", **more):
    rows = [
        {"preference": f"point {i}", "task": task, "metric": metric, "value": value, "split": "transductive"}
        for i, point in enumerate(points)
        for task, value in zip(tasks, point, strict=True)
    ]
    return {"rows": rows, "tasks": list(tasks), "mode": "full", "inputs": dict.fromkeys(tasks, 10**6), **more}


def test_distances_of_language_models_are_in_nats():
    mine, truth = found_of([[np.e, np.e**2]], "perplexity"), found_of([[np.e**2, np.e**2], [np.e, np.e**3]], "perplexity")
    np.testing.assert_allclose(map_report.points(mine), [[1, 2]])
    assert map_report.gd_igd(truth, mine) == pytest.approx((1, 1))
    assert map_report.gd_igd(mine, mine) == (0, 0)
    assert not map_report._maximise(mine) and map_report._maximise(found_of([[0.5, 0.5]]))


def sums_of(values, preference="equal", **more):
    rows = [{"preference": preference, "task": t, "metric": "accuracy", "value": v} for t, v in zip("ab", values, strict=True)]
    return found_of([]) | {"rows": rows} | more


def test_sums_are_compared_at_the_same_preferences_with_their_noise():
    better, worse = map_report.Sums([sums_of((0.8, 0.8))]), map_report.Sums([sums_of((0.7, 0.7))])
    gain, noise = better.over(worse)
    assert gain == pytest.approx(0.1) and noise < 0.01
    assert str(better) == "80.0 ± 0.0"
    few = map_report.Sums([sums_of((0.8, 0.8), inputs={"a": 20, "b": 20})])
    assert few.over(worse)[1] > 0.1, "a sample of forty inputs"
    seeds = map_report.Sums([sums_of((0.9, 0.9)), sums_of((0.7, 0.7))])
    assert seeds.over(worse)[1] > 0.1, "seeds that differ"
    text = sampled("ab", 20)[3]
    asked = map_report.Sums([sums_of((1.0, 0.0), text)])
    assert asked.of == {text: pytest.approx(preferences.parse(text, "ab")[0])}
    assert asked.over(worse)[0] == pytest.approx(preferences.parse(text, "ab")[0] - 0.7)


def test_the_tables_of_a_tiny_suite(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vision, "suite", lambda *_: suite)
    for name, value in {"ORDER": ("a", "b"), "PAIRS": (("a", "b"),), "SIZES": (2,), "WEIGHED": (2,)}.items():
        monkeypatch.setattr(map_tables, name, value)
    results = cells.Results(tmp_path / "quick.jsonl")
    every = [map_tables.wins("quick"), map_tables.weighed("quick")]
    for cell in results.missing([cell for table in every for cell in table.cells if cell.method.name != "DELLA"]):
        results.add(cells.run(cell))
    text = verdicts.section(every, results)
    report.write(tmp_path, every, results, text)
    assert "| 2 tasks: MAP's front is nearly level with direct search's" in text
    for table in every:
        lines = [line for line in table.layout(table, results) if line]
        assert len({line.count("|") for line in lines}) == 1 and len(lines) >= 3, lines
    written = (tmp_path / "results.md").read_text()
    assert "| MAP |" in written and "| the experts |" in written and "| 49.81 |" in written


def test_two_languages(tmp_path, monkeypatch):
    folder = fit_data.save("gpt2", tmp_path / "suite", n_positions=16)
    task_data.companions(folder / "base")
    rng = np.random.default_rng(0)
    for task in "ab":
        (folder / f"{task}-data").mkdir()
        for split in ("train", "validation", "test"):
            (folder / f"{task}-data" / f"{split}.txt").write_text(" ".join(rng.choice(task_data.WORDS, 200)))
    stamp(folder, {})
    two = Suite("two", folder / "base", {t: folder / t for t in "ab"}, {t: folder / f"{t}-data" for t in "ab"}, max_length=8)
    monkeypatch.setattr(language, "suite", lambda: two)
    monkeypatch.setattr(map_tables, "LANGUAGES", (("a", "b"),))
    table, results = map_tables.languages("quick"), cells.Results(tmp_path / "quick.jsonl")
    for cell in table.cells:
        results.add(cells.run(cell))
    direct, found = (results.of(cell) for cell in table.cells)
    assert {row["metric"] for row in found["rows"] if row["task"]} == {"perplexity", "R2"}
    assert not [row for row in found["rows"] if row["preference"] and row["split"] == "held-out"]
    assert 0 < map_report.points(direct).min() < np.log(200), "the loss of a small model that has learned nothing"
    header, _, row = table.layout(table, results)
    gd, igd = map_report.gd_igd(direct, found)
    assert row.startswith("| MAP: a and b | 10 |") and f"| {gd:.3f} | {igd:.3f} |" in row and "0.058" in row
    assert header.count("|") == row.count("|")


def test_nothing_is_said_of_what_is_not_measured(tmp_path):
    every = [make("full") for make in map_tables.TABLES.values()]
    results = cells.Results(tmp_path / "none.jsonl")
    assert list(map_report.comparisons({table.name: table for table in every}, results)) == []
    assert all(len(list(table.layout(table, results))) == 2 for table in every)


def test_every_comparison_has_the_papers_figures():
    for one, other, n in map_report.BETTER:
        nested = "nested MAP" in (one, other)
        figures = [map_report._theirs(name, n, "table 9" if nested else "") for name in (one, other)]
        assert all(figures) and float(figures[0]) > float(figures[1]), (one, other, n)


def test_a_table_may_bring_its_own_layout(tmp_path, capsys):
    cell = cells.Cell(vision.suite(), methods.PRETRAINED, tasks=("greek", "cyrillic"))
    results = cells.Results(tmp_path / "one.jsonl")
    results.add({"key": cell.key, "rows": []})
    report.write(
        tmp_path, [Table("x", "a title", "a table", [cell], lambda table, results: iter(["a line of its own"]))], results
    )
    assert "a line of its own" in (tmp_path / "results.md").read_text()
