"""Fisher merging and RegMean against direct computations in fp64, and what must hold of them whatever the models are."""

import gc
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fit_data
import tiny
from paretomerge import api, merges
from paretomerge.data import Inputs, Task, TextInputs
from paretomerge.errors import UserError
from paretomerge.experts import Experts, live_names, load_experts
from paretomerge.merges import calibration as in_turn

fisher_module = sys.modules["paretomerge.merges.fisher"]  # its function has the same name
KINDS = ("vit", "bert", "gpt2", "llama")
LOADERS = {"vit": hf.ViTForImageClassification, "bert": hf.BertForSequenceClassification}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    for kind in (*KINDS, "clip"):
        fit_data.save(kind, place / kind)
    return place


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out of the expectation."""
    monkeypatch.setattr(fisher_module, "_NEGLIGIBLE", 0.0)


def tasks(kind: str, n: int, labels: bool = False) -> dict[str, Task]:
    return fit_data.tasks(kind, n, labels=labels)


def expert(place: Path) -> nn.Module:
    cls = LOADERS.get(place.parent.name, tiny.ARCHITECTURES[place.parent.name][0])
    return cls.from_pretrained(place).double().eval()


def own(experts: Experts, k: int, model: nn.Module) -> dict[str, str]:
    """Base's name -> the name in the k-th expert as transformers loads it."""
    names = experts.experts[k].names
    live = live_names(names.values(), model)
    return {name: live[names[name]] for name in experts.merged}


def one(inputs: Inputs, i: int) -> dict[str, Tensor]:
    """An input by itself, without padding, in fp64."""
    batch = inputs.batch([i])
    batch.pop("attention_mask", None)
    return {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


def oracle_fisher(experts: Experts, k: int, model: nn.Module, inputs: Inputs, expectation: str) -> dict[str, Tensor]:
    """F_k by autograd: of each input, of each class."""
    names = own(experts, k, model)
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameters[place]) for name, place in names.items()}
    count = 0

    def add(log_probability: Tensor, weight: float) -> None:
        model.zero_grad()
        log_probability.backward(retain_graph=True)
        for name, place in names.items():
            if (g := parameters[place].grad) is not None:
                total[name] += weight * g**2

    for i in range(len(inputs)):
        batch = one(inputs, i)
        log_p = model(**batch).logits[0].log_softmax(-1)
        if expectation == "text":  # a language model, and the text's own tokens
            tokens = batch["input_ids"][0]
            add(sum(log_p[t, tokens[t + 1]] for t in range(len(tokens) - 1)), 1.0)
            count += len(tokens) - 1
        elif expectation == "labels":
            add(log_p[inputs.labels[i]], 1.0)
            count += 1
        else:
            for value in log_p:
                add(value, float(value.detach().exp()))
            count += 1
    return {name: f / count for name, f in total.items()}


def expected_fisher(place: Path, given: dict[str, Task], expectation: str, weights=(1.0, 1.0), floor=1e-6) -> dict[str, Tensor]:
    experts = fit_data.experts(place)
    above, below = {}, {}
    for k, task in enumerate("ab"):
        model = expert(place / task)
        state, names = model.state_dict(), own(experts, k, model)
        for name, f in oracle_fisher(experts, k, model, given[task].fit, expectation).items():
            f = weights[k] * f.clamp_min(floor)
            above[name] = above.get(name, 0) + f * state[names[name]]
            below[name] = below.get(name, 0) + f
    return {name: above[name] / below[name] for name in above}


def close(merged, expected: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name].double(), tensor, rtol=tolerance, atol=tolerance, msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_fisher_is_the_expectation_over_all_classes(kind, folder, exact):
    given = tasks(kind, 6)
    merged = merges.fisher(fit_data.experts(folder / kind), given, weights={"a": 1.0, "b": 2.5})
    close(merged, expected_fisher(folder / kind, given, "classes", (1.0, 2.5)))


def test_fisher_by_labels(folder):
    given = tasks("vit", 6, labels=True)
    merged = merges.fisher(fit_data.experts(folder / "vit"), given, predictions="labels")
    close(merged, expected_fisher(folder / "vit", given, "labels"))


@pytest.mark.parametrize("drawn", [False, True])
def test_fisher_of_a_language_model(drawn, folder, monkeypatch):
    """A text is one example; with draws that happen to be the text's own tokens, sampling is the same as labels."""
    given = tasks("gpt2", 4)
    ids = [given[task].fit.batch([i])["input_ids"][0, 1:, None] for task in "ab" for i in range(4)]
    if drawn:
        monkeypatch.setattr(torch, "multinomial", lambda p, n, generator: ids.pop(0))
    merged = merges.fisher(fit_data.experts(folder / "gpt2"), given, predictions="auto" if drawn else "labels")
    close(merged, expected_fisher(folder / "gpt2", given, "text"))


def test_padding_of_texts_does_not_count(folder):
    """The same texts, padded and not."""
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 40, (n,), generator=draw).tolist() for n in (3, 9, 5, 7)]
    padded = TextInputs({"input_ids": [*texts]}, 0, width=9)
    plain = TextInputs({"input_ids": [*texts]}, 0)
    experts = fit_data.experts(folder / "gpt2")
    for merge, options in ((merges.fisher, {"predictions": "labels"}), (merges.regmean, {})):
        results = []
        for inputs, batch in ((padded, 4), (plain, 1)):
            given = {t: Task(t, "language-modelling", inputs, None, "perplexity") for t in "ab"}
            extra = {"batch_size": batch} if merge is merges.regmean else {}
            results.append(merge(experts, given, **options, **extra))
        close(results[0], {name: results[1][name].double() for name in experts.merged}, 1e-4)


def test_what_the_exact_expectation_leaves_out_is_little(tmp_path):
    """Of experts that are sure of most inputs, as fine-tuned ones are."""
    place, said = fit_data.save("vit", tmp_path / "vit"), []
    for task in "ab":
        net = LOADERS["vit"].from_pretrained(place / task)
        net.classifier.weight.data *= 30
        tiny.save(net, place / task)
    given, experts = tasks("vit", 20), fit_data.experts(place)
    merged = merges.fisher(experts, given, say=said.append)
    expected = expected_fisher(place, given, "classes")
    apart = sum(float((merged[n].double() - expected[n]).square().sum()) for n in expected) ** 0.5
    moved = sum(float((expected[n] - experts.base[n].double()).square().sum()) for n in expected) ** 0.5
    assert 0 < apart < 0.02 * moved
    passes = [int(line.split(" backward")[0].split()[-1]) for line in said]
    assert sum(passes) < 20 * (2 + 1)  # of 4 and 2 directions an input


def test_fisher_of_equal_information_is_the_average(folder):
    experts = fit_data.experts(folder / "vit")
    merged, average = merges.fisher(experts, tasks("vit", 3), floor=1e9), merges.average(experts)
    close(merged, {name: average[name].double() for name in experts.merged}, 1e-6)


def test_fisher_normalized_does_not_depend_on_how_sure_an_expert_is(folder, exact, monkeypatch):
    """With F_b a multiple of what it was, the merge stays the same."""
    experts, given = fit_data.experts(folder / "vit"), tasks("vit", 4)
    before = merges.fisher(experts, given, normalize=True)
    plain = merges.fisher(experts, given)
    measured = fisher_module._fisher_information

    def louder(turn, predictions, seed, into, say):
        measured(turn, predictions, seed, into, say)
        if turn.k:
            for f in into.values():
                f *= 64

    monkeypatch.setattr(fisher_module, "_fisher_information", louder)
    close(merges.fisher(experts, given, normalize=True), {name: before[name].double() for name in experts.merged}, 1e-6)
    assert any(float((merges.fisher(experts, given)[n] - plain[n]).abs().max()) > 1e-3 for n in experts.merged)


def gathered(place: Path, experts: Experts, k: int, inputs: Inputs) -> dict[str, Tensor]:
    """What each linear layer reads, all rows of all inputs one by one: base's name of its weight -> (rows, d)."""
    model = expert(place / "ab"[k])
    names = {place: name for name, place in own(experts, k, model).items()}
    rows: dict[str, list[Tensor]] = {}
    for path, module in model.named_modules():
        name = names.get(f"{path}.weight")
        if isinstance(module, nn.Linear | hf.pytorch_utils.Conv1D) and name:
            module.register_forward_hook(
                lambda m, x, y, n=name: rows.setdefault(n, []).append(x[0].detach().reshape(-1, x[0].shape[-1]))
            )
    for i in range(len(inputs)):
        model(**one(inputs, i))
    return {name: torch.cat(parts) for name, parts in rows.items()}


@pytest.mark.parametrize("off_diagonal", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_regmean_is_least_squares_on_stacked_inputs(kind, off_diagonal, folder):
    """Off-diagonal entries scaled by α are extra rows √(1−α) · diag of each expert's inputs."""
    place, given = folder / kind, tasks(kind, 30)
    experts = fit_data.experts(place)
    merged = merges.regmean(experts, given, off_diagonal=off_diagonal, weights=[1.0, 2.0], batch_size=7)
    inputs, outputs = {}, {}
    for k, task in enumerate("ab"):
        model = expert(place / task)
        state, names = model.state_dict(), own(experts, k, model)
        for name, x in gathered(place, experts, k, given[task].fit).items():
            w = state[names[name]]
            x = x * (1 + k) ** 0.5 / len(x) ** 0.5
            x = torch.cat([off_diagonal**0.5 * x, (1 - off_diagonal) ** 0.5 * x.square().sum(0).sqrt().diag()])
            inputs.setdefault(name, []).append(x)
            outputs.setdefault(name, []).append(x @ (w if kind == "gpt2" else w.T))
    if kind == "gpt2":  # lm_head is the embedding, under one name
        tied = [name for name in inputs if "wte" in name or "lm_head" in name]
        assert all(inputs.pop(name) for name in tied)
        assert len(inputs) == 8
    average = merges.average(experts, weights=[1.0, 2.0])
    for name in experts.merged:
        if name in inputs:
            solution = torch.linalg.lstsq(torch.cat(inputs[name]), torch.cat(outputs[name]), driver="gelsd").solution
            x, y = torch.cat(inputs[name]), torch.cat(outputs[name])
            if off_diagonal < 1:
                close(merged, {name: solution if kind == "gpt2" else solution.T}, 1e-4)
            else:  # hardly determined in places: as good a solution
                found = merged[name].double() if kind == "gpt2" else merged[name].double().T
                least = (x @ solution - y).norm()
                assert float((x @ found - y).norm()) < 1.001 * float(least) + 3e-4 * float(y.norm())
            assert float((merged[name] - average[name]).abs().max()) > 1e-3
        else:
            assert torch.equal(merged[name], average[name])
    assert len(inputs) >= 8


def test_layers_that_read_the_same_share_a_gram_matrix(folder):
    said = []
    for kind, (grams, layers) in {"vit": (8, 12), "bert": (9, 13), "gpt2": (8, 8), "llama": (9, 15)}.items():
        merges.regmean(fit_data.experts(folder / kind), tasks(kind, 2), say=said.append)
        assert (
            f"{grams} Gram matrices for {layers} layers" in said[-1] or f"{grams} Gram matrices for {layers} layers" in said[-2]
        )


@pytest.mark.parametrize("merge", [merges.fisher, merges.regmean])
@pytest.mark.parametrize("kind", ["vit", "gpt2", "clip"])
def test_identical_experts_give_the_expert(merge, kind, folder):
    experts = load_experts(folder / kind / "base", dict.fromkeys("ab", folder / kind / "a"))
    given = {t: fit_data.tasks(kind, 6)[t] for t in "ab"}
    merged, same = merge(experts, given), merges.average(experts)
    close(merged, {name: same[name].double() for name in experts.infos}, 1e-4)


@pytest.mark.parametrize("merge", [merges.fisher, merges.regmean])
def test_one_task_gives_its_expert(merge, folder):
    """Even where there are fewer inputs than dimensions, and with a weight of zero for all others."""
    experts = fit_data.experts(folder / "bert")
    alone, given = fit_data.experts(folder / "bert", "a"), tasks("bert", 2)
    expected = {name: merges.average(alone)[name].double() for name in alone.merged}
    close(merge(alone, given), expected, 1e-5)
    close(merge(experts, given, weights={"a": 3.0, "b": 0.0}), expected, 1e-5)


def test_a_singular_layer_is_drawn_to_the_average_and_said(folder):
    """Two inputs cannot tell 24 dimensions apart; where nothing is known, the entry is the mean."""
    experts, said = fit_data.experts(folder / "bert"), []
    merged = merges.regmean(experts, tasks("bert", 1), off_diagonal=1.0, say=said.append)
    assert "too few different inputs" in said[-1]
    average = merges.average(experts)
    for name in experts.merged:
        assert torch.isfinite(merged[name]).all()
        span = float((experts.task_vectors(name)[0] - experts.task_vectors(name)[1]).abs().max())
        assert float((merged[name] - average[name]).abs().max()) < 50 * span + 1e-6  # how far depends on the processor


@pytest.mark.parametrize("merge", [merges.fisher, merges.regmean])
def test_sums_in_files_are_the_same_and_leave_none(merge, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(in_turn.tempfile, "tempdir", str(tmp_path))
    experts, given = fit_data.experts(folder / "vit"), tasks("vit", 5)
    in_memory, in_files = merge(experts, given), merge(experts, given, memory=0.0)
    assert all(torch.equal(in_memory[name], in_files[name]) for name in experts.infos)
    assert not list(tmp_path.iterdir())


def live_bytes() -> int:
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("merge", [merges.fisher, merges.regmean])
def test_memory_does_not_grow_with_the_number_of_experts(merge, folder, monkeypatch):
    peaks = {}
    for n in (2, 5):
        names = "abcde"[:n]
        experts = load_experts(folder / "llama" / "base", {t: folder / "llama" / "ab"[i % 2] for i, t in enumerate(names)})
        given = {t: Task(t, "language-modelling", fit_data.inputs("llama", 2, 0), None, "perplexity") for t in names}
        gc.collect()
        before, seen = live_bytes(), []
        merge(experts, given, say=lambda line, seen=seen, before=before: seen.append(live_bytes() - before))
        peaks[n] = max(seen)
    model = sum(info.nbytes for info in experts.infos.values())
    assert peaks[5] < peaks[2] + 0.1 * model and peaks[2] > model


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_the_same_seed_gives_the_same_model(method, folder):
    experts, given = fit_data.experts(folder / "gpt2"), fit_data.tasks("gpt2", 12)
    first, again, other = (api.merge(experts, method, data=given, inputs=5, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in experts.infos)
    assert any(not torch.equal(first[name], other[name]) for name in experts.infos)


def test_a_zero_shot_head_gives_its_text_tower_grams_too(folder):
    experts = fit_data.experts(folder / "clip")
    merged, average = merges.regmean(experts, tasks("clip", 8)), merges.average(experts)
    changed = {name for name in experts.merged if not torch.equal(merged[name], average[name])}
    assert any("text_model" in name for name in changed) and any("vision_model" in name for name in changed)
    assert not any("embed" in name and "patch" not in name for name in changed)


def test_mistakes(folder):
    experts, given = fit_data.experts(folder / "vit"), tasks("vit", 4)
    refused = {
        r"fisher looks at inputs of each task, and there are none: name them with --data": {"method": "fisher"},
        r"task b has no inputs for the merge: name them with --data b=PATH": {"method": "regmean", "data": {"a": given["a"]}},
        r"data: the merge ties looks at none; fisher and regmean do": {"method": "ties", "data": given},
        r"predictions=labels, but its inputs have none": {"method": "fisher", "data": given, "predictions": "labels"},
        r"floor must be positive": {"method": "fisher", "data": given, "floor": 0.0},
        r"weights must not be negative": {"method": "regmean", "data": given, "weights": 0.0},
        r"off_diagonal must be in": {"method": "regmean", "data": given, "off_diagonal": 1.5},
        r"inputs must be at least 1": {"method": "regmean", "data": given, "inputs": 0},
        r"memory must not be negative": {"method": "fisher", "data": given, "memory": -1.0},
        r"device 'cuda'": {"method": "fisher", "data": given, "device": "cuda"},
    }
    for message, options in refused.items():
        with pytest.raises(UserError, match=message):
            api.merge(experts, **options)
    with pytest.raises(UserError, match="a language model has a vocabulary of classes"):
        api.merge(fit_data.experts(folder / "gpt2"), "fisher", data=tasks("gpt2", 2), predictions="exact")


@pytest.mark.parametrize("merge", [merges.fisher, merges.regmean])
def test_an_expert_with_nan_is_named(merge, tmp_path):
    place = fit_data.save("vit", tmp_path)
    net = LOADERS["vit"].from_pretrained(place / "b")
    with torch.no_grad():
        net.vit.embeddings.position_embeddings[0, 0, 3] = float("nan")
    tiny.save(net, place / "b")
    with pytest.raises(UserError, match=r"b/model.safetensors: .*position_embeddings: 1 of \d+ entries are NaN"):
        merge(fit_data.experts(place), tasks("vit", 3))
