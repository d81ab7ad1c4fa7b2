"""Which tensor is which, and one clear line for everything that does not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from paretomerge.errors import UserError
from paretomerge.experts import Options, inspect_experts, load_experts, tied_pairs
from paretomerge.merges import average, task_arithmetic
from paretomerge.weights import SINGLE, from_base, prefix_between, to_base
from states import near, opened, state


def findings(base, experts, level="error", **options):
    found = inspect_experts(base, experts, Options(**options)).findings
    assert all("\n" not in str(finding) for finding in found)
    return [str(finding) for finding in found if finding.level == level]


def edit(folder, change):
    """Rewrite a model's tensors."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A bare encoder, and two classifiers that were trained from it: with a prefix, and with other numbers of classes."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("bert")
    tiny.save(tiny.model("bert", cls=BertModel), folder / "bare")
    tiny.save(tiny.model("bert", num_labels=7), folder / "base")
    for i, (task, labels) in enumerate({"a": 3, "b": 7}.items(), 1):
        tiny.save(tiny.perturb(tiny.model("bert", num_labels=labels), i), folder / task)
        tiny.save(tiny.perturb(tiny.model("bert", cls=BertModel), i), folder / f"bare-{task}")
    return folder


@pytest.fixture
def llama(tmp_path):
    return tiny.family("llama", tmp_path)


# -- prefixes and heads


@pytest.mark.parametrize(
    "names, base, prefix",
    [
        (["vit.a.w", "vit.b.w", "classifier.w"], ["a.w", "b.w"], "vit."),
        (["a.w", "b.w"], ["vit.a.w", "vit.b.w", "classifier.w"], "-vit."),
        (["x.y.a.w"], ["a.w", "b.w"], "x.y."),
        (["a.w", "b.w"], ["a.w", "b.w"], ""),
        (["model.a.w", "a.w", "b.w"], ["a.w", "b.w", "model.a.w"], ""),
        (["p.q"], ["r.s"], ""),
        (["w"], ["w"], ""),
        ([], ["a.w"], ""),
        (["m.l.0.w"], ["l.0.w", "l.1.w", "l.2.w"], "m."),  # the base's last layer of that name is not the one
    ],
)
def test_prefix(names, base, prefix):
    assert prefix_between(names, base) == prefix
    for name in base:
        assert to_base(from_base(name, prefix), prefix) == name or prefix.startswith("-")


def test_an_expert_with_the_base_as_a_part(bert):
    loaded = load_experts(bert / "bare", {"a": bert / "a", "b": bert / "b"})
    base = load_file(bert / "bare" / SINGLE)
    assert set(loaded.merged) == set(base)
    for expert, labels in zip(loaded.experts, (3, 7), strict=True):
        assert expert.prefix == "bert."
        assert sorted(expert.head()) == ["classifier.bias", "classifier.weight"]
        assert torch.equal(expert.head()["classifier.weight"], load_file(expert.path / SINGLE)["classifier.weight"])
        assert expert.head()["classifier.weight"].shape == (labels, 16)
    merged = task_arithmetic(loaded, scale={"a": 1.0, "b": 0.0})
    for name in base:
        torch.testing.assert_close(merged[name], load_file(bert / "a" / SINGLE)[f"bert.{name}"], rtol=1e-5, atol=1e-6)


def test_an_expert_that_lacks_the_prefix_of_the_base(bert):
    loaded = load_experts(bert / "base", {"a": bert / "bare-a", "b": bert / "bare-b"})
    base = load_file(bert / "base" / SINGLE)
    assert set(loaded.infos) == set(base)
    assert set(base) - set(loaded.merged) == {"classifier.weight", "classifier.bias"}
    merged = task_arithmetic(loaded, scale={"a": 0.0, "b": 1.0})
    assert torch.equal(merged["classifier.weight"], base["classifier.weight"])
    name = "bert.encoder.layer.1.output.dense.weight"
    expected = load_file(bert / "bare-b" / SINGLE)[name.removeprefix("bert.")]
    torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)


def test_experts_named_differently_are_merged_together(bert):
    mixed = load_experts(bert / "bare", {"a": bert / "a", "b": bert / "bare-b"})
    plain = load_experts(bert / "bare", {"a": bert / "bare-a", "b": bert / "bare-b"})
    one, other = average(mixed), average(plain)
    assert all(torch.equal(one[name], other[name]) for name in plain.infos)


def test_a_head_of_another_size_stays_with_its_task(bert):
    loaded = load_experts(bert / "base", {"a": bert / "a", "b": bert / "b"})
    assert [sorted(e.head()) for e in loaded.experts] == [["classifier.bias", "classifier.weight"]] * 2
    assert not set(loaded.merged) & {"classifier.bias", "classifier.weight"}
    assert [str(f) for f in loaded.findings if "another size" in f.message]
    base = load_file(bert / "base" / SINGLE)
    assert torch.equal(average(loaded)["classifier.weight"], base["classifier.weight"])


@pytest.mark.parametrize("labels", ["same", "other", "none"])
def test_a_head_is_merged_only_where_its_rows_mean_the_same(bert, tmp_path, labels):
    for task in "ab":  # two experts with heads of one size
        shutil.copytree(bert / "a", tmp_path / task)
        config = json.loads((tmp_path / task / "config.json").read_text())
        names = [f"{task}{i}" if labels == "other" else f"class {i}" for i in range(len(config["id2label"]))]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        if labels == "none":
            del config["id2label"]
        (tmp_path / task / "config.json").write_text(json.dumps(config))
    loaded = load_experts(tmp_path / "a", {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert ("classifier.weight" in loaded.merged) == (labels != "other")
    assert bool(loaded.experts[1].heads) == (labels == "other")


def test_heads_may_be_named_as_the_expert_names_them(bert):
    loaded = load_experts(bert / "bare", {"a": bert / "a"}, task_tensors=["bert.pooler.*"])
    assert sorted(loaded.experts[0].head()) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    assert not [name for name in loaded.merged if "pooler" in name]


# -- buffers


def test_statistics_of_batches_are_the_bases(tmp_path):
    from transformers import ResNetModel

    base = tiny.save(tiny.perturb(tiny.model("resnet", cls=ResNetModel), 9), tmp_path / "base")
    # the classifier's two tensors are no reason to doubt that the expert is of this base
    expert = tiny.save(tiny.perturb(tiny.model("resnet"), 1), tmp_path / "a")
    merged = average(load_experts(base, {"a": expert}))
    before, after = load_file(base / SINGLE), load_file(expert / SINGLE)
    kinds = set()
    for name, tensor in before.items():
        kind = name.rsplit(".", 1)[-1]
        expected = tensor if kind in ("running_mean", "running_var", "num_batches_tracked") else after[f"resnet.{name}"]
        assert torch.allclose(merged[name], expected, atol=1e-6), name
        kinds.add(kind)
    assert kinds == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize(
    "name, shape",
    [
        ("transformer.h.0.attn.bias", (1, 1, 4, 4)),
        ("transformer.h.0.attn.masked_bias", ()),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        ("embeddings.position_ids", (1, 4)),
        ("bn.running_var", (4,)),
    ],
)
def test_what_is_computed_is_copied(name, shape):
    base = {"dense.weight": torch.zeros(2, 2), name: torch.zeros(shape)}
    expert = {n: t + 1 for n, t in base.items()}
    merged = average(opened(base, [expert]))
    assert merged[name].max() == 0 and merged["dense.weight"].min() == 1
    # an expert that lacks it, or has one that the base lacks, is no surprise
    assert not findings(base, {"a": {"dense.weight": torch.ones(2, 2)}})
    loaded = load_experts({"dense.weight": torch.zeros(2, 2)}, {"a": expert})
    assert not loaded.experts[0].heads


def test_a_bias_named_like_a_mask_is_merged():
    # GPT-2's mask is `attn.bias`, 4-D; a bias of that name is 1-D
    base = {"attn.bias": torch.zeros(3), "attn.weight": torch.zeros(3, 3)}
    assert average(opened(base, [{n: t + 1 for n, t in base.items()}]))["attn.bias"].min() == 1


# -- tied weights


def tied_llama(folder, config, stored, apart=False, seed=0):
    """A Llama whose configuration ties (or not, or says nothing), with `lm_head` stored or not."""
    net = tiny.model("llama", tie_word_embeddings=config is True)
    if seed:
        tiny.perturb(net, seed)
    tiny.save(net, folder)
    facts = json.loads((folder / "config.json").read_text())
    facts["tie_word_embeddings"] = config
    if config is None:
        del facts["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(facts))

    def change(tensors):
        tensors.pop("lm_head.weight", None)
        if stored:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone() + 0.5 * apart

    return edit(folder, change)


@pytest.mark.parametrize("config", [True, False, None])
@pytest.mark.parametrize("base_stores, expert_stores", [(True, True), (True, False), (False, True), (False, False)])
def test_tied_weights_are_merged_once(tmp_path, config, base_stores, expert_stores):
    base = tied_llama(tmp_path / "base", config, base_stores)
    experts = {t: tied_llama(tmp_path / t, config, expert_stores, seed=i) for i, t in enumerate("ab", 1)}
    loaded = load_experts(base, experts)
    assert "lm_head.weight" not in loaded.merged
    assert not any(expert.heads for expert in loaded.experts)
    # DARE draws by name: merged twice, the two would come apart
    from paretomerge.merges import dare_linear

    merged = dare_linear(loaded, density=0.5)
    assert ("lm_head.weight" in merged) == (base_stores and config is not True)
    assert not torch.equal(merged["model.embed_tokens.weight"], loaded.base["model.embed_tokens.weight"])
    if "lm_head.weight" in merged:
        assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    notes = findings(base, experts, "note")
    assert base_stores == any("lm_head.weight: tied to model.embed_tokens.weight: merged once" in note for note in notes)


@pytest.mark.parametrize("base_stores", [True, False])
def test_tied_in_the_base_but_not_in_an_expert(tmp_path, base_stores):
    # transformers would tie the two on loading, and drop what the expert learned: say so
    base = tied_llama(tmp_path / "base", True, base_stores)
    experts = {
        "a": tied_llama(tmp_path / "a", True, base_stores, seed=1),
        "b": tied_llama(tmp_path / "b", False, True, apart=True, seed=2),
    }
    errors = findings(base, experts)
    assert len(errors) == 1
    assert errors[0].startswith(f"{tmp_path / 'b' / SINGLE}: lm_head.weight: ") and "--exclude 'lm_head.weight'" in errors[0]
    loaded = load_experts(base, experts, exclude=["lm_head.weight"])
    assert "lm_head.weight" not in average(loaded)
    assert not any(expert.heads for expert in loaded.experts)


@pytest.mark.parametrize("config", [False, None])
def test_stored_alike_in_the_base_but_trained_apart(tmp_path, config):
    base = tied_llama(tmp_path / "base", config, True)
    experts = {t: tied_llama(tmp_path / t, config, True, apart=t == "b", seed=i) for i, t in enumerate("ab", 1)}
    loaded = load_experts(base, experts)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(loaded.merged)
    merged = average(loaded)
    difference = merged["lm_head.weight"] - merged["model.embed_tokens.weight"]
    torch.testing.assert_close(difference, torch.full_like(difference, 0.25), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["shared,encoder,decoder,head", "decoder,encoder,head,shared", "encoder,decoder,shared,head"])
def test_one_tensor_under_four_names(order):
    # T5: all of them are the shared embedding, whichever comes first in the file
    full = {
        "shared": "shared.weight",
        "encoder": "encoder.embed_tokens.weight",
        "decoder": "decoder.embed_tokens.weight",
        "head": "lm_head.weight",
    }
    names = [full[key] for key in order.split(",")]
    embedding = torch.randn(9, 4)
    base = dict.fromkeys(names, embedding) | {"dense.weight": torch.randn(4, 4)}
    pairs = tied_pairs(opened(base, [base]).base)
    assert len(pairs) == 3 and len(set(pairs.values())) == 1 and not set(pairs) & set(pairs.values())
    moved = torch.randn(9, 4)
    expert = dict.fromkeys(names, moved) | {"dense.weight": torch.randn(4, 4)}
    merged = average(opened(base, [expert]))
    assert all(torch.equal(merged[name], merged[names[0]]) for name in names)
    torch.testing.assert_close(merged[names[0]], moved)


# -- vocabularies


@pytest.fixture
def vocabularies(tmp_path):
    """A base of 40 tokens; one expert has 44, the other 37."""
    base = tiny.save(tiny.model("llama"), tmp_path / "base")
    for i, (task, tokens) in enumerate({"more": 44, "fewer": 37}.items(), 1):
        net = tiny.perturb(tiny.model("llama"), i)
        net.resize_token_embeddings(tokens)
        tiny.save(net, tmp_path / task)
    return base, {task: tmp_path / task for task in ("more", "fewer")}


def test_another_vocabulary_is_an_error(vocabularies):
    base, experts = vocabularies
    errors = findings(base, experts)
    assert len(errors) == 4
    assert errors[0].startswith(f"{experts['more'] / SINGLE}: ") and "44 tokens, the base has 40" in errors[0]
    assert "--vocab common" in errors[0]
    assert sum("37 tokens" in error for error in errors) == 2


def test_the_common_rows_are_merged(vocabularies):
    base, experts = vocabularies
    loaded = load_experts(base, experts, vocab="common")
    before = load_file(base / SINGLE)
    more, fewer = (load_file(experts[task] / SINGLE) for task in ("more", "fewer"))
    merged = task_arithmetic(loaded, scale=0.5)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected = before[name] + 0.5 * (more[name][:40] - before[name])
        expected[:37] += 0.5 * (fewer[name] - before[name][:37])
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("entries", [1, 40, 100])
def test_the_common_rows_in_slices(vocabularies, entries):
    base, experts = vocabularies
    loaded = load_experts(base, experts, vocab="common")
    whole = loaded.task_vectors("lm_head.weight")
    parts = [v.clone() for _, _, v in loaded.chunks("lm_head.weight", entries=entries)]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert whole[1, 37:].abs().max() == 0 and whole[0].abs().min() > 0


# -- what does not fit


def test_a_shape_that_does_not_fit(llama):
    base, experts = llama
    name = "model.layers.1.mlp.up_proj.weight"
    edit(experts["b"], lambda t: t.update({name: torch.zeros(3, 5)}))
    assert findings(base, experts) == [
        f"{experts['b'] / SINGLE}: {name}: shape [3, 5], the base has [24, 16]: if it is the task's head, "
        f"add --task-tensors '{name}'"
    ]


def test_a_shape_that_does_not_fit_under_a_prefix(bert, tmp_path):
    shutil.copytree(bert / "a", tmp_path / "a")
    name = "encoder.layer.0.output.dense.weight"
    edit(tmp_path / "a", lambda t: t.update({f"bert.{name}": torch.zeros(3, 5)}))
    (error,) = findings(bert / "bare", {"a": tmp_path / "a", "b": bert / "b"})
    assert error.startswith(f"{tmp_path / 'a' / SINGLE}: {name}: shape [3, 5]")


def test_a_name_that_one_expert_lacks(llama):
    base, experts = llama
    name = "model.layers.1.mlp.up_proj.weight"
    edit(experts["b"], lambda t: t.pop(name))
    (error,) = findings(base, experts)
    assert error.startswith(f"{experts['b']}: {name}: not in this expert") and "--missing base" in error
    merged = average(load_experts(base, experts, missing="base"))
    before, after = load_file(base / SINGLE)[name], load_file(experts["a"] / SINGLE)[name]
    torch.testing.assert_close(merged[name], (before + after) / 2, rtol=1e-5, atol=1e-6)


def test_a_name_that_the_base_lacks_stays_with_its_task(llama):
    base, experts = llama
    edit(experts["b"], lambda t: t.update({"value_head.weight": torch.ones(1, 16)}))
    loaded = load_experts(base, experts)
    assert loaded.experts[1].heads == ("value_head.weight",) and loaded.experts[0].heads == ()
    assert "value_head.weight" not in average(loaded)


def test_a_name_that_every_expert_lacks_is_the_bases(llama):
    base, experts = llama
    edit(base, lambda t: t.update({"extra.weight": torch.ones(2, 3)}))
    assert torch.equal(average(load_experts(base, experts))["extra.weight"], torch.ones(2, 3))
    assert any("extra.weight: in no expert: copied from the base" in note for note in findings(base, experts, "note"))


def test_experts_of_another_model(llama, tmp_path):
    base, _ = llama
    stranger = tiny.save(tiny.model("bert"), tmp_path / "stranger")
    wider = tiny.save(tiny.model("llama", hidden_size=32), tmp_path / "wider")
    (error,) = findings(base, {"x": stranger})
    assert error.startswith(f"{stranger}: only 0 of its") and "is it of this base?" in error
    assert any("is a bert model, the base a llama model" in w for w in findings(base, {"x": stranger}, "warning"))
    with pytest.raises(UserError, match=r"and \d+ more: see paretomerge check") as error:
        load_experts(base, {"x": wider, "y": wider})
    assert "\n" not in str(error.value)


def test_excluding_most_of_a_model_is_fine(llama):
    base, experts = llama
    loaded = load_experts(base, experts, exclude=["*mlp*", "*norm*", "*embed*", "lm_head*", "*k_proj*", "*o_proj*"])
    assert {name.split(".")[-2] for name in loaded.merged} == {"q_proj", "v_proj"}
    before = load_file(base / SINGLE)
    merged = average(loaded)
    assert torch.equal(merged["lm_head.weight"], before["lm_head.weight"])


def test_excluding_everything_is_an_error(llama):
    base, experts = llama
    assert "nothing to merge" in findings(base, experts, exclude=["*"])[0]


@pytest.mark.parametrize(("dtype", "stored"), [(torch.int8, "I8"), (torch.uint8, "U8")])
def test_quantised_weights_are_refused(llama, dtype, stored):
    base, experts = llama
    name = "model.layers.0.mlp.up_proj.weight"
    edit(experts["b"], lambda t: t.update({name: t[name].to(dtype)}))
    with pytest.raises(UserError, match=rf"the model is quantised \({name} \({stored}\)\)") as refused:
        findings(base, experts)
    assert str(refused.value).startswith(f"{experts['b'] / SINGLE}: ")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bool])
def test_weights_that_nothing_can_be_added_to_are_refused(llama, dtype):
    base, experts = llama
    name = "model.layers.0.mlp.up_proj.weight"
    edit(experts["b"], lambda t: t.update({name: t[name].to(dtype)}))
    (error,) = findings(base, experts)
    assert error.startswith(f"{experts['b'] / SINGLE}: {name}: is stored as {str(dtype).removeprefix('torch.')}")
    # an fp8 base as well
    if dtype == torch.float8_e4m3fn:
        errors = findings(experts["b"], {"a": experts["a"]})
        assert len(errors) == 1 and name in errors[0] and "float8_e4m3fn" in errors[0]
        assert name in average(load_experts(experts["b"], {"a": experts["a"]}, exclude=[name]))


def test_dtypes_may_differ(llama):
    base, experts = llama
    edit(experts["a"], lambda t: t.update({n: x.bfloat16() for n, x in t.items()}))
    edit(experts["b"], lambda t: t.update({n: x.double() for n, x in t.items()}))
    merged = average(load_experts(base, experts))
    name = "model.layers.0.mlp.up_proj.weight"
    a, b = (load_file(experts[t] / SINGLE)[name].float() for t in "ab")
    assert merged[name].dtype == torch.float32
    torch.testing.assert_close(merged[name], (a + b) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("whose", ["a", "base"])
def test_nan_names_file_and_tensor(llama, bad, whose):
    base, experts = llama
    name = "model.layers.1.self_attn.q_proj.weight"
    folder = experts["a"] if whose == "a" else base
    edit(folder, lambda t: t[name].view(-1)[5:7].fill_(bad))
    merged = average(load_experts(base, experts))
    with pytest.raises(UserError) as error:
        merged[name]
    assert str(error.value).startswith(f"{folder / SINGLE}: {name}: 2 of 256 entries are NaN or infinite")
    assert "\n" not in str(error.value) and f"--exclude '{name}'" in str(error.value)
    excluded = average(load_experts(base, experts, exclude=[name]))
    assert torch.equal(excluded[name], load_file(base / SINGLE)[name]) or whose == "base"


@pytest.mark.parametrize("name", ["", "a=b", "a,b", "a/b", "..", ".hidden", "a:b", "a\nb"])
def test_names_of_tasks(name):
    with pytest.raises(UserError) as error:
        load_experts({"x": torch.zeros(2)}, {name: {"x": torch.ones(2)}})
    assert "\n" not in str(error.value)


def test_no_experts():
    with pytest.raises(UserError, match="no experts"):
        load_experts({"x": torch.zeros(2)}, {})


def test_state_dicts_of_live_modules():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    base = {n: t.clone() for n, t in net.state_dict().items()}
    # parameters that want gradients, as `named_parameters` gives them
    loaded = load_experts(base, {"a": dict(net.named_parameters()), "b": net.state_dict()})
    for merged in (average(loaded), task_arithmetic(load_experts(dict(net.named_parameters()), {"a": near(base, 1)}))):
        for name in merged:
            assert not merged[name].requires_grad


def test_without_a_base_the_first_expert_names_the_tensors():
    models = [state(k) for k in range(3)]
    merged = average(load_experts(None, dict(zip("abc", models, strict=True))))
    for name in models[0]:
        torch.testing.assert_close(merged[name], sum(m[name] for m in models) / 3, rtol=1e-5, atol=1e-6)
