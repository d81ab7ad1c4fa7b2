"""The report: one file that fetches nothing, says what is known, and runs nothing that a front brings along."""

import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
import torch

import fronts
from paretomerge import api, preferences
from paretomerge.errors import UserError
from paretomerge.evaluation import standard_preferences
from paretomerge.experts import load_experts
from paretomerge.front import load_front, record
from paretomerge.report import changes, gather, html, read_run, routing, write_figures


class Seen(HTMLParser):
    """Tags, what they load, and the text of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]

    def handle_data(self, data):
        if len(data) < 10_000:  # not plotly's code
            self.text += data


def read(page: str) -> Seen:
    seen = Seen()
    seen.feed(page)
    return seen


def figures_of(page: str) -> list[dict]:
    return json.loads(re.search(r"^const figures = (.*);$", page, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return fronts.front(tmp_path_factory.mktemp("four"), ("math", "code", "law", "chess"))


def test_it_is_one_file_that_fetches_nothing(four):
    page = html(gather(four))
    seen = read(page)
    assert seen.loaded == [] and seen.tags.count("script") == 2
    assert "default-src 'none'" in page and page.count("plotly.js v") == 1
    drawn = figures_of(page)
    assert len(drawn) == seen.tags.count("figure") == 6  # pairs, parallel, two radars, two heat maps
    for figure in drawn:
        go.Figure({"data": figure["data"], "layout": figure["layout"]})


def test_it_says_what_is_known(four):
    text = read(html(gather(four))).text
    for word in ("What was merged", "only:law", "90.0 %", "Hypervolume", "expert chess", "95.0 %", "SHA-256", "rank"):
        assert word in text, word
    content = gather(four)
    assert f"{content.volume.value:.4g}" in text and "reference point math 0.0 %" in text
    given = gather(four, reference={"math": 0.5})
    assert given.volume.value < content.volume.value and "math 50.0 %" in read(html(given)).text
    with pytest.raises(UserError, match="physics is not measured"):
        gather(four, reference={"physics": 0.5})


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_any_number_of_tasks(n, tmp_path):
    front = fronts.front(tmp_path, [f"t{i}" for i in range(n)], method="soup")
    for figure in figures_of(html(gather(front))):
        go.Figure({"data": figure["data"], "layout": figure["layout"]})
    written = write_figures(gather(front), tmp_path / "figures")
    assert all(file.stat().st_size > 1000 for file in written)


def test_a_front_that_was_not_measured(tmp_path):
    front = fronts.front(tmp_path, measured=False)
    text = read(html(gather(front))).text
    assert "Nothing is measured yet" in text and "Hypervolume" not in text


def test_nothing_from_a_front_becomes_markup(tmp_path):
    bad = "x<script>alert(1)<∕script>"
    folder = fronts.front(tmp_path, measured=False).folder
    record(folder, fronts.rows(("a", "b"), standard_preferences(("a", "b"), 4), metric=bad))
    record(folder, fronts.rows(("a", "b"), ["equal"], "b{{plotly}}", bad))
    front = load_front(folder)
    front.pareto_set.settings["</td><img onerror>"] = "</script><script>alert(2)</script>"
    (tmp_path / "front.run").mkdir()
    (tmp_path / "front.run" / "config.json").write_text(json.dumps({"tasks": [bad, "b"], "objective": "<b>"}))
    (tmp_path / "front.run" / "metrics.jsonl").write_text('{"step": 1, "losses": {"0": 1.0, "1": 2.0}}\n')
    page = html(gather(front))
    seen = read(page)
    assert seen.tags.count("script") == 2 and "img" not in seen.tags and "b{{plotly}}" in seen.text
    assert "alert(2)" in seen.text and "<script>alert" not in page.replace(page[page.rindex("<script>") :], "")
    assert "Training" in seen.text


def test_changes_are_norms_of_differences(four):
    found = changes(four.pareto_set)
    for k, task in enumerate(four.tasks):
        squares, entries = {}, {}
        one, equal = four.at(f"only:{task}", torch.float64), four.at("equal", torch.float64)
        for name in four.pareto_set.varying:
            layer = f"layers.{name.split('.')[2]}" if ".layers." in f".{name}" and name.startswith("model.layers") else None
            if layer:
                squares[layer] = squares.get(layer, 0) + float((one[name] - equal[name]).square().sum())
                entries[layer] = entries.get(layer, 0) + one[name].numel()
        for layer in squares:
            assert found.by_layer[layer][k] == pytest.approx((squares[layer] / entries[layer]) ** 0.5, rel=1e-3)
    assert preferences.one_hot(4, 0)[0] == 1 and "self_attn.q_proj" in found.by_kind


def test_logs_of_runs(tmp_path):
    assert read_run(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text("not json\n")
    assert read_run(tmp_path) is None
    (tmp_path / "config.json").write_text('{"tasks": ["a", "b"]}')
    lines = [{"step": s, "losses": {"0": float(s), **({"1": 1.0} if s % 2 else {})}} for s in range(1, 1001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 1001, "lo')
    found = read_run(tmp_path)
    assert found.steps == 1000 and len(found.losses["a"][0]) <= 400
    steps, losses = found.losses["a"]
    assert steps == losses and found.losses["b"][1] == pytest.approx([1.0] * len(found.losses["b"][1]))


@pytest.mark.parametrize(
    ("method", "options"), [("pwe-moe", {"modules": "mlp"}), ("steered", {"rank": 2, "targets": "attention"})]
)
def test_routers_have_a_heat_map(method, options, tmp_path):
    front = fronts.front(tmp_path, measured=False)
    (tmp_path / "text.txt").write_text("the cat sat on the mat .\n" * 200)
    data = dict.fromkeys("ab", str(tmp_path / "text.txt"))
    experts = load_experts(tmp_path / "base", {t: tmp_path / f"expert-{i}" for i, t in enumerate(front.tasks)})
    fitted = api.fit(experts, method, data=data, steps=1, batch_size=2, **options)
    page = html(gather(fitted))
    assert "Routing" in read(page).text
    drawn = [figure for figure in figures_of(page) if "only:a → b" in figure["data"][0].get("x", ())]
    assert len(drawn) == 1 and len(drawn[0]["data"][0]["z"]) == len(routing(fitted.pareto_set).modules)
    assert drawn[0]["data"][0]["z"][0][1] == pytest.approx(float(routing(fitted.pareto_set).weights[0, 0, 1]))
