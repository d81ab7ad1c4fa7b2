"""The evaluator of a search: nothing twice, failures retried once and left out, declarations held to."""

import numpy as np
import pytest

from paretomerge.errors import UserError
from paretomerge.evaluation import Evaluations, Failed, Store, checked, tried
from paretomerge.results import Objective

A, B = Objective("a", "score", True, 0.0, 1.0), Objective("b", "loss", False, 0.0, None)


class Calls:
    """a = c_0, b = c_1 + 1; counts what is asked, and fails as often as it is told."""

    def __init__(self, failing=None):
        self.asked, self.failing = [], dict(failing or {})

    def __call__(self, point, tasks):
        self.asked.append((point, tuple(tasks)))
        if self.failing.get(point, 0) > 0:
            self.failing[point] -= 1
            raise Failed("out of luck")
        return checked({"a": point[0], "b": {"loss": point[1] + 1}}, [A, B], tasks)

    def pool(self, jobs):
        for number, (point, tasks) in enumerate(jobs):
            yield number, tried(lambda: self, point, tasks)


def made(calls, folder=None, **more):
    return Evaluations([A, B], Store(folder, {}), calls.pool, **more)


POINTS = np.array([[0.0, 1.0], [0.5, 0.25], [-0.0, 1.0]])


def test_values_and_no_point_twice():
    calls = Calls()
    evaluations = made(calls)
    np.testing.assert_array_equal(evaluations(POINTS), [[0, 2], [0.5, 1.25], [0, 2]])
    np.testing.assert_array_equal(evaluations(POINTS[:1]), [[0, 2]])
    assert [point for point, _ in calls.asked] == [(0.0, 1.0), (0.5, 0.25)] and evaluations.done == 2


def test_columns_that_are_not_asked_for_cost_nothing():
    class Wanted(Calls):
        def __call__(self, point, tasks):
            return {task: value for task, value in super().__call__(point, tasks).items() if task in tasks}

    calls = Wanted()
    evaluations = made(calls)
    np.testing.assert_array_equal(evaluations(POINTS[:2], [1]), [[np.nan, 2], [np.nan, 1.25]])
    np.testing.assert_array_equal(evaluations(POINTS[:2]), [[0, 2], [0.5, 1.25]])
    assert [tasks for _, tasks in calls.asked] == [("b",), ("b",), ("a",), ("a",)]


def test_one_failure_is_forgiven_two_are_left_out(tmp_path):
    calls, said = Calls({(0.0, 1.0): 1, (0.5, 0.25): 2}), []
    evaluations = made(calls, tmp_path, say=said.append)
    np.testing.assert_array_equal(evaluations(POINTS), [[0, 2], [np.nan] * 2, [0, 2]])
    assert len(calls.asked) == 4
    assert said == ["warning: the evaluation at c = (0.5, 0.25) failed twice and is left out: out of luck"]
    evaluations(POINTS)
    assert len(calls.asked) == 4  # not in this run
    evaluations.store.close()
    again = Calls()
    np.testing.assert_array_equal(made(again, tmp_path)(POINTS), [[0, 2], [0.5, 1.25], [0, 2]])
    assert again.asked == [((0.5, 0.25), ("a", "b"))]


def test_a_hopeless_search_stops():
    points = np.linspace(0, 1, 10).reshape(-1, 2)
    calls = Calls({tuple(point): 2 for point in points.tolist()})
    with pytest.raises(UserError, match="the first 3 evaluations failed, each twice: out of luck"):
        made(calls)(points)
    assert len(calls.asked) == 6


def test_a_metric_outside_its_range_stops_a_search_and_is_kept(tmp_path):
    calls = Calls()
    evaluations = made(calls, tmp_path)
    with pytest.raises(UserError, match=r"task a: score was 41, outside of \[0, 1\]"):
        evaluations(np.array([[41.0, 0.0], [0.5, 0.5]]))
    evaluations.store.close()
    with pytest.raises(UserError, match="score was 41"):  # before anything is measured
        made(Calls(), tmp_path)
    wider = Calls()
    declared = Evaluations([A._replace(high=100.0), B], Store(None, {}), wider.pool)
    assert declared(np.array([[41.0, 0.0]]))[0, 0] == 41


@pytest.mark.parametrize(
    "given, said",
    [
        ({"a": 1.0}, "no number for loss of task b: there is none"),
        ({"a": float("nan"), "b": 1}, "no number for score of task a: there is nan"),
        ({"a": True, "b": 1}, "there is True"),
        ({"a": "0.5", "b": 1}, "there is '0.5'"),
        ({"a": {"accuracy": 0.5}, "b": 1}, "there is none"),
        ([1, 2], "where a map from task to metric is expected"),
    ],
)
def test_what_is_no_result(given, said):
    with pytest.raises(Failed) as failed:
        checked(given, [A, B], ["a", "b"])
    assert said in str(failed.value)


def test_numbers_of_numpy_and_torch():
    import torch

    assert checked({"a": np.float32(0.5), "b": torch.tensor([2.0])}, [A, B], ["a", "b"]) == {"a": 0.5, "b": 2.0}


def test_what_is_not_finite_is_no_number():
    outcome = next(Calls().pool([((float("inf"), 0.0), ("a",))]))[1]
    assert not outcome.metrics and "there is inf" in outcome.message


def test_a_users_mistake_is_not_tried_again():
    def wrong(point, tasks):
        raise UserError("no such device")

    outcome = tried(lambda: wrong, (0.0,), ["a"])
    assert outcome.mistake and outcome.message == "no such device"


def test_reports_come_one_by_one():
    told = []
    made(Calls(), report=lambda count, facts: told.append((count, facts["c"], facts["metrics"])))(POINTS)
    assert told == [(1, (0.0, 1.0), {"a": 0.0, "b": 2.0}), (2, (0.5, 0.25), {"a": 0.5, "b": 1.25})]
