"""The recipes of examples/papers, on tiny stand-ins of the hub's models and data sets; the commands of its README."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, CLIPModel

import hub_mirror
from commands import CommandLine, command_line
from hub_mirror import PAPERS
from paretomerge import api
from paretomerge.data import read_prompts
from paretomerge.evaluation import measure
from paretomerge.experts import load_experts
from paretomerge.front import load_front
from paretomerge.recipes import combined
from paretomerge.report import figures_of, slug
from paretomerge.report.published import _all
from paretomerge.weights import VARIABLE, mirrored

datasets = pytest.importorskip("datasets")

RECIPES = sorted(path.relative_to(PAPERS).as_posix() for path in PAPERS.rglob("*.yaml") if path.parent.name != "prompts")
FITS = [name for name in RECIPES if "/" in name]
RUNNING = "resnet.embedder.embedder.normalization.running_mean"
RESNET = "map/figure-9-resnet18.yaml"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = (PAPERS / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))
SMALL = {"population": 20, "generations": 5, "measure": 2}
QUICK = {
    "map": {"evaluations": 10, **SMALL}, "map-nested": {"evaluations": 8, "population": 20, "generations": 5},
    "direct-search": {"evaluations": 8},
}  # fmt: skip
"""Method -> options that take no time."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Path:
    """The hub's stand-in, and experts on ResNet beside it: pretrained models with other heads."""
    return hub_mirror.make(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def papers(hub, tmp_path, tmp_path_factory, monkeypatch) -> Path:
    """A copy of the recipes' folder, in which the commands run."""
    monkeypatch.setenv(VARIABLE, str(hub))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    shutil.copytree(PAPERS, tmp_path / "papers")
    monkeypatch.chdir(tmp_path / "papers")
    return tmp_path / "papers"


@pytest.fixture
def cli(papers, monkeypatch, capsys) -> CommandLine:
    return command_line(papers, monkeypatch, capsys)


def finetuned(task: str, **options: object) -> None:
    """An expert on ResNet, by the example's own script."""
    runpy.run_path("finetune.py")["main"](Path("resnet18.yaml"), task, **{"epochs": 1, "batch_size": 6, **options})


def quick(recipe: str) -> list[str]:
    """Words that make a fit small."""
    plan = combined(recipe)
    options = dict(QUICK.get(plan.method or "", {}))
    if plan.method == "map" and len(plan.experts) > 2:
        options["evaluations"] = (len(plan.experts) + 1) * (len(plan.experts) + 2) // 2 + 1
    if plan.data and not plan.closed_form and plan.method not in QUICK:
        options["steps"] = 2
    if "head_steps" in plan.options:
        options["head_steps"] = 2
    return [word for name, value in options.items() for word in ("--option", f"{name}={value}")]


@pytest.mark.parametrize("name", [name for name in RECIPES if combined(PAPERS / name).experts])
def test_a_recipe_passes_the_check(name, cli):
    if "resnet18" in name:
        for task in ("cifar10", "flowers102"):
            finetuned(task)
    facts = json.loads(cli("check", name, "--json"))
    assert facts["ok"] and facts["tasks"] == list(combined(name).experts)
    assert [f for f in facts["findings"] if f["level"] != "note"] == []
    if "clip" in str(combined(name).base):  # the vision tower, less the projection, is all that is merged
        assert facts["merged_tensors"] == 39 and facts.get("heads") == {}


@pytest.mark.parametrize("name", FITS)
def test_a_recipe_names_a_method_and_a_published_one(name):
    plan = combined(PAPERS / name)
    assert plan.method and plan.output
    if name != RESNET:
        table = "-".join(Path(name).stem.split("-")[:2])
        assert plan.paper.startswith(f"{Path(name).parent}/{table}") or "figure" in name
        assert plan.paper.split("/")[2] in {slug(figure.method) for figure in figures_of(plan.paper)}


def test_the_classes_of_prompts_are_the_data_sets(papers):
    """Labels are the data's numbers, and what the prompts call them."""
    experts = load_experts(combined("clip-vit-b32.yaml").base, combined("clip-vit-b32.yaml").experts)
    data = combined("eight-tasks.yaml").data
    for name, task in api.load_tasks(experts, data, keep_labels=True).items():
        stored = datasets.load_dataset(str(mirrored(data[name].path, "datasets")), data[name].subset, split="test")
        assert task.held_out.labels.tolist() == stored["label"] == task.fit.labels.tolist()
        assert task.prompts.n_classes == len(read_prompts(data[name].prompts).classes) == stored.features["label"].num_classes
        assert task.split == "transductive" and task.held_out.batch([0])["pixel_values"].shape == (1, 3, 32, 32)


def test_clip_from_the_hub_to_a_report(cli):
    """Two of eight tasks, the paper's settings; the experts have a vision tower only, the front is a whole CLIP."""
    recipe = "pareto-merging/figure-4-adamerging-pm.yaml"
    cli("fit", recipe, *quick(recipe))
    front = load_front("resisc45-gtsrb-adamerging-pm")
    assert front.tasks == ("resisc45", "gtsrb") and all(name.startswith("vision_model.") for name in front.pareto_set.varying)
    rows = json.loads(cli("evaluate", "resisc45-gtsrb-adamerging-pm", recipe, "--experts", "--json"))
    assert {row["split"] for row in rows} == {"transductive"} and {row["task"] for row in rows} == set(front.tasks)
    cli("evaluate", "resisc45-gtsrb-adamerging-pm", "eight-tasks-train.yaml", "-p", "equal")  # of eight tasks, the front's
    cli("pick", "resisc45-gtsrb-adamerging-pm", "-p", "gtsrb=0.7,resisc45=0.3", "-o", "picked")
    picked = CLIPModel.from_pretrained("picked").state_dict()
    base = CLIPModel.from_pretrained(Path(front.sources["base"]["path"])).state_dict()
    moved = {name for name, tensor in picked.items() if not torch.equal(tensor, base[name])}
    assert moved and all(name.startswith("vision_model.") for name in moved)
    found = json.loads(
        cli("select", "resisc45-gtsrb-adamerging-pm", "eight-tasks.yaml", "--unseen", "dtd", "--sample", "3", "--json")
    )
    assert found["preference"] in found["entropies"] and 0 <= found["accuracy"] <= 1
    cli("report", "resisc45-gtsrb-adamerging-pm", "--paper", "pareto-merging/table-2/adamerging-pm", "-o", "r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    assert "AdaMerging + PM (priority)" in page and "this front, one-hot" in page and "89.0" in page


def test_gpt2_on_glue(cli):
    """Seven heads of two sizes, pairs of texts, splits of their own; labels are learned from."""
    recipe = "pwe-moe/table-4-mlp.yaml"
    cli("fit", recipe, *quick(recipe))
    front = load_front("pwe-gpt2-mlp")
    assert list(front.heads) == ["mrpc", "mnli", "cola", "sst-2", "qnli", "qqp", "rte"]
    rows = json.loads(cli("evaluate", "pwe-gpt2-mlp", "gpt2-glue.yaml", "-p", "equal", "-p", "only:rte", "--json"))
    assert len(rows) == 14 and {row["split"] for row in rows} == {"held-out"}
    cli("pick", "pwe-gpt2-mlp", "-p", "priority:mnli", "--head", "mnli", "-o", "picked")
    assert AutoModelForSequenceClassification.from_pretrained("picked").config.num_labels == 3
    cli("report", "pwe-gpt2-mlp", "-o", "r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    assert "PWE-MoE (Tang et al. 2024), table 4, GPT-2" in page and "Ours-LS (MLP)" in page and "74.7" in page


def test_resnets_get_heads_and_statistics(cli):
    """Each merged model's heads are tuned on half of the training images, and so is that of the model that is picked."""
    for task in ("cifar10", "flowers102"):
        finetuned(task)
    cli("fit", RESNET, *quick(RESNET))
    tune = ["--option", "head_steps=3", "--option", "norm_statistics=true"]
    rows = json.loads(cli("evaluate", "map-resnet18", "resnet18.yaml", "-p", "equal", "--experts", *tune, "--json"))
    assert [row["task"] for row in rows if row["method"] not in ("expert", "pretrained")] == ["cifar10", "flowers102"]
    expert = next(
        row for row in rows if (row["method"], row["preference"], row["task"]) == ("expert", "only:cifar10", "cifar10")
    )
    task = api.load_tasks(load_front("map-resnet18"), combined("resnet18.yaml").data)["cifar10"]
    model = AutoModelForImageClassification.from_pretrained("experts/cifar10").eval()
    assert expert["value"] == measure(model, task)  # with the running statistics that it was trained to
    assert not torch.equal(model.state_dict()[RUNNING], load_front("map-resnet18").pareto_set.base[RUNNING])
    cli("pick", "map-resnet18", "-p", "equal", "--head", "cifar10", "-o", "plain")
    cli("pick", "map-resnet18", "resnet18.yaml", "-p", "equal", "--head", "cifar10", *tune, "-o", "tuned")
    plain, tuned = (AutoModelForImageClassification.from_pretrained(folder).state_dict() for folder in ("plain", "tuned"))
    changed = {name for name, tensor in tuned.items() if not torch.equal(tensor, plain[name])}
    assert {name.rpartition(".")[2] for name in changed} - {"num_batches_tracked"} == {
        "running_mean",
        "running_var",
        "weight",
        "bias",
    }
    assert {name for name in changed if "running" not in name and "num_batches" not in name} == {
        "classifier.1.weight",
        "classifier.1.bias",
    }
    assert "classifier.1.weight" in json.loads(Path("tuned/paretomerge.json").read_text())["tuned"]
    words = ["pick", "map-resnet18", "-p", "equal", "-o", "x"]
    assert cli.refuses(*words, *tune).startswith("tasks have heads of their own (")
    assert cli.refuses(*words, "--head", "cifar10", *tune).startswith("task cifar10 has no inputs to tune on")
    assert cli.refuses(*words, "resnet18.yaml", "--head", "cifar10").startswith("pick: data are for tuning: say how")
    assert "head_step" in cli.refuses(*words, "--head", "cifar10", "--option", "head_step=1")


def test_languages(cli):
    """Perplexity of passages, a search and what it is compared with; the tokenizer's first token begins every block."""
    for recipe in ("map/table-7-arabic-french.yaml", "map/table-7-arabic-french-direct-search.yaml"):
        cli("fit", recipe, *quick(recipe))
    front = load_front("llama3-arabic-french")
    assert {row["metric"] for row in front.measured} == {"perplexity"} and front.tasks == ("arabic", "french")
    cli("pick", "llama3-arabic-french", "-p", "arabic=0.7,french=0.3", "-o", "picked")
    cli("report", "llama3-arabic-french", "-o", "r.html")
    assert "Llama-3-8B, Arabic+French" in Path("r.html").read_text(encoding="utf-8")


def test_figures_in_the_readme_are_the_papers():
    found = re.findall(r"^\| .* \|$", SECTIONS["Pareto Merging"] + SECTIONS["PWE-MoE"], re.MULTILINE)
    numbers = {number for line in found for number in re.findall(r"\d\d\.\d", line)}
    means = {figure.value for figure in _all() if slug(figure.column) in ("average", "avg")}
    assert len(numbers) > 30 and numbers <= means


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FITS if name != RESNET])
def test_every_recipe_is_fitted_measured_and_picked_from(name, cli):
    cli("fit", name, *quick(name), "--output", "front")
    plan = combined(name)
    tasks = list(plan.experts)
    data = name if plan.data else "gpt2-glue.yaml" if "mrpc" in tasks else "eight-tasks-train.yaml"
    rows = json.loads(cli("evaluate", "front", data, "-p", "equal", "-p", f"only:{tasks[0]}", "--json"))
    assert {row["task"] for row in rows} == set(tasks)
    head = ["--head", tasks[0]] if tasks[0] in load_front("front").heads else []
    cli("pick", "front", "-p", f"only:{tasks[0]}", "-o", "picked", *head)
    cli("report", "front", "-o", "r.html")
    assert "Beside the paper" in Path("r.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("section", [name for name, text in SECTIONS.items() if "```" in text])
def test_the_readme_runs(section, cli):
    names: dict[str, object] = {}
    for language, block in BLOCK.findall(SECTIONS[section]):
        if language == "python":
            exec(compile(block, section, "exec"), names)
            continue
        for line in block.splitlines():
            program, *words = line.split()
            if program == "python":
                finetuned(words[2])
                continue
            assert program == "paretomerge"
            cli(*words, *(quick(words[1]) if words[0] == "fit" else []))


def test_every_block_is_in_a_section():
    assert README.count("```") == 2 * sum(len(BLOCK.findall(text)) for text in SECTIONS.values())
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (PAPERS / target).exists(), target
