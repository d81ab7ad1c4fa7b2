"""``paretomerge fit --method map …``: from evaluations to a front, killed and gone on, by tasks, functions and commands."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fit_data
import paretomerge
from commands import PROGRAM, apart, contents
from paretomerge import load_front
from paretomerge.weights import open_checkpoint
from task_data import REVIEWS, WORDS, companions, write_csv

SCRIPT = """
import array, json, os, pathlib, struct, sys, time  # and no library that takes its time to load
model, log, slow = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(os.environ.get("SLOW", 0))
content = (model / "model.safetensors").read_bytes()
size = struct.unpack("<Q", content[:8])[0]
start, end = json.loads(content[8 : 8 + size])["transformer.h.0.attn.c_attn.bias"]["data_offsets"]
bias = array.array("f", content[8 + size + start : 8 + size + end])
with log.open("a") as file:
    print(sum(bias), file=file)
time.sleep(slow)
x, y = sum(bias[:24]) / 24, sum(bias[24:]) / 24
print("a line {before}")
print(json.dumps({"a": {"score": 1 / (1 + (x - 0.14) ** 2)}, "b": 100 * (y - 0.1) ** 2}))
"""
METRICS = ["--metric", "a=score:max:0:1", "--metric", "b=miles:min:0"]
FEW = ["--option", "evaluations=7", "--option", "measure=4", "--option", "generations=20", "--option", "population=16"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A family, text for both tasks, and a script that scores a folder and writes down that it was asked."""
    folder = fit_data.save("gpt2", tmp_path_factory.mktemp("gpt2"))
    companions(folder / "base")
    for seed, task in enumerate("ab"):
        words = random.Random(seed).choices(WORDS, k=400)
        (folder / f"{task}.txt").write_text("\n".join(" ".join(words[i : i + 11]) for i in range(0, 400, 11)))
    (folder / "score.py").write_text(SCRIPT)
    return folder


def flags(folder, data=""):
    words = ["--base", f"{folder / 'base'}", "--expert", f"a={folder / 'a'}", "--expert", f"b={folder / 'b'}"]
    return words + [word for task in data for word in ("--data", f"{task}={folder / task}.txt")]


def command(folder, log):
    words = [sys.executable, "-S", folder / "score.py"]
    return f"{' '.join(shlex.quote(str(word)) for word in words)} {{model}} {shlex.quote(str(log))}"


def asked(log):
    return Path(log).read_text().splitlines() if Path(log).exists() else []


def evaluated(run):
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    return [line for line in lines if "metrics" in line]


def test_a_search_by_a_command(cli, gpt2):
    log = cli.here / "log"
    words = ["fit", *flags(gpt2), "-m", "map", "--evaluator", command(gpt2, log), *METRICS, *FEW]
    err = cli.errors(*words, "-o", "front")
    assert "evaluation 7  c = " in err and "Traceback" not in err
    first = asked(log)
    assert len(first) == len(set(first)) == len(evaluated(cli.here / "front.run")) <= 11
    front = load_front("front")
    assert front.pareto_set.method == "searched" and front.pareto_set.settings["search"] == "map"
    assert [(m.task, m.metric, m.larger_is_better) for m in front.pareto_set.front.metrics] == [
        ("a", "score", True), ("b", "miles", False),
    ]  # fmt: skip
    # the numbers are those of the models that pick writes
    cli("pick", "front", "--knee", "-o", "knee")
    knee = json.loads((cli.here / "knee" / "paretomerge.json").read_text())["preference"]
    values = {row["task"]: row["value"] for row in front.measured if same_point(front, row["preference"], knee)}
    printed = subprocess.run(
        command(gpt2, log).replace("{model}", "knee"), shell=True, capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]  # fmt: skip
    given = json.loads(printed)
    assert values == pytest.approx({"a": given["a"]["score"], "b": given["b"]}, rel=1e-4)
    assert {row["split"] for row in front.measured} == {"transductive"}
    assert [row["larger_is_better"] for row in front.measured][:2] == [True, False]
    # smaller is better for b: what is asked for is a bound from above
    best = min(row["value"] for row in front.measured if row["task"] == "b")
    cli("pick", "front", "--at-least", f"b={best}", "--maximise", "a", "-o", "best-b")
    assert "every" not in cli("info", "front")
    # a second time nothing is asked, and the front is the same; --resume says that there must be something
    log.unlink()
    assert "evaluations of earlier runs" in cli.errors(*words, "--resume", "--run", "front.run", "-o", "again")
    assert asked(log) == [] and contents(cli.here / "front") == contents(cli.here / "again")
    assert [path.name for path in (cli.here / "front.run").iterdir()] == ["evaluations.jsonl"]


def same_point(front, one, other):
    return front.pareto_set.point(front.pareto_set.preference(one)) == front.pareto_set.point(
        front.pareto_set.preference(other)
    )


def test_a_killed_search_goes_on_where_it_was(cli, gpt2):
    log = cli.here / "log"
    words = ["fit", *flags(gpt2), "-m", "map", "--evaluator", command(gpt2, log), *METRICS, *FEW]
    cli(*words, "-o", "whole")
    whole = asked(log)
    log.unlink()
    program = subprocess.Popen([PROGRAM, *words, "-o", "front", "-q"], env=os.environ | {"SLOW": "0.3"})
    store = cli.here / "front.run" / "evaluations.jsonl"
    try:
        deadline = time.monotonic() + 200
        while not store.exists() or store.read_text().count("\n") < 4:  # three, and the line that says whose they are
            assert program.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        program.kill()
        program.wait()
    done = [line["c"] for line in evaluated(cli.here / "front.run")]
    with open(store, "a") as file:  # a line that was being written
        file.write('{"evaluator": "')
    before = len(asked(log))
    cli(*words, "-o", "front")
    assert contents(cli.here / "front") == contents(cli.here / "whole")
    points = [line["c"] for line in evaluated(cli.here / "front.run")]
    assert points[: len(done)] == done and len({str(c) for c in points}) == len(points) == len(whole)
    assert len(asked(log)) - before == len(whole) - len(done)
    assert [path.name for path in (cli.here / "front.run").iterdir()] == ["evaluations.jsonl"]  # no model is left


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_search(cli, gpt2, number):
    log = cli.here / "log"
    words = ["fit", *flags(gpt2), "-m", "direct-search", "--evaluator", command(gpt2, log), *METRICS]
    program = subprocess.Popen(
        [PROGRAM, *words, "-o", "front"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"SLOW": "30"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not asked(log):
            assert program.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        program.send_signal(number)
        _, err = program.communicate(timeout=25)
    finally:
        program.kill()
    assert program.returncode == 128 + number and not (cli.here / "front").exists()
    expected = "stopped after 0 evaluations; the same command goes on from there (evaluations in front.run)"
    assert err.splitlines()[-1] == expected and "Traceback" not in err
    assert [path.name for path in (cli.here / "front.run").iterdir()] == ["evaluations.jsonl"]


@pytest.mark.parametrize("method", ["map-nested", "map-bayesian", "direct-search", "moead"])
def test_every_search_by_tasks(cli, gpt2, method):
    few = {"map-nested": ["evaluations=6"], "map-bayesian": ["first=6", "each=1"], "direct-search": ["evaluations=6"],
           "moead": ["population=4", "generations=2"]}  # fmt: skip
    options = [word for option in few[method] for word in ("--option", option)]
    cli("fit", *flags(gpt2, "ab"), "-m", method, *options, "--option", "device=cpu", "-o", "front")
    front = load_front("front")
    assert front.pareto_set.settings["fitted"] == method and {m.metric for m in front.pareto_set.front.metrics} == {
        "perplexity"
    }
    assert front.pareto_set.settings["data"]["a"] == {"path": f"{gpt2 / 'a.txt'}", "split": "held-out"}
    rows = json.loads(
        cli("evaluate", "front", "--data", f"a={gpt2 / 'a.txt'}", "--data", f"b={gpt2 / 'b.txt'}", "--json", "-q")
    )
    assert {row["split"] for row in rows} == {"held-out"} and len(rows) == 10
    cli("pick", "front", "-p", "only:a", "-o", "picked")
    at, picked = front.at("only:a"), open_checkpoint(cli.here / "picked")
    assert set(picked) == set(at) and all(torch.equal(picked[name], at[name]) for name in at)
    cli("pick", "front", "--knee", "-o", "knee")


def test_tasks_with_heads(cli, tmp_path):
    folder = fit_data.save("bert", tmp_path / "bert")
    companions(folder / "base")
    for seed, (task, classes) in enumerate(fit_data.CLASSES.items()):
        write_csv(folder / f"{task}.txt", [(f"{t} {WORDS[i % 9]}", (i + seed) % classes) for i, (t, _) in enumerate(REVIEWS)])
        (folder / f"{task}.txt").rename(folder / f"{task}.csv")
    words = [*flags(folder), "--data", f"a={folder / 'a.csv'}", "--data", f"b={folder / 'b.csv'}"]
    cli("fit", *words, "-m", "direct-search", "--option", "evaluations=5", "--option", "inside=ties", "-o", "front")
    front = load_front("front")
    assert sorted(front.heads) == ["a", "b"] and front.pareto_set.settings["inside"] == "ties"
    cli("pick", "front", "-p", "only:b", "--head", "b", "-o", "model")


def test_a_recipe_and_measuring_a_front_by_a_command(cli, gpt2):
    log = cli.here / "log"
    (cli.here / "recipe.yaml").write_text(
        f"base: {gpt2}/base\nexperts: {{a: {gpt2}/a, b: {gpt2}/b}}\nmethod: map\noutput: recipe\n"
        f"evaluator: {command(gpt2, log)!r}\nmetrics: {{a: 'score:max:0:1', b: 'miles:min:0'}}\n"
        "options: {evaluations: 7, measure: 4, generations: 20, population: 16}\n"
    )
    cli("fit", "recipe.yaml")
    cli(
        "fit",
        *flags(gpt2),
        "-m",
        "map",
        "--evaluator",
        command(gpt2, log),
        *METRICS,
        *FEW,
        "-o",
        "front",
        "--run",
        "recipe.run",
    )
    assert contents(cli.here / "recipe") == contents(cli.here / "front")
    cli("fit", *flags(gpt2), "-o", "merged", "--option", "rank=4", "--option", "targets=all")
    log.unlink()
    by = ["--evaluator", command(gpt2, log), *METRICS, "--option", "timeout=60"]
    rows = json.loads(cli("evaluate", "merged", *by, "-p", "equal", "-p", "only:a", "-p", "a=1,b=1", "--json", "-q"))
    assert len(asked(log)) == 2 and len(rows) == 6  # equal is measured once
    assert load_front("merged").measured[1]["larger_is_better"] is False
    assert "go with --data" in cli.refuses("evaluate", "merged", *by, "--device", "cpu")
    refused = cli.refuses("merge", "recipe.yaml", "-o", "one", "-m", "ties")
    assert "an evaluator belongs to a fit" in refused


def test_failures_on_the_command_line(cli, gpt2):
    fails = f"{sys.executable} -c 'import sys; sys.exit(\"no GPU\")' {{model}}"
    code, out, err = cli.call(["fit", *flags(gpt2), "-m", "map", "--evaluator", fails, *METRICS, *FEW, "-o", "front", "-q"])
    assert (code, out) == (2, "") and err == "error: the first 3 evaluations failed, each twice: exit code 1: no GPU\n"
    lines = [json.loads(line) for line in (cli.here / "front.run" / "evaluations.jsonl").read_text().splitlines()]
    assert [line.get("failed") for line in lines[1:]] == ["exit code 1: no GPU"] * 3
    metrics = ["--metric", "a=score:max:0:0.5", "--metric", "b=miles:min:0"]
    words = ["fit", *flags(gpt2), "-m", "map", "--evaluator", command(gpt2, cli.here / "log"), *FEW, "-q"]
    code, _, err = cli.call([*words, *metrics, "-o", "other"])
    assert code == 2 and "outside of [0, 0.5]: declare its range (--metric a=score:max:LOW:HIGH)" in err
    count = len(asked(cli.here / "log"))
    cli(*words, *METRICS, "-o", "other")  # what was measured is kept
    points = {str(line["c"]) for line in evaluated(cli.here / "other.run")}
    assert count == 1 and len(points) == len(asked(cli.here / "log"))


BY = ["-m", "map", "--evaluator", "x {{model}}"]
BOTH = ["--data", "a={folder}/a.txt", "--data", "b={folder}/b.txt"]
MISTAKES = {
    "neither": (["-m", "map"], "either data with labels (--data) or an evaluator"),
    "both": ([*BY, *BOTH], "either data with labels (--data)"),
    "no metric": ([*BY], "no metric for task a: declare what is measured"),
    "metrics of data": (["-m", "map", *BOTH, *METRICS], "metrics belong to"),
    "no place for the model": (["-m", "map", "--evaluator", "score.sh", *METRICS], "the command needs {model}"),
    "another method": (["--evaluator", "x {{model}}", *METRICS], "evaluator and metrics belong to a search"),
    "workers of another method": (["--workers", "2"], "--workers, --ray and --gpus belong to a search"),
    "one task's data": (["-m", "map", "--data", "a={folder}/a.txt"], "task b has no inputs to evaluate on"),
    "an option of nobody": ([*BY, "--option", "timeot=3"], "did you mean 'timeout'?"),
    "a kind of option": ([*BY, "--option", "timeout=x"], "timeout must be a number"),
    "a base merge": (["-m", "map", "--on", "ties"], "its option inside"),
    "a closed form": (["-m", "map", *BOTH, "--closed-form"], "--closed-form: map looks at data by itself"),
    "nothing to go on from": ([*BY, *METRICS, "--resume"], "no evaluations to go on from"),
    "a metric twice": ([*BY, "--metric", "a=acc", "--metric", "a=acc"], "a is given twice"),
    "lm-eval without a benchmark": (["-m", "map", "--evaluator", "lm-eval", *METRICS], "name the benchmark and its metric"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(cli, gpt2, mistake):
    words, said = MISTAKES[mistake]
    refused = cli.refuses("fit", *flags(gpt2), *[word.format(folder=gpt2) for word in words], "-o", "front", "-q")
    assert said in refused


def test_in_python(gpt2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experts = paretomerge.load_experts(gpt2 / "base", {"a": gpt2 / "a", "b": gpt2 / "b"})
    calls = []

    def distances(weights):
        calls.append(1)
        bias = weights["transformer.h.0.attn.c_attn.bias"].double()
        return {"a": float(bias[:24].mean()), "b": float(bias[24:].mean())}

    metrics = {"a": "mean:max", "b": "mean:min"}
    front = paretomerge.fit(
        experts, "direct-search", evaluator=distances, metrics=metrics, gets="weights", anchors=True, evaluations=9
    )
    assert len(calls) == 9
    best = front.pareto_set.front.points[front.pareto_set.point(torch.tensor([1.0, 0.0], dtype=torch.float64))]
    assert np.array_equal(best, [1, 1])  # every expert is above the base
    front.save("front")
    again = load_front("front")
    assert all(apart(again.at("only:b")[name], front.at("only:b")[name]) == 0 for name in again.at("only:b"))
    assert again.measured == front.measured and list(tmp_path.iterdir()) == [tmp_path / "front"]
