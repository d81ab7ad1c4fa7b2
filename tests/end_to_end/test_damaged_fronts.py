"""A front's folder may come from anywhere: whatever is in it, it opens and works, or one line says what is wrong."""

import contextlib
import copy
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

import fit_data
from damage import ODD, strict_json
from paretomerge import fit, load_experts, load_front
from paretomerge.app import ALL, TWO, View, about
from paretomerge.errors import UserError
from paretomerge.front import FACTS, TENSORS, front_of, model_card, record
from paretomerge.io import compact_json
from paretomerge.results import knee
from paretomerge.search import SEARCHES
from search_data import Known

NUMBERS = (True, -1, 5, 10**30, 0.5, float("nan"), float("inf"))
TEXTS = ("", "x", "../x", "/etc", "a/b", "\0", "é" * 300)
OTHERS = (None, [], [[]], ["a", "a"], {}, {"x": {}}, {"a": None}, {"../../x": {"prefix": "", "lacks": []}})
MEASURED = [("equal", "a", 0.7), ("equal", "b", 0.8), ("only:a", "a", 0.9), ("only:a", "b", 0.2), ("a=1,b=3", "a", 0.5),
            ("a=1,b=3", "b", 0.85)]  # fmt: skip
FITTED = {
    "pwe-moe": {"modules": "mlp"},
    "steered": {"rank": 2, "targets": "attention", "task_vector_rank": 2},
}
METHODS = ("pareto-merging", "soup", "searched", *FITTED, "react")
WRONG = (*NUMBERS, *TEXTS, *OTHERS)


@pytest.fixture(scope="module")
def fronts(zoo, tmp_path_factory) -> Path:
    """A front of each method, with heads and measured metrics."""
    family, folder = zoo("vit"), tmp_path_factory.mktemp("fronts")
    experts = load_experts(family / "base", {"a": family / "a", "b": family / "b"})
    fit(experts, rank=2, fuse_qkv=True, on="ties").save(folder / "pareto-merging")
    fit(experts, "soup").save(folder / "soup")
    searched = SEARCHES["direct-search"](experts, lambda vectors: Known(2), evaluations=3)
    front_of(searched, experts).save(folder / "searched")
    tasks = fit_data.tasks("vit", n=20)  # the heads of this family have 5 classes each: no labels, so it does not matter
    for method, options in FITTED.items():
        fit(experts, method, data=tasks, steps=1, batch_size=2, **options).save(folder / method)
    fit(experts, "react", data=tasks, on="soup").save(folder / "react")
    for method in METHODS:
        row = {"method": method, "metric": "accuracy", "split": "held-out", "seed": 0}
        rows = [{**row, "preference": p, "task": t, "value": v} for p, t, v in MEASURED]
        record(folder / method, rows)
    return folder


@pytest.fixture(params=METHODS)
def front(request, fronts, tmp_path) -> Path:
    return Path(shutil.copytree(fronts / request.param, tmp_path / "front"))


def use(folder: Path) -> None:
    """Everything that reads what is in the folder."""
    front = load_front(folder)
    json.dumps(front.summary())
    with contextlib.suppress(UserError):  # what is measured may not suffice
        knee(front.measured, front.tasks)
    gamma = dict.fromkeys(front.tasks, 1.0) | {front.tasks[0]: 3.0}
    for head in (None, *front.heads):
        weights = front.at(gamma, head=head)
        for name in weights:
            assert weights[name].shape == weights.infos[name].shape
    model_card({**front.provenance(gamma), "kind": "front"})


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        use(folder)
    line = str(error.value)
    assert "\n" not in line and len(line) < 1000
    return line


def front_method(folder: Path) -> str:
    return str(json.loads((folder / FACTS).read_text())["method"])


def places(value, path=()):
    """Every place in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def test_a_whole_front_works(front):
    use(front)


def test_any_wrong_value_anywhere(front):
    """Values of WRONG in each place of pareto_set.json (deep down only some of them), and each place left out."""
    rng = random.Random(0)
    facts = json.loads((front / FACTS).read_text())
    refused = 0
    everywhere = [path for path in places(facts) if path]
    if facts["method"] in FITTED:  # they name every tensor, in one place as in another
        everywhere = [path for path in everywhere if len(path) < 3 or rng.random() < 0.15]
    for path in everywhere:
        for wrong in ("left out", *(WRONG if len(path) < 3 else rng.sample(WRONG, 6))):
            damaged = copy.deepcopy(facts)
            inner = damaged
            for key in path[:-1]:
                inner = inner[key]
            if wrong == "left out":
                del inner[path[-1]]
            else:
                inner[path[-1]] = wrong
            (front / FACTS).write_text(json.dumps(damaged))
            try:
                load_front(front).summary()
            except UserError as error:
                assert "\n" not in str(error), path
                refused += 1
            else:
                if path[0] in ("method", "tasks", "set", "heads", "measured"):
                    use(front)
    assert refused > 2 * len(everywhere)


@pytest.mark.parametrize(
    "name", [FACTS, TENSORS, "model.safetensors", "config.json", "heads/a/head.safetensors", "heads/b/config.json"]
)
def test_a_file_that_ends_early_or_is_missing(front, name):
    whole = (front / name).read_bytes()
    rng = random.Random(0)
    for length in {0, 1, 9, len(whole) // 2, len(whole) - 3, *(rng.randrange(len(whole) - 2) for _ in range(12))}:
        (front / name).write_bytes(whole[:length])
        assert str(front / name) in refusal(front)
    (front / name).unlink()
    if name != "config.json":  # a plain .safetensors file has none either
        refusal(front)
    (front / name).write_bytes(b"\xff" + whole)
    refusal(front)


def test_tensors_that_do_not_fit(front):
    tensors = load((front / TENSORS).read_bytes())  # not of the file's map: the file is written over
    for name in sorted(tensors, key=lambda name: (name.split(".")[0], len(name)))[:: max(1, len(tensors) // 9)]:
        for changed in (tensors[name][:-1], tensors[name][..., :-1], tensors[name].flatten(), torch.zeros(()), None):
            kept = {other: tensor for other, tensor in tensors.items() if other != name}
            save_file(kept if changed is None else kept | {name: changed.contiguous()}, front / TENSORS)
            if changed is None and (front_method(front) in ("soup", "searched") or name.startswith("inner.")):
                use(front)  # fewer tensors that vary, that is all
            else:
                assert refusal(front).startswith(f"{front / FACTS}: damaged (")


def test_another_base_under_the_set(front, zoo):
    shutil.copyfile(zoo("llama") / "base" / "model.safetensors", front / "model.safetensors")
    assert "damaged (" in refusal(front)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], "9" * 1000])
def test_another_format(front, version):
    facts = json.loads((front / FACTS).read_text())
    (front / FACTS).write_text(json.dumps(facts | {"format": version, "tasks": "unheard of"}))
    line = refusal(front)
    assert line.startswith(f"{front / FACTS}: format ") and line.endswith("this version reads 1: update paretomerge")


@pytest.mark.parametrize(
    "name", ["../a", "a\\b", "", " a", "a\n", "a=b", "a,b", "a:b", "\0", "$(id)", "a;b", "-a", "<b>", "\ud800"]
)
def test_task_names_are_no_paths(front, name):
    facts = json.loads((front / FACTS).read_text())
    facts["tasks"][0] = name
    facts["heads"][name] = facts["heads"].pop("a")
    (front / FACTS).write_text(json.dumps(facts))
    assert "is no name for a task" in refusal(front)


def test_a_head_of_no_task(front):
    facts = json.loads((front / FACTS).read_text())
    facts["heads"]["c"] = facts["heads"]["a"]
    (front / FACTS).write_text(json.dumps(facts))
    assert "every head must be that of a task" in refusal(front)


def test_the_command_line_says_it_in_one_line(cli, front):
    (front / FACTS).write_text('{"format": 1, "method": "soup", "tasks": "ab"}')
    for words in (
        ["info", front],
        ["pick", front, "-p", "equal", "-o", "x"],
        ["pick", front, "-p", "equal", "--lora", "-o", "x"],
    ):
        assert cli.refuses(*words) == (f"{front / FACTS}: damaged (tasks: Input should be a valid list): fit the front again")
    shutil.rmtree(front / "heads")
    (front / FACTS).write_text("[]")
    assert cli.refuses("info", front) == f"{front / FACTS}: a JSON object is expected, not list"


EVALUATOR = """true {model}; echo '{"a": 0.5, "b": 0.5}'"""
COMMANDS = {
    "info": ["info", "front"],
    "info --json": ["info", "front", "--json"],
    "pick": ["pick", "front", "-p", "a=3,b=1", "--head", "a", "-o", "out/model"],
    "pick --knee": ["pick", "front", "--knee", "--head", "b", "-o", "out/model", "-q"],
    "pick --lora": ["pick", "front", "-p", "a=3,b=1", "--head", "b", "--lora", "-o", "out/adapter"],
    "report": ["report", "front", "-o", "out/report.html", "--figures", "out/figures"],
    "verify": ["verify", "front", "--json"],
    "evaluate": ["evaluate", "front", "-p", "equal", "--evaluator", EVALUATOR, "--metric", "a=x", "--metric", "b=x", "--json"],
    "select": ["select", "front", "--unseen", "unseen.npz", "--head", "a", "--sample", "2", "--json"],
}


def ends_well(cli, words: list[str]) -> None:
    """A command works, or one line that can be shown says why not and nothing is left behind; what is JSON is JSON."""
    shutil.rmtree(cli.here / "out", ignore_errors=True)
    (cli.here / "out").mkdir()
    code, out, err = cli.call(words)
    written = [path for path in cli.here.rglob("*") if path.is_file()]
    assert not [path for path in written if ".writing" in path.name]
    assert all(sign.isprintable() or sign == "\n" for sign in out + err)
    assert code == 0 or (code == 2 and not list((cli.here / "out").iterdir())), err
    if code == 2 and words[0] != "verify":
        assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 2100
    if "--json" in words and out:
        strict_json(out)
    for path in (cli.here / "out").rglob("*.json"):
        strict_json(path.read_text())


@pytest.mark.parametrize("method", ["pareto-merging", "searched", "steered"])
def test_no_command_ends_in_a_traceback(cli, fronts, method):
    """Odd values in the JSON files, and numbers that are none in the tensors: each command with some of them."""
    whole, front, rng = fronts / method, cli.here / "front", random.Random(method)
    np.savez(cli.here / "unseen.npz", images=np.zeros((4, 32, 32, 3), np.uint8))
    for words in COMMANDS.values():
        for _ in range(2):
            shutil.rmtree(front, ignore_errors=True)
            shutil.copytree(whole, front)
            file = front / rng.choice([FACTS, FACTS, FACTS, "config.json", "heads/a/config.json"])
            facts = json.loads(file.read_text())
            *path, last = rng.choice([place for place in places(facts) if place and rng.random() < 2.0 ** -len(place)])
            inner = facts
            for key in path:
                inner = inner[key]
            inner[last] = rng.choice(ODD)
            if isinstance(inner, dict) and rng.random() < 0.3:
                inner["\ud800"] = rng.choice(ODD)
            file.write_text(json.dumps(facts))
            ends_well(cli, words)
        shutil.copyfile(whole / file.relative_to(front), file)
        file = front / rng.choice([TENSORS, "model.safetensors", "heads/a/head.safetensors"])
        tensors = load(file.read_bytes())
        for tensor in tensors.values():
            if tensor.is_floating_point() and rng.random() < 0.5:
                tensor.view(-1)[:1] = rng.choice([float("nan"), float("inf"), 1e38])
        save_file(tensors, file, metadata={"format": "pt"})
        ends_well(cli, words)


def test_the_page_of_an_odd_front(fronts, tmp_path):
    front = Path(shutil.copytree(fronts / "soup", tmp_path / "front"))
    facts = json.loads((front / FACTS).read_text())
    facts["settings"]["note"] = "\ud800<b>\x1b"
    for number, row in enumerate(facts["measured"]):
        row["value"] = (float("nan"), float("inf"), 0.5)[number % 3]
    (front / FACTS).write_text(json.dumps(facts))
    view = View(load_front(front))
    for figure in (TWO, ALL):
        shown = view.shown(view.equal, view.first._replace(figure=figure))
        strict_json(compact_json(shown.figure))
    assert "\\ud800&lt;b&gt;\\x1b" in about(view.front)


def test_numbers_that_are_none_are_kept(fronts, tmp_path):
    """A perplexity that overflows is a result; the file that holds it is JSON all the same."""
    front = Path(shutil.copytree(fronts / "soup", tmp_path / "front"))
    row = {"method": "soup", "metric": "perplexity", "split": "held-out", "seed": 0, "preference": "equal", "task": "a"}
    record(front, [{**row, "value": float("inf")}])
    strict_json((front / FACTS).read_text())
    assert load_front(front).measured[-1]["value"] == float("inf")
