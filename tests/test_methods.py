"""What paretomerge methods lists, from signatures and docstrings."""

import pytest

from paretomerge.fitting.searches import SEARCHES
from paretomerge.methods import describe_methods, functions
from paretomerge.options import check_options
from paretomerge.search.judges import JUDGES, divided


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
        assert len(row["evaluators"]) == len(JUDGES)
        for kind, options in zip(JUDGES, row["evaluators"].values(), strict=True):
            defaults = {name: option["default"] for name, option in options.items()}
            assert divided(row["name"], SEARCHES[row["name"]], given[kind], defaults) == ({}, defaults)
    assert "timeout" in rows[0]["evaluators"]["--evaluator COMMAND"]
    assert "batch_size" in rows[0]["evaluators"]["--data"]
