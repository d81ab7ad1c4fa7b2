"""Configurations and tokenizers under which equal names and shapes stand for other things."""

import json

import pytest

import tiny
from paretomerge.experts import Options, differences, inspect_experts

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 16, "num_key_value_heads": 2, "num_hidden_layers": 2}
NEW = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}


def fields(config, base):
    return {field: fatal for field, _, fatal in differences(config, base)}


@pytest.mark.parametrize(
    "change, found",
    [
        ({"rope_parameters": {"rope_theta": 2e7, "rope_type": "default"}}, {"rope_theta": False}),
        ({"rope_theta": 2e7}, {"rope_theta": False}),
        ({"rope_theta": 10000.0}, {}),  # as transformers 4 writes it, and as the default is
        ({"rope_scaling": None}, {}),
        (
            {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}},
            {"rope_type": False, "factor": False},
        ),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_type": False, "factor": False}),
        ({"num_attention_heads": 2, "num_key_value_heads": 1}, {"num_attention_heads": True, "num_key_value_heads": True}),
        ({"num_hidden_layers": 3}, {"num_hidden_layers": True}),
        ({"hidden_act": "gelu"}, {"hidden_act": False}),
        ({"rms_norm_eps": 0.1}, {"rms_norm_eps": False}),
        ({"use_cache": False, "torch_dtype": "float16", "bos_token_id": 7, "attention_dropout": 0.5}, {}),
    ],
)
@pytest.mark.parametrize("base", [{}, NEW])
def test_by_field(change, found, base):
    there = {**LLAMA, **base}
    here = {**LLAMA, **({} if "rope_theta" in change or "rope_scaling" in change else base), **change}
    assert {k: v for k, v in fields(here, there).items() if k != "head_dim"} == found
    assert fields(here, here) == {} == fields(there, there)


def test_within_a_part_and_of_a_part():
    text = {"model_type": "clip_text_model", "hidden_act": "gelu"}
    base = {"model_type": "clip", "text_config": {**text, "hidden_act": "quick_gelu"}, "vision_config": {}}
    assert fields({**base, "text_config": text}, base) == {"text_config.hidden_act": False}
    assert fields(text, base) == {"hidden_act": False}
    assert fields({"model_type": "bert", "hidden_act": "relu"}, base) == {}


@pytest.mark.parametrize("wrong", ["x", -1, True, [1], {"rope_theta": {}}, {"rope_type": "nonsense"}])
def test_values_of_wrong_types(wrong):
    for field in ("rope_parameters", "rope_scaling", "num_hidden_layers", "layer_types", "text_config"):
        list(differences({**LLAMA, field: wrong}, LLAMA))
        list(differences(LLAMA, {**LLAMA, field: wrong}))
        list(differences({"model_type": "unheard-of", field: wrong}, {"model_type": "unheard-of"}))


def test_check_names_field_and_values(tmp_path):
    base = tiny.save(tiny.model("llama"), tmp_path / "base")
    for name, options in {
        "rope": {"rope_theta": 2e7},
        "heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    }.items():
        net = tiny.model("llama")
        folder = tiny.save(net, tmp_path / name)
        facts = json.loads((folder / "config.json").read_text())
        if "rope_theta" in options and "rope_parameters" in facts:
            facts["rope_parameters"] = {**facts["rope_parameters"], **options}
        else:
            facts |= options
        (folder / "config.json").write_text(json.dumps(facts))
        (line,) = [f for f in inspect_experts(base, {"a": folder}, Options()).findings if f.level != "note"][:1]
        assert str(line).startswith(f"{folder}: config.json: ")
        if name == "rope":
            assert line.level == "warning" and "rope_theta is 20000000.0 here, 10000.0 in the base" in line.message
        else:
            assert line.level == "error" and "num_attention_heads is 2 here, 4 in the base" in line.message


# -- tokenizers


def tokenizer(folder, tokens, name="tokenizer.json", added=()):
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if name == "vocab.txt":
        (folder / name).write_text("\n".join(tokens) + "\n")
    elif name == "vocab.json":
        (folder / name).write_text(json.dumps(vocabulary))
    elif name == "unigram":
        content = {"model": {"type": "Unigram", "vocab": [[token, -1.0] for token in tokens]}}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        content = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": i, "content": token} for i, token in added]}
        (folder / name).write_text(json.dumps(content))


TOKENS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "vocab.json", "unigram"])
def test_other_tokens_are_a_warning(tmp_path, name):
    base, experts = tiny.family("llama", tmp_path)

    def warnings():
        found = inspect_experts(base, experts, Options()).findings
        return [str(f) for f in found if f.level != "note"]

    tokenizer(base, TOKENS)
    tokenizer(experts["a"], TOKENS, name)
    assert not warnings()
    tokenizer(experts["a"], ["a", "c", "b", "d"], name)
    (line,) = warnings()
    assert "2 of 4 ids" in line and "id 1: 'c', there 'b'" in line and "the base" in line
    tokenizer(experts["a"], [*TOKENS, "one"], name)  # in rows that the base does not use
    assert not warnings()
    tokenizer(experts["b"], TOKENS, added=[(4, "other")])
    (line,) = warnings()
    assert "expert a" in line and "id 4: 'other', there 'one'" in line


@pytest.mark.parametrize("content", ["", "[]", '{"model": 3}', '{"model": {"vocab": {"a": "x"}}, "added_tokens": 5}', "\0"])
def test_damaged_tokenizers_are_not_compared(tmp_path, content):
    base, experts = tiny.family("llama", tmp_path)
    tokenizer(base, TOKENS)
    (experts["a"] / "tokenizer.json").write_text(content)
    assert not [f for f in inspect_experts(base, experts, Options()).findings if f.level == "error"]
