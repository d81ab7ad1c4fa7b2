"""What metrics are declared to be."""

import pytest

from paretomerge.errors import UserError
from paretomerge.results import METRICS, Objective, check_range, larger_is_better, objective, objectives_of, row_of


def test_known_metrics_need_no_declaration():
    for name, known in METRICS.items():
        assert objective("a", name) == Objective("a", name, *known)
        assert larger_is_better(name) == larger_is_better(f"bench/{name},some-filter") == known[0]
    assert objective("a", "acc_norm,none")[2:] == (True, 0.0, 1.0)


def test_a_range_of_ones_own():
    assert objective("a", "exact_match:max:0:100")[2:] == (True, 0.0, 100.0)
    assert objective("a", "tokens:min")[2:] == (False, None, None)
    assert objective("a", "gain:max::5")[2:] == (True, None, 5.0)
    assert objective("a", "gain:max:-inf:inf")[2:] == (True, None, None)


@pytest.mark.parametrize(
    "text, said",
    [
        ("score", "which way is better? Write score:max or score:min"),
        ("perplexity:max", "of perplexity, less is better: write perplexity alone"),
        ("score:up", "write NAME:max or NAME:min"),
        ("score:max:0:1:2", "write NAME:max or NAME:min"),
        ("score:max:1:0", "the smallest value 1 is not below the largest, 0"),
        ("score:max:low", "'low' is not a number"),
        ("score:max:nan", "'nan' is not a number"),
        ("  :max", "no name of a metric"),
    ],
)
def test_wrong_declarations(text, said):
    with pytest.raises(UserError, match="metric of math: ") as refused:
        objective("math", text)
    assert said in str(refused.value)


def test_every_task_has_one_metric():
    given = {"b": "accuracy", "a": Objective("?", "tokens", False)}
    assert objectives_of(given, ["a", "b"]) == (Objective("a", "tokens", False), objective("b", "accuracy"))
    with pytest.raises(UserError, match="no metric for task b"):
        objectives_of({"a": "accuracy"}, ["a", "b"])
    with pytest.raises(UserError, match="metric of c: no task is called so"):
        objectives_of({"a": "accuracy", "c": "accuracy"}, ["a"])


def test_values_outside_their_range():
    check_range(Objective("a", "x", True, 0.0, 1.0), 1.0)
    check_range(Objective("a", "x", False, None, 1.0), -1e9)
    for bounds, value in (((0.0, 1.0), 41.0), ((0.0, 1.0), -0.1), ((1.0, None), 0.5)):
        with pytest.raises(UserError, match=r"outside of \[.*--metric a=x:max:LOW:HIGH"):
            check_range(Objective("a", "x", True, *bounds), value)


def test_rows_say_what_is_not_known():
    row = row_of(Objective("a", "tokens", False), 3.0, "equal", method="m", split="held-out", seed=0)
    assert row["larger_is_better"] is False
    assert "larger_is_better" not in row_of(objective("a", "acc,none"), 3.0, "equal", method="m", split="held-out", seed=0)
