"""Several commands on one front or one run at once, and a front that cannot be written: no number is lost or misplaced."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import plain
from commands import PROGRAM, contents
from paretomerge import load_front
from paretomerge.errors import UserError
from paretomerge.evaluation import recording
from paretomerge.front import record, relocate
from paretomerge.io import locked, run_folder, temporary

PRINT = """echo '{"a": 0.5, "b": 0.25}'"""


@pytest.fixture
def front(cli):
    plain.models(cli.here)
    cli("fit", *plain.FLAGS, "-m", "soup", "-o", "front", "-q")
    return cli.here / "front"


def recorded(front):
    return json.loads((front / "pareto_set.json").read_text())["measured"]


def evaluate(command, *words):
    return ["evaluate", "front", "-p", "equal", "--evaluator", command, *plain.METRICS, *words]


def rows(*specs):
    return [
        {"method": "soup", "preference": s, "task": t, "metric": "acc", "value": 0.5, "split": "held-out", "seed": 0}
        for s in specs
        for t in "ab"
    ]


def test_writers_at_once_lose_no_rows(front):
    """Each reads and writes the whole file."""
    begin = threading.Barrier(4)
    failures = []

    def write(number):
        try:
            begin.wait(60)
            for n in range(6):
                record(front, rows(f"a={number + 1},b={n + 1}"))
                if number == 0:
                    relocate(front, experts={"a": front.parent / "a.safetensors"})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(recorded(front)) == 4 * 6 * 2
    load_front(front)


def test_a_front_that_is_replaced_while_it_is_measured_gets_no_numbers_of_the_old_one(cli, front):
    plain.model(cli.here / "b.safetensors", 7)
    cli("fit", *plain.FLAGS, "-m", "soup", "-o", "next", "-q")
    code, out, err = cli.call([*evaluate(f"mv front old; mv next front; {PRINT} # {{model}}"), "--json", "-q"])
    assert code == 2 and err.startswith("error: front: another front has been written there since this one was opened")
    (kept,) = cli.here.glob("front-measured-*.json")
    assert err.rstrip().endswith(f"the numbers are in {kept.name}")
    assert json.loads(out) == json.loads(kept.read_text()) and [row["value"] for row in json.loads(out)] == [0.5, 0.25]
    assert recorded(front) == recorded(cli.here / "old") == []


def test_the_same_front_somewhere_else_gets_its_numbers(cli, front):
    """A front that was moved away and back, and told where its sources are, is the one that was measured."""
    away = f"mv front old; cp -r old front; {shlex.quote(str(PROGRAM))} relocate front --base base.safetensors; {PRINT}"
    cli(*evaluate(f"{away} # {{model}}"), "-q")
    assert [row["value"] for row in recorded(front)] == [0.5, 0.25]


def test_a_front_that_cannot_be_written_is_found_out_before_anything_is_measured(cli, front, monkeypatch):
    def readonly(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(recording, "temporary", readonly)
    line = cli.refuses(*evaluate(f"touch measured; {PRINT} # {{model}}"))
    assert line == "front: cannot be written (Read-only file system): add --dry to measure without recording"
    assert json.loads(cli(*evaluate(f"{PRINT} # {{model}}"), "--dry", "--json"))


def test_numbers_that_cannot_be_recorded_are_kept_elsewhere(cli, front, monkeypatch):
    def full(*_):
        raise UserError("front/pareto_set.json: cannot be written (No space left on device)")

    monkeypatch.setattr(recording, "record", full)
    code, out, err = cli.call([*evaluate(f"{PRINT} # {{model}}"), "-q"])
    (kept,) = cli.here.glob("front-measured-*.json")
    assert code == 2 and "0.5000" in out and err.count("\n") == 1
    assert err == f"error: front/pareto_set.json: cannot be written (No space left on device); the numbers are in {kept.name}\n"
    assert [row["value"] for row in json.loads(kept.read_text())] == [0.5, 0.25]


def test_the_next_writer_removes_what_a_killed_one_left_in_a_front(cli, front):
    for left in (".pareto_set.json.writing-0123abcd", "exports/.model.writing-0123abcd/model.safetensors"):
        (front / left).parent.mkdir(parents=True, exist_ok=True)
        (front / left).write_text("half")
    cli(*evaluate(f"{PRINT} # {{model}}"), "-q")
    assert not list(front.rglob(".*"))
    (front / ".README.md.writing-0123abcd").write_text("half")
    cli("fit", *plain.FLAGS, "-m", "soup", "-o", "front", "--overwrite", "-q")
    assert not list(front.rglob(".*"))


def test_an_export_of_the_page_and_a_new_front(cli, front):
    from paretomerge.app import export

    opened = load_front(front)
    export(opened, (0.5, 0.5), "mine")
    with locked(front):
        late = threading.Thread(target=export, args=(opened, (0.2, 0.8), "second"))
        late.start()
    late.join()
    assert sorted(path.name for path in (front / "exports").iterdir()) == ["mine", "second"]
    front.rename(cli.here / "old")
    plain.model(cli.here / "b.safetensors", 7)
    cli("fit", *plain.FLAGS, "-m", "soup", "-o", "front", "-q")
    with pytest.raises(UserError, match="another front has been written there"):
        export(opened, (0.5, 0.5), "third")
    assert not (front / "exports").exists()


# -- runs


def test_a_second_search_touches_nothing_of_the_running_one(cli):
    """What the first is measuring stays, and the second is refused before it does anything."""
    plain.models(cli.here)
    words = [*plain.FLAGS, "-m", "direct-search", "--option", "evaluations=2", *plain.METRICS, "-o", "out"]
    second = shlex.join([str(PROGRAM), "fit", *words, "--evaluator", "touch second {model}"])
    (cli.here / "second.sh").write_text(second)
    cli("fit", *words, "-q", "--evaluator",
        f"test -e err || sh second.sh 2> err; test -e {{model}}/model.safetensors && {PRINT}")  # fmt: skip
    assert (cli.here / "err").read_text() == (
        "error: out.run: another run is writing there: wait for it, or name another folder (--run)\n"
    )
    assert not (cli.here / "second").exists()
    evaluations = (cli.here / "out.run" / "evaluations.jsonl").read_text().splitlines()
    assert len(evaluations) == 3 and "failed" not in "".join(evaluations)


def test_fits_lock_their_run_as_searches_do(cli, tmp_path):
    from fit_files import Family

    family = Family("vit", tmp_path / "vit")
    words = [
        "fit",
        *family.flags(),
        "--option",
        "steps=2",
        "--option",
        "batch_size=4",
        "--option",
        "rank=2",
        "-o",
        "front",
        "-q",
    ]
    with run_folder(cli.here / "front.run"):
        (cli.here / "front.run" / "state.safetensors").write_text("of another")
        for more in ([], ["--resume"]):
            assert cli.refuses(*words, *more).startswith("front.run: another run is writing there: wait for it")
    cli(*words)


# -- signals


def until(true, program=None):
    deadline = time.monotonic() + 200
    while not true():
        assert time.monotonic() < deadline and (program is None or program.poll() is None)
        time.sleep(0.01)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def number_in(file):
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_ends_the_evaluators_command_and_clears_its_model_away(cli, front, number):
    (cli.here / "tmp").mkdir()
    words = evaluate("echo $$ > pid; ls {model} > listed; exec sleep 600")
    program = subprocess.Popen(
        [PROGRAM, *words], stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(cli.here / "tmp")}
    )
    try:
        command = number_in(cli.here / "pid")
        until(lambda: (cli.here / "listed").exists() and (cli.here / "listed").read_text(), program)
        program.send_signal(number)
        _, err = program.communicate(timeout=200)
    finally:
        program.kill()
    assert (program.returncode, err) == (128 + number, "stopped\n")
    until(lambda: is_gone(command))
    assert not list((cli.here / "tmp").iterdir()) and recorded(front) == [] and not list(front.glob(".*"))


def test_a_command_ends_with_a_process_that_is_killed(tmp_path):
    code = f"from paretomerge.evaluation.command import run; run('echo $$ > {tmp_path}/pid; exec sleep 600', timeout=None)"
    with subprocess.Popen([sys.executable, "-c", code]) as program:
        command = number_in(tmp_path / "pid")
        program.kill()
    until(lambda: is_gone(command))


def test_a_report_is_written_whole(cli, front):
    before = contents(front)
    with temporary(cli.here / "report.html") as held:
        cli("report", "front", "-o", "report.html", "-q")
        assert held.exists()
    assert (cli.here / "report.html").exists() and contents(front) == before
