"""What the page shows and where its buttons lead, without a browser."""

from types import SimpleNamespace

import pytest

import fronts
from paretomerge.app import ALL, KNEE, Answer, Fields, View, panels
from paretomerge.errors import UserError
from paretomerge.evaluation import standard_preferences
from paretomerge.results import measured

TASKS = ("math", "code", "law")


def view(rows, tasks=TASKS) -> View:
    own = tuple(row for row in rows if row["method"] == "pareto-merging")
    of = SimpleNamespace(method="pareto-merging")
    return View(SimpleNamespace(tasks=tasks, measured=tuple(rows), own_rows=own, pareto_set=of, folder=None, heads={}))


@pytest.fixture
def known() -> View:
    return view(fronts.rows(TASKS, standard_preferences(TASKS, 5)) + fronts.expert_rows(TASKS))


def test_table_figure_and_address_are_of_one_preference(known):
    shown = known.shown((0.6, 0.3, 0.1), known.first)
    assert shown.shares == [60, 30, 10]
    assert shown.address == "math=0.6,code=0.3,law=0.1"
    assert "≈ 74.0 % ± 0.0" in shown.table and "estimated" in shown.table and "95.0 %" in shown.table
    assert "≈ −21.0 ± 0.0<span" in shown.table, "what is missing to the expert is no better known"
    assert shown.figure["data"][-1]["x"] == [pytest.approx(74, abs=0.01)]
    assert "<svg" in shown.triangle and shown.export_name == "math-60-code-30-law-10"
    exact = known.shown(known.equal, known.first._replace(figure=ALL))
    assert "estimated" not in exact.table and "±" not in exact.table
    assert "measured" in exact.table and exact.export_name == "equal"


def test_an_address_is_read_as_the_same_preference(known):
    for name in ("equal", "priority:code", "only:law"):
        gamma, _ = known.named(name)
        again, _ = known.named(known.address(gamma))
        assert again == pytest.approx(gamma, abs=1e-6)


def test_presets_and_constraints(known):
    assert known.named("only:code")[0] == (0, 1, 0)
    gamma, news = known.named(KNEE)
    assert "knee" in news and gamma in [pytest.approx(p.gamma) for p in known.measured.points]
    gamma, news = known.best("math", ["", "60 %", None])  # code = 0.5 + 0.4 γ ≥ 0.6
    assert gamma[1] >= 0.25 and "best math" in news
    good = [p for p in known.measured.points if p.values["code"] >= 0.6]
    assert fronts.value(gamma, 0) == pytest.approx(max(p.values["math"] for p in good))
    refusal = r"none of the \d+ .* code ≥ 99.0 %: the best code is 90.0 % at only:code"  # in the unit of the table
    for bounds, word in ((["", "99", ""], refusal), (["", "x", ""], "'x' is not a number")):
        with pytest.raises(UserError, match=word):
            known.best("math", bounds)
    with pytest.raises(UserError, match="unknown task"):
        known.named("only:physics")


def test_nothing_measured_is_said_and_does_not_stop_the_rest():
    bare = view([])
    shown = bare.shown(bare.named("priority:law")[0], bare.first)
    assert "Nothing is measured yet" in shown.table and shown.figure["layout"]["annotations"]
    with pytest.raises(UserError):
        bare.named(KNEE)


def test_tasks_without_rows_have_a_line_of_their_own():
    some = view([row for row in fronts.rows(TASKS, ["equal", "only:math", "only:code", "only:law"]) if row["task"] != "law"])
    shown = some.shown((0.2, 0.2, 0.6), some.first)
    assert "not measured" in shown.table and some.figure_tasks == ("math", "code")


@pytest.mark.parametrize("n", [1, 2, 8])
def test_any_number_of_tasks(n):
    tasks = [f"t{i}" for i in range(n)]
    some = view(fronts.rows(tasks, standard_preferences(tasks)), tasks)
    for figure in (some.first.figure, ALL):
        assert some.shown(some.equal, some.first._replace(figure=figure)).table.count("<tr>") == n + 1


def test_what_comes_from_files_is_escaped():
    bad = "<img src=x onerror=alert(1)>".replace("=", "-")
    tasks = (bad, "b'\"&", "c")
    some = view(fronts.rows(tasks, ["equal", *(f"only:{t}" for t in tasks)]) + fronts.rows(tasks, ["equal"], bad), tasks)
    shown = some.shown(some.equal, Fields(some.first.figure, bad, tasks[1], *some.first[3:]))
    for text in (shown.table, shown.triangle, str(shown.figure), panels.message(bad)):
        assert "<img" not in text and "&lt;img" in text
    said = panels.answer(Answer({bad: 0.9, "b": 0.1}, "", 0.001, 0.1), bad) + panels.answer(Answer({}, bad, 0, 0), bad)
    assert "<img" not in said and said.count("&lt;img") == 4
    facts = SimpleNamespace(
        folder=None, tasks=tasks, pareto_set=SimpleNamespace(method=bad, settings={bad: bad}),
        sources={"base": {"path": bad, "files": {}}, "experts": {bad: {"path": bad}}},
        summary=lambda: {"parameters": {"base": 10, "added_share": 0.1}},
    )  # fmt: skip
    assert "<img" not in panels.about(facts) + panels.heading(facts)


def test_milliseconds_and_classes_of_an_answer():
    found = panels.answer(Answer({f"c{i}": 1 / 8 for i in range(8)}, "", 0.0123, 0.2), "math 70 %, code 30 %")
    assert "at math 70 %, code 30 %" in found and "12.3 ms" in found and "5 of 8 classes" in found and found.count("<tr>") == 5


def test_the_difference_to_the_expert_has_a_sign():
    rows = fronts.rows(TASKS, ["equal", *(f"only:{t}" for t in TASKS)]) + fronts.expert_rows(TASKS)
    table = panels.metrics(known := measured(rows, TASKS, "pareto-merging"), (1, 0, 0), known.at((1, 0, 0)))
    assert "−5.0<span class='pm-unit'> points" in table  # 90 % at only:math, its expert 95 %
