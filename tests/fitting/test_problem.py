"""The K objectives on live models: batches, micro-batches, the experts' predictions, and the watch over collapse."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import fit_data
import tiny
from paretomerge import api
from paretomerge.data import Task, TensorInputs, TextInputs
from paretomerge.errors import UserError
from paretomerge.fitting import OBJECTIVES, FitRun, Predictions, Problem, TrainingOptions, marginal_entropy
from paretomerge.fitting import task_losses as module
from paretomerge.models import predict

KINDS = ("vit", "bert", "gpt2", "clip", "resnet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    for kind in KINDS:
        fit_data.save(kind, place / kind)
    return place


def problem(
    place: Path, objective: str = "distill", tasks: dict[str, Task] | None = None, *, run: FitRun = FitRun(), **options
) -> Problem:
    kind = place.name
    given = tasks or fit_data.tasks(kind, labels=objective == "cross-entropy")
    options = {"objective": objective, "batch_size": 8, "device": "cpu", **options}
    return Problem(fit_data.experts(place), given, TrainingOptions(**options), run)


@torch.no_grad()
def write(of: Problem, k: int | None) -> None:
    """θ_k, or half-way between all."""
    for name, weight in of.models.weights.items():
        v = of.task_vectors[name].mean(0) if k is None else of.task_vectors[name][k]
        weight.copy_(of.base[name] + v.view_as(weight))


def gradients(of: Problem, k: int, seed: int = 5) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    for part in of.losses(k, seed):
        (part.loss * part.share).backward()
        total += float(part.loss.detach()) * part.share
    found = {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in of.models.weights.items()}
    for weight in of.models.weights.values():
        weight.grad = None
    return total, found


@pytest.mark.parametrize("micro_batch_size", [1, 3, 20])
@pytest.mark.parametrize(
    "kind, objective",
    [
        *(("vit", objective) for objective in ("distill", "entropy", "cross-entropy", "features")),
        ("bert", "distill"),
        ("gpt2", "distill"),
        ("gpt2", "cross-entropy"),
    ],
)
def test_micro_batches_give_the_gradient_of_the_batch(folder, kind, objective, micro_batch_size):
    whole = problem(folder / kind, objective)
    parts = problem(folder / kind, objective, micro_batch_size=micro_batch_size)
    for of in (whole, parts):
        write(of, None)
    for k in range(2):
        (value, expected), (other, found) = gradients(whole, k), gradients(parts, k)
        assert value == pytest.approx(other, rel=1e-4) and value > 1e-4  # fp32, and other sizes have other kernels
        size = max(float(g.abs().max()) for g in expected.values())
        for name, g in expected.items():
            torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-6 * max(1.0, size))


def test_infomax_needs_its_whole_batch(folder):
    with pytest.raises(UserError, match="leave micro_batch_size out"):
        problem(folder / "vit", "infomax", micro_batch_size=4)
    assert len(list(problem(folder / "vit", "infomax", micro_batch_size=8).losses(0, 1))) == 1


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"micro_batch_size": 0}, {"micro_batch_size": -1}])
def test_batches_have_at_least_one_input(folder, options):
    with pytest.raises(UserError, match="at least 1"):
        problem(folder / "vit", **options)


def test_batches_are_drawn_by_the_seed(folder):
    of = problem(folder / "vit")
    seen, get = [], of.experts[0].fit.inputs.batch
    of.experts[0].fit.inputs.batch = lambda rows: seen.append(list(rows)) or get(rows)
    for seed in (1, 1, 2):
        list(of.losses(0, seed))
    assert seen[0] == seen[1] != seen[2] and len(set(seen[0])) == 8 and set(seen[0]) <= set(range(40))


def test_a_batch_larger_than_the_data_is_all_of_it(folder):
    (part,) = problem(folder / "vit", batch_size=1000).losses(0, 1)
    assert part.share == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["distill", "features"])
def test_the_expert_has_nothing_to_learn_from_itself(folder, kind, objective):
    """Distillation at θ = θ_k is 0: inputs, padding, tokens and heads are aligned with what was kept of the expert."""
    if (kind, objective) == ("clip", "features"):
        with pytest.raises(UserError, match="zero-shot"):
            problem(folder / kind, objective)
        return
    of = problem(folder / kind, objective)
    limit = {"gpt2": 1e-5}.get(kind, 1e-6)  # kept in fp16
    for k in range(2):
        write(of, k)
        if kind == "resnet":  # whose running statistics are not merged: the expert's own are not there
            assert gradients(of, k)[0] > 1e-5
            continue
        assert all(abs(gradients(of, k, seed)[0]) < limit for seed in range(3))
    write(of, None)
    assert all(gradients(of, k)[0] > 100 * limit for k in range(2))


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_what_is_kept_is_what_the_expert_says(folder, kind):
    of = problem(folder / kind)
    for k, task in enumerate("ab"):
        cls = {"vit": "ViTForImageClassification"}.get(kind, "ResNetForImageClassification")
        import transformers

        expert = getattr(transformers, cls).from_pretrained(folder / kind / task).eval()
        inputs = of.experts[k].fit.inputs
        with torch.no_grad():
            said = predict(expert, inputs.batch(range(len(inputs))))
        torch.testing.assert_close(of.experts[k].fit.teacher.values, said, rtol=1e-4, atol=1e-5)


def test_language_model_losses_count_every_token_but_the_first(folder):
    of = problem(folder / "gpt2", "cross-entropy", batch_size=1000)
    write(of, 0)
    inputs = of.experts[0].fit.inputs
    ids = inputs.batch(range(len(inputs)))["input_ids"]
    with torch.no_grad():
        expected = of.models.models["a"](input_ids=ids, labels=ids).loss
    assert gradients(of, 0)[0] == pytest.approx(float(expected), rel=1e-5)
    teacher = problem(folder / "gpt2", "distill", batch_size=1000)
    write(teacher, 1)
    with torch.no_grad():
        mine = teacher.models.models["a"](input_ids=ids).logits[:, :-1].log_softmax(-1)
        write(teacher, 0)
        theirs = teacher.models.models["a"](input_ids=ids).logits[:, :-1].log_softmax(-1)
    write(teacher, 1)
    expected = (theirs.exp() * (theirs - mine)).sum(-1).mean()
    assert gradients(teacher, 0)[0] == pytest.approx(float(expected), rel=1e-2)  # kept in fp16


def ragged(n: int, seed: int) -> TextInputs:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (n,), generator=generator).tolist()
    return TextInputs({"input_ids": [torch.randint(3, 40, (m,), generator=generator).tolist() for m in lengths]}, 0)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_texts_of_different_lengths(folder, kind):
    """More than are asked of an expert at a time, so that the paddings of asking and fitting differ."""
    given = {name: replace(task, fit=ragged(150, seed)) for seed, (name, task) in enumerate(fit_data.tasks(kind).items())}
    of = problem(folder / kind, "distill", given)
    widths = {of.experts[0].fit.inputs.batch(range(i, i + 64))["input_ids"].shape[1] for i in (0, 64)}
    small = {of.experts[0].fit.inputs.batch([i, i + 1])["input_ids"].shape[1] for i in range(20)}
    assert len(widths | small) > 3
    for k in range(2):
        write(of, k)
        assert all(abs(gradients(of, k, seed)[0]) < 1e-5 for seed in range(5))


def test_padding_does_not_count(folder):
    """A language model's loss of two texts is the mean over their tokens, not over the padding."""
    texts = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    given = {name: replace(task, fit=TextInputs({"input_ids": texts}, 0)) for name, task in fit_data.tasks("gpt2").items()}
    of = problem(folder / "gpt2", "cross-entropy", given)
    write(of, 0)
    each = []
    for text in texts:
        ids = torch.tensor([text])
        with torch.no_grad():
            logits = of.models.models["a"](input_ids=ids).logits[0, :-1]
        each += F.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
    assert gradients(of, 0)[0] == pytest.approx(sum(each) / len(each), rel=1e-4)


# -- held-out inputs


def test_held_out_objective(folder):
    given = fit_data.tasks("vit", 30, held_out=50)
    of = problem(folder / "vit", "entropy", given, patience=1)
    write(of, None)
    expected = 0.0
    for k, task in enumerate("ab"):
        inputs = given[task].held_out
        with torch.no_grad():
            p = predict(of.models.models[task], inputs.batch(range(50))).softmax(-1)
        expected += float(-(p * p.log()).sum(-1).mean()) / 2
        assert of.experts[k].held_out.inputs.labels.tolist() == inputs.labels.tolist()
    assert of.held_out() == pytest.approx(expected, rel=1e-5)
    distilled = problem(folder / "vit", "distill", given, patience=1)
    assert distilled.held_out() > 1e-3
    for k in range(2):
        write(distilled, k)
        expert = distilled.experts[k]
        with torch.no_grad():
            found = distilled._predict(expert, expert.held_out, range(50)).logits
        torch.testing.assert_close(found, expert.held_out.teacher.values, rtol=1e-5, atol=1e-6)


def test_a_part_of_the_held_out_inputs_is_from_all_over_them(folder, monkeypatch):
    """Files are often sorted by class: the first ones would be of one."""
    monkeypatch.setattr(module, "_HELD_OUT", 10)
    given = fit_data.tasks("vit", 30, held_out=91)
    of = problem(folder / "vit", "cross-entropy", {n: replace(t, fit=t.held_out) for n, t in given.items()}, patience=1)
    source = of.experts[0].held_out.inputs
    everything = given["a"].held_out
    assert len(source) == 10
    chosen = source.batch(range(10))["pixel_values"]
    assert torch.equal(chosen, everything.batch(range(0, 91, 10))["pixel_values"])
    assert torch.equal(source.labels, everything.labels[::10])
    assert torch.equal(source.batch([3])["pixel_values"][0], chosen[3])
    assert of.held_out() > 0


def test_without_held_out_inputs_there_is_no_early_stop(folder):
    with pytest.raises(UserError, match="task a has no held-out inputs"):
        problem(folder / "vit", patience=1)


# -- what was kept of the experts, when it is large


@pytest.mark.parametrize("kind, top", [("gpt2", None), ("gpt2", 8), ("vit", None)])
def test_predictions_are_kept_in_files(folder, tmp_path, monkeypatch, kind, top):
    given = fit_data.tasks(kind, 30, held_out=20)
    in_memory = problem(folder / kind, "distill", given, patience=1, teacher_top=top)
    asked, said = [], []
    ask = Problem._outputs
    monkeypatch.setattr(Problem, "_outputs", lambda self, *args: asked.append(1) or ask(self, *args))
    options = {"patience": 1, "teacher_top": top, "run": FitRun(tmp_path / "run", say=said.append)}
    stored = problem(folder / kind, "distill", given, **options)
    first = len(asked)
    assert first >= 4 and not said  # two tasks, inputs to fit on and held-out ones
    again = problem(folder / kind, "distill", given, **options)
    assert len(asked) == first and len(said) == 4 and said[0].startswith("a: the expert's predictions on 30 inputs")
    for of in (in_memory, stored, again):
        write(of, None)
        assert gradients(of, 1)[0] == gradients(in_memory, 1)[0]
        assert of.held_out() == in_memory.held_out()
    (tmp_path / "other").mkdir()
    for name, changes in {
        "objective": {"objective": "features"},
        "more": {"tasks": fit_data.tasks(kind, 31, held_out=20)},
        "precision": {"precision": "bfloat16"},
    }.items():
        before = len(asked)
        problem(folder / kind, **{"objective": "distill", "tasks": given, **options, **changes})
        assert len(asked) > before, name


def test_other_experts_are_asked_anew(folder, tmp_path):
    """The same folder of a run, and an expert whose weights are others: nothing of before is taken."""
    kind, run = "bert", tmp_path / "run"
    fit_data.save(kind, tmp_path / "models" / kind)
    before = problem(tmp_path / "models" / kind, run=FitRun(run))
    tiny.save(tiny.perturb(tiny.model(kind, num_labels=5), 7, 0.3), tmp_path / "models" / kind / "a")
    said = []
    after = problem(tmp_path / "models" / kind, run=FitRun(run, say=said.append))
    assert not torch.equal(before.experts[0].fit.teacher.values, after.experts[0].fit.teacher.values)
    assert torch.equal(before.experts[1].fit.teacher.values, after.experts[1].fit.teacher.values)
    assert [line[0] for line in said] == ["b"]


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_the_likeliest_tokens_teach_nearly_as_all(folder, micro_batch_size):
    """Less than the whole divergence, by what the docstring says; the same gradient where it counts."""
    given = {name: replace(task, fit=ragged(30, seed)) for seed, (name, task) in enumerate(fit_data.tasks("gpt2").items())}
    whole, part = (
        problem(folder / "gpt2", "distill", given, teacher_top=top, micro_batch_size=micro_batch_size, batch_size=20)
        for top in (None, 24)
    )
    kept = part.experts[0].fit.teacher
    assert kept.values.shape[-1] == 25 and kept.places.shape == (*kept.values.shape[:-1], 24)
    for of in (whole, part):
        write(of, None)
    (value, expected), (other, found) = gradients(whole, 0), gradients(part, 0)
    assert 0.5 * value < other < value
    one, two = (torch.cat([g.flatten() for g in each.values()]) for each in (expected, found))
    assert float(F.cosine_similarity(one, two, dim=0)) > 0.95
    write(part, 0)
    assert abs(gradients(part, 0)[0]) < 1e-5


def test_teacher_top_is_at_least_one(folder):
    with pytest.raises(UserError, match="teacher_top must be at least 1"):
        problem(folder / "gpt2", teacher_top=0)


# -- zero-shot heads


def freeze_text(place: Path, source: Path) -> Path:
    """The same base and experts, with the base's text tower in all."""
    cls = tiny.ARCHITECTURES["clip"][0]
    base = cls.from_pretrained(source / "base")
    tiny.save(base, place / "base")
    for task in "ab":
        expert = cls.from_pretrained(source / task)
        expert.text_model.load_state_dict(base.text_model.state_dict())
        expert.text_projection.load_state_dict(base.text_projection.state_dict())
        tiny.save(expert, place / task)
    return place


def test_a_text_tower_that_stays_gives_its_head_once(folder, tmp_path):
    place, said = freeze_text(tmp_path / "clip", folder / "clip"), []
    of = problem(place, run=FitRun(say=said.append))
    fresh = tiny.ARCHITECTURES["clip"][0].from_pretrained(place / "base").eval()
    for expert in of.experts:
        assert expert.text_head.shape == (4, 8) and not expert.text_head.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(expert.text_head, expert.task.prompts.features(fresh))
    assert said == [] and "logit_scale" in of.task_vectors and of.task_vectors["logit_scale"].shape == (2, 1)
    write(of, None)
    assert all(float(g.abs().max()) == 0 for name, g in gradients(of, 0)[1].items() if name.startswith("text_"))


def test_a_text_tower_that_experts_changed_is_the_merged_models(folder):
    """What is fitted is what is measured: the head of θ(γ), of the expert for its own predictions, with its gradient."""
    said = []
    of = problem(folder / "clip", run=FitRun(say=said.append))
    assert [line.split(":")[0] for line in said] == ["a", "b"]
    assert "the experts differ in the text tower" in said[0] and "4 prompts" in said[0] and "--exclude" in said[0]
    for k, task in enumerate("ab"):
        expert = tiny.ARCHITECTURES["clip"][0].from_pretrained(folder / "clip" / task).eval()
        inputs = of.experts[k].fit.inputs
        with torch.no_grad():
            head = of.experts[k].task.prompts.features(expert)
            said_by = predict(expert, inputs.batch(range(len(inputs))), head)
        torch.testing.assert_close(of.experts[k].fit.teacher.values, said_by, rtol=1e-4, atol=1e-5)
    write(of, None)
    value, found = gradients(of, 0)
    towers = {
        tower: max(float(g.abs().max()) for n, g in found.items() if n.startswith(tower)) for tower in ("text_", "vision_")
    }
    assert value > 1e-4 and min(towers.values()) > 1e-6


def test_what_the_fit_sees_is_what_is_measured(folder):
    """The objective of a fit at γ, and that of the front's model as ``evaluate`` builds it."""
    front = api.fit(fit_data.experts(folder / "clip"), "soup", hashes=False)
    of = problem(folder / "clip", "entropy", batch_size=40)
    gamma = (0.3, 0.7)
    with torch.no_grad():
        for name, weight in of.models.weights.items():
            weight.copy_(front.at(gamma)[name])
        model = front.model(gamma, dtype=torch.float32)
        task = of.experts[0].task
        logits = predict(model, task.fit.batch(range(40)), task.prompts.features(model))
        expected = float(OBJECTIVES["entropy"](Predictions(logits)))
    assert gradients(of, 0)[0] == pytest.approx(expected, rel=1e-5)


# -- collapse


def watched(of: Problem, values: list[float], task: str = "0") -> list[int]:
    """What a watch says when the marginal entropies are these: after which steps."""
    said = []
    of.say = lambda line: said.append(line)
    watch = of.watching(None)
    at = []
    for done, value in enumerate(values, 1):
        before = len(said)
        watch(done, {"watched": {task: {"marginal": value}}})
        at += [done] * (len(said) - before)
    return at


def test_collapse_is_told_once(folder):
    of = problem(folder / "vit", "entropy")
    assert watched(of, [1.6, 1.5, 1.6, 1.5, 1.6, 1.0, 0.9, 0.7, 0.6, 0.1]) == [8]
    of = problem(folder / "vit", "entropy")
    assert watched(of, [1.6, 1.5, 1.6, 1.5, 1.6, 1.2, 0.9, 0.8, 1.4, 0.81]) == []


def test_marginal_entropy_is_that_of_the_batch_whatever_the_micro_batches(folder):
    whole, parts = (problem(folder / "vit", "entropy", micro_batch_size=size) for size in (None, 3))
    for of in (whole, parts):
        write(of, 0)
    (one,), several = list(whole.losses(0, 3)), list(parts.losses(0, 3))
    assert len(several) == 3
    assert several[-1].watched["marginal"] == pytest.approx(one.watched["marginal"], rel=1e-5)
    drawn = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:8]
    logits = predict(whole.models.models["a"], whole.experts[0].fit.inputs.batch(drawn.tolist()))
    assert one.watched["marginal"] == pytest.approx(float(marginal_entropy(logits.detach())), rel=1e-5)


def test_a_report_is_called_beside_the_watch(folder):
    told = []
    watch = problem(folder / "vit", "features").watching(lambda done, logged: told.append((done, logged)))
    watch(3, {"watched": {"1": {}}})
    assert told == [(3, {"watched": {"1": {}}})]


# -- mistakes


def test_mistakes(folder):
    given = fit_data.tasks("vit")
    with pytest.raises(UserError, match=r"^task b has no inputs to fit on: name them with --data b=PATH$"):
        problem(folder / "vit", tasks={"a": given["a"]})
    with pytest.raises(UserError, match="task a has no inputs to fit on"):
        problem(folder / "vit", tasks={**given, "a": replace(given["a"], fit=None)})
    with pytest.raises(UserError, match="task a has no inputs to fit on"):
        problem(
            folder / "vit",
            tasks={**given, "a": replace(given["a"], fit=TensorInputs({"pixel_values": torch.zeros(0, 3, 16, 16)}))},
        )
    with pytest.raises(UserError, match=r"objective 'entropie': choose one of distill, infomax"):
        problem(folder / "vit", "entropie")
    of = problem(folder / "vit", "cross-entropy", given)
    with pytest.raises(UserError, match="no labels; use distill"):
        next(iter(of.losses(0, 1)))
    with pytest.raises(UserError, match="refuses the inputs"):
        problem(
            folder / "bert",
            tasks={name: replace(task, kind="text-classification") for name, task in fit_data.tasks("vit").items()},
        )


def test_bfloat16_forward_keeps_fp32_gradients(folder):
    exact, rounded = (problem(folder / "vit", "distill", precision=p) for p in ("float32", "bfloat16"))
    for of in (exact, rounded):
        write(of, None)
    (value, expected), (other, found) = gradients(exact, 0), gradients(rounded, 0)
    assert value != other == pytest.approx(value, rel=0.1)
    one, two = (torch.cat([g.flatten() for g in each.values()]) for each in (expected, found))
    assert two.dtype == torch.float32 and float(F.cosine_similarity(one, two, dim=0)) > 0.98
    assert math.isfinite(other)
    assert 0 < float((exact.experts[0].fit.teacher.values - rounded.experts[0].fit.teacher.values).abs().max()) < 0.1


@pytest.mark.parametrize(
    "kind, precision, short, expected",
    [
        ("vit", "bfloat16", 128, True),
        ("gpt2", "bfloat16", 128, True),
        ("gpt2", "bfloat16", 2, False),
        ("vit", "float32", 128, False),
    ],
)
def test_few_tokens_attend_step_by_step(folder, monkeypatch, kind, precision, short, expected):
    """In bfloat16 on a processor, where a gradient is wanted; experts and held-out inputs are asked the fused kernel."""
    asked = []
    whole = module.sdpa_kernel
    monkeypatch.setattr(module, "sdpa_kernel", lambda backend: asked.append(backend) or whole(backend))
    monkeypatch.setattr(module, "_SHORT", short)
    of = problem(folder / kind, precision=precision, tasks=fit_data.tasks(kind, 12, held_out=4), patience=1)
    write(of, None)
    of.held_out()
    assert not asked
    gradients(of, 0)
    assert bool(asked) == expected
