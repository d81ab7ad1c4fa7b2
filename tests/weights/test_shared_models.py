"""K live models over one set of weights: what is shared, what moves, and what stays with each task."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import fit_data
import tiny
from paretomerge.errors import UserError
from paretomerge.experts import Experts, heads_of, load_experts
from paretomerge.models import SharedModels, own_tensors

CPU = torch.device("cpu")
KINDS = ("vit", "bert", "gpt2", "llama", "clip", "resnet")
LOADERS = {"vit": hf.ViTForImageClassification, "bert": hf.BertForSequenceClassification}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    for kind in KINDS:
        fit_data.save(kind, place / kind)
    return place


def shared(experts: Experts) -> SharedModels:
    return SharedModels(experts, heads_of(experts), experts.merged, CPU)


def expert(kind: str, place: Path) -> torch.nn.Module:
    cls = LOADERS.get(kind, tiny.ARCHITECTURES[kind][0])
    return cls.from_pretrained(place).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_writing_an_expert_gives_its_logits(kind, folder):
    experts = fit_data.experts(folder / kind)
    models = shared(experts)
    said = {}
    for k, task in enumerate(experts.tasks):
        models.become_(experts, k)
        model = models.models[task]
        with own_tensors(experts.experts[k], experts, model):
            said[task] = tiny.logits(kind, model)
        torch.testing.assert_close(said[task], tiny.logits(kind, expert(kind, folder / kind / task)), rtol=1e-4, atol=1e-5)
    if kind in fit_data.BARE:
        assert [said[task].shape[1] for task in "ab"] == list(fit_data.CLASSES.values())
    elif kind != "clip":
        assert float((said["a"] - said["b"]).abs().max()) > 1e-3  # or the test would say nothing


@pytest.mark.parametrize("kind", KINDS)
def test_storage_is_shared_and_all_models_move(kind, folder):
    experts = fit_data.experts(folder / kind)
    models = shared(experts)
    assert set(models.weights) == set(experts.merged)
    used = [{p.data_ptr() for p in model.parameters()} for model in models.models.values()]
    for name, weight in models.weights.items():
        assert weight.dtype == torch.float32
        assert all(weight.data_ptr() in pointers for pointers in used), name
    before = {task: tiny.logits(kind, model) for task, model in models.models.items()}
    with torch.no_grad():
        for weight in models.weights.values():
            weight.mul_(1.5)
    for task, model in models.models.items():
        assert float((tiny.logits(kind, model) - before[task]).abs().max()) > 1e-5, task
    total = sum(w.numel() for w in models.weights.values())
    distinct = {p.data_ptr(): p.numel() for model in models.models.values() for p in model.parameters()}
    heads = sum(info.numel for e in experts.experts for info in e.head().infos.values())
    assert sum(distinct.values()) == total + heads  # one backbone, whatever the number of tasks


@pytest.mark.parametrize("kind", KINDS)
def test_only_shared_weights_have_gradients(kind, folder):
    experts = fit_data.experts(folder / kind)
    models = shared(experts)
    expected = {id(weight) for weight in models.weights.values()}
    for model in models.models.values():
        assert {id(p) for p in model.parameters() if p.requires_grad} == expected and not model.training
    model = models.models["b"]
    ids, pixels = torch.randint(3, 40, (2, 7)), torch.randn(2, 3, 16, 16)
    ids[:, -1] = 2
    given = {
        "vit": {"pixel_values": pixels},
        "resnet": {"pixel_values": pixels},
        "clip": {"input_ids": ids, "pixel_values": pixels},
    }
    output = model(**given.get(kind, {"input_ids": ids}))
    (output.logits_per_image if kind == "clip" else output.logits).square().sum().backward()
    touched = [name for name, weight in models.weights.items() if weight.grad is not None and weight.grad.abs().max() > 0]
    assert len(touched) > 0.5 * len(models.weights)
    assert all(p.grad is None for p in model.parameters() if id(p) not in expected)


def test_tied_output_projection(folder):
    """GPT-2's lm_head is its embedding: one parameter, whose gradient has both parts."""
    models = shared(fit_data.experts(folder / "gpt2"))
    model = models.models["a"]
    (name,) = [name for name in models.weights if name.endswith("wte.weight")]
    assert model.lm_head.weight is models.weights[name] is model.transformer.wte.weight


def test_tied_tensors_stored_twice_under_an_untied_configuration(tmp_path, folder):
    """Both names are one tensor of the merge, and must be one in the live model."""
    place = fit_data.save("gpt2", tmp_path, tie_word_embeddings=False)
    for name in ("base", "a", "b"):
        file = place / name / "model.safetensors"
        tensors = load_file(file)
        (embedding,) = [n for n in tensors if n.endswith("wte.weight")]
        save_file(tensors | {"lm_head.weight": tensors[embedding].clone()}, file, metadata={"format": "pt"})
    experts = fit_data.experts(place)
    assert experts.aliases
    models = shared(experts)
    for k, task in enumerate("ab"):
        models.become_(experts, k)
        torch.testing.assert_close(
            tiny.logits("gpt2", models.models[task]), tiny.logits("gpt2", expert("gpt2", place / task)), rtol=1e-4, atol=1e-5
        )


def test_running_statistics_are_the_bases_except_while_an_expert_is_asked(folder):
    experts = fit_data.experts(folder / "resnet")
    models = shared(experts)
    model = models.models["a"]
    base = {name: t.clone() for name, t in model.state_dict().items() if "running" in name}
    own = {name: t for name, t in expert("resnet", folder / "resnet" / "a").state_dict().items() if "running" in name}
    assert base and not any(torch.equal(base[name], own[name]) for name in base)
    with own_tensors(experts.experts[0], experts, model):
        assert all(torch.equal(t, own[name]) for name, t in model.state_dict().items() if name in own)
    with pytest.raises(ZeroDivisionError), own_tensors(experts.experts[0], experts, model):
        1 / 0  # noqa: B018
    model(pixel_values=torch.randn(4, 3, 16, 16)).logits.sum().backward()
    assert all(torch.equal(t, base[name]) for name, t in model.state_dict().items() if name in base)


def test_excluded_tensors_are_the_bases_except_while_an_expert_is_asked(folder):
    experts = fit_data.experts(folder / "vit", exclude=["*layernorm*"])
    models = shared(experts)
    assert len(models.weights) < 38
    models.become_(experts, 0)
    theirs = tiny.logits("vit", expert("vit", folder / "vit" / "a"))
    mixed = tiny.logits("vit", models.models["a"])
    with own_tensors(experts.experts[0], experts, models.models["a"]):
        torch.testing.assert_close(tiny.logits("vit", models.models["a"]), theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(tiny.logits("vit", models.models["a"]), mixed) and float((mixed - theirs).abs().max()) > 1e-3


def test_tasks_without_heads_use_one_model(folder):
    models = shared(fit_data.experts(folder / "gpt2"))
    assert models.models["a"] is models.models["b"]


def test_an_expert_may_lack_what_the_base_has(tmp_path):
    """The base has a pooler, the classifier of task b none (with missing=base it counts as unchanged)."""
    place = fit_data.save("vit", tmp_path)
    with_pooler = tiny.model("vit", cls=hf.ViTModel, seed=0)
    tiny.save(with_pooler, place / "base")
    experts = fit_data.experts(place)
    lacks = heads_of(experts)["a"].lacks
    models = shared(experts)
    assert not set(lacks) & set(models.weights)
    tensors = load_file(place / "a" / "model.safetensors")
    pooler = {f"vit.{name}": t for name, t in with_pooler.state_dict().items() if name.startswith("pooler")}
    if not pooler:
        pytest.skip("this version of transformers saves no pooler")
    save_file(tensors | pooler, place / "a" / "model.safetensors", metadata={"format": "pt"})
    experts = fit_data.experts(place, missing="base")
    assert any("pooler" in name for name in experts.merged)
    with pytest.raises(
        UserError, match=r"pooler.*no parameter of ViTForImageClassification; keep it out of the merge with --exclude"
    ):
        shared(experts)
    shared(fit_data.experts(place, missing="base", exclude=["pooler*"]))


def test_state_dicts_without_a_configuration_are_refused():
    state = {"layer.weight": torch.zeros(3, 3)}
    experts = load_experts(state, {"a": {"layer.weight": torch.ones(3, 3)}})
    with pytest.raises(UserError, match=r"no config.json that names an architecture"):
        shared(experts)
