"""Names from anybody's front: of tasks, tensors, files and metrics, in shells, paths, pages and on the terminal."""

import json
import sys

import pytest

from paretomerge import UserError, load_experts
from paretomerge.preferences import check_task, format, parse


def test_an_evaluator_in_a_folder_whose_name_is_hostile(cli, zoo, monkeypatch):
    """The folder of the merged model is beside what a user named, and a task's name may have a space."""
    (cli.here / "it's \"$(touch PWNED)").mkdir()
    monkeypatch.setenv("TMPDIR", str(cli.here / "it's \"$(touch PWNED)"))
    monkeypatch.setattr("tempfile.tempdir", None)
    family = zoo("llama")
    cli("fit", "--base", family / "base", "--expert", f"my math={family / 'a'}", "--expert", f"b={family / 'b'}", "-m", "soup",
        "-o", "front", "-q")  # fmt: skip
    (cli.here / "judge.py").write_text(
        "import json, os, sys\nassert all(os.path.exists(f + '/config.json') for f in sys.argv[1:3])\n"
        "assert sys.argv[1] == os.environ['PARETOMERGE_MODEL']\n"
        "print(json.dumps(dict.fromkeys(sys.argv[3].split(','), 0.5)))\n"
    )
    command = f"{sys.executable} judge.py '{{model}}' \"{{model}}\" {{tasks}}"
    rows = json.loads(
        cli(
            "evaluate", "front", "-p", "equal", "--evaluator", command, "--metric", "my math=acc", "--metric", "b=acc", "--json"
        )
    )
    assert [(row["task"], row["value"]) for row in rows] == [("my math", 0.5), ("b", 0.5)]
    assert not (cli.here / "PWNED").exists()


NAMES = ["$(touch PWNED)", "`id`", "a;b", "a|b", "a&b", "a'b", 'a"b', "a\\b", "a*", "a?", "<b>", "a>b", "{a}", "[red]", "a!",
         "~a", "#a", "a$b", "-a", "a\x1b[31m", "a\u202eb", "a\u200bb", "\ud800", "a\u2028b", "", " a", "a ", ".a", "../a",
         "a/b", "a^b", "a%b", "a(b"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_more_than_names(name, zoo):
    with pytest.raises(UserError, match="is no name for a task: use letters, digits, spaces and"):
        load_experts(zoo("llama") / "base", {name: zoo("llama") / "a"})


@pytest.mark.parametrize("name", ["math", "数学", "naïve café", "gsm8k+mbpp", "v1.2", "a_b-c", "1", "ελληνικά", "हिन्दी", "🎓"])
def test_names_of_any_alphabet(name):
    check_task(name)
    assert parse(format((0.75, 0.25), [name, "x"]), [name, "x"]) == (0.75, 0.25)


@pytest.mark.parametrize("key", ["experts", "data", "metrics"])
def test_names_in_a_recipe(cli, key):
    (cli.here / "r.yaml").write_text(f'base: b\n{key}: {{"$(id)": x}}\n')
    assert cli.refuses("fit", "r.yaml", "-o", "x").startswith(f"r.yaml: {key}: '$(id)' is no name for a task: ")
