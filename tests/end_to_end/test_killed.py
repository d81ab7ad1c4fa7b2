"""kill -9 at any moment of merge and fit: the target is absent or whole, and running it again succeeds."""

import os
import random
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from commands import contents

# A server imports once and forks a child for each attempt: 11 moments for the price of one start.
SERVER = """
    import glob, os, signal, sys, time
    import torch
    from paretomerge import api, front  # what the commands import when they run
    from paretomerge.cli import main

    def run(words, target):
        child = os.fork()
        if child:
            return child
        sys.stdout = sys.stderr = open(os.devnull, "w")
        sys.argv = ["paretomerge", *words, "--output", target]
        try:
            main()
        except SystemExit as done:
            os._exit(done.code)

    words, moments = sys.argv[1].split(" "), map(float, sys.argv[2].split(" "))
    durations = []
    for warm_up in range(2):
        start = time.perf_counter()
        _, status = os.waitpid(run(words, f"whole{warm_up}"), 0)
        assert status == 0
        durations.append(time.perf_counter() - start)
    for number, moment in enumerate(moments):
        target = f"out{number}"
        child = run(words, target)
        if number % 2:  # once it writes
            while not glob.glob(f".{target}.writing-*") and not os.path.exists(target):
                time.sleep(0.001)
            time.sleep(min(moment, 1) * 0.02)
        else:
            deadline = time.perf_counter() + moment * min(durations)
            while time.perf_counter() < deadline and not os.path.exists(target):
                time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(os.path.exists(target), *glob.glob(f".{target}.*"), sep=" ", flush=True)
        if not os.path.exists(target):
            _, status = os.waitpid(run(words, target), 0)
            assert status == 0
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and two experts of 4 MB, so that there is a middle to be killed in."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    shapes = {f"layers.{i}.{kind}.weight": (256, 256) for i in range(4) for kind in ("q_proj", "k_proj", "v_proj", "out")}
    for name in ("base", "a", "b"):
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "words", ["merge --method ties --shard-size 1MB", "fit --option rank=4 --option targets=*.q_proj.* --shard-size 1MB"]
)
def test_absent_or_whole(models, tmp_path, words):
    words += f" --base {models}/base.safetensors --expert a={models}/a.safetensors --expert b={models}/b.safetensors"
    rng = random.Random(words.split()[0])
    moments = [0.0, *(rng.random() for _ in range(9)), 1000.0]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SERVER), words, " ".join(map(str, moments))],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    outcomes = [line[0] for line in lines]  # whether the target was there after the kill
    assert len(outcomes) == len(moments) and outcomes[0] == "False" and outcomes[-1] == "True"
    whole = contents(tmp_path / "whole0")
    assert len(whole) > 4
    for number in range(len(moments)):  # there after the kill, or after the second run: the same either way
        assert contents(tmp_path / f"out{number}") == whole
    begun = [name for line in lines for name in line[1:]]
    assert begun, "no attempt was killed while it was writing"
    assert all(".writing-" in name for name in begun)
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert all(name.split(".")[1] in ("out" + str(i) for i, there in enumerate(outcomes) if there == "True") for name in left)
