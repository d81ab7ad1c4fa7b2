"""Measuring fronts, choosing for unseen tasks, and questions to measured rows against brute force."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st

import tiny
from paretomerge import api, preferences
from paretomerge.data import DataSpec, Task, TensorInputs, load_task
from paretomerge.errors import UserError
from paretomerge.evaluation import evaluate, evaluators, measure, sampled, select_unseen, standard_preferences
from paretomerge.experts import load_experts
from paretomerge.front import Front, load_front, record
from paretomerge.models import shared as shared_models
from paretomerge.results import Row, best_with, knee
from task_data import REVIEWS, companions, config, paint, write_csv


def images(n: int, classes: int, seed: int, name: str = "a") -> Task:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(n, 3, 16, 16, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    held_out = TensorInputs({"pixel_values": pixels}, labels)
    return Task(name, "image-classification", None, held_out, "accuracy")


def tokens(n: int, seed: int, name: str = "a") -> Task:
    ids = torch.randint(3, 40, (n, 6), generator=torch.Generator().manual_seed(seed))
    return Task(name, "language-modelling", None, TensorInputs({"input_ids": ids}), "perplexity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return companions(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def vit_front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    """Two tasks with heads of 5 and 3 classes."""
    place = tmp_path_factory.mktemp("vit")
    base = tiny.save(tiny.model("vit", cls=transformers.ViTModel), place / "base")
    experts = {}
    for seed, (task, classes) in enumerate({"a": 5, "b": 3}.items(), 1):
        net = tiny.perturb(tiny.model("vit", num_labels=classes), seed, 1.5)
        experts[task] = tiny.save(net, place / task)
    return api.fit(load_experts(base, experts), "soup", hashes=False)


@pytest.fixture(scope="module")
def gpt_front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    base, experts = tiny.family("gpt2", tmp_path_factory.mktemp("gpt"))
    return api.fit(load_experts(base, experts), "soup", hashes=False)


def test_accuracy_and_perplexity_are_those_of_plain_code() -> None:
    net, task = tiny.model("vit"), images(23, 5, 0)
    inputs = task.held_out
    with torch.no_grad():
        right = net(**inputs.tensors).logits.argmax(-1) == inputs.labels
    expected = int(right.sum()) / 23
    assert measure(net, task, batch_size=7) == measure(net, task, batch_size=64) == expected
    lm, words = tiny.perturb(tiny.model("gpt2"), 1, 0.5), tokens(9, 0)
    ids = words.held_out.tensors["input_ids"]
    with torch.no_grad():
        expected = math.exp(lm(input_ids=ids, labels=ids).loss)
    assert measure(lm, words, batch_size=4) == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_measured() -> None:
    net, task = tiny.model("vit"), images(3, 5, 0)
    with pytest.raises(UserError, match="nothing to measure on"):
        measure(net, Task("a", "image-classification", task.held_out, None, "accuracy"))
    with pytest.raises(UserError, match="accuracy needs labels"):
        unlabelled = TensorInputs(task.held_out.tensors)
        measure(net, Task("a", "image-classification", None, unlabelled, "accuracy"))
    with pytest.raises(UserError, match="the label 9, the model 5 classes"):
        wrong = TensorInputs(task.held_out.tensors, torch.tensor([0, 9, 1]))
        measure(net, Task("a", "image-classification", None, wrong, "accuracy"))


def count_models(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of classes of each model that is built from now on."""
    built: list[int] = []
    make = shared_models.build_model
    monkeypatch.setattr(
        shared_models,
        "build_model",
        lambda weights, config, *lent: built.append(len(config.get("id2label", ()))) or make(weights, config, *lent),
    )
    return built


def test_every_row_is_what_a_fresh_model_gives(vit_front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [images(60, 5, 1, "a"), images(60, 3, 2, "b")]
    specs = [*standard_preferences(vit_front.tasks, sample=2), "a=1,b=1"]
    built = count_models(monkeypatch)
    measured = []
    monkeypatch.setattr(evaluators, "measure", lambda *args: measured.append(1) or measure(*args))
    seen: list[Row] = []
    rows = evaluate(vit_front, tasks, specs, seed=3, batch_size=16, progress=seen.append)
    assert built == [5, 3]  # one for each head, over the same weights
    assert len(measured) == 2 * 7  # equal and a=1,b=1 are one γ; priority:a, priority:b; only:a, only:b; two samples
    assert [(row["preference"], row["task"]) for row in rows] == [(spec, task) for spec in specs for task in "ab"]
    assert sorted(map(str, seen)) == sorted(map(str, rows))
    for row in rows:
        net = vit_front.model(row["preference"], head=row["task"], dtype=torch.float32)
        assert row["value"] == measure(net, tasks["ab".index(row["task"])])
        assert (row["method"], row["metric"], row["split"], row["seed"]) == (
            vit_front.pareto_set.method,
            "accuracy",
            "held-out",
            3,
        )
    assert len({row["value"] for row in rows}) > 2  # they differ; how much is chance


def test_tasks_without_heads_share_a_model(gpt_front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    built = count_models(monkeypatch)
    tasks = [tokens(5, 1, "a"), tokens(5, 2, "b")]
    rows = evaluate(gpt_front, tasks, ["only:a", "equal"], method="mine")
    assert len(built) == 1
    for row in rows:
        assert row["method"] == "mine" and row["metric"] == "perplexity"
        assert row["value"] == pytest.approx(
            measure(gpt_front.model(row["preference"]), tasks["ab".index(row["task"])]), rel=1e-4
        )


def test_a_preference_that_cannot_be_read_is_told_before_any_work(vit_front: Front) -> None:
    with pytest.raises(UserError, match="unknown task 'c'"):
        evaluate(vit_front, [images(4, 5, 1)], ["equal", "only:c"])


def test_texts_from_a_file_to_a_row(tmp_path: Path, folder: Path) -> None:
    base, experts = tiny.family("bert", tmp_path)
    front = api.fit(load_experts(base, experts), "soup", hashes=False)
    spec = DataSpec(path=str(write_csv(tmp_path / "a.csv", REVIEWS)), transductive=True)
    heads = [front.heads[task].config if task in front.heads else front.config for task in "ab"]
    tasks = [load_task(task, spec, companions=folder, config=head) for task, head in zip("ab", heads, strict=True)]
    rows = evaluate(front, tasks, ["equal"])
    assert [row["split"] for row in rows] == ["transductive"] * 2
    assert rows[0]["value"] == measure(front.model("equal", head="a" if "a" in front.heads else None), tasks[0], 1)


def test_a_zero_shot_front(tmp_path: Path, folder: Path) -> None:
    base, experts = tiny.family("clip", tmp_path)
    front = api.fit(load_experts(base, experts), "soup", hashes=False)
    spec = DataSpec(path=str(paint(tmp_path / "colours")), transductive=True)
    task = load_task("a", spec, companions=folder, config=config("clip"))
    rows = evaluate(front, [task], ["only:a", "only:b", "equal"])
    for row in rows:  # the text tower varies too, so the head is made anew
        assert row["value"] == measure(front.model(row["preference"], dtype=torch.float32), task)
    chosen = select_unseen(front, task.fit, prompts=task.prompts, sample=3)
    assert chosen.preference in chosen.entropies and len(chosen.entropies) == 3


def test_select_unseen_is_the_smallest_entropy(vit_front: Front) -> None:
    inputs = images(20, 5, 4).held_out
    found = select_unseen(vit_front, inputs, head="a", sample=6, seed=1, batch_size=7)
    assert list(found.entropies) == sampled(vit_front.tasks, 6, 1)
    for preference, value in found.entropies.items():
        net = vit_front.model(preference, head="a", dtype=torch.float32)
        with torch.no_grad():
            logits = net(**inputs.batch(range(20))).logits
        assert value == pytest.approx(float(torch.distributions.Categorical(logits=logits).entropy().mean()), abs=1e-5)
    assert found.entropies[found.preference] == min(found.entropies.values())


@given(n_tasks=st.integers(1, 5), n=st.integers(0, 20), seed=st.integers(0, 9))
def test_samples_are_different_preferences_that_people_can_type(n_tasks: int, n: int, seed: int) -> None:
    tasks = "abcde"[:n_tasks]
    found = sampled(tasks, n, seed)
    assert len(set(found)) == len(found) == (min(n, 1) if n_tasks == 1 else n)
    for text in found:
        assert preferences.format(preferences.parse(text, tasks), tasks) == text
        assert all(len(item.split("=")[1]) <= 5 for item in text.split(","))
    assert found == sampled(tasks, n, seed)


# questions to rows


def row(preference: str, task: str, value: float, **other: object) -> Row:
    return {"method": "m", "preference": preference, "task": task, "metric": "accuracy", "value": value, "split": "held-out",
            "seed": 0, **other}  # type: ignore[typeddict-item]  # fmt: skip


POINTS = st.integers(2, 3).flatmap(
    lambda k: st.tuples(
        st.just("abc"[:k]),
        st.lists(st.tuples(*[st.integers(0, 6).map(lambda x: x / 8)] * k), min_size=1, max_size=12),
    )
)


def rows_of(tasks: str, points: list[tuple[float, ...]], **other: object) -> list[Row]:
    specs = sampled(tasks, len(points))
    return [row(s, t, v, **other) for s, p in zip(specs, points, strict=True) for t, v in zip(tasks, p, strict=True)]


@given(points=POINTS, bound=st.floats(0, 1), other=st.floats(0, 1))
def test_best_with_is_brute_force(points: tuple, bound: float, other: float) -> None:
    tasks, values = points
    at_least = {"a": bound, "b": other} if len(tasks) == 3 else {"a": bound}
    maximise = tasks[-1]
    good = [p for p in values if all(p[tasks.index(t)] >= b for t, b in at_least.items())]
    if good:
        found = best_with(rows_of(tasks, values), tasks, at_least=at_least, maximise=maximise)
        assert found.points == len(values)
        assert found.values[maximise] == max(p[-1] for p in good)
        assert all(found.values[t] >= b for t, b in at_least.items())
        assert tuple(found.values[t] for t in tasks if t in found.values) in [p[-len(found.values) :] for p in good] + good
        # perplexity: the same with all signs turned
        turned = rows_of(tasks, [tuple(-v for v in p) for p in values], metric="perplexity")
        mirrored = best_with(turned, tasks, at_least={t: -b for t, b in at_least.items()}, maximise=maximise)
        assert mirrored.preference == found.preference
    else:
        with pytest.raises(UserError, match=f"none of the {len(values)} measured preferences") as error:
            best_with(rows_of(tasks, values), tasks, at_least=at_least, maximise=maximise)
        if len(at_least) == 1:
            assert f"the best a is {max(p[0] for p in values):.4g} at" in str(error.value)


@given(points=POINTS)
def test_knee_is_farthest_from_the_plane_of_the_single_bests(points: tuple) -> None:
    tasks, values = points
    front = [p for p in values if not any(q != p and all(x >= y for x, y in zip(q, p, strict=True)) for q in values)]
    low, high = (np.array([pick(c) for c in zip(*front, strict=True)]) for pick in (min, max))
    assume((high > low).all())
    f = (np.array(front) - low) / (high - low)
    anchors = f[f.argmax(0)]
    assume(abs(np.linalg.det(anchors)) > 1e-6)
    edges = anchors[1:] - anchors[0]  # the normal, by cofactors
    normal = np.array([edges[0][1], -edges[0][0]]) if len(tasks) == 2 else np.cross(edges[0], edges[1])
    normal = normal if normal @ anchors[0] > 0 else -normal
    distances = (f - anchors[0]) @ normal / np.linalg.norm(normal)
    found = knee(rows_of(tasks, values), tasks)
    chosen = tuple(found.values[t] for t in tasks)
    assert found.points == len(values) and chosen in front
    assert distances[front.index(chosen)] == pytest.approx(distances.max(), abs=1e-9)


def test_knee_of_a_corner_and_of_a_line() -> None:
    corner = [(0.0, 1.0), (0.9, 0.95), (1.0, 0.0), (0.5, 0.5)]
    assert knee(rows_of("ab", corner), "ab").values == {"a": 0.9, "b": 0.95}
    assert knee(rows_of("ab", [(0.3, 0.4)]), "ab").points == 1
    all_best = [(0.1, 0.2, 0.3), (0.5, 0.5, 0.5)]
    assert knee(rows_of("abc", all_best), "abc").values == {"a": 0.5, "b": 0.5, "c": 0.5}
    perplexities = [(10.0, 40.0), (11.0, 11.0), (40.0, 10.0)]
    assert knee(rows_of("ab", perplexities, metric="perplexity"), "ab").values == {"a": 11.0, "b": 11.0}


def test_points_are_preferences_not_rows() -> None:
    rows = [row("equal", t, 0.5, seed=s) for t in "ab" for s in (0, 1)]
    rows += [row("a=1,b=1", t, 0.7) for t in "ab"]  # the same γ
    rows += [row("only:a", "a", 0.9), row("only:b", "b", 0.99)]  # not measured for both
    rows += [row("only:a", "b", 1.0, split="transductive")]
    found = knee(rows, "ab")
    assert found.points == 1 and found.values == {"a": pytest.approx(1.7 / 3), "b": pytest.approx(1.7 / 3)}
    assert best_with(rows, "ab", at_least={}, maximise="b").preference == "only:b"
    assert best_with(rows, "ab", at_least={}, maximise="b").points == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no preference is measured for a, b"),
        ([row("only:a", "a", 1.0), row("only:b", "b", 1.0)], "no preference is measured for a, b"),
        (rows_of("ab", [(0.1, 0.2)]) + rows_of("ab", [(0.1, 0.2)], method="n"), "several methods: m, n"),
        (rows_of("ab", [(0.1, 0.2)]) + rows_of("ab", [(3, 3)], metric="perplexity"), "several metrics: accuracy, perplexity"),
        (rows_of("ab", [(0.1, 0.2), (0.3, 0.1)]), r"has a ≥ 0.2 and b ≥ 0.2: the best a with b good enough is 0.1 at .*"
                                                  r"; the best b with a good enough is 0.1 at "),
    ],
)  # fmt: skip
def test_questions_without_an_answer(rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message):
        best_with(rows, "ab", at_least={"a": 0.2, "b": 0.2}, maximise="b")


def test_a_task_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="no task is called 'x'"):
        best_with(rows_of("ab", [(0.1, 0.2)]), "ab", at_least={"x": 0.2}, maximise="b")


def test_recorded_rows_are_in_the_front(tmp_path: Path, gpt_front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt_front.save(tmp_path / "front")
    before = (tmp_path / "front" / "pareto_set.json").read_text()
    record(tmp_path / "front", rows_of("ab", [(0.1, 0.2), (0.3, 0.1)]))
    record(tmp_path / "front", [row("equal", "a", 0.5), row("equal", "a", 0.6, seed=1)])
    record(str(tmp_path / "front"), [row("equal", "a", 0.7)])
    front = load_front(tmp_path / "front")
    assert len(front.measured) == 6
    assert [(r["value"], r["seed"]) for r in front.measured if r["preference"] == "equal"] == [(0.7, 0), (0.6, 1)]
    assert front.summary()["measured"] == 6
    record(tmp_path / "front", [])
    assert len(load_front(tmp_path / "front").measured) == 6
    assert all(line in (tmp_path / "front" / "pareto_set.json").read_text() for line in before.splitlines()[:10])
    with pytest.raises(UserError, match="not a front"):
        record(tmp_path, [])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    whole = (tmp_path / "front" / "pareto_set.json").read_text()
    monkeypatch.setattr("paretomerge.weights.writing.os.replace", fail)
    with pytest.raises(UserError, match="No space left"):
        record(tmp_path / "front", [row("only:a", "a", 0.5)])
    assert (tmp_path / "front" / "pareto_set.json").read_text() == whole
    assert not list((tmp_path / "front").glob(".*"))


def test_standard_preferences() -> None:
    assert standard_preferences("ab") == ["equal", "priority:a", "priority:b", "only:a", "only:b"]
    assert standard_preferences(["a"]) == ["equal"]
    for tasks in ("a", "ab", "abc", "abcdefgh"):  # all different
        gammas = [preferences.parse(spec, tasks) for spec in standard_preferences(tasks)]
        assert len(set(gammas)) == len(gammas)
    assert len(standard_preferences("abc", sample=5)) == 12
    assert all(preferences.parse(p, "abc") for p in itertools.chain(standard_preferences("abc", 3, seed=4)))
