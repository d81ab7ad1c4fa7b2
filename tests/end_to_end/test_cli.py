"""The command line from models on disk to models on disk."""

import io
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file

import tiny
from commands import HEADS, apart, contents, program
from paretomerge import fit, load_experts, load_front, merge
from paretomerge.front import record
from paretomerge.merges import MERGES
from paretomerge.recipes import combined
from paretomerge.weights import INDEX, open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "mergekit"
OPTIONS = {
    "ties": ("density=0.3",),
    "dare_ties": ("density=0.5", "seed=3"),
    "average": ("weights={a: 1, b: 3}",),
    "slerp": ("t=0.3",),
}
FITTED = {
    "attention": ((), {}),
    "rank": (("--option", "rank=3"), {"rank": 3}),
    "all": (("--option", "targets=all"), {"targets": "all"}),
    "globs": (("--option", "targets=[\"*.mlp.*\", \"*q_proj*\"]"), {"targets": ["*.mlp.*", "*q_proj*"]}),
    "one glob": (("--option", "targets=*.mlp.*"), {"targets": "*.mlp.*"}),
    "fused": (("--option", "fuse_qkv=true", "--option", "rank=2"), {"fuse_qkv": True, "rank": 2}),
    "on a merge": (("--on", "ties", "--on-option", "density=0.3"), {"on": "ties", "on_options": {"density": 0.3}}),
    "smooth": (
        ("--option", "scalarization=smooth-tchebycheff", "--option", "mu=0.05", "--option", "alpha=0.3", "--option", "rank=2"),
        {"scalarization": "smooth-tchebycheff", "mu": 0.05, "alpha": 0.3, "rank": 2},
    ),
    "soup": (("--method", "soup", "--option", "scale=0.4"), {"method": "soup", "scale": 0.4}),
}  # fmt: skip
PREFERENCES = {
    "equal": (0.5, 0.5),
    "a=0.7,b=0.3": (0.7, 0.3),
    "b=1,a=3": (0.75, 0.25),
    "priority:a": (2 / 3, 1 / 3),
    "only:b": (0.0, 1.0),
}


def same(one, other) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# -- the program itself


def test_the_program_does_the_job(zoo, tmp_path):
    """As a user starts it: a recipe, a front, a model; and a mistake."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {zoo('llama')}/base\nexperts: {{a: {zoo('llama')}/a, b: {zoo('llama')}/b}}\noptions: {{rank: 4}}\n"
    )
    fitted = program("fit", recipe, "-o", tmp_path / "front")
    assert (fitted.returncode, fitted.stderr) == (0, "")
    assert fitted.stdout.startswith(f"{tmp_path / 'front'}: 21 tensors, ")
    picked = program("pick", tmp_path / "front", "-p", "a=0.7,b=0.3", "--json", "-o", tmp_path / "model")
    assert (picked.returncode, picked.stderr) == (0, "")
    assert json.loads(picked.stdout)["preference"] == {"a": 0.7, "b": 0.3}
    expected = load_front(tmp_path / "front").at((0.7, 0.3))
    assert same(open_checkpoint(tmp_path / "model"), expected)
    refused = program("pick", tmp_path / "front", "-p", "a=0.7", "-o", tmp_path / "other")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: preference: no weight for b; name every task, if only as b=0\n"
    assert not (tmp_path / "other").exists()


def test_help(cli):
    assert "Merge fine-tuned models" in cli("--help")
    for command in ("check", "merge", "fit", "pick", "info", "methods", "demo"):
        assert f"paretomerge {command}" in cli(command, "--help") or command in cli(command, "--help")
    code, out, err = cli.call([])
    assert code in (0, 2) and err == "" and "Usage" in out  # click before 8.2: 0


# -- check


def test_check_says_what_would_be_merged(cli, zoo):
    out = cli("check", *zoo.flags("llama"))
    assert out.splitlines()[0] == "ok: 2 experts; 21 tensors (0.0 M parameters) are merged, 0 copied from the base"
    facts = json.loads(cli("check", *zoo.flags("vit"), "--json"))
    assert facts["ok"] and facts["tasks"] == ["a", "b"] and facts["heads"] == {"a": 2, "b": 2}
    assert {finding["level"] for finding in facts["findings"]} == {"note"}
    assert facts["merged_tensors"] + facts["copied_tensors"] == len(open_checkpoint(zoo("vit") / "base"))


def test_check_names_everything_that_does_not_fit(cli, zoo, tmp_path):
    """All of it, with file and tensor, and exit code 2."""
    broken = tiny.save(tiny.model("llama", 1, vocab_size=44, intermediate_size=20), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    code, out, err = cli.call(["check", *zoo.flags("llama", "a"), "--expert", f"b={broken}"])
    assert (code, err) == (2, "")
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    file = broken / "model.safetensors"
    assert any(f"{file}: model.layers.0.mlp.up_proj.weight: shape [20, 16], the base has [24, 16]" in line for line in errors)
    assert any(f"{file}: model.embed_tokens.weight: 44 tokens, the base has 40" in line for line in errors)
    assert any("model.norm.weight: not in this expert" in line for line in errors)
    assert out.splitlines()[-1].startswith(f"{len(errors)} errors: ")
    code, out, err = cli.call(["check", *zoo.flags("llama", "a"), "--expert", f"b={broken}", "--json"])
    assert code == 2 and not json.loads(out)["ok"] and err == ""
    assert [f["level"] for f in json.loads(out)["findings"]].count("error") == len(errors)


# -- merge


@pytest.mark.parametrize("method", MERGES)
def test_merge_with_flags_and_with_a_recipe(cli, zoo, method):
    options = OPTIONS.get(method, ())
    words = [word for option in options for word in ("--option", option)]
    assert cli("merge", *zoo.flags("llama"), "--method", method, *words, "-o", "flags").startswith("flags: 21 tensors, ")
    family = zoo("llama")
    given = "{" + ", ".join(option.replace("=", ": ", 1) for option in options) + "}"
    (cli.here / "recipe.yaml").write_text(
        f"base: {family}/base\nexperts:\n  a: {family}/a\n  b: {family}/b\nmethod: {method}\noptions: {given}\noutput: recipe\n"
    )
    cli("merge", "recipe.yaml")
    assert contents(cli.here / "flags") == contents(cli.here / "recipe")
    experts = load_experts(family / "base", {"a": family / "a", "b": family / "b"})
    expected = merge(experts, method, **combined(option=list(options)).options)
    assert same(open_checkpoint("flags"), dict(expected))
    provenance = json.loads((cli.here / "flags" / "paretomerge.json").read_text())
    assert provenance["method"] == method and provenance["sources"]["experts"]["a"]["path"] == str(family / "a")


def test_merged_models_load(cli, zoo):
    for kind in tiny.ARCHITECTURES:
        if kind != "vit":
            cli("merge", *zoo.flags(kind), "-o", kind, "--quiet")
            merged = tiny.ARCHITECTURES[kind][0].from_pretrained(cli.here / kind)
            assert torch.isfinite(tiny.logits(kind, merged)).all()


@pytest.mark.parametrize("config, output", [("llama/ties", "ties"), ("llama/slerp", "slerp"), ("gpt2/linear", "linear")])
def test_merge_with_a_mergekit_file(cli, config, output):
    file = GOLDEN / f"{config}.yml"
    cli("merge", file, "-o", "ours")
    theirs = load_file(file.parent / "outputs" / f"{output}.safetensors")
    ours = open_checkpoint("ours")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-6)


def test_what_mergekit_says_and_we_ignore_is_noted(cli, zoo):
    family = zoo("llama")
    models = f"[{{model: {family}/a}}, {{model: {family}/b}}]"
    config = f"merge_method: linear\nparameters: {{int8_mask: true, weight: 1}}\nmodels: {models}"
    (cli.here / "m.yml").write_text(config)
    assert cli.errors("merge", "m.yml", "-o", "noted").startswith("note: m.yml: int8_mask is ignored")
    (cli.here / "n.yml").write_text(config.replace("linear", "arcee_fusion"))
    assert cli.refuses("merge", "n.yml", "-o", "out").startswith(
        "n.yml: merge_method 'arcee_fusion' is not supported: choose linear"
    )


@pytest.mark.parametrize("task", HEADS)
def test_merge_with_a_head(cli, zoo, task):
    cli("merge", *zoo.flags("vit"), "--head", task, "-o", "model")
    model = hf.AutoModelForImageClassification.from_pretrained("model")
    assert tiny.logits("vit", model).shape == (2, HEADS[task])
    own = hf.AutoModelForImageClassification.from_pretrained(zoo("vit") / task)
    assert torch.equal(model.classifier.weight, own.classifier.weight)
    family = zoo("vit")
    expected = merge(load_experts(family / "base", {"a": family / "a", "b": family / "b"}))
    name = next(name for name in expected if name.endswith("query.weight"))
    assert torch.equal(open_checkpoint("model")[f"vit.{name}"], expected[name])


def test_dtype(cli, zoo):
    cli("merge", *zoo.flags("vit"), "--head", "a", "--dtype", "bf16", "-o", "half")
    assert {info.dtype for info in open_checkpoint("half").infos.values()} == {torch.bfloat16}
    config = json.loads((cli.here / "half" / "config.json").read_text())
    assert (config.get("dtype") or config.get("torch_dtype")) == "bfloat16"
    assert hf.AutoModelForImageClassification.from_pretrained("half", dtype="auto").dtype == torch.bfloat16
    cli("merge", *zoo.flags("llama"), "-o", "whole")
    cli("merge", *zoo.flags("llama"), "-o", "rounded", "--dtype", "bfloat16")
    whole = open_checkpoint("whole")
    assert same(open_checkpoint("rounded"), {name: whole[name].bfloat16() for name in whole})


def test_shards(cli, zoo):
    cli("merge", *zoo.flags("llama"), "-o", "one")
    cli("merge", *zoo.flags("llama"), "-o", "many", "--shard-size", "4KB")
    index = json.loads((cli.here / "many" / INDEX).read_text())
    files = {p.name for p in (cli.here / "many").glob("*.safetensors")}
    assert len(files) > 3 and set(index["weight_map"].values()) == files
    assert index["metadata"]["total_size"] == open_checkpoint("one").nbytes
    one, many = (hf.AutoModelForCausalLM.from_pretrained(cli.here / name) for name in ("one", "many"))
    assert same(one.state_dict(), many.state_dict())
    cli("fit", *zoo.flags("llama"), "-o", "front", "--shard-size", "4KB")
    cli("pick", "front", "-p", "only:a", "-o", "picked", "--shard-size", "4KB")
    assert (cli.here / "front" / INDEX).exists() and (cli.here / "picked" / INDEX).exists()


def test_other_ways_to_meet_differences(cli, zoo, tmp_path):
    """--vocab, --missing, --exclude and --task-tensors reach the merge."""
    base = open_checkpoint(zoo("llama") / "base")
    flags = zoo.flags("llama")
    cli("merge", *flags, "--exclude", "*.mlp.*", "-o", "excluded")
    excluded = open_checkpoint("excluded")
    assert all(torch.equal(excluded[name], base[name]) == (".mlp." in name) for name in base)
    wide = tiny.save(tiny.perturb(tiny.model("llama", vocab_size=44), 3), tmp_path / "wide")
    flags = [*zoo.flags("llama", "a"), "--expert", f"b={wide}"]
    assert "44 tokens, the base has 40: add --vocab common" in cli.refuses("merge", *flags, "-o", "out")
    assert "warning: " in cli.errors("merge", *flags, "--vocab", "common", "-o", "common")
    assert open_checkpoint("common").infos == base.infos


# -- fit, info, pick


@pytest.mark.parametrize("case", FITTED)
def test_fit(cli, zoo, case):
    words, options = FITTED[case]
    family = zoo("llama")
    cli("fit", *zoo.flags("llama"), *words, "-o", "front")
    front = load_front("front")
    expected = fit(load_experts(family / "base", {"a": family / "a", "b": family / "b"}), **options)
    for preference in PREFERENCES:
        assert same(front.at(preference), expected.at(preference))
    assert front.pareto_set.settings == expected.pareto_set.settings
    varies = {name for name, tensor in front.at("only:a").items() if not torch.equal(tensor, front.pareto_set.base[name])}
    assert varies == set(front.pareto_set.varying)
    loaded = hf.AutoModelForCausalLM.from_pretrained("front")  # the folder is itself the model at equal preference
    assert all(torch.equal(loaded.state_dict()[name], front.pareto_set.base[name]) for name in front.pareto_set.base)
    facts = json.loads(cli("info", "front", "--json"))
    assert facts["method"] == options.get("method", "pareto-merging") and facts["tasks"] == ["a", "b"]
    assert facts["parameters"]["varying_tensors"] == len(varies)
    assert facts["parameters"]["added"] == sum(t.numel() for t in load_file("front/pareto_set.safetensors").values())


def test_fit_with_a_recipe(cli, zoo):
    family = zoo("gpt2")
    (cli.here / "recipe.yaml").write_text(
        f"base: {family}/base\nexperts: {{a: {family}/a, b: {family}/b}}\nmethod: pareto-merging\n"
        "options: {rank: 3}\non: {method: ties, options: {density: 0.3}}\ndtype: bf16\noutput: recipe\n"
    )
    cli("fit", "recipe.yaml")
    cli(
        "fit",
        *zoo.flags("gpt2"),
        "--option",
        "rank=3",
        "--on",
        "ties",
        "--on-option",
        "density=0.3",
        "--dtype",
        "bf16",
        "-o",
        "flags",
    )
    assert contents(cli.here / "flags") == contents(cli.here / "recipe")
    assert {info.dtype for info in open_checkpoint("flags").infos.values()} == {torch.bfloat16}
    cli("fit", "recipe.yaml", "--option", "rank=2", "--dtype", "fp32", "-o", "overruled")
    assert load_front("overruled").pareto_set.settings["rank"] == 2
    assert {info.dtype for info in open_checkpoint("overruled").infos.values()} == {torch.float32}


def test_info_is_readable(cli, zoo):
    cli("fit", *zoo.flags("llama"), "--option", "rank=3", "-o", "front")
    lines = [" ".join(line.split()) for line in cli("info", "front").splitlines()]
    assert {"method pareto-merging", "tasks a, b", "settings rank 3", "heads none", "measured 0"} <= set(lines)


@pytest.mark.parametrize("preference", PREFERENCES)
def test_pick(cli, zoo, preference):
    cli("fit", *zoo.flags("llama"), "--option", "rank=3", "-o", "front", "--quiet")
    facts = json.loads(cli("pick", "front", "-p", preference, "-o", "model", "--json"))
    assert facts["preference"] == dict(zip("ab", PREFERENCES[preference], strict=True))
    front = load_front("front")
    assert same(open_checkpoint("model"), front.at(PREFERENCES[preference]))
    provenance = json.loads((cli.here / "model" / "paretomerge.json").read_text())
    assert provenance["preference"] == facts["preference"] and provenance["settings"]["rank"] == 3
    assert len(provenance["sources"]["experts"]["a"]["files"]["model.safetensors"]) == 64
    model = hf.AutoModelForCausalLM.from_pretrained("model")
    assert apart(tiny.logits("llama", model), tiny.logits("llama", front.model(preference))) == 0


@pytest.mark.parametrize("words", [(), ("--dtype", "bf16"), ("--option", "scalarization=smooth-tchebycheff"), ("-m", "soup")])
def test_equal_preference_gives_the_bytes_of_the_front(cli, zoo, words):
    cli("fit", *zoo.flags("llama"), *words, "-o", "front")
    for preference in ("equal", "a=1,b=1", "a=0.5,b=0.5"):
        cli("pick", "front", "-p", preference, "-o", "model", "--overwrite")
        assert (cli.here / "model/model.safetensors").read_bytes() == (cli.here / "front/model.safetensors").read_bytes()
        assert (cli.here / "model/config.json").read_bytes() == (cli.here / "front/config.json").read_bytes()


def test_pick_with_a_head_and_a_dtype(cli, zoo):
    cli("fit", *zoo.flags("vit"), "-o", "front")
    assert json.loads(cli("info", "front", "--json"))["heads"] == ["a", "b"]
    for task, labels in HEADS.items():
        cli("pick", "front", "-p", "a=0.7,b=0.3", "--head", task, "-o", task, "--dtype", "bf16")
        model = hf.AutoModelForImageClassification.from_pretrained(task, dtype="auto")
        assert model.dtype == torch.bfloat16
        assert tiny.logits("vit", model.float()).shape == (2, labels)
        assert {info.dtype for info in open_checkpoint(task).infos.values()} == {torch.bfloat16}
    cli("pick", "front", "-p", "only:a", "--head", "none", "-o", "backbone")
    assert set(open_checkpoint("backbone")) == set(open_checkpoint(zoo("vit") / "base"))


def test_a_soup_at_one_hot_is_the_expert(cli, zoo):
    cli("fit", *zoo.flags("llama"), "--method", "soup", "-o", "front")
    cli("pick", "front", "-p", "only:b", "-o", "b")
    expert, picked = open_checkpoint(zoo("llama") / "b"), open_checkpoint("b")
    assert all(apart(picked[name], expert[name]) < 1e-6 for name in expert)


def test_tensors_of_the_base_that_stay_with_each_task(cli, zoo):
    """--task-tensors: an expert keeps its own though the base has one of that name."""
    cli("fit", *zoo.flags("llama"), "--task-tensors", "lm_head.*", "-o", "front")
    cli("pick", "front", "-p", "only:b", "--head", "a", "-o", "a")
    cli("pick", "front", "-p", "only:b", "--head", "none", "-o", "shared")
    base, expert = (open_checkpoint(zoo("llama") / name)["lm_head.weight"] for name in ("base", "a"))
    assert torch.equal(open_checkpoint("a")["lm_head.weight"], expert)
    assert torch.equal(open_checkpoint("shared")["lm_head.weight"], base)


@pytest.mark.parametrize("method", ["pareto-merging", "soup"])
def test_a_front_of_one_task_has_one_model(cli, zoo, method):
    cli("fit", *zoo.flags("llama", "a"), "-m", method, "-o", "front")
    for preference in ("equal", "only:a", "priority:a", "a=7"):
        cli("pick", "front", "-p", preference, "-o", "model", "--overwrite")
        assert (cli.here / "model/model.safetensors").read_bytes() == (cli.here / "front/model.safetensors").read_bytes()


def test_tokenizers_and_other_companions_travel(cli, zoo, tmp_path):
    family = zoo("llama")
    base = tmp_path / "base"
    base.mkdir()
    for file in (family / "base").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "chat_template.jinja"):
        (base / name).write_text(f"{{}} {name}")
    words = ["--base", base, "--expert", f"a={family}/a", "--expert", f"b={family}/b"]
    cli("merge", *words, "-o", "merged")
    cli("fit", *words, "-o", "front")
    cli("pick", "front", "-p", "only:a", "-o", "picked")
    carried = {name: value for name, value in contents(base).items() if name not in ("config.json", "model.safetensors")}
    for folder in ("merged", "front", "picked"):
        assert carried.items() <= contents(cli.here / folder).items()


def test_a_card_has_the_recipe_that_makes_the_same(cli, zoo):
    flags = ["--option", "rank=3", "--option", 'targets=["*.mlp.*"]', "--on", "ties", "--on-option", "density=0.3"]
    cli("fit", *zoo.flags("llama"), *flags, "-o", "front")
    card = (cli.here / "front" / "README.md").read_text()
    (cli.here / "again.yaml").write_text(card.split("```yaml\n")[1].split("```")[0])
    cli("fit", "again.yaml", "-o", "again")
    assert contents(cli.here / "front") == contents(cli.here / "again")


def test_cards_tell_what_was_measured(cli, zoo):
    cli("fit", *zoo.flags("llama"), "-o", "front")
    card = cli.here / "front" / "README.md"
    card.write_text(card.read_text() + "What I think of it.\n")
    row = {"method": "pareto-merging", "metric": "accuracy", "split": "held-out", "seed": 0}
    rows = [row | {"preference": f"only:{p}", "task": t, "value": 0.9 if p == t else 0.5} for p in "ab" for t in "ab"]
    record(cli.here / "front", rows[:2])
    record(cli.here / "front", rows)
    text = card.read_text()
    assert "| only:a | 90.0 % | 50.0 % |" in text and text.count("## Metrics") == 1
    assert text.endswith("What I think of it.\n") and "Nothing" not in text
    for preference in ("only:a", "a=3,b=1"):  # measured, and between the measured ones: of that nothing is known
        cli("pick", "front", "-p", preference, "-o", "model", "--overwrite")
        cli("pick", "front", "-p", preference, "--lora", "-o", "adapter", "--overwrite")
        for folder in ("model", "adapter"):
            _, metadata, picked = (cli.here / folder / "README.md").read_text().split("---\n", 2)
            index = yaml.safe_load(metadata).get("model-index")
            if preference == "only:a":
                assert "| a | accuracy | 0.9 | measured, held-out" in picked
                assert index[0]["results"][0]["metrics"][0]["value"] == pytest.approx(0.9)
            else:
                assert index is None and "accuracy" not in picked
                assert "metrics" not in json.loads((cli.here / folder / "paretomerge.json").read_text())


def test_the_index_of_a_fronts_card_is_of_the_model_in_its_folder(cli, zoo):
    cli("fit", *zoo.flags("llama"), "-o", "front")
    card = cli.here / "front" / "README.md"
    whole = card.read_text()
    facts = yaml.safe_load(whole.split("---\n", 2)[1])
    assert "model-index" not in facts
    card.write_text(whole.replace("tags:\n", "license: mit\ntags:\n", 1))

    def values() -> dict[str, float] | None:
        _, metadata, text = card.read_text().split("---\n", 2)
        known = yaml.safe_load(metadata)
        assert (
            known["license"] == "mit"
            and text.startswith("\n# Merged by")
            and set(known) - {"license", "model-index"} == set(facts)
        )
        if "model-index" not in known:
            return None
        (index,) = known["model-index"]
        return {one["task"]["name"]: one["metrics"][0]["value"] for one in index["results"]}

    row = {"method": "pareto-merging", "metric": "accuracy", "split": "held-out", "seed": 0}
    record(cli.here / "front", [row | {"preference": "only:a", "task": "a", "value": 0.9}])
    assert values() is None, "measured elsewhere"
    for a, b in ((0.5, 0.6), (0.7, 0.8)):
        record(cli.here / "front", [row | {"preference": "equal", "task": t, "value": v} for t, v in (("a", a), ("b", b))])
        assert values() == {"a": a, "b": b}
    assert load_front(cli.here / "front").card().count("value: 0.7") == 1
    mine = card.read_text().replace("pareto-merging merge", "my own merge")
    card.write_text(mine)
    record(cli.here / "front", [row | {"preference": "equal", "task": "a", "value": 0.1}])
    assert values() == {"a": 0.7, "b": 0.8}, "an index that somebody wrote"
    card.write_text("No metadata.\n")
    record(cli.here / "front", [row | {"preference": "equal", "task": "a", "value": 0.2}])
    assert card.read_text() == "No metadata.\n"


def test_model_cards(cli, zoo, tmp_path, monkeypatch):
    """Metadata that the hub reads, whatever the paths look like, and a command that runs."""
    odd = tmp_path / "it's: 70 % #1"
    odd.symlink_to(zoo("llama"))
    words = ["--base", odd / "base", "--expert", f"my math={odd / 'a'}", "--expert", f"b={odd / 'b'}"]
    cli("fit", *words, "--option", "targets=*.mlp.*", "-o", "front")
    cli("pick", "front", "-p", "my math=2,b=1", "-o", "model")
    for folder in ("front", "model"):
        _, metadata, card = (cli.here / folder / "README.md").read_text().split("---\n", 2)
        facts = yaml.safe_load(metadata)
        assert "base_model" not in facts and all(f"`{odd / name}`" in card for name in ("base", "a", "b"))
        assert facts["library_name"] == "transformers" and "| targets | `*.mlp.*` |" in card
        if folder == "model":
            assert "Preference: my math 66.7%, b 33.3%." in card
            continue
        command = shlex.split(next(line for line in card.splitlines() if line.startswith("paretomerge ")))
        monkeypatch.chdir(cli.here / folder)
        cli(*command[1:])
        assert open_checkpoint("model").keys() == open_checkpoint(".").keys()
        monkeypatch.chdir(cli.here)


# -- what is printed, and what is replaced


COMMANDS = {"merge": ("--head", "a"), "fit": ("--option", "rank=2"), "pick": ("-p", "only:a", "--head", "a")}


def words_of(command, zoo):
    return ["front"] if command == "pick" else zoo.flags("vit")


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_prints_nothing_and_json_nothing_else(cli, zoo, command):
    cli("fit", *zoo.flags("vit"), "-o", "front")
    code, out, err = cli.call([command, *words_of(command, zoo), *COMMANDS[command], "-o", "quiet", "--quiet"])
    assert (code, out, err) == (0, "", "")
    facts = json.loads(cli(command, *words_of(command, zoo), *COMMANDS[command], "-o", "json", "--json"))
    assert facts["output"] == "json"
    assert facts["bytes"] == sum(len(b) for b in contents(cli.here / "json").values() if b is not None)
    assert {"merge": "method", "fit": "parameters", "pick": "preference"}[command] in facts
    assert contents(cli.here / "quiet") == contents(cli.here / "json")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", COMMANDS)
def test_progress_is_shown_on_a_terminal_only(cli, zoo, command, monkeypatch):
    cli("fit", *zoo.flags("vit"), "-o", "front")
    monkeypatch.setenv("TERM", "xterm")
    for quiet in (False, True):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        code, out, _ = cli.call([command, *words_of(command, zoo), *COMMANDS[command], "-o", f"{quiet}"] + ["-q"] * quiet)
        assert (code, out == "") == (0, quiet)
        assert ("tensors" in screen.getvalue()) == (not quiet)
        assert not quiet or screen.getvalue() == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_only_what_is_ours_is_replaced_and_only_when_asked(cli, zoo, command):
    cli("fit", *zoo.flags("vit"), "-o", "front")
    words = [command, *words_of(command, zoo), *COMMANDS[command]]
    cli(*words, "-o", "out")
    first = contents(cli.here / "out")
    assert cli.refuses(*words, "-o", "out") == "out: exists already: choose another name or add --overwrite"
    cli(*words, "-o", "out", "--overwrite")
    assert contents(cli.here / "out") == first
    (cli.here / "out" / "exports" / "mine").mkdir(parents=True)
    (cli.here / "out" / "exports" / "mine" / "config.json").write_text("{}")
    (cli.here / "out" / "notes.txt").write_text("years of work")
    refused = cli.refuses(*words, "-o", "out", "--overwrite")
    assert refused == (
        "out: holds exports/mine/config.json and 1 more, which is not of this front or model: move it elsewhere first"
    )
    (cli.here / "out" / "notes.txt").unlink()
    (cli.here / "out" / "exports" / "mine" / "config.json").unlink()
    cli(*words, "-o", "out", "--overwrite")  # empty folders are nobody's
    assert contents(cli.here / "out") == first
    (cli.here / "mine").mkdir()
    (cli.here / "mine" / "thesis.tex").write_text("years of work")
    assert "is not a folder that paretomerge wrote" in cli.refuses(*words, "-o", "mine", "--overwrite")
    (cli.here / "file").write_text("years of work")
    assert "is not a folder that paretomerge wrote" in cli.refuses(*words, "-o", "file", "--overwrite")
    (cli.here / "empty").mkdir()
    cli(*words, "-o", "empty")
    assert contents(cli.here / "empty") == first
    cli(*words, "-o", "new/folders/out")
    assert not [p.name for p in cli.here.iterdir() if p.name.startswith(".")]


def test_a_front_is_not_replaced_by_a_model(cli, zoo):
    cli("fit", *zoo.flags("llama"), "-o", "front")
    assert "not a folder that paretomerge wrote (no paretomerge.json in it)" in cli.refuses(
        "merge", *zoo.flags("llama"), "-o", "front", "--overwrite"
    )
    cli("merge", *zoo.flags("llama"), "-o", "model")
    assert "(no pareto_set.json in it)" in cli.refuses("fit", *zoo.flags("llama"), "-o", "model", "--overwrite")
