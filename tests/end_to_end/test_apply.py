"""``front.apply_`` on models that somebody else made, loaded, wrapped or changed: exactly θ(γ), or one clear line."""

import accelerate
import peft
import pytest
import torch
import transformers as hf

import tiny
from commands import apart
from paretomerge import UserError, fit, load_experts, load_front


@pytest.fixture(scope="module")
def front(zoo, tmp_path_factory):
    """Of attention matrices only: most of the merge does not vary."""
    return _front(zoo, tmp_path_factory.mktemp("apply") / "front")


def _front(zoo, folder, **options):
    family = zoo("llama")
    fit(load_experts(family / "base", {t: family / t for t in "ab"}), rank=3, targets="attention", **options).save(folder)
    return load_front(folder)


def _same(front, model, preference):
    return apart(tiny.logits("llama", model), tiny.logits("llama", front.model(preference))) < 1e-6


def load(folder, **options):
    return hf.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_are_offloaded_to_memory(tmp_path, front, tied):
    if tied:
        base, experts = tiny.family("llama", tmp_path / "tied", tie_word_embeddings=True)
        fit(load_experts(base, experts), "soup").save(tmp_path / "front")
        front = load_front(tmp_path / "front")
    model = load(front.folder)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for preference in ("only:a", "only:b", "a=0.3,b=0.7"):
        front.apply_(model, preference)
        assert _same(front, model, preference)


def test_weights_on_disk_are_refused_before_anything_moves(tmp_path, zoo, front):
    model = load(front.folder)
    before = tiny.logits("llama", model)
    accelerate.disk_offload(model, tmp_path / "offload", torch.device("cpu"))
    with pytest.raises(UserError, match=r"offloaded to disk.*device_map without 'disk'"):
        front.apply_(model, "only:a")
    assert torch.equal(tiny.logits("llama", model), before)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
              "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    half = load(front.folder, device_map=places, offload_folder=tmp_path / "more")
    before = tiny.logits("llama", half)
    with pytest.raises(UserError, match="offloaded to disk"):
        front.apply_(half, "only:a")
    assert torch.equal(tiny.logits("llama", half), before)
    with pytest.raises(UserError, match="on the meta device and holds nothing"):
        with torch.device("meta"):
            empty = hf.AutoModelForCausalLM.from_config(half.config)
        front.apply_(empty, "only:a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pretrained_base_or_an_expert_becomes_the_preference(zoo, front, dtype):
    for name in ("base", "a"):
        model = load(zoo("llama") / name, dtype=dtype)
        for preference in ("only:a", "only:b"):
            front.apply_(model, preference)
            expected = front.model(preference, dtype=dtype).state_dict()
            assert all(apart(tensor, expected[name]) < 1e-6 for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", ["load_state_dict", "assign", "data", "train", "one row", "half and back", "moved"])
def test_a_change_between_two_switches_is_noticed(zoo, front, change):
    model = front.model("only:a")
    front.apply_(model, "only:b")
    other = load(zoo("llama") / "base")
    with torch.no_grad():
        if change in ("load_state_dict", "assign"):
            model.load_state_dict(other.state_dict(), assign=change == "assign")
        elif change == "data":
            for parameter in model.parameters():
                parameter.data.mul_(0.9)
        elif change == "train":
            model.model.norm.weight.add_(1.0)  # does not vary
        elif change == "one row":
            model.model.embed_tokens.weight[17] += 1
        elif change == "half and back":
            model.half().float()
        else:
            model.to("cpu", dtype=torch.float64)
    front.apply_(model, "a=0.6,b=0.4")
    expected = front.model("a=0.6,b=0.4").state_dict()
    assert all(apart(tensor, expected[name]) < 1e-6 for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own imports
@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel, lambda m: torch.nn.DataParallel(torch.compile(m))])
def test_wrappers(zoo, front, wrap):
    model = load(zoo("llama") / "base")
    wrapped = wrap(model)
    assert front.apply_(wrapped, "only:a") is wrapped and _same(front, model, "only:a")
    front.apply_(model, "only:b")  # the same model
    front.apply_(wrapped, "equal")
    assert _same(front, model, "equal")


def test_models_made_in_inference_mode(front):
    with torch.inference_mode():
        model = front.model("equal")
        front.apply_(model, "only:a")
    front.apply_(model, "only:b")
    assert _same(front, model, "only:b")


def test_statistics_of_batch_norm_move_too(zoo):
    family = zoo("resnet")
    front = fit(load_experts(family / "base", {t: family / t for t in "ab"}), "soup")
    model = hf.AutoModelForImageClassification.from_pretrained(family / "base").eval()
    front.apply_(model, "only:a")
    assert apart(tiny.logits("resnet", model), tiny.logits("resnet", front.model("only:a"))) < 1e-6


def test_a_head_of_the_model_stays(zoo, tmp_path):
    family = zoo("vit")
    front = fit(load_experts(family / "base", {t: family / t for t in "ab"}), "soup")
    front.pick("equal", tmp_path / "a", head="a")
    model = hf.AutoModelForImageClassification.from_pretrained(tmp_path / "a").eval()
    front.apply_(model, "only:a")
    assert apart(tiny.logits("vit", model), tiny.logits("vit", front.model("only:a", head="a"))) < 1e-6


def _peft(front):
    return peft.get_peft_model(load(front.folder), peft.LoraConfig(target_modules=["q_proj"]))


def _with_own_adapter(front):
    model = load(front.folder)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    return model


class _Quantised(torch.nn.Parameter):
    """As bitsandbytes has them: integers, packed."""


def _quantised(front):
    model = load(front.folder)
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = _Quantised(torch.zeros(128, 1, dtype=torch.uint8), requires_grad=False)
    return model


def _integers(front):
    model = load(front.folder)
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    return model


def _shorter(front):
    model = load(front.folder)
    del model.model.layers[1]
    return model


def _deeper(front):
    return tiny.model("llama", num_hidden_layers=3)


def _biased(front):
    return tiny.model("llama", attention_bias=True)


def _wider(front):
    return tiny.model("llama", vocab_size=48)


def _tied(front):
    model = load(front.folder)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


@pytest.mark.parametrize(
    "make, line",
    [
        (_peft, "carries PEFT adapters"),
        (_with_own_adapter, "carries PEFT adapters"),
        (_quantised, "is a _Quantised, quantised or sharded: load the model whole"),
        (_integers, r"the model has \[16, 16\] torch.int8, the front \[16, 16\] torch.float32"),
        (_shorter, r"has no parameter model.layers.1.\S+ \(it is another model"),
        (_deeper, r"the model has model.layers.2.\S+, which the front lacks"),
        (_biased, r"the model has \S+_proj.bias, which the front lacks"),
        (_wider, r"\.weight: the model has \[48, 16\]"),
        (_tied, r"is the same tensor as \S+ in the model, but not in the front"),
    ],
)
def test_other_models_are_refused_and_left_alone(front, make, line):
    model = make(front)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=line):
        front.apply_(model, "only:a")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
