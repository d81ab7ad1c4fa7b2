"""The library from Python."""

import gc
import random

import pytest
import torch
import transformers as hf

import paretomerge
import tiny
from commands import HEADS, apart, contents
from paretomerge import UserError, fit, load_experts, load_front, merge
from paretomerge.weights import open_checkpoint

PREFERENCES = ("a=0.7,b=0.3", "only:b", "priority:a", {"b": 3, "a": 1}, (0.2, 0.8), "equal")


def experts_of(zoo, kind):
    family = zoo(kind)
    return load_experts(family / "base", {"a": family / "a", "b": str(family / "b")})


def test_public_names():
    assert set(paretomerge.__all__) <= set(dir(paretomerge))
    assert all(getattr(paretomerge, name) for name in paretomerge.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'mrege'"):
        _ = paretomerge.mrege


def test_state_dicts_instead_of_files():
    base = {"w": torch.zeros(4, 4), "b": torch.zeros(4)}
    experts = {"a": {"w": torch.eye(4), "b": torch.ones(4)}, "b": {"w": -torch.eye(4), "b": torch.zeros(4)}}
    opened = load_experts(base, experts)
    assert torch.equal(merge(opened, "average")["b"], torch.full((4,), 0.5))
    front = fit(opened, "soup")
    assert torch.equal(front.at("only:a")["w"], torch.eye(4))
    with pytest.raises(UserError, match="no architecture"):
        front.model("equal")


def test_merge_is_lazy_and_a_mapping(zoo):
    merged = merge(experts_of(zoo, "llama"), "ties", density=0.5)
    name = next(iter(merged))
    assert tuple(merged[name].shape) == merged.infos[name].shape and len(dict(merged)) == len(merged)


def test_a_front_in_memory_is_the_front_on_disk(zoo, tmp_path):
    front = fit(experts_of(zoo, "gpt2"), rank=3, on="ties", on_options={"density": 0.4})
    front.save(tmp_path / "front")
    opened = load_front(tmp_path / "front")
    assert opened.tasks == front.tasks == ("a", "b") and opened.summary() == front.summary()
    for preference in PREFERENCES:
        one, other = front.at(preference), opened.at(preference)
        assert all(torch.equal(one[name], other[name]) for name in one)
    opened.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "front")
    with pytest.raises(UserError, match="exists already"):
        opened.save(tmp_path / "again")
    opened.save(tmp_path / "again", overwrite=True)
    assert contents(tmp_path / "again") == contents(tmp_path / "front")


def test_pick_and_pick_lora(zoo, tmp_path):
    front = fit(experts_of(zoo, "llama"), rank=3)
    front.save(tmp_path / "front")
    front = load_front(tmp_path / "front")
    front.pick({"a": 7, "b": 3}, tmp_path / "model", dtype=torch.bfloat16, shard_bytes=3000)
    assert all(
        torch.equal(tensor, front.at((0.7, 0.3), torch.bfloat16)[name])
        for name, tensor in open_checkpoint(tmp_path / "model").items()
    )
    front.pick_lora("only:a", tmp_path / "adapter")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert apart(tiny.logits("llama", model), tiny.logits("llama", front.model("only:a"))) <= 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "clip", "resnet"])
def test_model_is_the_checkpoint_that_pick_writes(zoo, tmp_path, kind):
    front = fit(experts_of(zoo, kind), *(["soup"] if kind == "resnet" else []))
    front.pick("a=0.9,b=0.1", tmp_path / "model")
    loaded = tiny.ARCHITECTURES[kind][0].from_pretrained(tmp_path / "model")
    model = front.model("a=0.9,b=0.1")
    assert not model.training and model.dtype == torch.float32
    assert torch.equal(tiny.logits(kind, model), tiny.logits(kind, loaded.eval()))
    assert front.model("equal", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("task", HEADS)
def test_model_with_a_head(zoo, task):
    front = fit(experts_of(zoo, "vit"), "soup")
    expert = hf.AutoModelForImageClassification.from_pretrained(zoo("vit") / task)
    assert apart(tiny.logits("vit", front.model(f"only:{task}", head=task)), tiny.logits("vit", expert)) < 1e-5
    with pytest.raises(UserError, match="unknown task in head 'c'"):
        front.model("equal", head="c")


@pytest.mark.parametrize(
    "kind, method", [("llama", "soup"), *((kind, "pareto-merging") for kind in ("llama", "gpt2", "vit", "clip"))]
)
def test_200_switches_do_not_drift(zoo, tmp_path, kind, method):
    """fp32: at most 1e-5 from a model built anew, after 200 updates in place."""
    front = fit(experts_of(zoo, kind), method)
    front.save(tmp_path / "front")
    model = front.model("equal", head="a" if kind == "vit" else None)
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    rng = random.Random(0)
    for _ in range(200):
        share = rng.choice([0.0, 1.0, rng.random()])
        assert front.apply_(model, (share, 1 - share)) is model
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == addresses
    assert all(parameter.requires_grad for parameter in model.parameters())
    anew = front.model((share, 1 - share), head="a" if kind == "vit" else None)
    for (name, one), (_, other) in zip(model.named_parameters(), anew.named_parameters(), strict=True):
        assert apart(one, other) <= 1e-5, name
    said, expected = tiny.logits(kind, model), tiny.logits(kind, anew)
    assert apart(said, expected) <= 1e-5 * max(1, float(expected.abs().max()))  # CLIP's are about 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_set_anew_and_exact(zoo, dtype):
    front = fit(experts_of(zoo, "llama").stored_as(dtype), rank=4)
    model = front.model("equal")
    assert model.dtype == dtype
    for preference in PREFERENCES:
        front.apply_(model, preference)
        weights = front.at(preference)
        assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_a_model_wider_than_the_front_gets_what_at_gives(zoo, tmp_path):
    """Not θ(γ) as rounded for the front's own dtype."""
    fit(experts_of(zoo, "llama").stored_as(torch.bfloat16), rank=4).save(tmp_path / "front")
    front = load_front(tmp_path / "front")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "front", dtype=torch.float32)
    front.apply_(model, "only:a")
    weights = front.at("only:a", torch.float32)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_apply_to_a_model_that_was_loaded_elsewhere(zoo, tmp_path):
    """The front's folder loaded with transformers, its backbone only, or one whose weights someone moved."""
    for kind in ("llama", "vit"):
        front = fit(experts_of(zoo, kind), rank=3)
        front.save(tmp_path / kind)
        front = load_front(tmp_path / kind)
        model = (hf.AutoModelForCausalLM if kind == "llama" else hf.AutoModel).from_pretrained(tmp_path / kind)
        for preference in PREFERENCES:
            front.apply_(model, preference)
            expected = front.model(preference).state_dict()
            assert all(apart(tensor, expected[name]) < 1e-6 for name, tensor in model.state_dict().items())
    backbone = hf.AutoModel.from_pretrained(tmp_path / "llama")  # names without "model."
    front = load_front(tmp_path / "llama")
    front.apply_(backbone, "only:a")
    assert torch.equal(backbone.layers[0].self_attn.q_proj.weight, front.at("only:a")["model.layers.0.self_attn.q_proj.weight"])


def test_apply_refuses_another_model(zoo):
    front = fit(experts_of(zoo, "llama"), rank=3)
    with pytest.raises(UserError, match=r"build it with front\.model"):
        front.apply_(torch.nn.Linear(3, 3), "only:a")
    with pytest.raises(UserError, match="unknown task 'c'"):
        front.apply_(front.model("equal"), "only:c")


def test_a_front_keeps_no_model_alive(zoo):
    front = fit(experts_of(zoo, "llama"), rank=3)
    model = front.model("equal")
    front.apply_(model, "only:a")
    del model
    gc.collect()
    assert len(front._applied) == 0


def test_mistakes(zoo):
    experts = experts_of(zoo, "llama")
    for call, line in [
        (lambda: merge(experts, "tie"), "unknown merge 'tie', did you mean 'ties'"),
        (lambda: merge(experts, densty=1), "task_arithmetic: unknown option 'densty'"),
        (lambda: fit(experts, "pareto"), "unknown set 'pareto'"),
        (lambda: fit(experts, on_options={"scale": 1}), "no merge they belong to"),
        (lambda: fit(experts).at("c=1"), "unknown task 'c'"),
        (lambda: fit(experts).at((1, 2, 3)), "3 weights for 2 tasks"),
        (lambda: load_front("nowhere"), "not a front"),
        (lambda: load_experts("nowhere", {"a": "x"}), "no such file or folder"),
    ]:
        with pytest.raises(UserError) as error:
            call()
        assert line in str(error.value) and "\n" not in str(error.value)
