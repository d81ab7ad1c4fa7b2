"""Conversions, and what they give beside what mergekit gave (tests/golden/mergekit, with the script that made it)."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from paretomerge.errors import UserError
from paretomerge.experts import load_experts
from paretomerge.merges import MERGES
from paretomerge.options import check_options
from paretomerge.recipes import Recipe, convert, read_recipe
from paretomerge.weights import Weights

GOLDEN = Path(__file__).parent / "golden" / "mergekit"
CASES = {f"{case['models']}/{case['case']}": case for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]}
REFUSED = {
    "llama/slerp_gradient": "slices is not supported: ",
    "llama/slerp_two_slices": "slices is not supported: ",
    "llama/task_arithmetic_precedence": "expert_b: weight: filter is not supported: ",
    "llama/ties_densities": "expert_b: density: a list (a gradient over layers) is not supported: ",
    "llama/ties_rescale": "rescale: true is not supported for ties",
}
ROUNDED_INPUTS = {"llama/linear_dtype_bfloat16"}
"""Where mergekit rounds the inputs to bfloat16, and we only the result: the same if they are rounded for us, too."""


def merged(recipe: Recipe, *, rounded: bool = False) -> Weights:
    merge, dtype = MERGES[recipe.method], recipe.dtype and getattr(torch, recipe.dtype)
    experts = load_experts(recipe.base, recipe.experts)
    if rounded:
        experts = load_experts(None, {e.task: {name: t.to(dtype) for name, t in e.source.items()} for e in experts.experts})
    return merge(experts, **check_options(merge, recipe.options, recipe.method)).cast(dtype)


def refusal(config: str) -> str:
    with pytest.raises(UserError) as caught:
        convert(yaml.safe_load(config), "m.yml")
    line = str(caught.value)
    assert line.startswith("m.yml: ") and "\n" not in line
    return line.removeprefix("m.yml: ")


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_same_weights_as_mergekit(name):
    ours = merged(read_recipe(GOLDEN / CASES[name]["config"]), rounded=name in ROUNDED_INPUTS)
    theirs = load_file(GOLDEN / CASES[name]["output"])
    assert ours.keys() == theirs.keys()
    for tensor, expected in theirs.items():
        step = torch.finfo(expected.dtype).eps
        torch.testing.assert_close(ours[tensor], expected, rtol=step, atol=1e-6, msg=lambda m, t=tensor: f"{t}: {m}")


@pytest.mark.parametrize("name", ROUNDED_INPUTS)
def test_unrounded_inputs_are_nearer_to_the_exact_merge(name):
    recipe = read_recipe(GOLDEN / CASES[name]["config"])
    exact, ours, theirs = (
        merged(recipe.model_copy(update={"dtype": None})),
        merged(recipe),
        load_file(GOLDEN / CASES[name]["output"]),
    )
    error = {n: ((ours[n] - exact[n]).norm(), (theirs[n] - exact[n]).norm()) for n in exact}
    assert all(ours_off < theirs_off for ours_off, theirs_off in error.values())


@pytest.mark.parametrize("name", REFUSED)
def test_refused_though_mergekit_can(name):
    file = GOLDEN / CASES[name]["config"]
    with pytest.raises(UserError) as caught:
        read_recipe(file)
    assert str(caught.value).startswith(f"{file}: {REFUSED[name]}")


TWO = """
base_model: org/base
models:
  - {model: org/Math-7B.v1@main, parameters: {weight: 0.5}}
  - {model: ./my models/code.safetensors, parameters: {weight: 1}}
"""
WEIGHTS = {"Math-7B-v1": 0.5, "code": 1.0}
DROPPED = {"density": {"Math-7B-v1": 1.0, "code": 1.0}, "rescale": True}


@pytest.mark.parametrize(
    "method, parameters, ours, options",
    [
        ("linear", "{weight: 2}", "average", {"weights": {**WEIGHTS, "base": 2.0}, "normalize": True}),
        ("slerp", "{t: 0.25}", None, None),
        ("task_arithmetic", "{}", "task_arithmetic", {"scale": WEIGHTS}),
        ("task_arithmetic", "{lambda: 3}", "task_arithmetic", {"scale": {"Math-7B-v1": 1.5, "code": 3.0}}),
        ("task_arithmetic", "{normalize: true}", "task_arithmetic", {"scale": {"Math-7B-v1": 1 / 3, "code": 2 / 3}}),
        (
            "ties",
            "{}",
            "ties",
            {"density": DROPPED["density"], "trim": "tensor", "scale": 1.0, "weights": WEIGHTS, "normalize": True},
        ),
        (
            "ties",
            "{density: 0.4, lambda: 0.5, normalize: false}",
            "ties",
            {
                "density": {"Math-7B-v1": 0.4, "code": 0.4},
                "trim": "tensor",
                "scale": 0.5,
                "weights": WEIGHTS,
                "normalize": False,
            },
        ),
        ("dare_linear", "{}", "dare_linear", {**DROPPED, "scale": WEIGHTS}),
        ("dare_ties", "{}", "dare_ties", {**DROPPED, "scale": 1.0, "weights": WEIGHTS, "normalize": False}),
        (
            "dare_ties",
            "{density: 0.4, rescale: false, normalize: yes}",
            "dare_ties",
            {
                "density": {"Math-7B-v1": 0.4, "code": 0.4},
                "rescale": False,
                "scale": 1.0,
                "weights": WEIGHTS,
                "normalize": True,
            },
        ),
        ("della", "{}", "della", {**DROPPED, "epsilon": 0.0, "scale": 1.0, "weights": WEIGHTS, "normalize": True}),
        (
            "della",
            "{density: 0.4, epsilon: 0.1}",
            "della",
            {
                "density": {"Math-7B-v1": 0.4, "code": 0.4},
                "rescale": True,
                "epsilon": 0.2,
                "scale": 1.0,
                "weights": WEIGHTS,
                "normalize": True,
            },
        ),
        (
            "della_linear",
            "{density: 0.4, lambda: 2}",
            "della",
            {
                "density": {"Math-7B-v1": 0.4, "code": 0.4},
                "rescale": True,
                "epsilon": 0.3,
                "scale": 1.0,
                "weights": {"Math-7B-v1": 1.0, "code": 2.0},
                "normalize": False,
                "elect": False,
            },
        ),
    ],
)
def test_every_default_is_written_out(method, parameters, ours, options):
    config = f"merge_method: {method}\n{TWO}\nparameters: {parameters}"
    if ours is None:
        assert refusal(config) == "slerp takes base_model and one other model, not 3 models"
        return
    recipe = convert(yaml.safe_load(config), "m.yml")
    assert (recipe.method, recipe.options) == (ours, options)
    assert recipe.base == "org/base"
    assert list(recipe.experts.items())[:2] == [("Math-7B-v1", "org/Math-7B.v1@main"), ("code", "./my models/code.safetensors")]
    assert list(recipe.experts)[2:] == (["base"] if method == "linear" else [])
    assert check_options(MERGES[ours], recipe.options, ours) == recipe.options


def test_slerp_starts_at_the_base():
    for listed in ("[{model: a}, {model: b}]", "[{model: b}, {model: a}]", "[{model: b}]"):
        recipe = convert(
            yaml.safe_load(f"{{merge_method: slerp, base_model: a, models: {listed}, parameters: {{t: 0.1}}}}"), "m"
        )
        assert list(recipe.experts.values()) == ["a", "b"]
        assert recipe.options == {"t": 0.1}


def test_task_names_are_legal_and_unique():
    paths = ["org/m", "other/m", "/data/m/", "m.safetensors", "x/.hidden", "..", "a=b,c:d", "ü"]
    models = [{"model": path, "parameters": {"weight": 1}} for path in paths]
    recipe = convert({"merge_method": "linear", "models": models}, "m.yml")
    assert list(recipe.experts) == ["m", "m-2", "m-3", "m-4", "hidden", "model", "a-b-c-d", "ü"]
    assert list(recipe.experts.values()) == paths
    assert recipe.base is None


def test_a_listed_base_is_no_expert_of_a_task_vector_merge():
    config = "merge_method: ties\nbase_model: b\nmodels: [{model: b%s}, {model: x, parameters: {weight: 1}}]"
    assert convert(yaml.safe_load(config % ""), "m.yml").experts == {"x": "x"}
    recipe = convert(yaml.safe_load(config % ", parameters: {weight: 2}"), "m.yml")
    assert recipe.options["weights"] == {"x": 1.0}
    assert recipe.notices == ("m.yml: b: weight is ignored: it is the base",)


def test_adapters_of_the_base_are_experts():
    models = "models: [{model: b+lora/x, parameters: {weight: 1}}]"
    assert convert(yaml.safe_load(f"merge_method: ties\nbase_model: b\n{models}"), "m.yml").experts == {"x": "lora/x"}
    assert "an adapter of another model than base_model" in refusal(f"merge_method: ties\nbase_model: c\n{models}")


def test_values_that_hold_for_all_tensors():
    for value in (
        "0.5",
        "'5e-1'",
        "5e-1",
        "[{value: 0.5}]",
        "{value: 0.5}",
        "[{filter: '*', value: 0.5}, {filter: mlp, value: 1}]",
    ):
        config = f"{{merge_method: task_arithmetic, base_model: b, models: [{{model: x, parameters: {{weight: {value}}}}}]}}"
        assert convert(yaml.safe_load(config), "m.yml").options == {"scale": {"x": 0.5}}


@pytest.mark.parametrize(
    "keys, dtype",
    [
        ("", None),
        ("dtype: float16", "float16"),
        ("dtype: torch.bfloat16", "bfloat16"),
        ("dtype: float32\nout_dtype: bfloat16", "bfloat16"),
        ("tokenizer_source: base", None),
        ("tokenizer_source: org/base", None),
        ("chat_template: ~\nslices: ~", None),
    ],
)
def test_other_keys(keys, dtype):
    assert convert(yaml.safe_load(f"merge_method: ties\n{TWO}\n{keys}"), "m.yml").dtype == dtype


@pytest.mark.parametrize(
    "config, notices",
    [
        ("merge_method: ties\nparameters: {int8_mask: true}", ["int8_mask is ignored: "]),
        (
            "merge_method: task_arithmetic\nparameters: {density: 0.5}",
            ["parameters: density is ignored: it has no effect there"],
        ),
        (
            "merge_method: dare_ties\nparameters: {density: 0.5}",
            ["dare_ties: a kept entry is divided by density, as in the paper"],
        ),
        ("merge_method: della\nparameters: {density: 0.5}", ["della: a kept entry is divided by its own probability"]),
        ("merge_method: della\nparameters: {density: 0.5, rescale: false}", []),
        ("merge_method: della", []),
    ],
)
def test_notices(config, notices):
    found = convert(yaml.safe_load(f"{config}\n{TWO}"), "m.yml").notices
    assert len(found) == len(notices)
    for line, start in zip(found, notices, strict=True):
        assert line.startswith(f"m.yml: {start}")


def test_a_shared_parameter_of_one_model_is_ignored_as_in_mergekit():
    config = "{merge_method: slerp, base_model: a, models: [{model: b, parameters: {t: 0.9}}], parameters: {t: 0.1}}"
    recipe = convert(yaml.safe_load(config), "m.yml")
    assert recipe.options == {"t": 0.1}
    assert recipe.notices == ("m.yml: b: t is ignored: it has no effect there, in mergekit neither",)


@pytest.mark.parametrize(
    "config, message",
    [
        (
            "merge_method: sce",
            "merge_method 'sce' is not supported: choose linear, slerp, task_arithmetic, ties, dare_linear, ",
        ),
        ("merge_method: [ties]", "merge_method ['ties'] is not supported: choose "),
        ("merge_method: ties\nslices: []", "slices is not supported: layers cannot be picked"),
        ("merge_method: ties\nmodules: {a: b}", "modules is not supported: "),
        (f"merge_method: ties\n{TWO}\nchat_template: auto", "chat_template is not supported: the base's is kept"),
        (f"merge_method: ties\n{TWO}\ntokenizer: {{source: union}}", "tokenizer is not supported: the base's is kept"),
        (
            f"merge_method: ties\n{TWO}\ntokenizer_source: union",
            "tokenizer_source: 'union' is not supported: the base's is kept",
        ),
        (f"merge_method: ties\n{TWO}\nparameter: {{}}", "unknown key 'parameter', did you mean 'parameters'? (known: "),
        (f"merge_method: ties\n{TWO}\ndtype: int8", "dtype 'int8' is not supported: choose float32, float16, "),
        (f"merge_method: ties\n{TWO}\nparameters: [1]", "parameters: parameters must be a map from name to value"),
        (
            f"merge_method: ties\n{TWO}\nparameters: {{densty: 1}}",
            "parameters: unknown parameter 'densty', did you mean 'density'?",
        ),
        (f"merge_method: ties\n{TWO}\nparameters: {{gamma: 1}}", "parameters: unknown parameter 'gamma'"),
        (f"merge_method: ties\n{TWO}\nparameters: {{density: x}}", "density for org/Math-7B.v1@main must be a number, not 'x'"),
        (f"merge_method: ties\n{TWO}\nparameters: {{normalize: 2}}", "normalize must be true or false, not 2"),
        (f"merge_method: ties\n{TWO}\nparameters: {{lambda: .nan}}", "lambda must be a number, not nan"),
        (
            f"merge_method: ties\n{TWO}\nparameters: {{density: [1, 0.5]}}",
            "parameters: density: a list (a gradient over layers)",
        ),
        (
            f"merge_method: ties\n{TWO}\nparameters: {{density: {{filter: mlp, value: 1}}}}",
            "parameters: density: filter is not",
        ),
        (f"merge_method: ties\n{TWO}\nparameters: {{density: 0.5, rescale: true}}", "rescale: true is not supported for ties"),
        ("merge_method: ties\nmodels: [{model: a}]", "ties needs a base_model"),
        ("merge_method: ties\nbase_model: {model: b}\nmodels: []", "base_model must be the path or name of one model, not "),
        (
            "merge_method: ties\nbase_model: b+lora\nmodels: []",
            "base_model must be the path or name of one model, not 'b+lora'",
        ),
        ("merge_method: ties\nbase_model: b", "models must be a list of models to merge"),
        ("merge_method: ties\nbase_model: b\nmodels: [x]", "models: each entry needs model: a path or name, not 'x'"),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: x, weight: 1}]",
            "x: unknown key 'weight' (known: model, parameters)",
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: x}, {model: x}]",
            "x is listed twice (mergekit refuses this, too)",
        ),
        ("merge_method: ties\nbase_model: b\nmodels: [{model: x}]", "no weight for x"),
        ("merge_method: ties\nbase_model: b\nmodels: [{model: b}]", "models lists the base only: nothing to merge"),
        ("merge_method: linear\nbase_model: b\nmodels: [{model: x, parameters: {weight: 1}}]", "no weight for b"),
        ("merge_method: slerp\nbase_model: b\nmodels: [{model: x}]", "no t"),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: x, parameters: {weight: -1}}]",
            "a negative weight with normalize: true is not supported",
        ),
        (
            "merge_method: della\nbase_model: b\nparameters: {weight: 1, epsilon: 0.1}\n"
            "models: [{model: x, parameters: {density: 0.5}}, {model: y}]",
            "della: one epsilon must hold for all models, and no density of 1 beside smaller ones",
        ),
    ],
)
def test_what_is_refused(config, message):
    assert refusal(config).startswith(message)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("genome: {models: [a], merge_method: linear}\ntasks: [{name: x}]", "mergekit-evolve"),
        ("base_model: a\ngate_mode: random\nexperts: [{source_model: b}]", "mergekit-moe"),
        ("merge_method: linear\nmodels: []\n---\nmerge_method: ties", "several documents"),
    ],
)
def test_files_of_mergekits_other_programs_are_named(tmp_path, text, word):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(UserError, match=word):
        read_recipe(tmp_path / "c.yml")
