"""Searched sets: which point a preference picks, exact at equal preference, kept and read back."""

import json

import numpy as np
import pytest
import torch

from paretomerge.merges import for_every_name, processed, with_coefficients
from paretomerge.preferences import equal
from paretomerge.sets import Metric, Searched, SearchedFront, pick
from paretomerge.weights import Weights
from states import DTYPES, family, opened

TASKS = ("a", "b")
METRICS = (Metric("a", "accuracy", True), Metric("b", "perplexity", False))
NAN = np.full((3, 2), np.nan)
POINTS = np.array([[1.0, 0.0], [0.5, 0.6], [0.0, 1.0]])
PREDICTED = np.array([[0.9, 30.0], [0.8, 12.0], [0.5, 10.0]])


def searched(front: SearchedFront, dtype=torch.float32, choice="tchebycheff") -> Searched:
    experts = opened(*family(2, dtype))
    vectors = for_every_name(experts, processed(experts))
    row = pick(front, TASKS, np.array(equal(2)), choice)
    base = with_coefficients(experts, vectors, front.points[row].tolist())
    return Searched(TASKS, base, vectors, front, choice, {"search": "map"})


def picked(front: SearchedFront, *gamma: float, tasks=TASKS, choice="tchebycheff") -> int:
    return pick(front, tasks, np.array(gamma), choice)


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_theta_0_plus_the_points_coefficients(dtype):
    base, states = family(2, dtype)
    pareto_set = searched(SearchedFront(POINTS, METRICS, PREDICTED, NAN), dtype)
    step = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-7, torch.bfloat16: 2**-4}[dtype]
    for gamma, row in (("only:a", 0), ("equal", 1), ("only:b", 2), ("a=0.9,b=0.1", 0)):
        weights = pareto_set.at(gamma)
        for name in base:
            v = [s[name].double() - base[name].double() for s in states]
            expected = base[name].double() + POINTS[row, 0] * v[0] + POINTS[row, 1] * v[1]
            assert weights[name].dtype == base[name].dtype
            torch.testing.assert_close(weights[name].double(), expected, rtol=step, atol=step)


def test_equal_preference_is_the_base_bit_for_bit_and_shifts_come_back():
    pareto_set = searched(SearchedFront(POINTS, METRICS, PREDICTED, NAN))
    weights = pareto_set.at("equal")
    assert all(torch.equal(weights[name], pareto_set.base[name]) for name in weights)
    name = "layer.query.weight"
    tensor = pareto_set.at("only:a")[name].clone()
    moved = pareto_set.shift(pareto_set.preference("only:b"), pareto_set.preference("only:a")).add_(name, tensor)
    assert moved is tensor
    torch.testing.assert_close(moved, pareto_set.at("only:b")[name], rtol=1e-5, atol=1e-5)


def test_the_point_is_picked_once_for_a_model(monkeypatch):
    from paretomerge.sets import searched as room

    pareto_set = searched(SearchedFront(POINTS, METRICS, PREDICTED, NAN))
    counted = []
    monkeypatch.setattr(
        room, "pick", lambda front, tasks, gamma, choice: counted.append(gamma) or pick(front, tasks, gamma, choice)
    )
    for preference in ("only:a", "only:b"):
        weights = pareto_set.at(preference)
        assert len([weights[name] for name in weights]) > 3
    assert [gamma.tolist() for gamma in counted] == [[1, 0], [0.5, 0.5], [0, 1]]  # the equal one's is known from then on


def test_measured_counts_before_predicted():
    front = SearchedFront(POINTS, METRICS, PREDICTED, NAN)
    assert picked(front, 1, 0) == 0
    measured = NAN.copy()
    measured[0] = [0.55, 31.0]  # far worse than predicted
    assert picked(SearchedFront(POINTS, METRICS, PREDICTED, measured), 1, 0) == 1


def test_a_point_of_unknown_metrics_is_never_picked():
    measured = np.array([[0.9, np.nan], [0.8, 12.0], [0.5, 10.0]])
    front = SearchedFront(POINTS, METRICS, NAN, measured)
    assert picked(front, 1, 0) == 1


def test_dominated_points_do_not_stretch_the_scale():
    """The third point is dominated; with it in the scale of metric b, the second would seem as good as the first."""
    metrics = (Metric("a", "error", False), Metric("b", "error", False))
    values = np.array([[0.0, 1.0], [0.5, 0.4], [0.6, 100.0], [1.0, 0.0]])
    front = SearchedFront(np.zeros((4, 2)), metrics, values, np.full((4, 2), np.nan))
    assert picked(front, 0.5, 0.5) == 1


def test_several_metrics_share_a_tasks_weight():
    metrics = (Metric("a", "m", True), Metric("a", "n", True), Metric("b", "m", True))
    values = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.1]])
    front = SearchedFront(np.zeros((4, 2)), metrics, values, np.full((4, 3), np.nan))
    assert picked(front, 1, 0) == 3
    assert picked(front, 0, 1) == 2


def test_points_made_for_preferences_answer_the_nearest():
    front = SearchedFront(POINTS, METRICS, NAN, NAN, preferences=np.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]]))
    assert [picked(front, w, 1 - w) for w in (1, 0.7, 0.6, 0.4, 0)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("choice", ["tchebycheff", "weighted-sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [None, np.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])])
def test_stored_and_restored(dtype, choice, wanted):
    measured = NAN.copy()
    measured[1] = [0.81, 12.5]
    pareto_set = searched(SearchedFront(POINTS, METRICS, PREDICTED, measured, wanted), dtype, choice)
    tensors, facts = pareto_set.stored()
    facts = json.loads(json.dumps(facts, allow_nan=False))
    kept = Weights.of({name: tensors[name].clone() for name in tensors})
    again = Searched.restored(TASKS, pareto_set.base, pareto_set.settings, kept, facts)
    for gamma in ("only:a", "only:b", "equal", "a=1,b=3"):
        one, other = pareto_set.at(gamma), again.at(gamma)
        assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_array_equal(again.front.measured, measured)
    assert again.choice == choice and set(again.varying) == set(pareto_set.varying)


WRONG = {
    "choice": ["", None, 3],
    "metrics": [[], None, [{"task": "a", "metric": "m", "larger_is_better": True}], [{"task": "c"}]],
    "points": [[], None, [[0.0]], [[0.0, 1.0]], [[0.0, None]] * 3, [[0.0, 1.0], [1.0]], "x"],
    "predicted": [[], [[0.1, 0.2]], [[None, None]] * 3, [[1, 2, 3]] * 3],
    "measured": [[], None, [[0.1, 0.2]]],
    "preferences": [[], [[0.5, 0.5]], [[None, 1]] * 3],
}


@pytest.mark.parametrize("key, wrong", [(key, value) for key, values in WRONG.items() for value in values])
def test_damaged_facts_are_refused(key, wrong):
    pareto_set = searched(SearchedFront(POINTS, METRICS, PREDICTED, NAN))
    tensors, facts = pareto_set.stored()
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        Searched.restored(TASKS, pareto_set.base, {}, tensors, {**facts, key: wrong})
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        Searched.restored(TASKS, pareto_set.base, {}, tensors, {name: fact for name, fact in facts.items() if name != key})


def test_a_front_of_one_point_is_one_model():
    front = SearchedFront(POINTS[:1], METRICS, PREDICTED[:1], NAN[:1])
    pareto_set = searched(front)
    one, other = pareto_set.at("only:a"), pareto_set.at("only:b")
    assert all(torch.equal(one[name], other[name]) for name in one)
