"""Values of an evaluator's command: no quoting lets the shell read them as anything but a value."""

import os
import subprocess

import pytest

from paretomerge import UserError
from paretomerge.evaluation import VARIABLES, ByCommand, with_references
from paretomerge.results import Objective

HOSTILE = 'it\'s "$(touch PWNED)" `touch PWNED`; touch PWNED & * \\ \n{tasks} $HOME <b> 数学'
PRINT = r"printf '%s\0'"


def words(command: str, cwd, model: str = HOSTILE, tasks: str = "a b,c") -> list[str]:
    values = {VARIABLES["{model}"]: model, VARIABLES["{tasks}"]: tasks}
    done = subprocess.run(
        ["/bin/sh", "-c", with_references(command)], capture_output=True, text=True, cwd=cwd, env={**os.environ, **values}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (cwd / "PWNED").exists()
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    "line, given",
    [
        ("{model} {tasks}", [HOSTILE, "a b,c"]),
        ('"{model}" "x{tasks}y"', [HOSTILE, "xa b,cy"]),
        ("'{model}' 'x {tasks}'", [HOSTILE, "x a b,c"]),
        ("--model={model}/x", [f"--model={HOSTILE}/x"]),
        (""""'{model}'" '"{tasks}"' """, [f"'{HOSTILE}'", '"a b,c"']),
        ("\\'{tasks}\\' \\\"{tasks}", ["'a b,c'", '"a b,c']),
        ("'\\' {model}", ["\\", HOSTILE]),
        ("\"$(printf %s '{tasks}')\" '{tasks}'", ["a b,c", "a b,c"]),
        ('"$(printf "%s" "$(printf %s {tasks})")" "{tasks}"', ["a b,c", "a b,c"]),
        ('"`printf %s {tasks}`" {tasks}', ["a b,c", "a b,c"]),
        ("{tasks} # it's a comment", ["a b,c"]),
        ("a#b'{tasks}' ${#HOME} $((1 << 2)) {tasks}", ["a#ba b,c", str(len(os.environ["HOME"])), "4", "a b,c"]),
        ("$(cat <<E\nit's\nE\n) {tasks}", ["it's", "a b,c"]),
        ("{tasks} <<'E' # it's\nit's \" (\nE\ntrue '{tasks}'", ["a b,c"]),
    ],
)
def test_a_value_stays_a_value(tmp_path, line, given):
    assert words(f"{PRINT} {line}", tmp_path) == given


@pytest.mark.parametrize("line", ["x {model} <<E\n{tasks}\nE", "x {model} <<'the end'\n{tasks}"])
def test_where_no_reference_is_read(line):
    with pytest.raises(UserError, match=r"\{tasks\} in a .*: pass it as an argument, or read .* PARETOMERGE_TASKS there"):
        ByCommand(line, [Objective("a", "score")])
