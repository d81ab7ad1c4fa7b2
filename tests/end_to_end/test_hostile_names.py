"""Names from anybody's front: of tasks, tensors, files and metrics, in shells, paths, pages and on the terminal."""

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file

import fronts
from commands import contents, program
from paretomerge import UserError, load_experts
from paretomerge.cli import fitting_bar, say, show_rows
from paretomerge.front import model_card
from paretomerge.io import LONGEST
from paretomerge.preferences import check_task, format, parse
from paretomerge.report import Routing, routing_figure


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


STEERING = "\x1b]0;title\x07\x1b[31m\u202e\u200b\x9b2J[red]"


def test_names_of_tensors_on_the_terminal(cli):
    """Escapes of a terminal are shown, not sent; a long name does not fill the screen."""
    name = f"{STEERING}{'y' * 6000}.weight"
    for file, tensors in {"base": {"x": torch.zeros(2)}, "a": {"x": torch.ones(2), name: torch.ones(2)}}.items():
        save_file(tensors, cli.here / f"{file}.safetensors")
    words = ("--base", "base.safetensors", "--expert", "a=a.safetensors")
    for code, out, err in (cli.call(["merge", *words, "-o", "out"]), cli.call(["check", *words])):
        said = out + err
        assert r"\x1b]0;title\x07\x1b[31m\u202e\u200b\x9b2J[red]y" in said and code in (0, 2)
        assert all(sign.isprintable() or sign == "\n" for sign in said)
        assert max(map(len, said.splitlines())) <= LONGEST and "characters left out" in said
    assert cli.call(["check", *words, "--json"])[1].isprintable() is False  # its line ends, and nothing else
    assert all(sign.isprintable() or sign == "\n" for sign in cli.call(["check", *words, "--json"])[1])


def test_names_of_metrics_and_files_in_tables(capsys):
    row = {"method": STEERING, "preference": "equal", "task": "a", "metric": STEERING, "split": "held-out", "seed": 0}
    row["value"] = float("nan")
    show_rows([row])
    with fitting_bar(["a"], quiet=False) as report:
        report(100, {"losses": {"0": 1.0}, "steps": 100})
    say(f"{STEERING}\n{'x' * 9000}")
    out, err = capsys.readouterr()
    assert all(sign.isprintable() or sign == "\n" for sign in out + err) and "\\x1b" in out
    assert err.count("\n") == 2 and max(map(len, err.splitlines())) <= LONGEST


def test_names_in_a_card():
    """Its metadata are YAML, its tables Markdown."""
    name = "models--x\n- evil: y/snapshots/1"
    rows = [{"task": "a", "metric": "$x$|<b>\\|\x1b\ud800", "value": 0.5, "how": "measured, held-out"}]
    card = model_card({"method": "soup", "settings": {"|\n---": STEERING}, "metrics": rows,
                       "sources": {"base": {"path": name}, "experts": {"a": {"path": "x|`y`\ud800"}}}})  # fmt: skip
    card.encode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in metadata and metadata["tags"] == ["merge", "paretomerge"]
    assert r"| a | \$x\$\|&lt;b&gt;\\\|\\x1b\\ud800 | 0.5 | measured, held-out |" in card
    assert all(sign.isprintable() or sign == "\n" for sign in card)


def test_names_in_figures_and_reports(tmp_path):
    """Labels are no mathematics, and the same numbers give the same bytes."""
    routing = Routing(("a", "b"), ("$x_{1$", STEERING), torch.tensor([[[1.0, 0.0]] * 2] * 2))
    for ending in ("png", "svg", "pdf"):
        for number in (1, 2):
            routing_figure(tmp_path / f"{number}.{ending}", routing)
        assert (tmp_path / f"1.{ending}").read_bytes() == (tmp_path / f"2.{ending}").read_bytes()
    assert "$x_{1$" in (tmp_path / "1.svg").read_text() and "<dc:date>" not in (tmp_path / "1.svg").read_text()


def test_a_report_has_the_same_bytes_at_each_run(tmp_path):
    """Whatever the hashes of texts are, and however often it is written."""
    folder = fronts.front(tmp_path, ("a", "b", "c d")).folder
    for number, seed in (("1", "1"), ("2", "7")):
        words = ("report", folder, "-o", tmp_path / f"{number}.html", "--figures", tmp_path / number, "-q")
        done = program(*words, PYTHONHASHSEED=seed)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
