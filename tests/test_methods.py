"""What paretomerge methods lists, from signatures and docstrings."""

import pytest

from paretomerge.methods import describe_methods, functions
from paretomerge.options import check_options


@pytest.mark.parametrize("row", describe_methods(), ids=lambda row: f"{row['command']} {row['name']}")
def test_every_method_says_what_it_needs_and_describes_its_options(row):
    for field in ("summary", "needs", "stores", "paper"):
        assert row[field], f"{field} is not in the docstring"
    for name, option in row["options"].items():
        assert option["meaning"], f"{name} is not in the docstring"
        assert "typing" not in option["kind"] and "<" not in option["kind"], name


def test_defaults_of_every_method_pass_its_own_check():
    known = {(command, name): function for command, name, function in functions()}
    for row in describe_methods():
        defaults = {name: option["default"] for name, option in row["options"].items()}
        assert check_options(known[row["command"], row["name"]], defaults, row["name"]) == defaults
