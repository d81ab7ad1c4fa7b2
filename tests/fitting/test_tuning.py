"""Heads and statistics of merged classifiers, made anew."""

import pytest
import torch

import tiny
from paretomerge.data import Prompts, Rows, Task, TensorInputs
from paretomerge.errors import UserError
from paretomerge.evaluation import OnTasks, Tuning, for_search, measure, tuned, tuning_inputs
from paretomerge.experts import load_experts
from paretomerge.merges import processed
from paretomerge.models import ingredients_of


def inputs(n: int, seed: int = 0, labelled: bool = True) -> TensorInputs:
    """Images that are dark or bright; the label says which."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=draw)
    pixels = 0.1 * torch.randn(n, 3, 16, 16, generator=draw)
    pixels += 2.0 * labels[:, None, None, None] - 1
    return TensorInputs({"pixel_values": pixels}, labels if labelled else None)


def task(fit, held_out, split="held-out", prompts=None) -> Task:
    return Task("a", "image-classification", fit, held_out, "accuracy", split, (), prompts)


def test_a_head_learns_and_is_put_back():
    model, seen, unseen = tiny.model("vit", num_labels=2), inputs(40), inputs(30, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = measure(model, task(seen, unseen))
    with tuned(model, task(seen, unseen), seen, Tuning(head_steps=200, head_lr=0.05), 16) as found:
        assert set(found) == {"classifier.weight", "classifier.bias"}
        assert all(not torch.equal(tensor, before[name]) for name, tensor in found.items())
        assert measure(model, task(seen, unseen)) > max(start, 0.9)
        first = found["classifier.weight"].clone()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.inference_mode(), tuned(model, task(seen, unseen), seen, Tuning(head_steps=200, head_lr=0.05), 16) as again:
        assert torch.equal(again["classifier.weight"], first)  # the same each time, whoever asks


def test_statistics_are_those_of_the_inputs():
    model, seen = tiny.model("resnet", num_labels=2), inputs(24)
    norm = model.resnet.embedder.embedder.normalization
    before = norm.running_mean.clone()
    with torch.no_grad():
        out = model.resnet.embedder.embedder.convolution(seen.batch(range(24))["pixel_values"])
    with tuned(model, task(seen, seen), seen, Tuning(norm_statistics=True), 24) as found:
        torch.testing.assert_close(norm.running_mean, out.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, out.var((0, 2, 3)))
        assert len(found) == 3 * sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
        assert not any(module.training for module in model.modules())
    assert torch.equal(norm.running_mean, before) and norm.momentum is not None


def test_no_input_is_tuned_and_measured_on():
    seen, unseen = inputs(9), inputs(6, 1)
    assert tuning_inputs(task(seen, unseen)) == (seen, unseen)
    for each in (task(seen, seen), task(None, seen), task(inputs(9), seen, "transductive")):
        on, measured = tuning_inputs(each)
        assert (len(on), len(measured)) == (5, 4)
        pixels = {tuple(p.flatten().tolist()) for p in on.batch(range(5))["pixel_values"]}
        assert not pixels & {tuple(p.flatten().tolist()) for p in measured.batch(range(4))["pixel_values"]}
    rows = Rows(seen, torch.tensor([3, 1]))
    assert torch.equal(rows.batch([1])["pixel_values"], seen.batch([1])["pixel_values"]) and len(rows) == 2


def test_a_search_measures_tuned_models(tmp_path):
    base, experts = tiny.family("vit", tmp_path, num_labels=2)
    loaded = load_experts(base, experts, task_tensors=["classifier.*"])
    models = ingredients_of(loaded, processed(loaded))
    tasks = for_search({name: task(inputs(40), inputs(30, 1)) for name in "ab"}, ("a", "b"), lambda line: None)
    plain = OnTasks(tasks, device="cpu").opened(models)((0.5, 0.5), ["a", "b"])
    evaluator = OnTasks(tasks, device="cpu", head_steps=200, head_lr=0.05)
    measured = evaluator.opened(models)
    found = measured((0.5, 0.5), ["a", "b"])
    assert min(found.values()) > 0.9 > min(plain.values())  # by chance one of the plain ones may be right, too
    measured((1.0, 0.0), ["a"])
    assert measured((0.5, 0.5), ["a", "b"]) == found  # whatever was measured between
    assert evaluator.identity()["tuning"]["head_steps"] == 200 and "tuning" not in OnTasks(tasks).identity()


@pytest.mark.parametrize(
    "kind, tuning, given, message",
    [
        ("vit", {"norm_statistics": True}, {}, "ViTForImageClassification has no batch norms"),
        ("vit", {"head_steps": 1}, {"labelled": False}, "tuning a head needs labels"),
        ("clip", {"head_steps": 1}, {}, "has a zero-shot head"),
    ],
)
def test_what_is_refused(kind, tuning, given, message):
    model, seen = tiny.model(kind), inputs(4, **given)
    prompts = Prompts(seen, 2) if kind == "clip" else None
    with pytest.raises(UserError, match=message), tuned(model, task(seen, seen, prompts=prompts), seen, Tuning(**tuning), 4):
        pass


def test_settings_that_are_refused():
    for wrong in ({"head_steps": -1}, {"head_lr": 0.0}):
        with pytest.raises(UserError, match="head_steps must not be negative, and head_lr must be positive"):
            Tuning(**wrong)
    with pytest.raises(UserError, match="too few inputs"):
        tuning_inputs(task(None, None))
