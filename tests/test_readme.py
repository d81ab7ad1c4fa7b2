"""Everything that the README tells to type, run on tiny models under the names that it uses."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import task_data
import tiny
from paretomerge import api
from paretomerge.cli import main
from paretomerge.demo import run as demo

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALLATION = (
    "python3 -m venv .venv", ". .venv/bin/activate", "pip install '.[app,lora]'",
    "pip install -c constraints.txt '.[app,lora]'",
)  # fmt: skip


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block, in order."""
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def run(line: str, monkeypatch) -> None:
    """One line of a shell block; the program runs in this process, what installs and makes is only recognised."""
    words = shlex.split(line)
    if words[0] == "make":
        assert set(words[1:]) <= targets(), line
    elif words[0] != "paretomerge":
        assert line in INSTALLATION, f"{line}: not known to be run"
    elif words[1] == "demo":  # it has a test of its own; here only the front that it leaves
        Path("paretomerge-demo").mkdir(exist_ok=True)
        shipped = demo.load()
        api.fit(shipped.experts, rank=4, hashes=False).save(Path("paretomerge-demo") / "front")
    elif words[1] != "explore":  # that, too
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0, line


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    base, experts = tiny.family("llama", tmp_path / "made")
    (tmp_path / "models").mkdir()
    for name, folder in {"base": base, "math": experts["a"], "code": experts["b"]}.items():
        folder.rename(tmp_path / "models" / name)
    task_data.companions(tmp_path / "models" / "base")
    task_data.adapters(tmp_path / "models" / "base", tmp_path / "loras", "math", "code")
    (tmp_path / "data").mkdir()
    for name, sentence in {"math": "the cat sat on the mat .", "code": "a very good film ?"}.items():
        (tmp_path / "data" / f"{name}.txt").write_text(f"{sentence}\n" * 400)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    done = {"sh": 0, "python": 0}
    for language, text in blocks():
        done[language] += 1
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                run(line, monkeypatch)
        else:
            exec(compile(text, "README.md", "exec"), names)
    assert done["sh"] > 3 and done["python"] > 1
    said = tiny.logits("llama", names["same"])
    from transformers import AutoModelForCausalLM

    picked = AutoModelForCausalLM.from_pretrained("my-model")
    assert (said - tiny.logits("llama", picked)).abs().max() < 1e-5
    assert "captured" in capsys.readouterr().out  # info's word, which the README explains


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_the_readme_names_every_method():
    from paretomerge.fitting import FITS
    from paretomerge.merges import MERGES
    from paretomerge.search import SEARCHES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in (*MERGES, *FITS, *SEARCHES) if f"`{name}`" not in text]


def test_the_versions_can_be_had_from_pypi():
    """A local version (2.13.0+cpu) is on no public index; without one, a CPU build that pip finds fits all the same."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and not line.startswith("#")]
    assert not [pin for pin in pins if "+" in pin] and "torch==2.13.0" in pins


def test_make_demo_installs_nothing_where_the_program_is(tmp_path):
    """And makes a demo that is there anew."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in ("python", "paretomerge"):
        (bin / name).touch()
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{bin}/paretomerge demo --overwrite --output paretomerge-demo\n"
