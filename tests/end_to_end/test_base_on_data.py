"""Merges that look at data, and sets on a base merge, from the command line: ``merge --data``, ``fit --on … --data``."""

import json

import pytest
import torch

import fit_data
from commands import apart, contents
from fit_files import Family
from paretomerge import api, load_front
from paretomerge.weights import open_checkpoint

SHORT = ("--option", "steps=4", "--option", "rank=3", "--option", "batch_size=6")


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Family]:
    place = tmp_path_factory.mktemp("families")
    return {kind: Family(kind, place / kind) for kind in ("vit", "bert", "gpt2")}


@pytest.mark.parametrize("method", ["fisher", "regmean"])
@pytest.mark.parametrize("kind", ["vit", "bert", "gpt2"])
def test_merge_on_data(method, kind, cli, families):
    family = families[kind]
    head = () if kind == "gpt2" else ("--head", "none")
    err = cli.errors("merge", *family.flags(), "-m", method, "--option", "inputs=6", *head, "-o", "merged")
    assert "on 6 inputs" in err or "of 6 inputs" in err
    merged, experts = open_checkpoint(cli.here / "merged"), fit_data.experts(family.folder)
    again = api.merge(experts, method, data=family.data, inputs=6)
    average = api.merge(experts, "average")
    assert all(torch.equal(merged[name], again[name]) for name in again)
    assert max(apart(merged[name], average[name]) for name in experts.merged) > 1e-3
    facts = json.loads((cli.here / "merged" / "paretomerge.json").read_text())
    assert facts["method"] == method and facts["settings"] == {"inputs": 6}


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_closed_form_on_a_merge_that_looks_at_data(method, cli, families):
    family = families["vit"]
    words = ("--on", method, "--on-option", "inputs=6", "--closed-form", "--option", "rank=2")
    cli("fit", *family.flags(), *words, "-o", "front")
    front, experts = load_front(cli.here / "front"), fit_data.experts(family.folder)
    base = api.merge(experts, method, data=family.data, inputs=6)
    assert all(torch.equal(front.pareto_set.base[name], base[name]) for name in experts.infos)
    assert front.pareto_set.settings["on"] == {"method": method, "options": {"inputs": 6}}
    assert "fitted" not in front.pareto_set.settings and "captured" in front.pareto_set.settings
    cli("fit", *family.flags(), "-m", "soup", *words[:5], "-o", "soup")
    soup = load_front(cli.here / "soup").pareto_set
    assert all(torch.equal(soup.base[name], base[name]) for name in experts.infos)


@pytest.mark.parametrize(
    "on, options", [("fisher", {"inputs": 6}), ("regmean", {"inputs": 6}), ("ties", {"density": 0.5}), ("tsv", {})]
)
def test_fit_on_a_base_merge(on, options, cli, families):
    """A, B and G are learned, the base merge stays: what is not a target is the merge itself."""
    family = families["vit"]
    words = [word for name, value in options.items() for word in ("--on-option", f"{name}={value}")]
    cli("fit", *family.flags(), "--on", on, *words, "--option", "targets=attention", *SHORT, "-o", "front")
    front, experts = load_front(cli.here / "front"), fit_data.experts(family.folder)
    base = api.merge(experts, on, data=family.data if on in ("fisher", "regmean") else None, **options)
    targets = set(front.pareto_set.varying)
    assert len(targets) == 6
    for name in experts.infos:
        same = torch.equal(front.pareto_set.base[name], base[name])
        assert same or (name in targets and apart(front.pareto_set.base[name], base[name]) < 0.5), name
    settings = front.pareto_set.settings
    assert settings["on"] == {"method": on, "options": options} and settings["fitted"] == "pareto-merging"
    assert not {"lambda", "coefficients", "ties"} & set(settings)
    only = front.at("only:a")
    assert all(apart(only[name], front.pareto_set.base[name]) > 1e-4 for name in targets)


def test_a_recipe(cli, families):
    family = families["vit"]
    (cli.here / "recipe.yaml").write_text(
        f"base: {family.folder / 'base'}\n"
        f"experts: {{a: {family.folder / 'a'}, b: {family.folder / 'b'}}}\n"
        f"data: {{a: {family.data['a']}, b: {family.data['b']}}}\n"
        "on: {method: regmean, options: {inputs: 5}}\noptions: {rank: 2}\nclosed_form: true\noutput: front\n"
    )
    cli("fit", "recipe.yaml")
    assert load_front(cli.here / "front").pareto_set.settings["on"]["method"] == "regmean"
    merge = (cli.here / "recipe.yaml").read_text().split("on:")[0] + "method: fisher\noptions: {inputs: 4}\noutput: merged\n"
    (cli.here / "merge.yaml").write_text(merge)
    cli("merge", "merge.yaml", "--head", "a")
    assert (cli.here / "merged" / "model.safetensors").exists()


def test_resuming_on_another_base_is_refused(cli, families):
    family = families["vit"]
    words = ["fit", *family.flags(), *SHORT, "-o", "front", "-q"]
    cli(*words, "--on", "ties")
    first = contents(cli.here / "front")
    assert "front.run" in cli.refuses(*words, "--on", "tsv", "--resume", "--overwrite")
    cli(*words, "--on", "ties", "--resume", "--overwrite")
    assert contents(cli.here / "front") == first


@pytest.mark.parametrize(
    "words, message",
    [
        (("merge", "-m", "ties", "{data}"), "data: the merge ties looks at none; fisher and regmean do"),
        (("merge", "-m", "fisher"), "fisher looks at inputs of each task, and there are none"),
        (("merge", "-m", "regmean", "--data", "a={a}"), "task b has no inputs for the merge"),
        (("merge", "-m", "fisher", "--data", "a=nowhere.npz", "--data", "b={b}"), "nowhere.npz"),
        (("merge", "-m", "fisher", "--data", "a={broken}", "--data", "b={b}"), "broken.npz"),
        (("fit", "--closed-form", "{data}"), "closed_form: the data are for a base merge that looks at them"),
        (("fit", "--closed-form", "--on", "ties", "{data}"), "data: the merge ties looks at none"),
        (("fit", "--on", "fisher"), "fisher looks at inputs of each task, and there are none"),
        (("fit", "-m", "soup", "{data}"), "soup is made in closed form"),
        (("fit", "-m", "adamerging", "--on", "ties", "{data}"), "on: adamerging learns its own coefficients"),
        (("fit", "--on", "ties", "--option", "coefficients=task", "{data}"), "coefficients: a base merge (on) has none"),
        (("fit", "--on", "ties", "--option", "rank=0", "{data}"), "rank 0 on a base merge"),
        (("fit", "--closed-form", "--on", "fisher", "--resume", "{data}"), "--run, --resume and --tensorboard belong to a fit"),
    ],
)  # fmt: skip
def test_mistakes(words, message, cli, families):
    family = families["vit"]
    (cli.here / "broken.npz").write_bytes(b"PK not an archive")
    places = {**family.data, "broken": str(cli.here / "broken.npz")}
    data = [word for task in "ab" for word in ("--data", f"{task}={family.data[task]}")]
    command, *rest = words
    said = [part for word in rest for part in (data if word == "{data}" else [word.format(**places)])]
    head = ("--head", "a") if command == "merge" else ()
    assert message in cli.refuses(command, *family.flags(data=""), *said, *head, "-o", "out", "-q")
