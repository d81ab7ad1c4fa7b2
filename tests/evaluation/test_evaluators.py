"""Evaluators: labelled tasks, functions, commands; each against plain code, and what each refuses."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import fit_data
import tiny
from paretomerge.data import Task
from paretomerge.errors import UserError
from paretomerge.evaluation import ByCommand, ByFunction, Failed, OnTasks, for_search, measure
from paretomerge.experts import load_experts
from paretomerge.merges import processed, task_arithmetic
from paretomerge.models import build_model, ingredients_of
from paretomerge.results import objective

C = (0.75, 0.25)
SCORES = [objective("a", "score:max:0:1"), objective("b", "score:max:0:1")]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return fit_data.experts(fit_data.save("vit", tmp_path_factory.mktemp("vit")))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return load_experts(*tiny.family("gpt2", tmp_path_factory.mktemp("gpt2")))


def models(experts):
    return ingredients_of(experts, processed(experts))


@pytest.mark.parametrize("kind", ["vit", "gpt2", "clip"])
def test_tasks_are_measured_as_a_fresh_model_is(kind, tmp_path):
    experts = fit_data.experts(fit_data.save(kind, tmp_path))
    tasks = for_search(fit_data.tasks(kind, 24, labels=True), "ab", print)
    if kind == "clip":  # four prompts
        for task in tasks.values():
            task.held_out.labels.clamp_(max=3)
    evaluator = OnTasks(tasks, batch_size=7, device="cpu")
    measured = evaluator.opened(models(experts))
    measured((0.1, 0.9), ["a", "b"])
    found = measured(C, ["b", "a"])
    ingredients = models(experts)
    for name, task in tasks.items():
        head = ingredients.heads.get(name)
        weights = ingredients.at(C)
        net = build_model(head.on(weights) if head else weights, head.config if head else ingredients.config)
        assert found[name] == pytest.approx(measure(net, task), rel=1e-5)
    assert set(measured(C, ["a"])) == {"a"}
    assert [o.metric for o in evaluator.objectives] == ["perplexity" if kind == "gpt2" else "accuracy"] * 2


def test_a_search_chooses_by_inputs_that_are_not_held_out():
    tasks = fit_data.tasks("bert", 10, labels=True, held_out=6)
    found, said = for_search(tasks, "ab", print), []
    assert all(found[name].held_out is tasks[name].fit and found[name].split == "held-out" for name in "ab")
    only = {name: replace(task, fit=None) for name, task in tasks.items()}
    found = for_search(only, "ab", said.append)
    assert all(found[name].held_out is tasks[name].held_out and found[name].split == "transductive" for name in "ab")
    assert said[0] == "a: the search chooses by the inputs that are measured on: transductive"


def test_a_search_needs_labels_for_every_task():
    tasks = fit_data.tasks("bert", 10, labels=False, held_out=6)
    with pytest.raises(UserError, match="task a: a search needs labels"):
        for_search(tasks, "ab", print)
    with pytest.raises(UserError, match="task c has no inputs to evaluate on: name them with --data c=PATH"):
        for_search(fit_data.tasks("gpt2"), "abc", print)


def test_an_identity_follows_inputs_and_labels():
    def identity(**changes):
        return OnTasks(for_search(fit_data.tasks("bert", 10, labels=True), "ab", print), **changes).identity()

    assert identity() == identity(batch_size=3, device="cpu")
    assert identity() != identity(precision="bfloat16")
    tasks = for_search(fit_data.tasks("bert", 10, labels=True), "ab", print)
    tasks["a"].held_out.labels[0] = (tasks["a"].held_out.labels[0] + 1) % 5
    assert OnTasks(tasks).identity()["tasks"]["a"] != identity()["tasks"]["a"]
    assert OnTasks(tasks).identity()["tasks"]["b"] == identity()["tasks"]["b"]


def test_a_function_of_a_live_model(gpt2):
    asked = []

    def score(model, tasks):
        asked.append(tasks)
        return {"a": float(model.lm_head.weight.detach().double().mean()), "b": {"score": 0.5}}

    evaluator = ByFunction(score, SCORES, device="cpu")
    found = evaluator.opened(models(gpt2))(C, ["a"])
    expected = task_arithmetic(gpt2, scale=list(C))["transformer.wte.weight"].double().mean()
    assert found == pytest.approx({"a": float(expected), "b": 0.5}, abs=1e-7) and asked == [["a"]]
    json.dumps(evaluator.identity())


def test_functions_of_several_models_and_of_weights(vit):
    def classes(models):
        return {task: 1 / model.config.num_labels for task, model in models.items()}

    found = ByFunction(classes, SCORES, gets="models", device="cpu").opened(models(vit))(C, ["a", "b"])
    assert found == {"a": 1 / 5, "b": 1 / 3}
    name = "embeddings.cls_token"

    def first(weights):
        assert list(weights) == list(vit.infos)
        return {"a": weights[name].flatten()[0], "b": np.float32(0)}

    at = task_arithmetic(vit, scale=list(C))[name].flatten()[0]
    assert ByFunction(first, SCORES, gets="weights").opened(models(vit))(C, ["a"])["a"] == pytest.approx(float(at), abs=1e-7)
    with pytest.raises(UserError, match='say gets="models"'):
        ByFunction(classes, SCORES).opened(models(vit))


def test_a_base_that_no_model_can_be_built_of():
    base = {"w": torch.zeros(2, 2)}
    experts = load_experts(base, {"a": {"w": torch.ones(2, 2)}, "b": {"w": torch.eye(2)}})
    with pytest.raises(UserError, match="a model cannot be built of it"):
        ByFunction(lambda model: {}, SCORES).opened(models(experts))
    found = ByFunction(lambda w: {"a": w["w"][0, 0], "b": w["w"][0, 1]}, SCORES, gets="weights").opened(models(experts))
    assert found(C, ["a", "b"]) == {"a": 1.0, "b": 0.75}


def command(tmp_path: Path, body: str, words: str = "{model} {tasks}") -> str:
    script = tmp_path / "score.py"
    script.write_text(f"import json, sys\nfrom pathlib import Path\nmodel = Path(sys.argv[1])\n{body}\n")
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {words}"


def test_a_command_gets_a_whole_model(gpt2, tmp_path):
    body = """
(model.parents[2] / "kept").mkdir()
for file in model.iterdir():
    (model.parents[2] / "kept" / file.name).write_bytes(file.read_bytes())
print("tasks", sys.argv[2])
print(json.dumps({task: {"score": 0.25} for task in sys.argv[2].split(",")}))
"""
    evaluator = ByCommand(command(tmp_path, body), SCORES, tmp_path / "run of 'it'", timeout=60)
    assert evaluator.opened(models(gpt2))(C, ["b"]) == {"b": 0.25}
    assert list((tmp_path / "run of 'it'").iterdir()) == []
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "kept")
    weights = task_arithmetic(gpt2, scale=list(C))
    torch.testing.assert_close(net.lm_head.weight.detach(), weights["transformer.wte.weight"], rtol=0, atol=1e-6)


def test_a_command_gets_a_model_for_each_head(vit, tmp_path):
    body = (
        'print(json.dumps({p.name: 1 / len(json.loads((p / "config.json").read_text())["id2label"]) for p in model.iterdir()}))'
    )
    evaluator = ByCommand(command(tmp_path, body, "{model}"), SCORES, tmp_path / "run")
    assert evaluator.opened(models(vit))(C, ["a", "b"]) == {"a": 1 / 5, "b": 1 / 3}


def test_a_failed_command_leaves_no_model(gpt2, tmp_path):
    evaluator = ByCommand(command(tmp_path, 'sys.exit("no such benchmark")'), SCORES, tmp_path / "run")
    with pytest.raises(Failed, match="exit code 1: no such benchmark"):
        evaluator.opened(models(gpt2))(C, ["a"])
    assert list((tmp_path / "run").iterdir()) == []


def test_a_commands_identity_follows_its_script(tmp_path):
    line = command(tmp_path, "pass")
    before = ByCommand(line, SCORES).identity()
    assert before == ByCommand(line, SCORES, tmp_path, timeout=3.0).identity()
    command(tmp_path, "pass  # changed")
    assert before != ByCommand(line, SCORES).identity()
    assert before["metrics"] == {"a": "score", "b": "score"}


def test_wrong_commands():
    with pytest.raises(UserError, match=r"the command needs \{model\}"):
        ByCommand("score.sh", SCORES)
    with pytest.raises(UserError, match="timeout must be positive"):
        ByCommand("score.sh {model}", SCORES, timeout=0)


def test_a_task_that_no_model_answers_is_a_users_mistake(vit):
    tasks = for_search(fit_data.tasks("vit", 8, labels=True), "ab", print)
    tasks["b"].held_out.labels[0] = 9
    with pytest.raises(UserError, match="has the label 9"):
        OnTasks(tasks, device="cpu").opened(models(vit))(C, ["a", "b"])


def test_kinds_of_task_without_labels():
    task = Task("a", "image-classification", None, None, "accuracy")
    with pytest.raises(UserError, match="task a has no inputs"):
        for_search({"a": task}, "a", print)
