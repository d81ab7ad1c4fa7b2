"""Commands as evaluators: what they print, how they fail, and that nothing of them stays."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.evaluation import Failed, command
from paretomerge.io import leftovers


def alive(pid: int) -> bool:
    """Whether it still lives after a moment: a signal that was sent is not yet a process that is gone."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path("/proc").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(
    "line, found",
    [
        ("""echo '{"a": 1}'""", {"a": 1}),
        ("""printf 'noise { {"a": 1}\\n{"a": {"acc": 0.5},\\n "b": 2}\\nbye }'""", {"a": {"acc": 0.5}, "b": 2}),
        ("""echo '{"a": NaN}' | tr N N; exit 0""", None),
        ("""cat; echo '{"a": 3}' """, {"a": 3}),  # nobody is there to type
    ],
)
def test_the_last_object_counts(line, found):
    got = command.run(line, timeout=20)
    assert got == found if found else got["a"] != got["a"]


VALUES = st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False) | st.text(max_size=5), max_size=3)


@given(st.lists(VALUES, min_size=1, max_size=3), st.text("{ }\n\\ax1", max_size=12))
def test_an_object_is_found_whatever_is_around(values, noise):
    printed = [json.dumps(value, indent=1) for value in values]
    assert command.last_object("\n".join(printed)) == values[-1]
    assert command.last_object(f"{noise}x\n{printed[0]}\nx{noise.replace('}', '')}") == values[0]


@pytest.mark.parametrize(
    "line, said",
    [
        ("echo first >&2; echo second >&2; exit 3", "exit code 3: first | second"),
        ("echo done", "printed no JSON object on standard output, but 'done'"),
        ("true", "printed no JSON object on standard output, but 'nothing'"),
        ("echo '[1, 2]'", "printed no JSON object"),
        ("kill -SEGV $$", "ended by SIGSEGV"),
        ("no-such-program", "exit code 127: "),
    ],
)
def test_failures(line, said):
    with pytest.raises(Failed) as failed:
        command.run(line, timeout=20)
    assert said in str(failed.value)


def test_too_slow_and_whatever_it_started(tmp_path):
    started = time.monotonic()
    with pytest.raises(Failed, match=r"took more than 0.5 s: starting"):
        command.run(f"echo starting >&2; sleep 60 & echo $! > {tmp_path}/pid; sleep 60", timeout=0.5)
    assert time.monotonic() - started < 30
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_stubborn_command(monkeypatch):
    monkeypatch.setattr(command, "_GRACE", 0.2)
    with pytest.raises(Failed, match="took more than"):
        command.run("trap '' TERM; sleep 1; sleep 60 & wait; sleep 60", timeout=0.3)


def test_what_a_command_leaves_running_ends_with_it(tmp_path):
    assert command.run(f"sleep 60 & echo $! > {tmp_path}/pid; echo '{{}}'", timeout=20) == {}
    deadline = time.monotonic() + 10
    while alive(int((tmp_path / "pid").read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_an_interrupt_ends_the_command(tmp_path):
    code = f"from paretomerge.evaluation import command\ncommand.run('echo $$ > {tmp_path}/pid; sleep 60', timeout=None)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as program:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    assert b"KeyboardInterrupt" in err
    assert not alive(int((tmp_path / "pid").read_text()))


def test_an_interrupt_while_a_command_starts(monkeypatch):
    start, begun = subprocess.Popen, []

    def interrupted(*args, **options):
        begun.append(start(*args, **options))
        signal.raise_signal(signal.SIGINT)
        return begun[0]

    monkeypatch.setattr(command.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.run("sleep 60", timeout=None)
    assert begun[0].returncode == -signal.SIGTERM


def test_much_output_is_read_from_its_end():
    print_much = f"{sys.executable} -c \"import sys; sys.stdout.write('x' * 9_000_000); print('{{}}')\""
    assert command.run(print_much, timeout=60) == {}


def test_the_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert leftovers.folder_for(Path("front.run")).parent == tmp_path / "front.run"


def test_folders_of_killed_runs(tmp_path):
    made = leftovers.folder_for(tmp_path / "run")
    (made / "model.safetensors").write_text("")
    (tmp_path / "run" / "evaluations.jsonl").write_text("")
    assert leftovers.left_behind(tmp_path / "run") == [made]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["evaluations.jsonl"]
