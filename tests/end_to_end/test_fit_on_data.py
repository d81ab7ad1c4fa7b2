"""``paretomerge fit --data``: from models and files on disk to a front, stopped and resumed, alone and with two processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers as hf

import fit_data
from commands import PROGRAM, apart, contents
from fit_files import DATA, Family
from paretomerge import load_front
from paretomerge.weights import open_checkpoint
from task_data import REVIEWS, write_csv

STEPS = ("--option", "steps=8", "--option", "rank=3", "--option", "batch_size=6", "--option", "checkpoint_every=3")
LOADERS = {
    "vit": hf.AutoModelForImageClassification,
    "bert": hf.AutoModelForSequenceClassification,
    "gpt2": hf.AutoModelForCausalLM,
}


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Family]:
    return {kind: Family(kind, tmp_path_factory.mktemp(kind)) for kind in DATA}


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# -- the job


@pytest.mark.parametrize("kind", DATA)
def test_from_files_to_a_model(cli, families, kind):
    family = families[kind]
    options = [*STEPS, "--option", "equal_every=1", "--option", "lr=0.01"]
    facts = json.loads(cli("fit", *family.flags(), *options, "-o", "front", "--json"))
    assert facts["method"] == "pareto-merging" and facts["settings"]["objective"] == "distill"
    assert {task: each["path"] for task, each in facts["settings"]["data"].items()} == family.data
    assert facts["settings"]["preset"] == "recommended" and facts["settings"]["seed"] == 0
    lines = metrics(cli.here / "front.run")
    first, last = (sum(lines[i]["losses"].values()) for i in (0, -1))
    assert len(lines) == 8 and last < 0.9 * first
    front = load_front("front")
    for task in "ab":
        head = ("--head", task) if front.heads else ()
        cli("pick", "front", "-p", "a=0.7,b=0.3", *head, "-o", task)
        picked = LOADERS[kind].from_pretrained(cli.here / task)
        at = front.at((0.7, 0.3), head=task if front.heads else None)
        stored = open_checkpoint(cli.here / task)
        assert set(stored) == set(at) and all(torch.equal(stored[name], at[name]) for name in at)
        if kind != "gpt2":
            assert picked.config.num_labels == fit_data.CLASSES[task]
    equal, one = front.at("equal"), front.at("only:a")
    assert {name for name in equal if apart(equal[name], one[name]) > 0} == set(front.pareto_set.varying)
    assert "settings" in cli("info", "front")


@pytest.mark.parametrize(
    "kind, method, options",
    [("vit", "steered", ("rank=2", "task_vector_rank=3")), ("gpt2", "pwe-moe", ("modules=mlp",))],
)
def test_methods_that_keep_task_vectors(cli, families, kind, method, options):
    words = [word for option in (*options, "steps=3", "batch_size=4") for word in ("--option", option)]
    err = cli.errors("fit", *families[kind].flags(), "--method", method, *words, "-o", "front")
    assert ("task vectors at rank 3: error " if method == "steered" else "2 routers, 44 parameters") in err
    front = load_front("front")
    head = ("--head", "b") if front.heads else ()
    cli("pick", "front", "-p", "only:b", *head, "-o", "picked")
    assert LOADERS[kind].from_pretrained(cli.here / "picked")
    at = front.at("only:b", head="b" if front.heads else None)
    stored = open_checkpoint(cli.here / "picked")
    assert all(torch.equal(stored[name], at[name]) for name in at) and not any("router" in name for name in stored)
    assert "moves by a whole tensor" in cli.refuses("pick", "front", "-p", "only:b", *head, "--lora", "-o", "adapter")
    shown = json.loads(cli("info", "front", "--routing", "routing.json", "--json"))
    assert shown["method"] == method and shown["parameters"]["added"] == front.pareto_set.added_parameters()
    found = json.loads((cli.here / "routing.json").read_text())
    corner = front.pareto_set.coefficients.at(torch.tensor([0.0, 1.0]))
    for module, row in zip(found["modules"], found["weights"][1], strict=True):
        place = list(front.pareto_set.coefficients.groups).index(module)
        assert row == pytest.approx(corner[place].tolist(), abs=1e-6)
    cli("info", "front", "--routing", "routing.png")
    assert (cli.here / "routing.png").read_bytes().startswith(b"\x89PNG")
    assert "name a .png, .svg or .pdf" in cli.refuses("info", "front", "--routing", "routing.docx")


def test_routing_of_a_set_without_any(cli, families):
    family = families["vit"]
    cli("fit", "--base", family.folder / "base", "--expert", f"a={family.folder / 'a'}", "--method", "soup", "-o", "front")
    assert "a soup has no routing: fit pwe-moe or steered" in cli.refuses("info", "front", "--routing", "routing.png")


def test_what_is_said(cli, families):
    family = families["bert"]
    err = cli.errors("fit", *family.flags(), *STEPS, "-o", "front")
    assert "a: text column: text" in err and "b: fit: 10 of" in err  # what was found in the data
    assert "step 8/8  a 0." in err
    assert not any(line.startswith("Traceback") for line in err.splitlines())
    code, out, err = cli.call(["fit", *family.flags(), *STEPS, "-o", "quiet", "--quiet"])
    assert (code, out, err) == (0, "", "")
    assert contents(cli.here / "front") == contents(cli.here / "quiet")


def test_a_recipe_says_the_same_as_flags(cli, families):
    family = families["vit"]
    (cli.here / "recipe.yaml").write_text(
        f"base: {family.folder}/base\nexperts: {{a: {family.folder}/a, b: {family.folder}/b}}\n"
        f"data: {{a: {family.data['a']}, b: {{path: {family.data['b']}}}}}\n"
        "options: {steps: 8, rank: 3, batch_size: 6, checkpoint_every: 3}\noutput: recipe\n"
    )
    cli("fit", "recipe.yaml", "--run", "elsewhere")
    cli("fit", *family.flags(), *STEPS, "-o", "flags")
    assert contents(cli.here / "recipe") == contents(cli.here / "flags")
    assert contents(cli.here / "elsewhere") == contents(cli.here / "flags.run")
    assert not (cli.here / "recipe.run").exists()


def test_the_papers_settings(cli, families):
    cli("fit", *families["vit"].flags(), "--preset", "paper", "--option", "steps=3", "-o", "front")
    settings = load_front("front").pareto_set.settings
    assert (settings["objective"], settings["scalarization"], settings["beta"]) == ("entropy", "smooth-tchebycheff", 0.1)
    config = json.loads((cli.here / "front.run" / "config.json").read_text())
    assert config["alpha"] == 0.1 and config["lr"] == 1e-3 and config["schedule"] == "constant"


def test_labels_for_cross_entropy(cli, families):
    cli("fit", *families["bert"].flags(), *STEPS, "--option", "objective=cross-entropy", "-o", "front")
    assert len(metrics(cli.here / "front.run")) == 8
    refused = cli.refuses("fit", *families["vit"].flags(), *STEPS, "--option", "objective=cross-entropy", "-o", "other", "-q")
    assert "label" in refused  # its inputs to fit on have none


def test_adamerging_is_the_same_at_every_preference(cli, families):
    cli("fit", *families["vit"].flags(), "-m", "adamerging", "--option", "steps=4", "--option", "ties=0.3", "-o", "front")
    for preference in ("only:a", "only:b"):
        cli("pick", "front", "-p", preference, "--head", "none", "-o", preference[-1])
    one, other, base = (open_checkpoint(cli.here / name) for name in ("a", "b", "front"))
    assert all(torch.equal(one[name], other[name]) and torch.equal(one[name], base[name]) for name in base)
    words = ["pick", "front", "-p", "only:a", "--head", "a", "--lora", "-o", "adapter"]
    assert "the same at every preference" in cli.refuses(*words)


# -- the same again, stopped and gone on


def test_seeds(cli, families):
    words = ["fit", *families["vit"].flags(), *STEPS]
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        cli(*words, "--option", f"seed={seed}", "-o", name)
    assert contents(cli.here / "one") == contents(cli.here / "two")
    one, three = (contents(cli.here / name) for name in ("one", "three"))
    assert one["model.safetensors"] != three["model.safetensors"]


def test_resume_looks_at_the_settings_first(cli, families, monkeypatch):
    """What cannot be resumed is refused before a model is built or an expert is asked; predictions are asked for once."""
    from paretomerge.fitting import Problem, driver

    words = ["fit", *families["vit"].flags(), *STEPS, "-o", "front"]
    assert cli.refuses(*words, "--resume", "-q") == "front.run: no saved state to resume from: leave --resume out"
    assert not (cli.here / "front.run").exists()
    cli(*words)
    whole = contents(cli.here / "front")
    assert sorted(path.suffix for path in (cli.here / "front.run" / "teacher").iterdir()) == [".json", ".json", ".npy", ".npy"]
    with monkeypatch.context() as nothing:
        nothing.setattr(driver, "Problem", None)
        others = [word.replace("batch_size=6", "batch_size=5") for word in words]
        refused = cli.refuses(*others, "--overwrite", "--resume", "-q")
        assert refused == "front.run: that run had batch_size = 6, not 5: resume with the same settings"
        refused = cli.refuses(*words, "--overwrite", "--resume", "--option", "teacher_top=9", "-q")
        assert refused == "front.run: that run had teacher_top = 64, not 9: resume with the same settings"
    config = cli.here / "front.run" / "config.json"
    facts = json.loads(config.read_text())
    config.write_text(json.dumps({name: value for name, value in facts.items() if name != "structure"}))  # an older version's
    assert cli.refuses(*words, "--overwrite", "--resume", "-q") == (
        "front.run: that run was begun by another version of paretomerge, or by another method (structure): remove the folder "
        "and start again without --resume"
    )
    config.write_text(json.dumps(facts))
    assert facts["skip_below"] == 0.01 and "given" not in facts
    monkeypatch.setattr(Problem, "_outputs", None)  # all that is left to do is to read and to write
    err = cli.errors(*words, "--overwrite", "--resume")
    assert "a: the expert's predictions on 24 inputs are those in front.run/teacher" in err
    assert contents(cli.here / "front") == whole


def test_tensorboard(cli, families):
    """The same numbers as metrics.jsonl."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = ["fit", *families["vit"].flags(), *STEPS, "--tensorboard", "--quiet"]
    cli(*words, "-o", "front")
    read = events.EventAccumulator(str(cli.here / "front.run"))
    read.Reload()
    lines = metrics(cli.here / "front.run")
    expected = {"lr", *(f"{what}/{task}" for what in ("objective", "marginal", "preference") for task in "ab")}
    assert set(read.Tags()["scalars"]) == expected
    for k, task in enumerate("ab"):
        told = {event.step: event.value for event in read.Scalars(f"objective/{task}")}
        logged = {line["step"]: line["losses"][str(k)] for line in lines if str(k) in line["losses"]}
        assert told == pytest.approx(logged, rel=1e-6)
        shares = [event.value for event in read.Scalars(f"preference/{task}")]
        assert shares == pytest.approx([line["gamma"][k] for line in lines], rel=1e-6)


def test_tensorboard_that_is_not_there(cli, families, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused = cli.refuses("fit", *families["vit"].flags(), *STEPS, "--tensorboard", "-o", "front", "-q")
    assert refused.startswith("tensorboard is not installed") and refused.endswith("pip install 'paretomerge[log]'")
    assert not (cli.here / "front.run").exists()


LONG = ("--option", "steps=120", "--option", "rank=3", "--option", "batch_size=6", "--option", "checkpoint_every=50")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_program_goes_on_to_the_same_bytes(cli, families, number):
    words = ["fit", *families["vit"].flags(), *LONG]
    cli(*words, "-o", "whole")
    program = subprocess.Popen([PROGRAM, *words, "-o", "front"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, lines = cli.here / "front.run" / "metrics.jsonl", random.Random(number).randint(2, 40)
    try:
        deadline = time.monotonic() + 100
        while not log.exists() or log.read_text().count("\n") < lines:
            assert program.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        program.send_signal(number)
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    done = len(metrics(cli.here / "front.run"))
    assert lines <= done < 120 and (program.returncode, out) == (128 + number, "")
    assert err.splitlines()[-1] == f"stopped after step {done} of 120; go on with --resume (state in front.run)"
    assert "Traceback" not in err and not (cli.here / "front").exists()
    stopped = contents(cli.here)
    refused = cli.refuses(*words, "--option", "lr=0.5", "--resume", "-o", "front", "-q")
    assert refused == "front.run: that run had lr = 0.002, not 0.5: resume with the same settings"
    assert contents(cli.here) == stopped
    cli(*words, "--resume", "-o", "front")
    assert contents(cli.here / "front") == contents(cli.here / "whole")
    assert contents(cli.here / "front.run") == contents(cli.here / "whole.run")


# -- two processes


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, options",
    [
        ("pareto-merging", ["rank=3"]),
        ("steered", ["rank=3"]),
        ("pwe-moe", ["scalarization=epo", "objective=distill"]),
        ("training", ["scalarization=epo", "objective=distill"]),
    ],
)
def test_two_processes_make_the_front_of_one(cli, families, method, options):
    steps = ["steps=8", "batch_size=6", "checkpoint_every=3", *options]
    words = ["fit", *families["vit"].flags(), "--method", method, *(word for step in steps for word in ("--option", step))]
    cli(*words, "-o", "single")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*launcher, PROGRAM, *words, "-o", "front"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as started:
        try:
            out, err = started.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGTERM)  # the launcher, which takes its processes along
            raise
    assert started.returncode == 0, err
    assert out.count("front: ") == 1 and err.count("step 8/8") == 1  # one of them speaks
    assert sorted(contents(cli.here / "front")) == sorted(contents(cli.here / "single"))
    of_one, of_two = (set(contents(cli.here / f"{name}.run")) for name in ("single", "front"))
    assert of_one < of_two and all(
        "/a-fit-1." in name or "/b-fit-1." in name for name in of_two - of_one
    )  # each its own teachers
    one, two = load_front("single"), load_front("front")
    for preference in ("equal", "only:a", "a=0.2,b=0.8"):
        at, other = one.at(preference), two.at(preference)
        # Adam makes steps of rounding errors where the gradient is 0 (the keys' biases), hence not 1e-5
        assert max(apart(at[name], other[name]) for name in at) < 1e-4
    for alone, both in zip(metrics(cli.here / "single.run"), metrics(cli.here / "front.run"), strict=True):
        assert alone["gamma"] == both["gamma"] and alone["losses"] == pytest.approx(both["losses"], rel=1e-3)
    assert not [path.name for path in cli.here.iterdir() if path.name.startswith(".")]


# -- mistakes: one line, exit code 2, nothing written


CROSS = ["--option", "objective=cross-entropy"]
MISTAKES = {
    "no data for a task": ("a", [], "task b has no inputs to fit on: name them with --data b=PATH"),
    "an unknown task": ("ab", ["--data", "c={a}"], "unknown task in data 'c' (known: a, b)"),
    "no such file": ("a", ["--data", "b={folder}/absent.csv"], "data of task b: {folder}/absent.csv: no such file or folder"),
    "data of another kind": ("a", ["--data", "b={folder}/base/tokenizer.json"], "data of task b: "),
    "wrong labels": ("a", ["--data", "b={folder}/wrong.csv", *CROSS], "labels that the head does not know"),
    "labels beyond the head": ("a", ["--data", "b={folder}/beyond.csv", *CROSS], "has the label 9, but the head has 3"),
    "the same twice": ("ab", ["--data", "a={b}"], "a is given twice"),
    "no path": ("b", ["--data", "a"], "write a name, = and a value"),
    "nothing to resume": ("ab", ["--resume"], "front.run: no saved state to resume from"),
    "an unknown preset": ("ab", ["--preset", "papers"], "--preset must be 'recommended' or 'paper', not 'papers'"),
    "a base merge": ("ab", ["-m", "adamerging", "--on", "ties"], "adamerging learns its own coefficients"),
    "a method without data": ("ab", ["-m", "soup"], "soup is made in closed form"),
    "an unknown option": ("ab", ["--option", "batches=3"], "unknown option 'batches', did you mean 'batch_size'?"),
    "an unknown objective": ("ab", ["--option", "objective=kl"], "objective must be distill or infomax or"),
    "no steps": ("ab", ["--option", "steps=-1"], "steps must not be negative"),
    "no batch": ("ab", ["--option", "batch_size=0"], "batch_size must be at least 1"),
    "no such device": ("ab", ["--option", "device=tpus"], "device 'tpus'"),
    "nothing held out": (
        "a",
        ["--data", "b={folder}/unlabelled.csv", "--option", "patience=1"],
        "task b has no held-out inputs",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(cli, families, mistake):
    """The data are found to be wrong before anything is fitted, and no run's folder is left."""
    family = families["bert"]
    write_csv(family.folder / "wrong.csv", [(text, f"mood{i}") for i, (text, _) in enumerate(REVIEWS)])
    write_csv(family.folder / "beyond.csv", [(text, i % 10) for i, (text, _) in enumerate(REVIEWS)])
    write_csv(family.folder / "unlabelled.csv", [(text,) for text, _ in REVIEWS], ("text",))
    tasks, words, message = MISTAKES[mistake]
    places = {"folder": family.folder, **family.data}
    extra = [word.format(**places) for word in words]
    refused = cli.refuses("fit", *family.flags(data=tasks), *extra, "-o", "front", "-q")
    assert message.format(**places) in refused


@pytest.mark.parametrize("words", [("--run", "run"), ("--resume",), ("--preset", "paper")])
def test_what_belongs_to_a_fit_on_data(cli, families, words):
    refused = cli.refuses("fit", *families["vit"].flags(data=""), *words, "-o", "front", "-q")
    assert "belong to a fit on data" in refused


def test_a_damaged_state(cli, families):
    words = ["fit", *families["vit"].flags(), *STEPS]
    cli(*words, "-o", "front")
    (cli.here / "front.run" / "state.safetensors").write_bytes(b"not a state")
    refused = cli.refuses(*words, "--resume", "-o", "front", "--overwrite", "-q")
    assert refused.startswith("front.run/state.safetensors: damaged (") and refused.endswith("start again without --resume")
