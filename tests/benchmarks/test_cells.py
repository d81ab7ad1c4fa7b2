"""Measuring and reporting: cells are computed once, and tables say what was measured."""

import json

import numpy as np
import pytest

from benchmarks.claims import cells, methods, numbers, report, tables, verdicts
from benchmarks.claims.numbers import Number
from benchmarks.claims.table import Table
from paretomerge import load_front
from paretomerge.report import routing

METHODS = [
    methods.PRETRAINED, methods.EXPERTS, methods.merged("TA", "task_arithmetic", scale=methods.one_over_k), methods.SOUPS,
    methods.closed_form("PM", rank=2, targets="all"),
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(suite, tmp_path_factory):
    file = tmp_path_factory.mktemp("results") / "cells.jsonl"
    results = cells.Results(file)
    wanted = [cells.Cell(suite, method) for method in METHODS]
    for cell in results.missing(wanted):
        results.add(cells.run(cell))
    return file, wanted


def mean(results, cell, kind):
    return numbers.numbers([results.of(cell)], cell.names, kind)[-1].mean


def test_a_soup_is_task_arithmetic_at_equal_preference_and_the_experts_at_one_hot(measured):
    file, wanted = measured
    results = cells.Results(file)
    _, experts, merged, soup, _ = wanted
    assert mean(results, soup, "equal") == mean(results, merged, "equal")
    assert mean(results, soup, "only") == mean(results, experts, "only")
    assert numbers.numbers([results.of(merged)], merged.names, "priority") is None


def test_finished_cells_are_not_computed_again(measured, suite):
    file, wanted = measured
    assert cells.Results(file).missing(wanted) == []
    assert len(cells.Results(file).missing([cells.Cell(suite, METHODS[0], seed=1)])) == 1
    other = methods.closed_form("PM", rank=3, targets="all")
    assert len(cells.Results(file).missing([cells.Cell(suite, other)])) == 1
    cut = file.with_name("cut.jsonl")
    cut.write_text(file.read_text()[:-40])
    assert cells.Results(cut).missing(wanted) == [wanted[-1]]


def test_a_suite_that_changed_is_measured_again(measured, suite):
    file, wanted = measured
    stamped = suite.base.parent / "stamp.json"
    before = stamped.read_text()
    stamped.write_text(before.replace("{", '{"again": 1, ', 1))
    try:
        assert len(cells.Results(file).missing(wanted)) == len(wanted)
    finally:
        stamped.write_text(before)


def test_what_is_stored_and_measured_on_is_kept(measured):
    file, wanted = measured
    found = cells.Results(file).of(wanted[3])
    assert found["inputs"] == {"a": 20, "b": 20}
    assert found["stored"]["added"] > found["stored"]["base"]
    assert {row["split"] for row in found["rows"]} == {"held-out"}


def test_a_fitted_front_is_kept_for_the_other_tables(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "FRONTS", tmp_path)
    method = methods.fitted("PM, fitted", steps=20, batch_size=4, rank=2)
    cell = cells.Cell(suite, method, mode="quick")
    first = cells.run(cell)
    monkeypatch.setattr(methods.api, "fit", None)
    again = cells.run(cell)
    assert again["rows"] == first["rows"] and again["cost"] == first["cost"]
    assert cells.run(cells.Cell(suite, method, how="spread", mode="quick"))["stored"] == first["stored"]
    with pytest.raises(TypeError):
        cells.run(cells.Cell(suite, method, seed=1, mode="quick"))


def test_transductive_cells_fit_on_what_they_are_measured_on(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "FRONTS", tmp_path)
    method = methods.fitted("PM, fitted", steps=20, batch_size=4, rank=2)
    cell = cells.Cell(suite, method, use="transductive", mode="quick")
    on = methods.bench(suite, "transductive", "quick")
    assert all(len(task.fit) == len(task.held_out) == 20 for task in on.inputs.values())
    assert {row["split"] for row in cells.run(cell)["rows"]} == {"transductive"}
    held_out = methods.bench(suite, "held-out", "quick").inputs
    assert all(len(task.fit) == 24 and len(task.held_out) == 20 for task in held_out.values())
    searched = methods.bench(suite, "validation", "quick").inputs
    assert all(len(task.held_out) == 8 for task in searched.values())


def test_a_search_looks_at_the_validation_inputs_alone(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "FRONTS", tmp_path)
    seen = {}

    def fit(experts, method, data, **options):
        seen.update(data)
        return whole(experts, method, data=data, **options)

    whole = methods.api.fit
    monkeypatch.setattr(methods.api, "fit", fit)
    cell = cells.Cell(
        suite, methods.searched("MAP", "map", evaluations=12, population=8, generations=2, measure=0), mode="quick"
    )
    rows = cells.run(cell)["rows"]
    validation = methods.bench(suite, "validation", "quick").few
    for task, given in seen.items():
        assert len(given.fit) == 8
        assert given.fit.labels.tolist() == validation[task].held_out.labels.tolist()
    assert {row["split"] for row in rows} == {"held-out"} and len(rows) == 6


def test_a_line_runs_from_the_second_task_to_the_first(suite, tmp_path):
    cell = cells.Cell(suite, methods.SOUPS, how="line", tasks=("a", "b"))
    found = cells.run(cell)
    curve = report.points(found, ("a", "b"))
    ends = {
        row["task"]: row["value"]
        for row in cells.run(cells.Cell(suite, methods.EXPERTS))["rows"]
        if "only" in row["preference"]
    }
    assert len(curve) == 11
    assert (curve[-1][0], curve[0][1]) == (ends["a"], ends["b"])
    results = cells.Results(tmp_path / "line.jsonl")
    results.add(found)
    report.write(tmp_path, [Table("d", "two tasks", "a figure", [cell], "line")], results)
    assert (tmp_path / "results" / "d.png").stat().st_size > 5000


def test_a_task_that_was_not_merged_is_measured_with_its_own_head(suite):
    found = cells.run(cells.Cell(suite, methods.SOUPS, how="unseen", tasks=("a",), mode="quick"))
    assert {row["task"] for row in found["rows"]} == {"b"}
    assert found["rows"][0]["preference"] == "equal"


def test_the_tables_hold_the_measured_numbers(measured, tmp_path, capsys):
    file, wanted = measured
    results = cells.Results(file)
    report.write(tmp_path, [Table("a", "accuracy", "a table", wanted), Table("b", "cost", "a table", wanted, "cost")], results)
    text = (tmp_path / "results.md").read_text()
    assert f"| TA |  | {' | '.join(map(str, numbers.numbers([results.of(wanted[2])], 'ab', 'equal')))} |".replace("**", "") in (
        text.replace("**", "")
    )
    assert "the experts | one-hot" in text and "the experts | equal" not in text
    assert "| infinite |" in text
    assert text.count("## ") == 2


def number(value: float, std: float | None = None, inputs: int = 10_000, metric: str = "accuracy") -> Number:
    return Number(value, std, 3, inputs, metric)


def test_bold_needs_a_difference_beyond_the_noise():
    assert numbers.bold([number(0.80), number(0.90)]) == 1
    assert numbers.bold([number(0.80), number(0.805)]) is None
    assert numbers.bold([number(0.80, inputs=50), number(0.90, inputs=50)]) is None
    assert numbers.bold([number(0.80, 0.1), number(0.90, 0.1)]) is None
    assert numbers.bold([number(9.0, 0.1, metric="perplexity"), number(8.0, 0.1, metric="perplexity")]) == 1
    assert numbers.bold([number(9.0, metric="perplexity"), number(8.0, metric="perplexity")]) is None, "noise unknown"
    assert numbers.bold([number(0.5)]) is None


def test_numbers_are_shown_with_their_deviation():
    assert str(number(0.8123, 0.004)) == "81.2 ± 0.4"
    assert str(number(12.344, metric="perplexity")) == "12.34"


def test_a_file_of_results_is_lines_of_json(measured):
    file, wanted = measured
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == len(wanted)


def test_a_verdict_needs_a_difference_beyond_the_noise(measured, monkeypatch):
    file, wanted = measured
    results = cells.Results(file)
    table = Table("a", "accuracy", "a table", wanted)

    def words(better: tuple[str, str], worse: tuple[str, str]) -> list[str]:
        monkeypatch.setattr(verdicts, "CLAIMS", [verdicts.Claim("a claim", "a paper", better, worse)])
        return [verdict.word for verdict in verdicts.verdicts({"a": table}, results)]

    assert words(("TA", "equal"), ("TA", "equal")) == ["within the noise"]
    for found in results.cells.values():  # as if very many inputs had been measured
        found["inputs"] = {"a": 10**9, "b": 10**9}
        for row in found["rows"]:
            del row["scores"]
    sides = [("Rewarded Soups", "only"), ("pretrained", "equal")]
    values = [mean(results, wanted[3], "only"), mean(results, wanted[0], "equal")]
    better, worse = sides if values[0] > values[1] else sides[::-1]
    assert values[0] != values[1]
    assert words(better, worse) == ["holds"]
    assert words(worse, better) == ["**does not hold**"]
    assert words(("TA", "priority"), ("TA", "equal")) == [], "not measured"


def test_every_claim_names_rows_that_are_measured_and_rows_of_the_papers():
    every = {name: make("full") for name, make in tables.TABLES.items()}
    for claim in verdicts.CLAIMS:
        known = {cell.method.name for cell in every[claim.table].cells}
        assert {claim.better[0], claim.worse[0]} <= known, claim
        theirs = verdicts._theirs(claim)
        assert (claim.table == "e") == (theirs == "a figure") and (claim.where == verdicts.OURS) == (theirs == ""), claim


def test_the_footing_of_a_soup(suite, tmp_path):
    wanted = [cells.Cell(suite, method, how="spread", mode="quick") for method in (METHODS[2], methods.SOUPS)]
    results = cells.Results(tmp_path / "spread.jsonl")
    for cell in wanted:
        results.add(cells.run(cell))
    found = results.of(wanted[1])
    assert len(report.points(found, "ab")) == 1 + 2 + cells.SAMPLE["quick"]
    header, _, merged, soup = report.spread(Table("i", "sets", "none", wanted, "spread"), results)
    assert header.count("|") == merged.count("|") == soup.count("|")
    assert merged.split("|")[3].strip() == "" and -1 <= float(soup.split("|")[3]) <= 1
    values = {row["task"]: row["value"] for row in results.of(wanted[0])["rows"]}
    sums = [100 * values["a"], 100 * values["b"]]
    assert min(sums) - 0.1 <= float(merged.split("|")[2]) <= max(sums) + 0.1


def test_what_routers_answer_and_cost_is_kept_and_drawn(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "FRONTS", tmp_path)
    options = {"preset": "paper", "steps": 20, "labels": True, "batch_size": 4}
    chosen = [methods.fitted("PWE-MoE, paper, MLP (labels)", "pwe-moe", **options), methods.SOUPS]
    wanted = [cells.Cell(suite, method, mode="quick") for method in chosen]
    results = cells.Results(tmp_path / "routed.jsonl")
    for cell in wanted:
        results.add(cells.run(cell))
    found = cells.Results(results.path).of(wanted[0])
    front = load_front(next(tmp_path.rglob("front")))
    answers = routing(front.pareto_set)
    assert found["routing"]["modules"] == list(answers.modules)
    assert np.abs(np.array(found["routing"]["weights"]) - answers.weights.numpy()).max() < 1e-4
    assert found["trained"] == 22 * len(answers.modules)
    made = [Table("g5", "routing", "a figure", wanted, "routing"), Table("g8", "cost", "a table", wanted, "training")]
    report.write(tmp_path, made, results)
    text = (tmp_path / "results.md").read_text()
    assert "![PWE-MoE, paper, MLP (labels): routing](results/g5-1.png)" in text and "g5-2" not in text
    assert (tmp_path / "results" / "g5-1.png").stat().st_size > 5000
    base = found["stored"]["base"]
    assert f"| 2 | {found['trained']} |" in text and "| 264 / 226.79M | 2-3 |" in text, "the paper's, beside ours"
    assert f"| Rewarded Soups | 2 | {base:,} |" in text


def test_own_and_other_coefficients_over_depth(suite, tmp_path):
    cell = cells.Cell(suite, METHODS[0])
    weights = np.zeros((2, 3, 2))
    weights[0, :, 0], weights[1, :, 1], weights[0, 2, 1] = (0.1, 0.2, 0.3), (0.3, 0.4, 0.5), 0.8
    results = cells.Results(tmp_path / "made.jsonl")
    results.add({"key": cell.key, "routing": {"modules": ["a", "b", "c"], "weights": weights.tolist()}})
    (*_, line) = report.routing(Table("g5", "routing", "a figure", [cell], "routing"), results)
    assert line == "| pretrained | 3 | 0.25 | 0.40 | 0.00 | 0.40 |"
