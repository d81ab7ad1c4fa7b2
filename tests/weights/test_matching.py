"""Experts whose tensors have other names than the base's, and experts that hold more than a head beyond it."""

import json
import re
import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import tiny
from paretomerge.errors import UserError
from paretomerge.experts import Options, heads_of, inspect_experts, is_head_of, load_experts, loaded_names
from paretomerge.merges import average, task_arithmetic
from paretomerge.weights import SINGLE, prefix_between

TEXT = {**tiny.LLAMA, **tiny.ENDS}
TOWER = {**tiny.VISION, "patch_size": 4}
LLAVA = {
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {"model_type": "clip_vision_model", **TOWER},
    "image_token_index": 5,
}
QWEN2_VL = {
    "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}},
    "vision_config": {"embed_dim": 16, "hidden_size": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
}
MIXTRAL = {**TEXT, "num_local_experts": 3, "num_experts_per_tok": 2}
WAV2VEC2 = {
    **{key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")},
    "num_attention_heads": 2, "conv_dim": [8], "conv_kernel": [3], "conv_stride": [2], "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": 12,
}  # fmt: skip
NEWER = hasattr(hf, "conversion_mapping") or tuple(map(int, hf.__version__.split(".")[:1])) >= (5,)


def stored(folder, net, tensors=None):
    """A model folder; `tensors`: as another version, or `torch.save`, would have named them."""
    net.save_pretrained(folder)
    if tensors is not None:
        for file in folder.glob("*.safetensors"):
            file.unlink()
        save_file(
            {name: t.detach().clone().contiguous() for name, t in tensors.items()}, folder / SINGLE, metadata={"format": "pt"}
        )
    return folder


def made(cls, config, seed=0):
    torch.manual_seed(0)
    net = cls(config).eval()
    return tiny.perturb(net, seed) if seed else net


def renamed(net, *rules):
    tensors = dict(net.state_dict())
    for old, new in rules:
        tensors = {name.replace(old, new): t for name, t in tensors.items()}
    return tensors


def check(base, experts, level="error", **options):
    return [str(f) for f in inspect_experts(base, experts, Options(**options)).findings if f.level == level]


def same(one, other):
    """Whether two live models have equal parameters."""
    mine = dict(other.named_parameters())
    return all(torch.allclose(tensor, mine[name], atol=1e-6) for name, tensor in one.named_parameters())


def written(weights, folder, config_of):
    """A merge on disk, as ``merge`` writes it."""
    folder.mkdir()
    save_file({name: weights[name].clone() for name in weights}, folder / SINGLE, metadata={"format": "pt"})
    shutil.copyfile(config_of / "config.json", folder / "config.json")
    return folder


# -- other names of the same tensors


CASES = {
    "llava": (hf.LlavaForConditionalGeneration, lambda: hf.LlavaConfig(**LLAVA)),
    "qwen2-vl": (hf.Qwen2VLForConditionalGeneration, lambda: hf.Qwen2VLConfig(**QWEN2_VL)),
    "wav2vec2": (hf.Wav2Vec2ForCTC, lambda: hf.Wav2Vec2Config(**WAV2VEC2)),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("live", ["expert", "base"])
def test_names_of_the_file_and_of_the_loaded_model(tmp_path, kind, live):
    cls, config = CASES[kind]
    base, expert = made(cls, config()), made(cls, config(), seed=1)
    if kind == "wav2vec2":  # the hub's files have the names of torch's older weight norm
        old = renamed(
            base, ("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v")
        )
        stored(tmp_path / "base", base, old)
    else:
        stored(tmp_path / "base", base)
    stored(tmp_path / "expert", expert, expert.state_dict())
    first, second = ("base", "expert") if live == "expert" else ("expert", "base")
    loaded = load_experts(tmp_path / first, {"a": tmp_path / second})
    assert not loaded.experts[0].heads and set(loaded.merged) == set(loaded.infos)
    folder = written(task_arithmetic(loaded, scale=1.0), tmp_path / "out", tmp_path / first)
    assert same(cls.from_pretrained(folder), expert if live == "expert" else base)


@pytest.fixture(scope="module")
def gamma(tmp_path_factory):
    """BERT's hub file calls its LayerNorms gamma and beta; two classifiers that a current transformers saved."""
    folder = tmp_path_factory.mktemp("gamma")
    base = tiny.model("bert", cls=hf.BertForMaskedLM)
    old = renamed(base, ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    old.pop("cls.predictions.decoder.weight")
    stored(folder / "base", base, old)
    for i, task in enumerate("ab", 1):
        tiny.save(tiny.perturb(tiny.model("bert", num_labels=3), i), folder / task)
    return folder


def test_gamma_and_beta_are_weight_and_bias(gamma, tmp_path):
    loaded = load_experts(gamma / "base", {task: gamma / task for task in "ab"})
    head = heads_of(loaded)["a"]
    assert sorted(head.tensors) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    a, b = (load_file(gamma / task / SINGLE) for task in "ab")
    whole = head.on(average(loaded))
    assert set(whole) == set(a)  # under the names of the expert's own file, which its class loads
    for name in a:
        torch.testing.assert_close(whole[name], a[name] if name in head.tensors else (a[name] + b[name]) / 2)
    hf.BertForSequenceClassification.from_pretrained(written(whole, tmp_path / "out", gamma / "a"))


def test_a_front_keeps_the_names_of_a_head(gamma, tmp_path):
    import paretomerge

    front = paretomerge.fit(load_experts(gamma / "base", {task: gamma / task for task in "ab"}), "soup")
    front.save(tmp_path / "front")
    again = paretomerge.load_front(tmp_path / "front")
    model = again.model("a=1,b=0", head="a")
    assert same(model, hf.BertForSequenceClassification.from_pretrained(gamma / "a"))
    again.apply_(model, "a=0,b=1")
    b = load_file(gamma / "b" / SINGLE)
    name = "bert.encoder.layer.1.output.LayerNorm.weight"
    torch.testing.assert_close(model.state_dict()[name], b[name])


def test_a_configuration_that_names_another_class(gamma, tmp_path):
    # `config.save_pretrained` after `from_pretrained` leaves the base's class in it
    shutil.copytree(gamma / "a", tmp_path / "a")
    facts = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**facts, "architectures": ["BertForMaskedLM"]}))
    assert not check(gamma / "base", {"a": tmp_path / "a"})


def test_without_configurations_other_names_are_an_error(gamma):
    base, expert = load_file(gamma / "base" / SINGLE), load_file(gamma / "a" / SINGLE)
    (error,) = check(base, {"a": expert})
    assert "LayerNorm" in error and "no head" in error
    assert not check(base, {"a": expert}, task_tensors=["*LayerNorm*"])


@pytest.mark.skipif(not NEWER, reason="transformers 4 keeps the experts of a mixture apart")
@pytest.mark.parametrize("joined", ["base", "expert"])
def test_joined_and_single_experts_of_a_mixture(tmp_path, joined):
    config = hf.MixtralConfig(**MIXTRAL)
    nets = {"base": made(hf.MixtralForCausalLM, config), "expert": made(hf.MixtralForCausalLM, config, seed=1)}
    for name, net in nets.items():
        stored(tmp_path / name, net, net.state_dict() if name == joined else None)
    (error,) = check(tmp_path / "base", {"a": tmp_path / "expert"})
    assert re.search(r"experts\.(gate_up|down)_proj", error) and re.search(r"experts\.\d\.w[123]\.weight", error)
    assert not check(tmp_path / "expert", {"a": tmp_path / "expert"})


@pytest.mark.parametrize("table", [None, {}, {"^visual": "model.visual", r"^model(?!\.(l|v))": "model.language_model"}])
def test_the_names_of_transformers_4(monkeypatch, table):
    class Net(torch.nn.Module):
        base_model_prefix = "model"
        _checkpoint_conversion_mapping = table

        def state_dict(self):
            inner = "model.language_model" if table else "model"
            return dict.fromkeys([f"{inner}.LayerNorm.weight", "lm_head.weight"] + ["model.visual.w"] * bool(table))

        def _get_key_renaming_mapping(self, names, key_mapping=None):
            import re

            found = {}
            for name in names:
                new = name.replace("LayerNorm.gamma", "LayerNorm.weight")
                for pattern, replacement in (key_mapping or {}).items():
                    new, times = re.subn(pattern, replacement, new)
                    if times:
                        break
                found[name] = new
            return found

    monkeypatch.setitem(__import__("sys").modules, "transformers.conversion_mapping", None)
    names = ["model.LayerNorm.gamma", "lm_head.weight"] + ["visual.w"] * bool(table)
    found = loaded_names(names, Net())
    assert set(found.live) == set(names) and set(found.live.values()) == set(Net().state_dict()) and not found.parts


# -- heads, and more than heads


@pytest.mark.parametrize(
    "cls, base, head",
    [
        (hf.BertForSequenceClassification, hf.BertForMaskedLM, {"bert.pooler.dense", "classifier"}),
        (hf.BertForMaskedLM, None, {"cls.predictions", "cls.predictions.transform.dense"}),
        (hf.BertModel, hf.BertModel, set()),
    ],
)
def test_a_head_is_what_the_architecture_calls_one(cls, base, head):
    net, of_base = (None if c is None else tiny.model("bert", cls=c) for c in (cls, base))
    is_head = is_head_of(net, of_base)
    found = {name.rpartition(".")[0] for name in net.state_dict() if is_head(name)}
    assert head <= found and not any("encoder" in name for name in found)
    assert bool(found) == bool(head)


@pytest.mark.parametrize("config", [True, False])
def test_further_layers_are_no_head(tmp_path, config):
    base = tiny.save(tiny.model("llama"), tmp_path / "base")
    deep = tiny.save(tiny.model("llama", num_hidden_layers=3), tmp_path / "deep")
    if config:
        errors = check(base, {"a": deep})
        assert len(errors) == 2 and "num_hidden_layers is 3 here, 2 in the base" in errors[0]
        (error,) = check(deep, {"a": base})  # shallower: its last layer is not that of the base
        assert "num_hidden_layers is 2 here, 3 in the base" in error
    else:
        errors = check(load_file(base / SINGLE), {"a": load_file(deep / SINGLE)})
    assert "model.layers.2." in errors[-1] and "no head" in errors[-1]


def test_a_tower_is_no_head(tmp_path):
    # the language model of LLaVA as the base: the vision tower would stay unmerged
    net = made(hf.LlavaForConditionalGeneration, hf.LlavaConfig(**LLAVA))
    base = {
        name.replace("model.language_model", "model"): t for name, t in net.state_dict().items() if "language_model" in name
    }
    expert = dict(net.state_dict())
    assert check(base, {"a": expert})


@pytest.mark.parametrize(
    "name, fine",
    [
        ("value_head.weight", True), ("classifier.0.weight", True), ("bert.pooler.dense.weight", True), ("scale", True),
        ("bert.encoder.layer.2.dense.weight", False), ("bert.encoder.layer.0.dense.weight_scale", False),
        ("bert.encoder.layer.0.query_norm.weight", False), ("tower.blocks.0.weight", False), ("bert.encoder.bias", False),
    ],
)  # fmt: skip
def test_of_plain_tensors_a_module_of_its_own_is_a_head(name, fine):
    base = {f"bert.encoder.layer.{i}.dense.{kind}": torch.zeros(2, 2) for i in range(2) for kind in ("weight", "bias")}
    expert = {**base, name: torch.ones(2, 2)}
    assert bool(check(base, {"a": expert})) != fine
    if not fine:
        with pytest.raises(UserError, match="no head"):
            load_experts(base, {"a": expert})


# -- many names


def test_the_prefix_of_many_names():
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj.weight" for i in range(40) for j in range(100)]
    calls = []

    class Counted(str):
        def find(self, *where):
            calls.append(1)
            return super().find(*where)

    assert prefix_between([Counted(f"vlm.{name}") for name in names], [Counted(name) for name in names]) == "vlm."
    assert len(calls) < 60 * len(names)  # a few for every dot of every name; compared in pairs they would be 4000 times as many


def test_names_of_single_experts_are_found_in_the_joined_ones():
    if not NEWER:
        pytest.skip("transformers 4 keeps the experts of a mixture apart")
    net = made(hf.MixtralForCausalLM, hf.MixtralConfig(**MIXTRAL))
    found = loaded_names(["model.layers.0.block_sparse_moe.experts.1.w1.weight", "model.norm.weight"], net)
    assert found.live == {"model.norm.weight": "model.norm.weight"}
    assert found.parts == {
        "model.layers.0.block_sparse_moe.experts.1.w1.weight": (
            "model.layers.0.mlp.experts.1.w1.weight", "model.layers.0.mlp.experts.gate_up_proj",
        )
    }  # fmt: skip
