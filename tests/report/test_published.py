"""The papers' figures beside those of a front."""

import pytest

import fronts
from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.evaluation import standard_preferences
from paretomerge.report import beside, figures_of, gather, html, slug
from paretomerge.results import measured

EIGHT = ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")


def known(tasks, metric="accuracy"):
    rows = fronts.rows(tasks, standard_preferences(tasks), metric=metric)
    return measured([*rows, *fronts.expert_rows(tasks), *fronts.rows(tasks, ["equal"], "pretrained", metric)], tasks, "x")


def test_a_table_of_tasks_has_ours_above_theirs():
    found = beside("pareto-merging/table-2/adamerging-pm", known(EIGHT), None)
    assert found.title == "Pareto Merging (arXiv 2408.12105), table 2, CLIP ViT-B/32"
    assert found.header == ("accuracy %", *EIGHT, "mean")
    assert found.ours == [
        ("pretrained", *["55.0"] * 8, "55.0"),
        ("the experts", *["95.0"] * 8, "95.0"),
        ("this front, equal", *["55.0"] * 8, "55.0"),
        ("this front, priority", *["70.0"] * 8, "70.0"),  # each column: the model that prefers its task
        ("this front, one-hot", *["90.0"] * 8, "90.0"),
    ]
    assert found.counterparts == 2 and len(found.theirs) == 19
    row = ("70.1", "74.2", "87.3", "96.5", "90.2", "95.6", "98.5", "66.7", "84.9")
    assert found.theirs[0] == ("AdaMerging + PM (equal)", *row)
    assert found.theirs[1][0] == "AdaMerging + PM (priority)" and found.theirs[2][0] == "Individual"


def test_of_some_tasks_the_mean_is_of_these():
    found = beside("pwe-moe/table-4", known(("sst-2", "rte")), None)
    assert found.header == ("accuracy %", "sst-2", "rte", "mean")
    stl = next(line for line in found.theirs if line[0] == "STL (fine-tuned)")
    assert stl == ("STL (fine-tuned)", "93.2", "70.3", "81.8") and found.counterparts == 0


def test_figures_without_tasks():
    found = beside("map/table-4/locmap", known(("a", "b", "c")), None)
    assert found.title.endswith("CLIP ViT-B/32, 3 tasks") and found.theirs[0][0] == "LocMAP"
    best = [max(0.5 + 0.4 * sum(g * h for g, h in zip(gamma, one, strict=True)) for one in CORNERS) for gamma in DRAWN]
    assert found.ours == [
        ("this front", "preference-weighted sum of accuracies %", f"{100 * sum(best) / 20:.2f} ± {deviation(best):.2f}")
    ]
    pairs = beside("map/table-7", known(("french", "arabic"), "perplexity"), None)
    assert pairs.ours == [] and {line[0] for line in pairs.theirs} == {"LocMAP"} and len(pairs.theirs) == 3
    assert beside("map/table-7", known(("french", "japanese")), None) is None
    assert len(beside("pareto-merging/table-3", known(("a", "b")), None).theirs) == 24


CORNERS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5), (1 / 3, 1 / 3, 1 / 3)]
DRAWN = preferences.dirichlet(3, 20, seed=0)


def deviation(values):
    mean = sum(values) / len(values)
    return 100 * (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


@pytest.mark.parametrize(
    "name, message",
    [
        ("pareto-mergin/table-2", "unknown paper 'pareto-mergin', did you mean 'pareto-merging'"),
        ("map/table-1", "unknown table 'table-1', did you mean"),
        ("map/table-9/x", "unknown method 'x' (known: single-task-models, locmap-nested"),
        ("map", "name a paper and its table"),
        ("map/table-9/locmap-nested/x", "name a paper and its table"),
    ],
)
def test_tables_that_do_not_exist(name, message):
    with pytest.raises(UserError) as caught:
        figures_of(name)
    assert message in str(caught.value)


def test_every_task_of_a_table_can_be_a_task():
    for name in ("pareto-merging/table-2", "pwe-moe/table-2", "pwe-moe/table-3", "pareto-merging/table-6"):
        assert {slug(figure.column) for figure in figures_of(name)} - {"average", "avg"} == set(EIGHT)


def test_the_report_shows_it(tmp_path):
    front = fronts.front(tmp_path, ("sst-2", "rte"))
    assert "Beside the paper" not in html(gather(front))
    page = html(gather(front, paper="pwe-moe/table-4/ours-ls-mlp"))
    assert "PWE-MoE (Tang et al. 2024), table 4, GPT-2." in page and "this front, one-hot" in page
    assert "The table&#x27;s other figures" in page and "STL (fine-tuned)" in page
    front.pareto_set.settings["paper"] = "map/table-7"  # as a recipe leaves it
    assert "is about other tasks" in html(gather(front))
