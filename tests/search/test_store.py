"""Evaluations on disk: what is written is read, a torn line is dropped, and nobody writes at the same time."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.errors import UserError
from paretomerge.evaluation import FILE, Store, as_point

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


@given(st.lists(st.tuples(st.lists(FINITE, min_size=2, max_size=2), FINITE), max_size=8))
def test_what_is_written_is_read_bit_for_bit(tmp_path_factory, measured):
    folder = tmp_path_factory.mktemp("run")
    store = Store(folder, {"kind": "x"})
    for c, value in measured:
        store.add(as_point(c), {"a": value}, 0.1)
    store.close()
    again = Store(folder, {"kind": "x"})
    assert again.metrics == store.metrics and again.found == len({as_point(c) for c, _ in measured})
    again.close()


def test_minus_zero_is_zero():
    assert math.copysign(1, as_point([-0.0])[0]) == 1


def test_metrics_of_one_point_add_up(tmp_path):
    store = Store(tmp_path, {})
    store.add((0.0,), {"a": 1.0}, 0.0)
    store.add((0.0,), {"b": 2.0}, 0.0)
    store.close()
    assert Store(tmp_path, {}).metrics == {(0.0,): {"a": 1.0, "b": 2.0}}


def test_other_evaluators_are_kept_apart(tmp_path):
    for kind, value in (("x", 1.0), ("y", 2.0)):
        store = Store(tmp_path, {"kind": kind})
        assert store.found == 0
        store.add((0.5,), {"a": value}, 0.0)
        store.close()
    store = Store(tmp_path, {"kind": "x"})
    assert store.metrics == {(0.5,): {"a": 1.0}}
    assert [line["is"]["kind"] for line in lines(tmp_path) if "is" in line] == ["x", "y"]


def test_failures_are_recorded_and_tried_again_by_the_next_run(tmp_path):
    store = Store(tmp_path, {})
    store.fail((0.5,), "no memory", 0.25)
    store.close()
    assert lines(tmp_path)[-1] == {"evaluator": store.key, "c": [0.5], "failed": "no memory", "seconds": 0.25}
    again = Store(tmp_path, {})
    assert again.failures == {} and again.found == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    store = Store(tmp_path, {})
    store.add((0.25,), {"a": 1.0}, 0.0)
    whole = (tmp_path / FILE).read_bytes()
    store.add((0.75,), {"a": 2.0}, 0.0)
    store.close()
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: max(len(whole), len(content) - cut)])
    again = Store(tmp_path, {})
    assert again.metrics == {(0.25,): {"a": 1.0}} and (tmp_path / FILE).read_bytes() == whole
    again.add((0.75,), {"a": 2.0}, 0.0)
    again.close()
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.parametrize("wrong", ["not JSON", "[]", '{"evaluator": "KEY", "c": "x", "metrics": {}}', '{"c": [1]}'])
def test_a_damaged_line_is_named(tmp_path, wrong):
    store = Store(tmp_path, {})
    store.close()
    with open(tmp_path / FILE, "a") as file:
        file.write(wrong.replace("KEY", store.key) + "\n")
    with pytest.raises(UserError, match=rf"{FILE}: line 2 is damaged .*: delete that line"):
        Store(tmp_path, {})


def test_two_at_a_time(tmp_path):
    store = Store(tmp_path, {})
    with pytest.raises(UserError, match="another run is writing there"):
        Store(tmp_path, {"other": 1})
    store.close()
    Store(tmp_path, {"other": 1}).close()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file", {})
