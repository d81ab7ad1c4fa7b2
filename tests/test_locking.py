"""One writer at a time in a folder; what killed writers leave goes with the next one, what living ones hold stays."""

import errno
import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest

from paretomerge.errors import UserError
from paretomerge.io import folder_for, leftovers, locked, locking, remove_folder, run_folder, sweep, temporary
from paretomerge.weights import whole_folder, write_json, write_marker, write_text


def killed(work) -> None:
    """A process that does some work, says so and is killed before it cleans up."""
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        with work():
            os.close(begun)
            signal.pause()
    os.close(begun)
    assert os.read(ready, 1) == b""  # the child has closed it
    os.close(ready)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


class Waiting(threading.Thread):
    """Asks for a folder's lock, and says when it has it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.got, self.inode = folder, threading.Event(), 0
        self.start()

    def run(self) -> None:
        with locked(self.folder):
            self.inode = os.stat(self.folder).st_ino
            self.got.set()


# -- locks


def test_one_waits_for_the_other(tmp_path):
    with locked(tmp_path):
        waiting = Waiting(tmp_path)
        assert not waiting.got.wait(0.05)
        with pytest.raises(UserError, match="taken"):
            locked(tmp_path, busy="taken").__enter__()
    assert waiting.got.wait(60)


def test_who_waited_for_a_folder_gets_the_one_that_took_its_place(tmp_path):
    (tmp_path / "front").mkdir()
    (tmp_path / "new").mkdir()
    with locked(tmp_path / "front"):
        waiting = Waiting(tmp_path / "front")
        (tmp_path / "front").rename(tmp_path / "old")
        (tmp_path / "new").rename(tmp_path / "front")
    assert waiting.got.wait(60) and waiting.inode == os.stat(tmp_path / "front").st_ino


def test_a_kill_releases_the_lock(tmp_path):
    killed(lambda: locked(tmp_path))
    with locked(tmp_path, busy="still taken"):
        pass
    assert not list(tmp_path.iterdir())  # and there is no lock file


def test_a_file_system_that_locks_files_only(tmp_path, monkeypatch):
    """NFS: a folder cannot be open for writing, as it wants for a lock."""
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, how)

    monkeypatch.setattr(locking.fcntl, "flock", flock)
    (tmp_path / "front").mkdir()
    with locked(tmp_path / "front"), pytest.raises(UserError, match="taken"):
        locked(tmp_path / "front", busy="taken").__enter__()
    with locked(tmp_path / "front", busy="taken"):
        assert not list((tmp_path / "front").iterdir())
    with temporary(tmp_path / "front", folder=True) as held:
        sweep(tmp_path)
        assert held.exists()  # whether somebody holds it cannot be told


def test_a_runs_folder(tmp_path):
    with run_folder(tmp_path / "some" / "run"):
        assert (tmp_path / "some" / "run").is_dir()
        with pytest.raises(UserError, match=r"some/run: another run is writing there: wait for it, or name another folder"):
            run_folder(tmp_path / "some" / "run").__enter__()
    assert not list(tmp_path.iterdir())  # nothing came into it
    with run_folder(tmp_path / "run"):
        for name in (".state.writing", ".metrics.writing", ".config.json.writing-0123abcd", "state.safetensors"):
            (tmp_path / "run" / name).write_text("")
    with run_folder(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["state.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), run_folder(tmp_path / "file" / "run"):
        pass


# -- leftovers


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    for name in ("out", "other"):
        killed(lambda name=name: whole_folder(tmp_path / name))
        killed(lambda name=name: temporary(tmp_path / f"{name}.html"))
    left = {path.name.split(".writing-")[0] for path in tmp_path.iterdir()}
    assert left == {".out", ".other", ".out.html", ".other.html"}
    with whole_folder(tmp_path / "out") as folder:
        (folder / "text").write_text("x")
    write_text(tmp_path / "out.html", "x")
    left = {path.name.split(".writing-")[0] for path in tmp_path.iterdir()}
    assert left == {"out", "out.html", ".other", ".other.html"}


def test_what_a_living_writer_holds_stays(tmp_path):
    with temporary(tmp_path / "x") as file, temporary(tmp_path / "x", folder=True) as folder:
        sweep(tmp_path)
        assert file.is_file() and folder.is_dir()
    assert not list(tmp_path.iterdir())


def test_what_is_not_ours_stays(tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / ".x.writing-01234567").symlink_to(tmp_path / "target")
    for name in (
        ".x.writing-0123456",
        ".x.writing-0123456g",
        "x.writing-01234567",
        ".writing-01234567",
        ".x.writing-01234567.txt",
    ):
        (tmp_path / name).write_text("kept")
    os.mkfifo(tmp_path / ".y.writing-01234567")
    before = sorted(path.name for path in tmp_path.iterdir())
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_between_two_renames_the_old_folder_is_not_lost(tmp_path):
    """Where two names cannot be exchanged in one step, a kill may leave neither in its place."""
    for name in ("front", "other"):
        (tmp_path / f".{name}.replaced-01234567").mkdir()
        (tmp_path / f".{name}.replaced-01234567" / "old").write_text("")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="exists already"), whole_folder(tmp_path / "front"):
        pass
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["front", "old", "other"]


def test_leftovers_do_not_keep_a_folder_from_being_replaced(tmp_path):
    def write(text: str) -> None:
        with whole_folder(tmp_path / "out", overwrite="mark.json") as folder:
            write_json(folder / "config.json", {"text": text})
            write_marker(folder / "mark.json", {})

    write("old")
    killed(lambda: temporary(tmp_path / "out" / "mark.json"))
    killed(lambda: temporary(tmp_path / "out" / "exports", folder=True))
    assert len(list((tmp_path / "out").glob(".*"))) == 2
    write("new")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "mark.json"]
    with temporary(tmp_path / "out" / "exports", folder=True) as held:  # a page that writes a model there
        (held / "model").write_text("")
        with pytest.raises(UserError, match=r"holds \.exports\.writing-"):
            write("newer")
    assert not list(tmp_path.glob(".*"))


def test_checkpoints_of_killed_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))

    class Killed:
        def __enter__(self) -> None:
            folder_for(None)

        def __exit__(self, *_: object) -> None: ...

    killed(Killed)
    (left,) = tmp_path.iterdir()
    first = folder_for(None)
    second = folder_for(None)
    assert not left.exists() and first.exists() and second.exists()
    remove_folder(first)
    remove_folder(second)
    assert not list(tmp_path.iterdir())
