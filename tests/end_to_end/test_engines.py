"""Which files of a front's folder inference engines read, and what adapters they understand."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from paretomerge import load_front
from paretomerge.weights import INDEX, SINGLE

JOBS = {
    "closed form": ["--option", "rank=2"],
    "soup": ["--method", "soup"],
    "in shards": ["--option", "rank=2", "--shard-size", "8KB"],
}


def files_read(folder):
    """As vLLM chooses them (filter_duplicate_safetensors_files): all in the folder, of an index those that it names."""
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / INDEX).is_file():
        return files
    named = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    return [file for file in files if file.name in named]


def reads_the_model(folder):
    tensors = {}
    for file in files_read(folder):
        tensors |= load_file(file)
    model = load_front(folder).at("equal")
    assert tensors.keys() == set(model)
    total = json.loads((folder / INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("job", JOBS)
def test_engines_read_the_model_and_nothing_else(cli, zoo, job):
    cli("fit", *zoo.flags("llama"), *JOBS[job], "-o", "front")
    reads_the_model(cli.here / "front")
    cli("fit", *zoo.flags("llama"), *JOBS[job], "-o", "front", "--overwrite")
    reads_the_model(cli.here / "front")
    load_front("front").save("again")
    reads_the_model(cli.here / "again")


def test_a_front_without_an_index_opens_and_gets_one(cli, zoo):
    """As they were written before; whoever changes the folder adds it."""
    from paretomerge.front import record

    cli("fit", *zoo.flags("llama"), "--option", "rank=2", "-o", "front")
    facts = json.loads(Path("front/pareto_set.json").read_text())
    expected = json.loads(Path("front", INDEX).read_text())

    def as_before():
        Path("front", INDEX).unlink()
        Path("front/pareto_set.json").write_text(json.dumps(facts | {"contents": [n for n in facts["contents"] if n != INDEX]}))

    as_before()
    cli("verify", "front")
    cli("pick", "front", "-p", "only:a", "-o", "model")
    assert not Path("front", INDEX).exists() and not Path("model", INDEX).exists()
    record("front", [])
    assert json.loads(Path("front", INDEX).read_text()) == expected
    as_before()
    cli("relocate", "front", "--base", zoo("llama") / "base")
    assert json.loads(Path("front", INDEX).read_text()) == expected
    assert json.loads(Path("front/pareto_set.json").read_text())["contents"] == facts["contents"]
    assert Path("front", SINGLE).exists()
    cli("fit", *zoo.flags("llama"), "--option", "rank=2", "-o", "front", "--overwrite")  # it is no stranger's file
