"""Merges saved from Python, and models that are in memory: live, PEFT, state dicts."""

import copy
import json
import re

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import task_data
import tiny
from commands import apart
from paretomerge import UserError, fit, load_experts, load_front, merge

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft asks the hub for the base's configuration

LORA = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def load(folder):
    return hf.AutoModelForCausalLM.from_pretrained(folder).eval()


def weights_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def code_of(folder):
    """The Python of a folder's card."""
    return re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_a_merge_saves_the_folder_of_the_command(zoo, cli, tmp_path):
    family = zoo("llama")
    task_data.companions(family / "base")
    cli("merge", *zoo.flags("llama"), "-m", "ties", "--option", "density=0.5", "-o", "command")
    merged = merge(load_experts(family / "base", {t: family / t for t in "ab"}), "ties", density=0.5)
    merged.save(tmp_path / "python")
    command = {p.name: p.read_bytes() for p in (cli.here / "command").iterdir()}
    assert command == {p.name: p.read_bytes() for p in (tmp_path / "python").iterdir()}
    assert "tokenizer_config.json" in command and "config.json" in command
    with pytest.raises(UserError, match="exists already"):
        merged.save(tmp_path / "python")
    merged.save(tmp_path / "python", overwrite=True, shard_bytes=4000)
    assert len(list((tmp_path / "python").glob("*.safetensors"))) > 1


def test_points_of_a_front_are_saved_as_picks(zoo, tmp_path):
    family = zoo("llama")
    front = fit(load_experts(family / "base", {t: family / t for t in "ab"}), rank=2)
    front.at("only:a").save(tmp_path / "saved")
    front.pick("only:a", tmp_path / "picked")
    for file in (tmp_path / "picked").iterdir():
        assert file.read_bytes() == (tmp_path / "saved" / file.name).read_bytes()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit", "clip"])
def test_live_models_merge_as_their_folders_do(tmp_path, kind):
    base, experts = tiny.family(kind, tmp_path)
    cls = tiny.ARCHITECTURES[kind][0]
    live = [cls.from_pretrained(folder) for folder in (base, *experts.values())]
    from_files = load_experts(base, experts)
    for given in (live, [tiny.model(kind), *(tiny.perturb(tiny.model(kind), i + 1) for i in range(2))]):
        in_memory = load_experts(given[0], dict(zip("ab", given[1:], strict=True)))
        merge(in_memory, "average").save(tmp_path / "merged", overwrite=True)
        merge(from_files, "average").save(tmp_path / "expected", overwrite=True)
        assert same(weights_of(tmp_path / "merged"), weights_of(tmp_path / "expected"))
        assert (
            apart(
                tiny.logits(kind, cls.from_pretrained(tmp_path / "merged").eval()),
                tiny.logits(kind, cls.from_pretrained(tmp_path / "expected").eval()),
            )
            == 0
        )
    front = fit(in_memory, "soup")
    front.save(tmp_path / "front")
    assert load_front(tmp_path / "front").sources["base"]["path"] == "in memory"
    loaded = cls.from_pretrained(tmp_path / "front").eval()
    assert torch.equal(tiny.logits(kind, loaded), tiny.logits(kind, front.model("equal")))


def _peft_pair(folder):
    """Two adapters, live and saved, and their base's folder."""
    base = tiny.save(tiny.model("llama"), folder / "base")
    live = {}
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        live[task] = peft.get_peft_model(load(base), peft.LoraConfig(**LORA))
        live[task].save_pretrained(folder / task)
    return base, live


def test_live_adapters_are_the_adapters_that_peft_saves(tmp_path):
    base, live = _peft_pair(tmp_path)
    expected = merge(load_experts(base, {t: tmp_path / t for t in "ab"}), "task_arithmetic", scale=0.5)
    assert same(dict(merge(load_experts(base, live), "task_arithmetic", scale=0.5)), dict(expected))
    under = load_experts(live["a"], live)  # its base, without the adapter that is in it
    assert same(dict(merge(under, "task_arithmetic", scale=0.5)), dict(expected))
    merge(under, "task_arithmetic", scale=0.5).save(tmp_path / "merged")
    assert same(weights_of(tmp_path / "merged"), dict(expected)) and load(tmp_path / "merged")
    fit(load_experts(base, live), rank=2).save(tmp_path / "front")
    assert (
        apart(
            tiny.logits("llama", load(tmp_path / "front")), tiny.logits("llama", load_front(tmp_path / "front").model("equal"))
        )
        < 1e-6
    )
    merge(load_experts(base, live), "average").save(tmp_path / "sum", lora=True)
    assert (tmp_path / "sum" / "adapter_model.safetensors").exists()
    own = load(base)
    own.load_adapter(tmp_path / "a")  # transformers' own way
    assert same(dict(merge(load_experts(base, {"a": own}))), dict(merge(load_experts(base, {"a": tmp_path / "a"}))))


def test_state_dicts_with_a_configuration(zoo, tmp_path):
    family = zoo("llama")
    states = {name: dict(load(family / name).state_dict()) for name in ("base", "a", "b")}
    experts = {t: states[t] for t in "ab"}
    file = family / "base" / "config.json"
    for i, config in enumerate((json.loads(file.read_text()), file, family / "base", load(family / "base").config)):
        front = fit(load_experts(states["base"], experts, config=config), "soup")
        front.save(tmp_path / f"front-{i}")
        assert apart(tiny.logits("llama", load(tmp_path / f"front-{i}")), tiny.logits("llama", front.model("equal"))) == 0
    bare = merge(load_experts(states["base"], experts))
    with pytest.raises(UserError, match=r"without a configuration.*give config="):
        bare.save(tmp_path / "bare")
    bare.save(tmp_path / "bare", config=file)
    assert load(tmp_path / "bare")


def test_a_model_that_changes_under_its_front_is_noticed(zoo):
    family = zoo("llama")
    base = load(family / "base")
    front = fit(load_experts(base, {t: family / t for t in "ab"}), "soup")
    base.model.norm.weight.data  # noqa: B018
    with torch.no_grad():
        base.lm_head.weight.mul_(2)
    with pytest.raises(UserError, match=r"lm_head.weight: this model in memory was changed after load_experts"):
        dict(front.at("only:a"))


def test_mistakes(zoo, tmp_path):
    family = zoo("llama")
    base, a = family / "base", family / "a"
    net = load(base)
    base_, live = _peft_pair(tmp_path)
    merged = copy.deepcopy(live["a"])
    merged.merge_adapter()
    two = copy.deepcopy(live["a"])
    two.add_adapter("second", peft.LoraConfig(**LORA))
    two.base_model.set_adapter(["default", "second"])
    prompt = peft.get_peft_model(load(base), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    for call, line in [
        (lambda: load_experts(base, [a]), "experts: name each by its task"),
        (lambda: load_experts(3, {"a": a}), "int is no model: give a path"),
        (lambda: load_experts({"w": [1]}, {"a": a}), "w: list is no tensor"),
        (lambda: load_experts(net, {"a": a}, config={}), "brings its own configuration"),
        (lambda: load_experts(base, {"a": a}, config={}), "brings its own config.json"),
        (lambda: load_experts(base_, {"a": merged}), "call unmerge_adapter"),
        (lambda: load_experts(base_, {"a": two}), "2 active adapters (default, second)"),
        (lambda: load_experts(base_, {"a": prompt}), "peft_type IA3 is not LoRA"),
        (lambda: load_experts(base, {"a": a}, vocab="comon"), "unknown vocab 'comon', did you mean 'common'?"),
        (lambda: load_experts(base, {"a": a}, missing="bas"), "unknown missing 'bas', did you mean 'base'?"),
    ]:
        with pytest.raises(UserError) as error:
            call()
        assert line in str(error.value), error.value


def test_an_export_asks_for_its_head(zoo, cli, tmp_path):
    """transformers would invent one, and say so in a warning only."""
    family = zoo("vit")
    cli("fit", *zoo.flags("vit"), "--method", "soup", "-o", "front")
    asks = "tasks have heads of their own (a, b): choose one with --head TASK (head= in Python), or --head none"
    assert asks in cli.refuses("pick", "front", "-p", "equal", "-o", "x")
    assert asks in cli.refuses("merge", *zoo.flags("vit"), "-q", "-o", "x")
    assert "unknown task in head 'c'" in cli.refuses("merge", *zoo.flags("vit"), "--head", "c", "-q", "-o", "x")
    experts = load_experts(family / "base", {t: family / t for t in "ab"})
    front = load_front(cli.here / "front")
    for call in (front.pick, front.pick_lora):
        with pytest.raises(UserError, match="tasks have heads of their own"):
            call("equal", tmp_path / "x")
    for weights in (merge(experts, "average"), front.at("equal")):
        with pytest.raises(UserError, match="tasks have heads of their own"):
            weights.save(tmp_path / "x")
    cli("pick", "front", "-p", "equal", "--head", "a", "-o", "a")
    cli("pick", "front", "-p", "equal", "--head", "none", "-o", "none")
    cli("merge", *zoo.flags("vit"), "--head", "none", "-o", "merged")
    assert "With the head of task **a**" in (cli.here / "a" / "README.md").read_text()
    for name in ("none", "merged"):
        card = (cli.here / name / "README.md").read_text()
        assert json.loads((cli.here / name / "config.json").read_text())["architectures"] == ["ViTModel"]
        assert "No task's head is in this folder" in card and "ViTModel.from_pretrained" in card
    merge(experts, "average").save(tmp_path / "head", head="a")
    assert hf.ViTForImageClassification.from_pretrained(tmp_path / "head").num_labels == 5


@pytest.mark.parametrize("kind, head", [("llama", None), ("vit", "a"), ("vit", "none")])
def test_the_code_of_a_card_loads_its_model(zoo, tmp_path, monkeypatch, kind, head):
    family = zoo(kind)
    task_data.companions(family / "base")
    front = fit(load_experts(family / "base", {t: family / t for t in "ab"}), rank=2)
    front.pick("only:a", tmp_path / "picked", head=head)
    front.save(tmp_path / "front")
    for folder, preference, own in (("picked", "only:a", head), ("front", "equal", None)):
        monkeypatch.chdir(tmp_path / folder)
        (code,) = code_of(tmp_path / folder)
        names: dict[str, object] = {}
        exec(code, names)
        assert same(dict(names["model"].state_dict()), dict(front.model(preference, head=own).state_dict()))
        assert names.keys() & ({"tokenizer"} if kind == "llama" else {"image_processor"})
    if kind == "llama":
        load_front(tmp_path / "front").pick_lora("only:a", tmp_path / "adapter")
        monkeypatch.chdir(tmp_path / "adapter")
        exec(code_of(tmp_path / "adapter")[0], names)
        assert apart(tiny.logits(kind, names["model"]), tiny.logits(kind, front.model("only:a"))) < 1e-5
