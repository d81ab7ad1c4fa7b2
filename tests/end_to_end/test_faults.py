"""What disks, limits and other processes do to a command: one line, exit code 2, nothing half written."""

import errno
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from commands import PROGRAM, contents
from paretomerge import load_experts, load_front, merge
from paretomerge.errors import UserError
from paretomerge.evaluation import FILE, Store
from paretomerge.fitting import ask
from paretomerge.front import FACTS
from paretomerge.weights import INDEX, SINGLE, open_adapter, open_checkpoint, read_json, whole_folder, writing


def line_of(action, *parts) -> str:
    with pytest.raises(UserError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text, text
    return text


def raw(file: Path, header: dict | bytes, data: bytes = b"") -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return file


# -- the disk


def full(monkeypatch, after):
    """A disk that takes so many writes."""
    real, left = os.pwrite, [after]

    def pwrite(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(writing.os, "pwrite", pwrite)


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_full_disk(cli, zoo, monkeypatch, after):
    full(monkeypatch, after)
    for words in (["merge"], ["fit"], ["fit", "-m", "soup"]):
        line = cli.refuses(*words, *zoo.flags("llama"), "-o", "out", "-q")
        assert line == "out: cannot be written (No space left on device)"


def test_a_full_disk_keeps_what_was_there(cli, zoo, monkeypatch):
    cli("merge", *zoo.flags("llama"), "-o", "out", "-q")
    full(monkeypatch, 3)
    assert "No space left" in cli.refuses("merge", *zoo.flags("llama"), "-m", "ties", "-o", "out", "--overwrite", "-q")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting is root's")
def test_a_disk_of_64_kb(zoo, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode:
        pytest.skip("no mounting in this container")
    try:
        words = [PROGRAM, "merge", *zoo.flags("vit"), "--head", "a", "-o", place / "out", "-q", "--dtype", "float64"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: {place / 'out'}: cannot be written (No space left on device)\n"
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", place], check=True)


def test_predictions_on_a_full_disk(tmp_path, monkeypatch):
    """A hole in a mapped file would be found when it is filled, by the death of the process."""

    def fallocate(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    file = tmp_path / "run" / "a"
    options = {"batch_size": 2, "shape": (), "top": None, "dtype": torch.float32, "file": file, "key": lambda: "k"}
    line_of(lambda: ask(4, lambda i: torch.ones(len(i), 3), say=print, **options), tmp_path / "run", "No space left on device")
    assert list((tmp_path / "run").iterdir()) == []


def test_evaluations_on_a_full_disk(tmp_path, monkeypatch):
    store = Store(tmp_path, {"x": 1})
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, text: real(descriptor, text[:9]))
    line_of(lambda: store.add((1.0,), {"a": 1.0}, 0.1), "No space left on device")
    monkeypatch.undo()
    store.close()
    again = Store(tmp_path, {"x": 1})  # the torn line is dropped
    again.add((2.0,), {"a": 2.0}, 0.1)
    again.close()
    assert Store(tmp_path, {"x": 1}).metrics == {(2.0,): {"a": 2.0}}


# -- files that change while they are read


def test_a_source_that_vanishes_after_it_was_opened(zoo, tmp_path):
    """The map keeps it: the merge is that of the file that was checked."""
    expected = load_file(zoo("llama") / "a" / SINGLE)
    save_file(expected, tmp_path / "a.safetensors", metadata={"format": "pt"})
    experts = load_experts(zoo("llama") / "base", {"a": tmp_path / "a.safetensors"})
    (tmp_path / "a.safetensors").unlink()
    merged = merge(experts, "average")
    assert all(torch.allclose(merged[name], expected[name]) for name in expected)


def test_a_source_that_vanishes_before_it_is_hashed(zoo, tmp_path):
    from paretomerge.weights import hashes_of

    line_of(lambda: hashes_of([tmp_path / "gone.safetensors"]), "gone.safetensors: cannot be read (No such file or directory)")


def test_a_source_that_becomes_shorter(tmp_path):
    """To read beyond the end of a mapped file would kill the process."""
    file = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(100_000)}, file)
    checkpoint = open_checkpoint(file)
    with open(file, "r+b") as opened:
        opened.truncate(200)
    line_of(lambda: checkpoint["x"], file, "has become shorter since it was opened")


# -- limits


LIMITED = """
import resource, sys
from paretomerge.cli import main
import torch
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[1]) << 20),) * 2)
sys.argv = ["paretomerge", *sys.argv[2:]]
main()
"""


def test_a_limit_on_memory(tmp_path):
    """A model that cannot be mapped: the file, what it needs and the cure are named."""
    entries = 2**29  # 2 GiB, sparse
    header = json.dumps({"x": {"dtype": "F32", "shape": [entries], "data_offsets": [0, 4 * entries]}}).encode()
    file = raw(tmp_path / "base.safetensors", header)
    os.truncate(file, 8 + len(header) + 4 * entries)
    words = ["merge", "--base", file, "--expert", f"a={file}", "-o", tmp_path / "out", "-q"]
    done = subprocess.run([sys.executable, "-c", LIMITED, "1000", *map(str, words)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    needed = "cannot be mapped into memory (2.0 GiB of address space needed)"
    assert done.stderr == f"error: {file}: {needed}: raise the limit (ulimit -v, control group)\n"
    assert not (tmp_path / "out").exists()


# -- safetensors headers


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "negative offsets": {"x": {**ENTRY, "data_offsets": [-8, 0]}},
    "offsets backwards": {"x": {**ENTRY, "data_offsets": [8, 0]}},
    "overlapping": {"x": ENTRY, "y": {**ENTRY, "data_offsets": [4, 12]}},
    "a hole": {"x": ENTRY, "y": {**ENTRY, "data_offsets": [12, 20]}},
    "beyond the end": {"x": {**ENTRY, "shape": [200], "data_offsets": [0, 800]}},
    "a shape that overflows": {"x": {**ENTRY, "shape": [2**40, 2**40]}},
    "a shape that overflows to its size": {"x": {**ENTRY, "shape": [2**63, 2, 2]}},
    "a negative shape": {"x": {**ENTRY, "shape": [-2]}},
    "a shape of no integer": {"x": {**ENTRY, "shape": [2**70]}},
    "a dtype that is none": {"x": {**ENTRY, "dtype": "F33"}},
    "a shape and a size that differ": {"x": {**ENTRY, "shape": [3]}},
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_lie(tmp_path, kind):
    file = raw(tmp_path / SINGLE, HEADERS[kind], bytes(24 if len(HEADERS[kind]) > 1 else 8))
    line_of(lambda: open_checkpoint(file), file, "not a valid safetensors file")


def test_a_header_of_2_gb(tmp_path):
    file = tmp_path / SINGLE
    file.write_bytes((2**31).to_bytes(8, "little") + b"{")
    os.truncate(file, 2**31 + 100)
    line_of(lambda: open_checkpoint(file), file, "not a valid safetensors file")


@pytest.mark.parametrize("protocol", [2, 4, "zip"])
def test_a_pickle_by_another_name(tmp_path, protocol):
    if protocol == "zip":
        torch.save({"x": torch.zeros(3)}, tmp_path / SINGLE)
    else:
        (tmp_path / SINGLE).write_bytes(pickle.dumps({"x": [0.0] * 9}, protocol))
    line_of(lambda: open_checkpoint(tmp_path), tmp_path / SINGLE, "pickled weights can run code and are not read")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    line_of(lambda: open_checkpoint(tmp_path / "x.safetensors"), "x.safetensors")
    os.mkfifo(tmp_path / "config.json")
    line_of(lambda: read_json(tmp_path / "config.json"), "config.json: cannot be read as JSON: no regular file")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"x": {"a": 1, "b": [{"c": 1, "c": 1}]}}'])
def test_a_key_that_is_given_twice(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    line_of(lambda: open_checkpoint(tmp_path), tmp_path / INDEX, "is given twice")


# -- links: weights may be links (a hub's cache is made of them), what is written or removed never follows one out


def test_a_model_of_links_as_in_a_cache(zoo, tmp_path):
    base = zoo("llama") / "base"
    (tmp_path / "snapshot").mkdir()
    for file in base.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    linked = open_checkpoint(tmp_path / "snapshot")
    assert all(torch.equal(tensor, linked[name]) for name, tensor in open_checkpoint(base).items())


def test_what_is_replaced_is_not_followed_out(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years")
    with whole_folder(tmp_path / "out") as folder:
        (folder / "mark.json").write_text("{}")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "out" / "file").symlink_to(tmp_path / "precious" / "thesis.tex")
    with whole_folder(tmp_path / "out", overwrite="mark.json") as folder:
        (folder / "mark.json").write_text("{}")
    assert contents(tmp_path / "precious") == {"thesis.tex": b"years"}
    assert contents(tmp_path / "out").keys() == {"mark.json"}


def test_evaluations_are_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("torn")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).symlink_to(tmp_path / "precious")
    line_of(lambda: Store(tmp_path / "run", {"x": 1}), tmp_path / "run", "cannot be written")
    assert (tmp_path / "precious").read_text() == "torn"


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/passwd", "", "a/../../b"])
def test_a_front_names_files_outside(cli, zoo, name):
    cli("fit", *zoo.flags("llama"), "-m", "soup", "-o", "front", "-q")
    file = cli.here / "front" / FACTS
    facts = json.loads(file.read_text())
    for place in (facts["files"], facts["sources"]["base"]["files"], facts["sources"]["experts"]["a"]["files"]):
        place[name] = "0" * 64
        file.write_text(json.dumps(facts))
        line_of(lambda: load_front(cli.here / "front"), file, "leads out of its folder")
        del place[name]


# -- stored evaluations, adapters, recipes


@pytest.mark.parametrize("line", ["[" * 10**5, '{"evaluator"', "7", '{"evaluator": "KEY", "c": [1e0, {}], "metrics": {"a": 1}}',
                                  '{"evaluator": "KEY", "c": [' + "9" * 400 + '], "metrics": {"a": 1}}'])  # fmt: skip
def test_a_damaged_evaluation(tmp_path, line):
    store = Store(tmp_path, {"x": 1})
    store.add((1.0,), {"a": 1.0}, 0.1)
    store.close()
    whole = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(whole + line.replace("KEY", store.key) + "\n")
    line_of(lambda: Store(tmp_path, {"x": 1}), tmp_path / FILE, "line 3 is damaged")
    (tmp_path / FILE).write_text(whole)
    assert Store(tmp_path, {"x": 1}).metrics == {(1.0,): {"a": 1.0}}  # the lock is not kept by what failed


@pytest.mark.parametrize("change", [{"r": 0}, {"r": "x"}, {"lora_alpha": None}, {"lora_alpha": [1]}, {"rank_pattern": {"[": 3}},
                                    {"alpha_pattern": {".*": "x"}}, {"rank_pattern": [1]}, {"lora_alpha": 1e999},
                                    {"r": -4, "use_rslora": True}])  # fmt: skip
def test_an_adapter_whose_scaling_is_nonsense(tmp_path, change):
    import peft

    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(tiny.model("llama"), lora).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    line_of(lambda: open_adapter(tmp_path), tmp_path / "adapter_config.json", "the scaling of")


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize("text", [BOMB, "x" * 10**7, "".join(f"key{i}: {i}\n" for i in range(600_000)), "[" * 50_000,
                                  "base: !!python/object/apply:os.system [id]", "base: \0", "? [a]\n: b"])  # fmt: skip
def test_recipes_that_are_traps(cli, text):
    (cli.here / "r.yaml").write_text(text)
    assert cli.refuses("merge", "r.yaml", "-o", "out").startswith("r.yaml: ")


# -- two processes, one target


def test_the_slower_of_two_does_not_replace_the_faster(tmp_path):
    """Neither asked to overwrite: the first stays, whoever began first."""
    with pytest.raises(UserError) as error, whole_folder(tmp_path / "out") as slow:
        (slow / "x").write_text("slow")
        with whole_folder(tmp_path / "out") as fast:
            (fast / "x").write_text("fast")
    assert "exists already" in str(error.value)
    assert contents(tmp_path) == {"out": None, "out/x": b"fast"}


@pytest.mark.parametrize("overwrite", [None, "mark.json"])
def test_of_many_that_write_one_target_one_wins_whole(tmp_path, overwrite):
    target, refused = tmp_path / "out", []
    if overwrite:
        with whole_folder(target) as folder:
            (folder / "mark.json").write_text("first")
    ready = threading.Barrier(8)

    def write(number):
        ready.wait()
        try:
            with whole_folder(target, overwrite=overwrite) as folder:
                for i in range(20):
                    (folder / f"{i}").write_text(f"{number}")
                (folder / "mark.json").write_text(f"{number}")
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert overwrite is None or target.exists()  # at no time without either
    found = contents(target)
    assert len(found) == 21 and len(set(found.values())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(refused) == (0 if overwrite else 7) and all("exists already" in line for line in refused)


def test_where_folders_cannot_change_places_in_one_step(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        with whole_folder(tmp_path / "out", overwrite="mark.json") as folder:
            (folder / "mark.json").write_text(text)
    assert contents(tmp_path) == {"out": None, "out/mark.json": b"new"}
