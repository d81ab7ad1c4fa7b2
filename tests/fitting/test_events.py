"""Events for TensorBoard, read back by TensorBoard."""

import sys

import pytest

from paretomerge.errors import UserError
from paretomerge.fitting import events


def logged(step: int, value: float) -> dict:
    return {
        "step": step, "gamma": [0.25, 0.75], "losses": {"1": value}, "watched": {"1": {"marginal": 2 * value}}, "lr": 0.5,
    }  # fmt: skip


def test_steps_that_are_done_again_are_there_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    told = []
    for steps, value in ((range(1, 7), 1.0), (range(4, 9), 3.0)):  # stopped after step 6, resumed from the state of step 3
        with events(tmp_path, ["a", "b"], lambda done, _: told.append(done)) as report:
            for step in steps:
                report(step, logged(step, value))
    assert told == [*range(1, 7), *range(4, 9)]
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"lr", "objective/b", "marginal/b", "preference/a", "preference/b"}
    found = [(event.step, event.value) for event in read.Scalars("objective/b")]
    assert found == [(step, 1.0 if step < 4 else 3.0) for step in range(1, 9)]
    assert {event.value for event in read.Scalars("preference/b")} == {0.75}
    assert {event.value for event in read.Scalars("marginal/b")} == {2.0, 6.0}


def test_without_steps_nothing_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    with events(tmp_path, ["a"]):
        pass
    assert not list(tmp_path.iterdir())


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no folder"), events(None, ["a"]):
        pass
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(UserError, match=r"tensorboard is not installed .*: pip install 'paretomerge\[log\]'"),
        events(tmp_path, []),
    ):
        pass
