"""SHA-256 of files while others read and write them: what hashlib says of the whole file, in whatever order pieces come."""

import hashlib
import itertools
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from paretomerge import api, load_front
from paretomerge.errors import UserError
from paretomerge.experts import load_experts
from paretomerge.weights import Running, hashed_as_written, hashed_meanwhile, hashes_of, hashing, write_shards


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(random.Random(0).randbytes(300_000))
    return tmp_path / "file"


@pytest.fixture
def read_again(monkeypatch):
    """The bytes that were read to hash them."""
    count, hash_to = [0], Running._hash_to

    def counted(self, stop):
        count[0] += max(0, stop - self._done)
        hash_to(self, stop)

    monkeypatch.setattr(Running, "_hash_to", counted)
    return count


@pytest.mark.parametrize("order", ["in order", "backwards", "at random", "with holes", "twice"])
@pytest.mark.parametrize("gap", [0, 1000, 1 << 20])
@pytest.mark.parametrize("threads", [1, 4])
def test_pieces_in_any_order(file, order, gap, threads, monkeypatch):
    monkeypatch.setattr(hashing, "_WAITING", 50_000)
    content, draw = memoryview(file.read_bytes()), random.Random(1)
    cuts = sorted({0, len(content), *(draw.randrange(len(content)) for _ in range(40))})
    pieces = list(itertools.pairwise(cuts))
    if order == "backwards":
        pieces.reverse()
    elif order == "at random":
        draw.shuffle(pieces)
    elif order == "with holes":
        pieces = pieces[1::3]
    elif order == "twice":
        pieces = [piece for piece in pieces for _ in range(2)]
    running = Running(file, gap=gap)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda piece: running.passed(piece[0], content[slice(*piece)]), pieces))
    assert running.finish() == sha256(file)


def test_in_order_nothing_is_read_again(file, read_again):
    content, running = memoryview(file.read_bytes()), Running(file, gap=100)
    for start in range(80, len(content), 7000):  # the header's 80 bytes nobody brings
        running.passed(start, content[start : start + 7000])
    assert running.finish() == sha256(file) and read_again == [80]


def test_of_a_file_being_written_nothing_is_read_that_has_not_come(tmp_path):
    content = random.Random(2).randbytes(100_000)
    with hashed_as_written(tmp_path / "file") as running, open(tmp_path / "file", "wb", buffering=0) as out:
        out.truncate(len(content))  # zeros
        for start in (50_000, 75_000, 0, 25_000):
            out.seek(start)
            out.write(content[start : start + 25_000])
            running.passed(start, memoryview(content)[start : start + 25_000])
    assert hashes_of([tmp_path / "file"]) == {tmp_path / "file": hashlib.sha256(content).hexdigest()}


def test_a_file_that_changes_meanwhile_is_hashed_as_it_is_then(file):
    content = memoryview(file.read_bytes())
    with hashed_meanwhile([file]):
        hashing.running(file).passed(0, content[:1000])
        file.write_bytes(b"another")
    assert hashes_of([file]) == {file: hashlib.sha256(b"another").hexdigest()}


def test_a_file_that_vanishes_meanwhile(file):
    content = memoryview(file.read_bytes())
    with pytest.raises(UserError, match="cannot be read"), hashed_meanwhile([file]):
        file.unlink()
        for start in range(5000, 100_000, 1000):  # more pieces than may wait
            hashing.running(file).passed(start, content[start : start + 1000])
    assert hashing.running(file) is None


def test_no_thread_is_left_when_the_block_fails(file):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), hashed_meanwhile([file]):
        hashing.running(file).passed(0, memoryview(b"x" * 1000))
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), hashed_as_written(file) as running:
        running.passed(0, memoryview(b"x" * 1000))
        raise ZeroDivisionError
    assert threading.active_count() == before


def model(folder, seed):
    """Two shards, matrices and vectors."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q_proj.weight": (96, 64), "up.weight": (200, 64), "norm.weight": (64,)}
    places = {}
    for shard in range(2):
        tensors = {
            f"layers.{i}.{name}": torch.randn(shape, generator=generator)
            for i in range(shard, 6, 2)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / f"model-{shard}.safetensors")
        places |= dict.fromkeys(tensors, f"model-{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(str({"weight_map": places}).replace("'", '"'))
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaModel"]}')
    return folder


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shard_bytes", [10**9, 200_000])
def test_a_front_records_the_hashes_of_its_sources_and_files(tmp_path, threads, shard_bytes, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    folders = {name: model(tmp_path / name, seed) for seed, name in enumerate(("base", "a", "b"))}
    front = api.fit(load_experts(folders["base"], {task: folders[task] for task in "ab"}), rank=2)
    front.save(tmp_path / "front", shard_bytes=shard_bytes)
    saved = load_front(tmp_path / "front")
    for name, source in {"base": saved.sources["base"], **saved.sources["experts"]}.items():
        assert source["files"] == {file.name: sha256(file) for file in folders[name].glob("*.safetensors")}, name
    assert saved.files == {file.name: sha256(file) for file in (tmp_path / "front").glob("*.safetensors")}
    assert saved.sources == front.sources


def test_the_sources_are_read_once_and_hashed_meanwhile(tmp_path, read_again, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # one merges, one hashes
    monkeypatch.setattr("paretomerge.weights.lazy.PART", 1 << 12)
    folders = {name: model(tmp_path / name, seed) for seed, name in enumerate(("base", "a", "b"))}
    front = api.fit(load_experts(folders["base"], {task: folders[task] for task in "ab"}), "soup")
    monkeypatch.setattr("paretomerge.experts.experts.CHUNK", 3000)  # several slices a matrix: a whole one is mapped
    with hashed_meanwhile(front.sources.files):
        write_shards(front.pareto_set.base, tmp_path, hashed=True)
    gaps = sum(os.stat(file).st_size for file in front.sources.files) - 3 * 6 * 4 * (96 + 200) * 64
    assert read_again[0] <= gaps, "headers and vectors"
    for file, found in hashes_of([*front.sources.files, tmp_path / "model.safetensors"]).items():
        assert found == sha256(file)
