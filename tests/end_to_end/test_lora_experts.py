"""Experts that are LoRA adapters: fronts that refer to their base, and adapters for every preference, exactly."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import tiny
from commands import apart
from paretomerge import api, load_experts, load_front
from paretomerge.data import Task, TensorInputs
from paretomerge.fitting import task_losses as problem
from paretomerge.weights import Adapted

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft asks the hub for the base's configuration

TASKS = {"math": 3, "code": 5, "law": 2}
"""Tasks and the ranks of their adapters."""


def adapters(folder, kind="llama", **options):
    """A base and three adapters of different ranks and scalings, and the same three merged by peft: dense experts."""
    base = tiny.save(tiny.model(kind), folder / "base")
    targets = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[kind]
    for seed, (task, rank) in enumerate(TASKS.items()):
        torch.manual_seed(seed)
        net = hf.AutoModelForCausalLM.from_pretrained(base)
        config = peft.LoraConfig(
            r=rank, lora_alpha=3 * rank + seed, use_rslora=seed == 1, target_modules=targets[seed % 2 :],
            init_lora_weights=False, fan_in_fan_out=kind == "gpt2", **options,
        )  # fmt: skip
        wrapped = peft.get_peft_model(net, config)
        wrapped.save_pretrained(folder / task)
        wrapped.merge_and_unload().save_pretrained(folder / f"{task}-dense")
    return folder


def flags(folder, suffix=""):
    return ["--base", f"{folder}/base", *(w for t in TASKS for w in ("--expert", f"{t}={folder}/{t}{suffix}"))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return adapters(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return adapters(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_soup_of_adapters_is_that_of_dense_experts_at_every_preference(cli, request, kind):
    """And each of its models is one adapter on the original base, which peft loads."""
    folder = request.getfixturevalue(kind)
    cli("fit", *flags(folder), "--method", "soup", "-o", "front")
    cli("fit", *flags(folder, "-dense"), "--method", "soup", "-o", "dense-front")
    assert not Path("front/model.safetensors").exists()
    size = sum(file.stat().st_size for file in Path("front").glob("*.safetensors"))
    assert size < Path("dense-front/model.safetensors").stat().st_size
    light, dense = load_front("front"), load_front("dense-front")
    for preference in ("equal", "only:code", "math=0.7,code=0.2,law=0.1"):
        ours, theirs = light.at(preference), dense.at(preference)
        assert set(ours) == set(theirs)
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-6)
    cli("pick", "front", "-p", "math=0.7,code=0.2,law=0.1", "-o", "adapter", "--lora")
    cli("pick", "front", "-p", "math=0.7,code=0.2,law=0.1", "-o", "whole")
    net = peft.PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(folder / "base"), "adapter").eval()
    whole = hf.AutoModelForCausalLM.from_pretrained("whole")
    assert apart(tiny.logits(kind, net), tiny.logits(kind, whole)) <= 1e-5
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["r"] == sum(TASKS.values())
    assert config["base_model_name_or_path"] == str(folder / "base")


def test_the_front_folder_is_the_adapter_at_equal_preference(cli, llama):
    cli("fit", *flags(llama), "--option", "rank=4", "--option", "targets=all", "-o", "front")
    cli("merge", *flags(llama), "--option", f"scale={1 / 3}", "-o", "merged")
    net = peft.AutoPeftModelForCausalLM.from_pretrained("front").eval()
    merged = hf.AutoModelForCausalLM.from_pretrained("merged")
    assert apart(tiny.logits("llama", net), tiny.logits("llama", merged)) <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4},
        {"rank": 4, "targets": "all"},
        {"rank": 2, "fuse_qkv": True},
        {"rank": 3, "scalarization": "smooth-tchebycheff"},
    ],
)
def test_the_closed_form_of_factors_is_that_of_matrices(llama, options):
    """Different random starts, the same optimum: what is captured agrees, and so do the models it gives."""
    experts = {t: str(llama / t) for t in TASKS}
    light = api.fit(load_experts(llama / "base", experts), sweeps=30, **options)
    dense = api.fit(load_experts(llama / "base", {t: f"{p}-dense" for t, p in experts.items()}), sweeps=30, **options)
    assert light.pareto_set.settings["captured"] == pytest.approx(dense.pareto_set.settings["captured"], abs=1e-4)
    ours, theirs = light.at("only:math"), dense.at("only:math")
    for name in theirs:
        assert apart(ours[name], theirs[name]) <= 2e-3


def test_smaller_ranks_tell_their_error(cli, llama):
    cli("fit", *flags(llama), "--method", "soup", "-o", "front")
    errors = []
    whole = load_front("front").at("only:code")
    start = load_experts(llama / "base", {"m": llama / "math"}).base
    for rank in (1, 3, 5, 10):
        facts = json.loads(cli("pick", "front", "-p", "only:code", "-o", f"r{rank}", "--lora", "--rank", rank, "--json"))
        errors.append(facts["relative_error"])
        adapted = load_experts(llama / "base", {"x": f"r{rank}"})
        lost = sum(float((adapted.task_vectors(n)[0] - (whole[n] - start[n])).square().sum()) for n in adapted.merged)
        total = sum(float((whole[n] - start[n]).square().sum()) for n in adapted.merged)
        assert (lost / total) ** 0.5 == pytest.approx(errors[-1], abs=1e-5)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] <= 1e-5, "code's own adapter has rank 5"
    assert "at least 1" in cli.refuses("pick", "front", "-p", "equal", "-o", "x", "--lora", "--rank", "0")
    assert "--lora only" in cli.refuses("pick", "front", "-p", "equal", "-o", "x", "--rank", "2")


def test_merging_adapters_to_one_adapter(cli, llama):
    cli("merge", *flags(llama), "--lora", "-o", "one")
    cli("merge", *flags(llama, "-dense"), "-o", "dense")
    net = peft.AutoPeftModelForCausalLM.from_pretrained("one").eval()
    dense = hf.AutoModelForCausalLM.from_pretrained("dense")
    assert apart(tiny.logits("llama", net), tiny.logits("llama", dense)) <= 1e-5
    assert "leave it out" in cli.refuses("merge", *flags(llama), "--method", "ties", "--lora", "-o", "two")
    assert "leave it out" in cli.refuses("merge", *flags(llama, "-dense"), "--lora", "-o", "two")


def test_a_base_that_moved_is_found_again(cli, llama, tmp_path):
    shutil.copytree(llama / "base", tmp_path / "there")
    words = ["--base", f"{tmp_path / 'there'}", *flags(llama)[2:]]
    cli("fit", *words, "--method", "soup", "-o", "front")
    before = {name: tensor.clone() for name, tensor in load_front("front").at("only:law").items()}
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    refusal = cli.refuses("pick", "front", "-p", "only:law", "-o", "law")
    assert "relocate front --base PATH" in refusal and "there" in refusal
    wrong = tiny.save(tiny.model("llama", seed=9), tmp_path / "wrong")
    assert "not the file" in cli.refuses("relocate", "front", "--base", wrong)
    cli("relocate", "front", "--base", tmp_path / "elsewhere")
    after = load_front("front").at("only:law")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert peft.PeftConfig.from_pretrained("front").base_model_name_or_path == str(tmp_path / "elsewhere")


def test_a_front_that_moves_together_with_its_base_opens(cli, llama, tmp_path):
    shutil.copytree(llama, tmp_path / "place" / "models")
    cli("fit", *flags(tmp_path / "place" / "models"), "--method", "soup", "-o", tmp_path / "place" / "front")
    before = {name: tensor.clone() for name, tensor in load_front(tmp_path / "place" / "front").at("only:law").items()}
    (tmp_path / "place").rename(tmp_path / "elsewhere")
    after = load_front(tmp_path / "elsewhere" / "front").at("only:law")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "as recorded" in cli("verify", tmp_path / "elsewhere" / "front")
    moved = tmp_path / "law-now"
    (tmp_path / "elsewhere" / "models" / "law").rename(moved)
    cli("relocate", tmp_path / "elsewhere" / "front", "--expert", f"law={moved}")
    assert "as recorded" in cli("verify", tmp_path / "elsewhere" / "front")


def test_a_whole_model_on_request_or_where_it_must_be(cli, llama, tmp_path):
    cli("fit", *flags(llama), "--method", "soup", "--copy-base", "-o", "copied")
    assert Path("copied/model.safetensors").exists() and not Path("copied/adapter_config.json").exists()
    cli("fit", *flags(llama), "--method", "soup", "--dtype", "bfloat16", "-o", "narrow")  # the base is in fp32
    assert Path("narrow/model.safetensors").exists()
    assert "leave the base out" in _error(lambda: load_front("copied", base=llama / "base"))


def _error(call):
    from paretomerge import UserError

    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


def test_no_task_vector_becomes_a_matrix(llama, monkeypatch):
    """Nothing reads the experts row by row: fits, merges and adapters work on factors alone."""
    experts = load_experts(llama / "base", {t: llama / t for t in TASKS})
    monkeypatch.setattr(type(experts), "chunks", lambda *_, **__: pytest.fail("a dense task vector was made"))
    front = api.fit(experts, "soup")
    assert isinstance(front.pareto_set.base, Adapted)
    api.fit(experts, rank=3, targets="all").at("only:math")["model.layers.0.self_attn.q_proj.weight"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Token ids for each task."""
    ids = {task: torch.randint(3, 40, (12, 8), generator=torch.Generator().manual_seed(k)) for k, task in enumerate(TASKS)}
    return {
        task: Task(
            task, "language-modelling", TensorInputs({"input_ids": x, "attention_mask": torch.ones_like(x)}), None, "perplexity"
        )
        for task, x in ids.items()
    }


FITS = {
    "pareto-merging": {"rank": 2},
    "adamerging": {"objective": "distill"},
    "steered": {"rank": 2},
    "pwe-moe": {"modules": "attention"},
}


@pytest.mark.parametrize("method", FITS)
def test_fits_on_data_keep_factors(llama, texts, tmp_path, monkeypatch, method):
    """No task vector becomes a matrix, the models are those of dense experts, and each is one adapter on the base."""
    options = {"steps": 4, "batch_size": 4, "lr": 0.01, **FITS[method]}
    experts = load_experts(llama / "base", {t: llama / t for t in TASKS})
    with monkeypatch.context() as patch:
        # stacked, and with a low-rank term of the same experts: that of others starts elsewhere
        stacked = problem.task_vectors_of
        patch.setattr(problem, "task_vectors_of", lambda *arguments, **_: stacked(*arguments, thin=False))
        dense = experts if "rank" in FITS[method] else load_experts(llama / "base", {t: llama / f"{t}-dense" for t in TASKS})
        theirs = api.fit(dense, method, data=texts, **options)
    with monkeypatch.context() as patch:
        for name in ("chunks", "task_vectors"):
            patch.setattr(type(experts), name, lambda *_, **__: pytest.fail("a dense task vector was made"))
        ours = api.fit(experts, method, data=texts, **options)
        ours.save(tmp_path / "front")
    assert not (tmp_path / "front" / "model.safetensors").exists(), "the base is referred to"
    front = load_front(tmp_path / "front")
    assert isinstance(front.pareto_set.base, Adapted)
    for preference in ("equal", "only:code", "math=0.7,code=0.2,law=0.1"):
        light, heavy = front.at(preference), theirs.at(preference)
        assert set(light) == set(heavy)
        for name in heavy:
            assert apart(light[name], heavy[name]) <= 1e-4
    front.pick_lora("only:code", tmp_path / "adapter")
    net = peft.PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(llama / "base"), tmp_path / "adapter").eval()
    assert apart(tiny.logits("llama", net), tiny.logits("llama", front.model("only:code"))) <= 1e-5


def test_ties_and_smaller_ranks_of_adapters_need_matrices(llama, texts):
    """Entries that are trimmed leave no product; a truncated one is not the expert's: both are whole in the fit."""
    experts = load_experts(llama / "base", {t: llama / t for t in TASKS})
    others = [
        "*norm*",
        "*embed*",
        "*gate_proj*",
        "*up_proj*",
        "*k_proj*",
        "*o_proj*",
        "lm_head*",
    ]  # zeros that TIES would count
    dense = load_experts(llama / "base", {t: llama / f"{t}-dense" for t in TASKS}, exclude=others)
    options = {"data": texts, "steps": 2, "batch_size": 4}
    for method, more in (("adamerging", {"ties": 0.3}), ("steered", {"rank": 0, "task_vector_rank": 1})):
        ours, theirs = (api.fit(each, method, **more, **options) for each in (experts, dense))
        for preference in ("equal", "only:law"):
            light, heavy = ours.at(preference), theirs.at(preference)
            assert max(apart(light[name], heavy[name]) for name in heavy) <= 1e-3


@pytest.mark.parametrize("method", ["pareto-merging", "training"])
def test_activations_that_are_computed_again_change_nothing(llama, texts, method):
    experts = load_experts(llama / "base", {t: llama / t for t in TASKS})
    options = {"objective": "distill", "steps": 3, "batch_size": 4, "lr": 0.01}
    ran, again = [], []
    for checkpointing, counted in ((False, ran), (True, again)):
        with _counting(counted):
            front = api.fit(experts, method, data=texts, checkpointing=checkpointing, **options)
        if not checkpointing:
            expected = {name: tensor.clone() for name, tensor in front.at("only:math").items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in front.at("only:math").items())
    assert len(again) > 1.4 * len(ran), "the layers do not run again in the backward pass"


@contextmanager
def _counting(calls):
    """Note every run of an MLP."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaMLP, "forward", lambda self, x: (calls.append(1), forward(self, x))[1])
        yield


def test_not_finite_factors_are_told_with_their_file(cli, llama, tmp_path):
    shutil.copytree(llama / "math", tmp_path / "bad")
    file = tmp_path / "bad" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    words = ["--base", f"{llama}/base", "--expert", f"math={tmp_path / 'bad'}", "--expert", f"code={llama}/code"]
    for command in (["fit", "--method", "soup"], ["fit"], ["merge"]):
        assert str(file) in cli.refuses(command[0], *words, *command[1:], "-o", "front")
