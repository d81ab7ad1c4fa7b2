"""Mistakes of the user: one line on standard error, exit code 2, and nothing written, not even in part."""

import os
import resource
import signal
import subprocess
import time

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from commands import PROGRAM, contents
from paretomerge.merges import MERGES

FITS = (("fit",), ("fit", "--option", "targets=all"), ("fit", "-m", "soup"), ("fit", "--on", "ties"),
        ("fit", "--option", "scalarization=smooth-tchebycheff"))  # fmt: skip


@pytest.fixture
def front(cli, zoo):
    cli("fit", *zoo.flags("llama"), "--option", "rank=3", "-o", "front")
    return "front"


def spoiled(zoo, folder, name="model.layers.1.self_attn.k_proj.weight", value=float("nan")):
    """Expert b with one entry that is no number."""
    tensors = load_file(zoo("llama") / "b" / "model.safetensors")
    tensors[name][3, 1] = value
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "words, line",
    [
        (["bogus"], "No such command 'bogus'."),
        (["merge", "--outptu", "x"], "No such option: --outptu"),
        (["pick", "front"], "Missing option"),
        (["merge", "-o"], "requires an argument"),
        (["check"], "no experts: name at least one (--expert name=PATH)"),
        (["merge", "-o", "x"], "no experts: name at least one (--expert name=PATH)"),
        (["merge", "--expert", "a=x"], "no base: name the model that the experts were fine-tuned from (--base)"),
        (["merge", "--expert", "x"], "--expert x: write a name, = and a value, for instance --expert math=models/math"),
        (["merge", "--base", "none", "--expert", "a=none", "-o", "x"], "none: no such file or folder"),
        (
            ["merge", "--base", "org/none", "--expert", "a=org/none", "-o", "x"],
            "org/none: no such folder here, and not to be had",
        ),
        (["fit", "none.yaml"], "none.yaml: cannot be read (No such file or directory)"),
        (["info", "none"], "none: not a front (no pareto_set.json in it): make one with paretomerge fit"),
        (
            ["pick", "none", "-p", "equal", "-o", "x"],
            "none: not a front (no pareto_set.json in it): make one with paretomerge fit",
        ),
    ],
)
def test_words_that_say_nothing(cli, words, line):
    assert line in cli.refuses(*words)


@pytest.mark.parametrize(
    "words, line",
    [
        (["merge"], "no output folder: name it with --output"),
        (["merge", "-m", "tie", "-o", "x"], "unknown merge 'tie', did you mean 'ties'? (known: average, "),
        (["merge", "-m", "soup", "-o", "x"], "unknown merge 'soup'"),
        (["fit", "-m", "ties", "-o", "x"], "unknown set 'ties' (known: soup, pareto-merging"),
        (["fit", "--on", "tise", "-o", "x"], "unknown merge 'tise', did you mean 'ties'?"),
        (["merge", "-m", "ties", "--option", "densty=1", "-o", "x"], "ties: unknown option 'densty', did you mean 'density'?"),
        (["fit", "--option", "rnak=4", "-o", "x"], "pareto-merging: unknown option 'rnak', did you mean 'rank'?"),
        (["fit", "--on", "ties", "--on-option", "scal=1", "-o", "x"], "ties: unknown option 'scal', did you mean 'scale'?"),
        (["merge", "-m", "ties", "--option", "density=x", "-o", "x"], "ties: density must be a number"),
        (["merge", "-m", "ties", "--option", "density=2", "-o", "x"], "density must be in [0, 1]"),
        (["merge", "--option", "scale={a: 1}", "-o", "x"], "scale: no value for task 'b'"),
        (["merge", "--option", "scale={a: 1, b: 1, c: 1}", "-o", "x"], "scale: no task is called 'c' (tasks: a, b)"),
        (["fit", "--option", "rank=0", "-o", "x"], "rank 0: must be at least 1"),
        (["fit", "--option", "rank=1.5", "-o", "x"], "pareto-merging: rank must be a whole number, not 1.5"),
        (["fit", "--option", "mu=0", "-o", "x"], "mu and alpha must be positive"),
        (["fit", "--option", "targets=*.none", "-o", "x"], "targets '*.none': no matrix of this model fits: "),
        (["merge", "--dtype", "int8", "-o", "x"], "--dtype must be "),
        (["merge", "--dtype", "float8_e4m3fn", "-o", "x"], "--dtype must be "),
        (["merge", "--shard-size", "big", "-o", "x"], "--shard-size: 'big' is not a size: write 5GB, for instance"),
        (["merge", "--vocab", "all", "-o", "x"], "--vocab must be 'error' or 'common', not 'all'"),
        (["merge", "--head", "a", "-o", "x"], "task a has no head of its own: leave --head out"),
        (["merge", "--head", "c", "-o", "x"], "unknown task in head 'c' (known: a, b)"),
        (["merge", "--expert", "../c=x", "-o", "x"], "'../c' is no name for a task: use letters, digits, spaces"),
        (["merge", "--expert", f"{'c' * 300}=x", "-o", "x"], "is no name for a task"),
        (["merge", "--exclude", "*", "-o", "x"], "nothing to merge"),
    ],
)
def test_what_cannot_be_merged(cli, zoo, words, line):
    assert line in cli.refuses(*words, *zoo.flags("llama"))


@pytest.mark.parametrize(
    "words, line",
    [
        (["-p", "c=1"], "preference: unknown task 'c'; the tasks are a, b"),
        (["-p", "a=1"], "preference: no weight for b; name every task, if only as b=0"),
        (["-p", "a=1,b=-1"], "preference: the weight of 'b' must be finite and not negative, got -1.0"),
        (["-p", "a=1,b=nan"], "preference: the weight of 'b' must be finite and not negative, got nan"),
        (["-p", "a=1,b=x"], "preference: the weight of 'b' is not a number: 'x'"),
        (["-p", "a=0,b=0"], "preference: all weights are 0; at least one task needs a positive weight"),
        (["-p", "a=1,a=1,b=1"], "preference: task 'a' is named twice"),
        (["-p", "only:c"], "preference: unknown task 'c'; the tasks are a, b"),
        (["-p", ""], "preference: '' is not task=weight"),
        (["-p", "equal", "--head", "a"], "task a has no head of its own: leave --head out"),
        (["-p", "equal", "--head", "c"], "unknown task in head 'c' (known: a, b)"),
        (["-p", "equal", "--head", ""], "unknown task in head '' (known: a, b)"),
        (["-p", "equal", "--dtype", "float8_e4m3fn"], "--dtype must be "),
        (["-p", "equal", "--shard-size", "0"], "--shard-size: '0' is not a size"),
        (["-p", "equal", "--lora", "--dtype", "bf16"], "--dtype and --shard-size do not go with --lora"),
        (["-p", "equal", "--base-model", "x"], "--base-model and --rank go with --lora only"),
        (["-p", "equal", "-o", "front"], "front: exists already"),
        (["-p", "equal", "-o", "front", "--overwrite"], "is not a folder that paretomerge wrote"),
    ],
)
def test_what_cannot_be_picked(cli, front, words, line):
    assert line in cli.refuses("pick", front, *words, *(() if "-o" in words else ("-o", "out")))


def test_there_is_no_lora_of_a_soup(cli, zoo):
    cli("fit", *zoo.flags("llama"), "-m", "soup", "-o", "front")
    refused = "moves by a whole tensor in this front (soup), which no LoRA is"
    assert refused in cli.refuses("pick", "front", "-p", "only:a", "--lora", "-o", "x")


def test_a_model_that_transformers_does_not_know(cli, zoo):
    """Merging needs no transformers; an adapter is made for a class of it."""
    family = zoo("llama")
    words = ["--base", family / "base" / "model.safetensors", "--expert", f"a={family}/a", "--expert", f"b={family}/b"]
    cli("fit", *words, "-o", "front")
    cli("pick", "front", "-p", "only:a", "-o", "picked")
    assert not (cli.here / "picked" / "config.json").exists()
    refused = cli.refuses("pick", "front", "-p", "only:a", "--lora", "-o", "x")
    assert refused == 'the model\'s config.json names no architecture: add its class under "architectures"'
    for config in ('{"architectures": ["Nonsense"]}', '{"architectures": ["LlamaForCausalLM"]}',
                   '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": "wide"}'):  # fmt: skip
        (cli.here / "front" / "config.json").write_text(config)
        cli.refuses("pick", "front", "-p", "only:a", "--lora", "-o", "x")


def test_a_head_that_came_without_a_configuration(cli, zoo, tmp_path):
    """With a LoRA adapter, which says nothing of the class that it was trained on."""
    for seed, task in enumerate("ab"):
        model = tiny.model("bert", seed)
        lora = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], init_lora_weights=False)
        peft.get_peft_model(model, lora).save_pretrained(tmp_path / task)
    words = [
        "--base",
        zoo("bert") / "base",
        *(w for t in "ab" for w in ("--expert", f"{t}={tmp_path / t}")),
        "--heads",
        "classifier*",
    ]
    line = "the head of task a came without a config.json (with a LoRA adapter): leave --head out"
    assert cli.refuses("merge", *words, "--head", "a", "-o", "x", "--quiet") == line
    cli("fit", *words, "-o", "front")
    assert cli.refuses("pick", "front", "-p", "only:a", "--head", "a", "-o", "x") == line


# -- files


def test_pickled_weights_are_refused(cli, zoo, tmp_path):
    """With the command that converts them; nothing is unpickled."""
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    line = cli.refuses("merge", *zoo.flags("llama"), "--expert", f"c={tmp_path}", "-o", "x")
    assert line.startswith(
        f"{tmp_path / 'pytorch_model.bin'}: pickled weights can run code and are not read. Convert them once: "
    )
    assert "weights_only=True" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("words", [*(("merge", "-m", m) for m in MERGES), *FITS], ids=" ".join)
def test_nan_in_an_expert(cli, zoo, tmp_path, words, value):
    """Found while merging, named with file and tensor, and the folder that was begun is gone."""
    file = spoiled(zoo, tmp_path / "b", value=value) / "model.safetensors"
    line = cli.refuses(*words, *zoo.flags("llama", "a"), "--expert", f"b={tmp_path / 'b'}", "-o", "out")
    assert line.startswith(f"{file}: model.layers.1.self_attn.k_proj.weight: 1 of 128 entries are NaN or infinite: ")
    assert cli.refuses("merge", *zoo.flags("llama", "a"), "--expert", f"b={tmp_path / 'b'}", "-o", "out", "--quiet") == line


def test_overflow_of_the_stored_dtype(cli, zoo, tmp_path):
    expert = spoiled(zoo, tmp_path / "b", value=1e6)
    words = [*zoo.flags("llama", "a"), "--expert", f"b={expert}", "-o", "out"]
    line = "model.layers.1.self_attn.k_proj.weight: the merged tensor overflows torch.float16: store it wider (--dtype float32)"
    assert cli.refuses("merge", *words, "--dtype", "fp16") == line
    for options in ((), ("-m", "soup"), ("--option", "targets=all")):
        assert cli.refuses("fit", *words, "--dtype", "fp16", *options) == line
    cli("merge", *words)


def test_shapes_that_differ(cli, zoo, tmp_path):
    other = tiny.save(tiny.model("llama", intermediate_size=20), tmp_path / "other")
    line = cli.refuses("merge", *zoo.flags("llama", "a"), "--expert", f"b={other}", "-o", "x")
    assert f"{other / 'model.safetensors'}: model.layers.0.mlp." in line and "(and 5 more: see paretomerge check)" in line
    gpt2 = zoo("gpt2") / "a"
    assert "is it of this base?" in cli.refuses("fit", *zoo.flags("llama", "a"), "--expert", f"b={gpt2}", "-o", "x")


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_damaged_expert(cli, zoo, tmp_path, keep):
    content = (zoo("llama") / "b" / "model.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(content[: int(len(content) * keep) if keep == 0.5 else keep])
    line = cli.refuses("merge", *zoo.flags("llama", "a"), "--expert", f"b={tmp_path / 'b.safetensors'}", "-o", "x")
    assert line.startswith(f"{tmp_path / 'b.safetensors'}: not a valid safetensors file")


# -- where the output goes


@pytest.mark.parametrize("command", ["merge", "fit", "pick", "lora"])
def test_places_that_cannot_be_written(cli, zoo, front, command):
    words = {"merge": ["merge", *zoo.flags("llama")], "fit": ["fit", *zoo.flags("llama")]}.get(
        command, ["pick", front, "-p", "only:a", *(["--lora"] if command == "lora" else [])]
    )
    (cli.here / "file").write_text("mine")
    assert "file is no folder" in cli.refuses(*words, "-o", "file/out")
    assert "cannot be written" in cli.refuses(*words, "-o", "/proc/out")
    cli.refuses(*words, "-o", "x" * 300)
    cli.refuses(*words, "-o", ".")
    (cli.here / "real").mkdir()
    (cli.here / "link").symlink_to("real")
    cli.refuses(*words, "-o", "link", "--overwrite")


def test_a_folder_without_permission(cli, zoo, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, who runs tests in containers, may write anywhere
    assert cli.refuses("merge", *zoo.flags("llama"), "-o", "out") == f"out: cannot be written: {cli.here} may not be written to"


def test_a_full_disk(tmp_path):
    """The limit on the size of a file stands for it: the system's no comes in the middle of writing."""
    save_file({"w": torch.zeros(500, 500)}, tmp_path / "base.safetensors")
    limit = 200_000  # of 1 MB
    done = subprocess.run(
        [PROGRAM, "merge", "--base", tmp_path / "base.safetensors", "--expert", f"a={tmp_path / 'base.safetensors'}",
         "-o", tmp_path / "out"],
        capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / 'out'}: cannot be written (File too large)\n"
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


def test_ctrl_c_says_stopped(tmp_path):
    """Pressed once the folder is begun: exit code 130, and nothing stays."""
    save_file({f"w{i}": torch.zeros(1000, 1000) for i in range(30)}, tmp_path / "base.safetensors")
    words = [
        "--base",
        tmp_path / "base.safetensors",
        *(w for t in "abcd" for w in ("--expert", f"{t}={tmp_path}/base.safetensors")),
    ]
    before = contents(tmp_path).keys()
    process = subprocess.Popen(
        [PROGRAM, "merge", *words, "-m", "della", "-o", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob(".out.writing-*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "stopped\n")
    assert contents(tmp_path).keys() == before


def test_a_reader_that_leaves():
    """paretomerge methods | head -1."""
    with subprocess.Popen([PROGRAM, "methods", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
