"""What paretomerge methods lists, from signatures and docstrings."""

import re
from typing import Annotated

import pytest

from paretomerge.errors import UserError
from paretomerge.evaluation import EVALUATORS, divided
from paretomerge.fitting import TrainingOptions, pwe_moe
from paretomerge.methods import describe_methods, functions
from paretomerge.options import Without, arguments, check_options, settings_of
from paretomerge.search import SEARCHES


@pytest.mark.parametrize("row", describe_methods(), ids=lambda row: f"{row['command']} {row['name']}")
def test_every_method_says_what_it_needs_and_describes_its_options(row):
    for field in ("summary", "needs", "stores", "paper"):
        assert row[field], f"{field} is not in the docstring"
    options = [*row["options"].items(), *(each for of in row.get("evaluators", {}).values() for each in of.items())]
    for name, option in options:
        assert option["meaning"], f"{name} is not in the docstring"
        assert "typing" not in option["kind"] and "<" not in option["kind"], name


def test_defaults_of_every_method_pass_its_own_check():
    known = {(command, name): function for command, name, function in functions()}
    for row in describe_methods():
        defaults = {name: option["default"] for name, option in row["options"].items()}
        assert check_options(known[row["command"], row["name"]], defaults, row["name"]) == defaults


def test_methods_by_evaluations_list_what_their_evaluators_take_and_a_fit_accepts_it():
    rows = [row for row in describe_methods() if row["command"] == "fit by evaluations"]
    assert rows and not [row["name"] for row in describe_methods() if "evaluators" in row and row not in rows]
    given = {"data": None, "function": dict, "command": "score {model}", "lm-eval": "lm-eval"}
    for row in rows:
        assert len(row["evaluators"]) == len(EVALUATORS)
        for kind, options in zip(EVALUATORS, row["evaluators"].values(), strict=True):
            defaults = {name: option["default"] for name, option in options.items()}
            assert divided(row["name"], SEARCHES[row["name"]], given[kind], defaults) == ({}, defaults)
    assert "timeout" in rows[0]["evaluators"]["--evaluator COMMAND"]
    assert "batch_size" in rows[0]["evaluators"]["--data"]


@pytest.mark.parametrize("row", describe_methods(), ids=lambda row: f"{row['command']} {row['name']}")
def test_the_command_line_reads_whole_sentences(row):
    """No markup of docstrings, no reference to another function, a capital at the start and a full stop at the end."""
    for options in (row["options"], *row.get("evaluators", {}).values()):
        for name, option in options.items():
            assert re.fullmatch(r"[A-Z](?:(?!`|\"|[Aa]s in (?:map|the closed form)).)*\.", option["meaning"]), name


def test_options_of_a_record_are_options_of_the_method():
    """A field of TrainingOptions is checked, described and defaulted as an option; what a method does not have is unknown."""
    by_name = {row["name"]: row["options"] for row in describe_methods() if row["command"] == "fit --data"}
    fields = {name: option["meaning"] for name, option in by_name["steered"].items() if hasattr(TrainingOptions, name)}
    assert len(fields) == 21 and by_name["pareto-merging"]["steps"]["default"] == 600
    for name, options in by_name.items():
        if name != "react":  # which takes no steps
            assert all(option["meaning"] == fields[key] for key, option in options.items() if key in fields), name
    assert "beta" in by_name["steered"] and "beta" not in by_name["pwe-moe"] and "alpha" not in by_name["adamerging"]
    assert (by_name["pwe-moe"]["lr"]["default"], by_name["adamerging"]["lr"]["default"]) == (1e-2, 1e-3)
    with pytest.raises(UserError, match=r"pwe-moe: unknown option 'beta'"):
        check_options(pwe_moe, {"beta": 0.1}, "pwe-moe")
    with pytest.raises(UserError, match=r"unknown option 'bath_size', did you mean 'batch_size'\?"):
        check_options(pwe_moe, {"bath_size": 3}, "pwe-moe")
    with pytest.raises(UserError, match="schedule must be cosine or constant, not 'linear'"):
        check_options(pwe_moe, {"schedule": "linear"}, "pwe-moe")
    given = arguments(pwe_moe, {"scale": 0.2, "steps": 7})
    assert given == {"scale": 0.2, "options": TrainingOptions(batch_size=16, lr=1e-2, alpha=1.0, equal_every=0, steps=7)}


def test_settings_take_records_apart_and_refuse_what_a_method_does_not_have():
    def method(*, rank: int = 1, options: Annotated[TrainingOptions, Without("beta", "device")] = TrainingOptions(lr=1.0)): ...

    settings = settings_of(method, {"rank": 2, "options": TrainingOptions(steps=3), "other": 1})
    assert settings["rank"] == 2 and settings["steps"] == 3 and not {"beta", "device", "other", "options"} & settings.keys()
    with pytest.raises(UserError, match="method has no option beta: it is always 0"):
        settings_of(method, {"rank": 2, "options": TrainingOptions(beta=0.5)})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": -1}, "steps must not be negative"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"objective": "kl"}, "objective 'kl': choose one of distill, infomax"),
        ({"schedule": "step"}, "schedule 'step': choose one of cosine, constant"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"objective": "infomax", "micro_batch_size": 4}, "leave micro_batch_size out"),
    ],
)
def test_training_options_that_make_no_sense(wrong, message):
    with pytest.raises(UserError, match=message):
        TrainingOptions(**wrong)
