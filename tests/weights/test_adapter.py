"""LoRA adapters as experts: base + adapter must be what peft's merge_and_unload makes of them."""

import json
import math

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file

import tiny
from paretomerge.errors import UserError
from paretomerge.experts import load_experts
from paretomerge.merges import task_arithmetic
from paretomerge.weights import open_adapter

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft asks the hub for the base's configuration

LLAMA = ["q_proj", "v_proj"]
CASES = {
    "plain": ("llama", {"target_modules": LLAMA}, {}),
    "every linear": ("llama", {"target_modules": "all-linear"}, {}),
    "one layer": ("llama", {"target_modules": LLAMA, "layers_to_transform": [0]}, {}),
    "rsLoRA": ("llama", {"target_modules": LLAMA, "use_rslora": True}, {}),
    "patterns": (
        "llama",
        {
            "target_modules": [*LLAMA, "up_proj", "k_proj"],
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6, "^model.layers.0.self_attn.v_proj": 1},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 11, r"layers\.\d+\.mlp\.up_proj": 3},
        },
        {},
    ),
    "patterns with rsLoRA": (
        "llama",
        {"target_modules": LLAMA, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True},
        {},
    ),
    "embedding": ("llama", {"target_modules": [*LLAMA, "embed_tokens"]}, {}),
    "head": ("llama", {"target_modules": [*LLAMA, "lm_head"]}, {}),
    "whole modules": ("llama", {"target_modules": LLAMA, "modules_to_save": ["lm_head", "norm"]}, {}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, {}),
    "Conv1D with its embeddings": (
        "gpt2",
        {"target_modules": ["c_attn", "wte", "wpe"], "fan_in_fan_out": True},
        {"tie_word_embeddings": False},
    ),
    # peft corrects fan_in_fan_out for each module, and writes what it found last
    "Conv1D and Linear": ("gpt2", {"target_modules": ["c_attn", "lm_head"]}, {"tie_word_embeddings": False}),
    "Linear and Conv1D": (
        "gpt2",
        {"target_modules": ["c_attn", "lm_head"], "fan_in_fan_out": True},
        {"tie_word_embeddings": False},
    ),
    "classifier": ("bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}, {}),
    "biases": ("bert", {"target_modules": ["query", "value"], "bias": "all"}, {}),
    "biases of the adapted": ("bert", {"target_modules": ["query", "dense"], "bias": "lora_only"}, {}),
    "ViT": ("vit", {"target_modules": ["query", "key", "dense"]}, {}),
    "CLIP": ("clip", {"target_modules": ["q_proj", "fc1", "visual_projection"]}, {}),
}


def adapted(kind, folder, options, changes, dtype=torch.float32):
    """A base, an adapter on it with random factors, and what peft merges them to: three folders."""
    base = tiny.save(tiny.model(kind, **changes).to(dtype), folder / "base")
    net = type(tiny.model(kind, **changes)).from_pretrained(base, dtype=dtype)
    if kind == "vit":  # transformers 5 calls ViT's modules q_proj, o_proj, fc1 once they are loaded
        live = {name.rsplit(".", 1)[-1] for name, _ in net.named_modules()}
        targets = [t for t in ("query", "key", "dense", "q_proj", "o_proj", "fc1") if t in live]
        options = {**options, "target_modules": targets}
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=7, init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(net, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder / "adapter")
    return base, folder / "adapter", tiny.save(wrapped.merge_and_unload(), folder / "merged")


@pytest.mark.parametrize("case", list(CASES))
def test_is_what_peft_merges(tmp_path, case):
    if CASES[case][1].get("bias") == "lora_only" and Version(peft.__version__) < Version("0.21"):
        pytest.skip("peft before 0.21 does not save these biases")
    kind, options, changes = CASES[case]
    base, adapter, merged = adapted(kind, tmp_path, options, changes)
    experts = load_experts(base, {"a": adapter})
    result = task_arithmetic(experts, scale=1.0)
    expected = load_file(merged / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert set(result) == set(before)
    changed = set()
    for name in before:
        torch.testing.assert_close(result[name], expected[name], rtol=1e-5, atol=1e-6, msg=lambda m: f"{name}: {m}")  # noqa: B023
        if not torch.equal(expected[name], before[name]):
            changed.add(name)
    assert changed and changed <= set(experts.merged)
    assert not [finding for finding in experts.findings if finding.level != "note"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_on_a_base_of_another_dtype(tmp_path, dtype):
    base, adapter, _ = adapted("llama", tmp_path, {"target_modules": LLAMA}, {}, dtype)
    name = "model.layers.1.self_attn.v_proj.weight"
    opened = open_adapter(adapter)
    left, right = opened.factors[name]
    delta = opened.scales[name] * left.double() @ right.double()
    merged = task_arithmetic(load_experts(base, {"a": adapter}), scale=1.0)
    expected = load_file(base / "model.safetensors")[name].double() + delta
    step = 1e-6 if dtype == torch.float64 else 2**-8
    torch.testing.assert_close(merged[name].double(), expected, rtol=step, atol=step)


def test_adapters_and_full_models_together(tmp_path):
    base, adapter, merged = adapted("llama", tmp_path, {"target_modules": LLAMA}, {})
    twice = load_experts(base, {"a": adapter, "b": merged})
    once = load_experts(base, {"b": merged})
    both, one = task_arithmetic(twice, scale=0.5), task_arithmetic(once, scale=1.0)
    for name in one:
        torch.testing.assert_close(both[name], one[name], rtol=1e-5, atol=1e-6)


def test_scale_by_hand(tmp_path):
    _, adapter, _ = adapted("llama", tmp_path, {"target_modules": LLAMA, "use_rslora": True}, {})
    name, opened = "model.layers.0.self_attn.q_proj.weight", open_adapter(adapter)
    assert opened.scales[name] == pytest.approx(7 / math.sqrt(4))
    assert opened.factors[name].shape == (16, 16) and opened.factors[name].rank == 4


def test_the_head_stays_with_its_task(tmp_path):
    # the adapter was trained with a classifier on top; the base is the bare encoder
    from transformers import BertModel

    _, adapter, _ = adapted("bert", tmp_path, {"target_modules": ["query"], "task_type": "SEQ_CLS"}, {})
    bare = tiny.save(tiny.model("bert", cls=BertModel), tmp_path / "bare")
    (expert,) = load_experts(bare, {"a": adapter}).experts
    assert sorted(expert.head()) == ["classifier.bias", "classifier.weight"]
    assert expert.prefix == "bert."
    assert set(expert.names) == {f"encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)}


def test_the_prefix_is_found_from_a_single_layer(tmp_path):
    from transformers import BertModel

    options = {"target_modules": ["query"], "layers_to_transform": [0], "task_type": "SEQ_CLS"}
    _, adapter, _ = adapted("bert", tmp_path, options, {})
    bare = tiny.save(tiny.model("bert", cls=BertModel), tmp_path / "bare")
    (expert,) = load_experts(bare, {"a": adapter}).experts
    assert set(expert.names) == {"encoder.layer.0.attention.self.query.weight"}


# -- what is refused


@pytest.fixture
def adapter(tmp_path):
    base, folder, _ = adapted("llama", tmp_path, {"target_modules": LLAMA}, {})
    return base, folder


def refusal(base, folder):
    with pytest.raises(UserError) as error:
        load_experts(base, {"a": folder})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"megatron_config": {"x": 1}}, "Megatron"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"trainable_token_indices": [1, 2]}, "single tokens"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"use_qalora": True}, "QALoRA"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(adapter, changes, name):
    base, folder = adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    message = refusal(base, folder)
    assert name in message and str(folder / "adapter_config.json") in message


def test_a_real_dora_adapter_is_refused(tmp_path):
    base, folder, _ = adapted("llama", tmp_path, {"target_modules": LLAMA, "use_dora": True}, {})
    assert "DoRA" in refusal(base, folder)


@pytest.mark.parametrize("case", ["no partner", "no pair", "garbage", "nothing", "missing", "unknown tensor", "own bias"])
def test_damaged_adapters(adapter, case):
    base, folder = adapter
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    named = key.removesuffix("lora_B.weight")
    if case == "no partner":
        del tensors[key]
    elif case == "no pair":
        tensors[key] = torch.zeros(16, 3)
    elif case == "unknown tensor":
        tensors[named + "lora_magnitude_vector"] = torch.zeros(16)
        named = named.removeprefix("base_model.model.")
    elif case == "own bias":
        tensors[named + "lora_B.bias"] = torch.zeros(16)
    else:
        named = ""
    save_file({} if case == "nothing" else tensors, file)
    if case == "garbage":
        file.write_bytes(b"garbage" * 9)
    if case == "missing":
        file.unlink()
        (folder / "adapter_model.bin").write_bytes(b"x")
    message = refusal(base, folder)
    assert str(file) in message and named in message


def test_an_adapter_of_another_model(adapter, tmp_path):
    _, folder = adapter
    other = tiny.save(tiny.model("gpt2"), tmp_path / "other")
    message = refusal(other, folder)
    assert str(folder / "adapter_model.safetensors") in message and "q_proj.weight" in message


def test_an_adapter_of_another_width(adapter, tmp_path):
    _, folder = adapter
    wider = tiny.save(tiny.model("llama", hidden_size=32), tmp_path / "wider")
    message = refusal(wider, folder)
    assert str(folder / "adapter_model.safetensors") in message and "q_proj.weight" in message and "[16, 16]" in message


def test_an_adapter_is_no_base(adapter):
    _, folder = adapter
    for base in (folder, None):
        with pytest.raises(UserError, match="adapter"):
            load_experts(base, {"a": folder})


def test_nan_in_a_factor_names_the_file_and_the_tensor(adapter):
    base, folder = adapter
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, file)
    merged = task_arithmetic(load_experts(base, {"a": folder}))
    with pytest.raises(UserError, match="NaN") as error:
        merged["model.layers.1.self_attn.q_proj.weight"]
    assert str(file) in str(error.value) and "model.layers.1.self_attn.q_proj.weight" in str(error.value)


def test_which_way_round_a_square_is_must_be_known(tmp_path):
    # attn.c_proj is square, and the flag (of lm_head, which came last) is wrong for c_attn: it could be either
    options = {"target_modules": ["c_attn", "attn.c_proj", "lm_head"], "fan_in_fan_out": True}
    base, folder, _ = adapted("gpt2", tmp_path, options, {"tie_word_embeddings": False})
    message = refusal(base, folder)
    assert "attn.c_proj.weight: is square" in message and str(folder) in message


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_starts_that_move_the_base_are_refused(tmp_path, start):
    base = tiny.save(tiny.model("llama"), tmp_path / "base")
    net = peft.get_peft_model(tiny.model("llama"), peft.LoraConfig(target_modules=LLAMA, init_lora_weights=start, r=4))
    net.save_pretrained(tmp_path / "adapter")
    assert start in refusal(base, tmp_path / "adapter")


def test_a_convolution_is_refused(tmp_path):
    base, folder, _ = adapted("resnet", tmp_path, {"target_modules": ["convolution"]}, {})
    message = refusal(base, folder)
    assert "convolution" in message and "merge_and_unload" in message


def test_an_adapter_with_a_smaller_vocabulary(tmp_path):
    base = tiny.save(tiny.model("llama"), tmp_path / "base")
    net = tiny.model("llama")
    net.resize_token_embeddings(37)
    net = peft.get_peft_model(net, peft.LoraConfig(target_modules=["embed_tokens"], init_lora_weights=False, r=2))
    net.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    product = open_adapter(tmp_path / "adapter").product("model.embed_tokens.weight", 16)
    assert product.shape == (37, 16)
    v = load_experts(base, {"a": tmp_path / "adapter"}, vocab="common").task_vectors("model.embed_tokens.weight")[0]
    torch.testing.assert_close(v[:37], product.left @ product.right)
    assert v[37:].abs().max() == 0


@pytest.mark.parametrize("shards", ["8KB", "1GB"])
def test_a_full_model_beside_its_adapter_is_the_model(tmp_path, shards):
    from paretomerge.weights import is_adapter

    base, folder, _ = adapted("llama", tmp_path, {"target_modules": LLAMA}, {})
    assert is_adapter(folder)
    tiny.save(tiny.perturb(tiny.model("llama"), 1), folder, max_shard_size=shards)
    assert not is_adapter(folder)
    assert len(load_experts(base, {"a": folder}).merged) == 21
