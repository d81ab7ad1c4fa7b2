"""kill -9 at random moments of every command that writes: what is there is whole, and going on ends with the same bytes."""

import json
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from commands import contents
from fit_files import Family

# A server imports once and forks a child for each attempt. A job goes on until its target is there; it is killed so many
# times on the way, each time at another part of the time that an undisturbed run takes.
SERVER = """
    import glob, json, os, signal, sys, time
    import torch, transformers
    from transformers.models.vit import modeling_vit, image_processing_vit
    from paretomerge import api, front  # what the commands import when they run
    from paretomerge.evaluation import evaluate
    from paretomerge.fitting import on_data
    from paretomerge.search import run as _
    from paretomerge.cli import main

    def run(words, target):
        child = os.fork()
        if child:
            return child
        sys.stdout = sys.stderr = open("said", "a")
        sys.argv = ["paretomerge", *words, "--output", target]
        try:
            main()
        except SystemExit as done:
            sys.stdout.flush()
            os._exit(done.code)

    def ended(child):
        _, status = os.waitpid(child, 0)
        assert status == 0, open("said").read()

    job = json.loads(sys.argv[1])
    words = job["words"]

    def again(target):
        if job["overwrite"]:
            return [*words, "--overwrite"]
        return [*words, "--resume"] if job["resumes"] and os.path.exists(f"{target}.run/state.safetensors") else words

    durations = []
    for warm_up in range(2):
        start = time.perf_counter()
        ended(run(words, f"whole{warm_up}"))
        durations.append(time.perf_counter() - start)
    for number, moments in enumerate(job["moments"]):
        target = f"out{number}"
        if job["overwrite"]:
            ended(run(job["overwrite"], target))
        for moment in moments:
            child = run(again(target), target)
            if moment > 1:  # while it writes
                while not glob.glob(f".{target}.writing-*") and os.waitpid(child, os.WNOHANG) == (0, 0):
                    time.sleep(0.0005)
                time.sleep((moment - 1) * job["writing"])
            else:
                time.sleep(moment * min(durations))
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
            there = os.path.exists(target)
            print(json.dumps([number, there]), flush=True)
            if job["overwrite"]:
                os.rename(target, f"{target}-seen")  # fails if there is a moment without it
                os.rename(f"{target}-seen", target)
            elif there:
                break
        if job["overwrite"] or not os.path.exists(target):
            ended(run(again(target), target))
"""
TIES = ["merge", "--method", "ties", "--head", "a", "--shard-size", "20KB", "-q"]
JOBS = ("merge", "overwrite", "closed form", "on data", "search", "pick")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return Family("vit", tmp_path_factory.mktemp("vit"))


def options(*pairs):
    return [word for pair in pairs for word in ("--option", pair)]


def labelled(family, here):
    """A search chooses by labels."""
    for task, path in family.data.items():
        arrays = dict(np.load(path))
        classes = int(arrays["test_labels"].max()) + 1
        np.savez(here / f"{task}.npz", **arrays, fit_labels=np.arange(len(arrays["fit_images"])) % classes)
    return [word for task in family.data for word in ("--data", f"{task}={here / task}.npz")]


def job_of(name, family, here):
    bare = family.flags(data="")
    data = labelled(family, here) if name == "search" else []
    words = {
        "merge": [*TIES, *bare],
        "overwrite": [*TIES, *bare],
        "closed form": ["fit", *bare, *options("rank=2"), "--shard-size", "20KB", "-q"],
        "on data": ["fit", *family.flags(), *options("steps=24", "rank=2", "batch=4", "checkpoint_every=3"), "-q"],
        "search": ["fit", *bare, *data, "-m", "direct-search", *options("evaluations=10"), "-q"],
        "pick": ["pick", f"{here / 'front'}", "-p", "a=0.7,b=0.3", "--head", "a", "--shard-size", "20KB", "-q"],
    }[name]
    other = ["merge", "--method", "average", "--head", "a", *bare, "-q"] if name == "overwrite" else None
    return {"words": words, "overwrite": other, "resumes": name == "on data", "writing": 0.05}


def attempts(rng, kills, chain):
    """Moments in chains of so many kills of one job; every second one comes while the folder is written."""
    moments = [rng.random() if i % 2 else 1 + rng.random() for i in range(kills)]
    rng.shuffle(moments)
    return [moments[i : i + chain] for i in range(0, kills, chain)]


def kill(name, family, here, kills):
    job = job_of(name, family, here)
    if name == "pick":
        from paretomerge import fit, load_experts

        fit(load_experts(family.folder / "base", {t: family.folder / t for t in "ab"}), rank=2).save(here / "front")
    chain = 3 if name in ("on data", "search") else 1
    job["moments"] = attempts(random.Random(name), kills, chain)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SERVER), json.dumps(job)],
        cwd=here, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) >= kills // chain
    whole = contents(here / "whole0")
    assert len(whole) > 3 and contents(here / "whole1") == whole
    for number in range(len(job["moments"])):
        assert contents(here / f"out{number}") == whole, (name, number)
    if name == "on data":  # the log, too, is that of one run
        ours, its = (contents(here / f"{out}.run") for out in ("out0", "whole0"))
        assert its.keys() <= ours.keys() and ours["metrics.jsonl"] == its["metrics.jsonl"]
    left = {path.name for path in here.iterdir() if path.name.startswith(".")}
    assert all(".writing-" in entry for entry in left), left
    return len(outcomes), len(left)


@pytest.mark.parametrize("name", ["overwrite", "on data"])
def test_killed_a_few_times(family, tmp_path, name):
    """(merge, the closed form and searches: test_killed.py, test_search.py; everything: the slow test below)"""
    kill(name, family, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_again_and_again(family, tmp_path, name):
    """12 kills each: 72 in all, of which a job that was done before its time came takes a few."""
    done, left = kill(name, family, tmp_path, 12)
    print(f"{name}: {done} kills, {left} folders were being written")
    assert done >= 9
