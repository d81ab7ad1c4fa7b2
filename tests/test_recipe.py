import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.errors import UserError
from paretomerge.options import check_options, unknown
from paretomerge.recipes import BaseMerge, Recipe, combined, parse_size, read_recipe


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(call: Callable[..., object], *arguments: object, **more: object) -> str:
    """The one line that refuses a call."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **more)
    line = str(caught.value)
    assert "\n" not in line
    return line


FULL = """
base: org/base@main
experts: {math: models/math, code: org/code}
method: pareto-merging
options: {rank: 16, mu: 1e-3, targets: ["*.q.weight"]}
on:
  method: ties
  options: {density: {math: 0.2, code: 1}}
output: front
dtype: bf16
shard_size: 500 MB
vocab: common
missing: base
exclude: ["*.bias"]
task_tensors: ["classifier.*"]
"""


def test_read_every_field(tmp_path):
    recipe = read_recipe(write(tmp_path, FULL))
    assert recipe == Recipe(
        base="org/base@main",
        experts={"math": "models/math", "code": "org/code"},
        method="pareto-merging",
        options={"rank": 16, "mu": 0.001, "targets": ["*.q.weight"]},
        on=BaseMerge(method="ties", options={"density": {"math": 0.2, "code": 1}}),
        output="front",
        dtype="bfloat16",
        shard_size="500 MB",
        vocab="common",
        missing="base",
        exclude=["*.bias"],
        task_tensors=["classifier.*"],
    )
    assert recipe.shard_bytes == 500 * 10**6
    assert list(recipe.experts) == ["math", "code"]
    assert recipe.notices == ()


def test_empty_values_are_defaults(tmp_path):
    recipe = read_recipe(write(tmp_path, "experts: {a: x}\nbase:\noptions:\nexclude:\noutput: ~\n"))
    assert recipe == Recipe(experts={"a": "x"})
    assert recipe.shard_bytes == 5 * 10**9


def test_keys_are_text_and_scalars_those_of_yaml_1_2(tmp_path):
    text = "experts: {no: a, 1: b, null: c, 2020-01-01: d}\noptions: {a: 1e3, b: off, c: 010, d: 1:30, e: .5, f: -2, g: True}"
    recipe = read_recipe(write(tmp_path, text))
    assert list(recipe.experts) == ["no", "1", "null", "2020-01-01"]
    assert recipe.options == {"a": 1000.0, "b": "off", "c": 10, "d": "1:30", "e": 0.5, "f": -2, "g": True}


def test_paths_are_beside_the_file_or_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere" / "models").mkdir(parents=True)
    (tmp_path / "elsewhere" / "both").mkdir()
    (tmp_path / "here" / "both").mkdir()
    (tmp_path / "here" / "only-here").mkdir()
    file = write(
        tmp_path / "elsewhere", f"base: models\nexperts: {{a: both, b: only-here, c: org/name, d: {tmp_path}}}\noutput: both"
    )
    monkeypatch.chdir(tmp_path / "here")
    recipe = read_recipe(os.path.relpath(file))
    assert recipe.base == "../elsewhere/models"
    assert recipe.experts == {"a": "../elsewhere/both", "b": "only-here", "c": "org/name", "d": str(tmp_path)}
    assert recipe.output == "both"


@pytest.mark.parametrize(
    "text, message",
    [
        ("exprets: {a: b}", ": unknown key 'exprets', did you mean 'experts'? (known: base, experts, method,"),
        ("zzz: 1", ": unknown key 'zzz' (known: base, experts, method,"),
        ("on: {methd: ties}", ": on: unknown key 'methd', did you mean 'method'? (known: method, options)"),
        ("experts: [a]", ": experts must be a valid dictionary, not ['a']"),
        ("experts: {a: 3}", ": experts.a must be a valid string, not 3"),
        ("experts: {a: [b]}", ": experts.a must be a valid string, not ['b']"),
        ("dtype: int8", ": dtype must be 'float64', 'float32', 'float16' or 'bfloat16', not 'int8'"),
        ("vocab: union", ": vocab must be 'error' or 'common', not 'union'"),
        ("shard_size: big", ": shard_size: 'big' is not a size: write 5GB, for instance"),
        ("base: [", ": line 1: "),
        ("experts:\n  a: b\n  a: c", ": line 3: 'a' is given twice"),
        ("options: {[1, 2]: 3}", ": line 1: a key must be text"),
        ("a: &x 1\nb: 2", ": line 1: text that begins with * or & must be quoted (anchors are not read)"),
        ("exclude:\n  - *.bias", ": line 2: text that begins with * or & must be quoted"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", ": line 1: text that begins with * or & must be quoted"),
        ("base: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("base: !!int x", "invalid literal for int"),
        ("a: " + "[" * 5000, ": nested too deeply"),
        ("base: a\n---\nbase: b", ": line 2: several documents in one file are not supported: write a file for each"),
        ("base: \x07", "special characters are not allowed"),
        ("- a", ": is not a recipe: keys and values are expected, such as method: ties"),
        ("", ": is not a recipe: keys and values are expected, such as method: ties"),
    ],
)
def test_what_a_file_is_refused_for(tmp_path, text, message):
    file = write(tmp_path, text)
    line = refusal(read_recipe, file)
    assert line.startswith(f"{file}: ")
    assert message in line


def test_files_that_cannot_be_read(tmp_path):
    assert refusal(read_recipe, tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: cannot be read (No such file or directory)"
    assert refusal(read_recipe, tmp_path) == f"{tmp_path}: cannot be read (Is a directory)"
    (tmp_path / "large").write_bytes(b"# \n" * 400_000)
    assert refusal(read_recipe, tmp_path / "large") == f"{tmp_path}/large: over 1 MB: is this a recipe?"
    (tmp_path / "binary").write_bytes(b"\x80\x81")
    assert refusal(read_recipe, tmp_path / "binary") == f"{tmp_path}/binary: is not a text file in UTF-8"


def test_long_values_are_cut(tmp_path):
    assert len(refusal(read_recipe, write(tmp_path, f"vocab: {'x' * 10_000}"))) < 300
    assert len(refusal(read_recipe, write(tmp_path, f"{'x' * 10_000}: 1"))) < 400


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_a_recipe_or_one_line(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(read_recipe(file), Recipe)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_mergekit_file_is_recognised(tmp_path):
    (tmp_path / "one").mkdir()
    recipe = read_recipe(write(tmp_path, "merge_method: linear\nmodels:\n  - {model: one, parameters: {weight: 1}}"))
    assert recipe.method == "average"
    assert recipe.experts == {"one": str(tmp_path / "one")}


# -- flags


def test_flags_alone():
    recipe = combined(
        base="b", expert=["math=m", "code=o/c=d"], method="ties", output=Path("out"), dtype=None, exclude=["*.bias"],
        option=["density=0.2", "weights={math: 1, code: 0.5}", "trim=tensor", "normalize=false", "targets=*.a.*", "n=[1, 2]"],
    )  # fmt: skip
    assert recipe == Recipe(
        base="b",
        experts={"math": "m", "code": "o/c=d"},
        method="ties",
        output="out",
        exclude=["*.bias"],
        options={
            "density": 0.2,
            "weights": {"math": 1, "code": 0.5},
            "trim": "tensor",
            "normalize": False,
            "targets": "*.a.*",
            "n": [1, 2],
        },
    )


def test_flags_complete_and_overrule_a_file(tmp_path):
    file = write(tmp_path, FULL)
    recipe = combined(
        file, method=None, expert=["code=new", "law=l"], option=["rank=4"], task_tensors=[], dtype="fp32", on=None
    )
    assert recipe.experts == {"math": "models/math", "code": "new", "law": "l"}
    assert recipe.options == {"rank": 4, "mu": 0.001, "targets": ["*.q.weight"]}
    assert (recipe.method, recipe.dtype, recipe.task_tensors, recipe.vocab) == (
        "pareto-merging",
        "float32",
        ["classifier.*"],
        "common",
    )
    assert recipe.on == BaseMerge(method="ties", options={"density": {"math": 0.2, "code": 1}})


def test_options_of_another_method_are_dropped(tmp_path):
    file = write(tmp_path, FULL)
    recipe = combined(file, method="soup", option=["scale=0.5"], on="della", on_option=["epsilon=0.2"])
    assert recipe.options == {"scale": 0.5}
    assert recipe.on == BaseMerge(method="della", options={"epsilon": 0.2})
    same = combined(file, method="pareto-merging", on=None, on_option=["scale=2"])
    assert same.options["rank"] == 16
    assert same.on == BaseMerge(method="ties", options={"density": {"math": 0.2, "code": 1}, "scale": 2})
    assert combined(base="b", method="soup", on=None, on_option=["scale=2"]).on == BaseMerge(options={"scale": 2})
    nameless = write(tmp_path, "base: b\nexperts: {a: x}\noptions: {scale: 2}")
    assert combined(nameless, method="soup", on=None).options == {"scale": 2}


def test_notices_survive_flags(tmp_path):
    file = write(tmp_path, "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1, int8_mask: true}}]")
    assert "int8_mask" in combined(file, method=None, output="x").notices[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            {"expert": ["models/math"]},
            "--expert models/math: write a name, = and a value, for instance --expert math=models/math",
        ),
        ({"expert": ["=x"]}, "--expert =x: write a name, = and a value, for instance --expert math=models/math"),
        ({"expert": ["a=x", "a=y"]}, "--expert a=y: a is given twice"),
        ({"option": ["density"]}, "--option density: write a name, = and a value, for instance --option density=0.2"),
        (
            {"option": ["targets=[*.attn.*]"]},
            "--option targets: text that begins with * or & must be quoted (anchors are not read)",
        ),
        ({"option": ["a=1", "a=2"]}, "--option a=2: a is given twice"),
        ({"on_option": ["a={"]}, "--on-option a: expected the node content, but found '<stream end>'"),
        ({"vocab": "all"}, "--vocab must be 'error' or 'common', not 'all'"),
        ({"shard_size": "0"}, "--shard-size: '0' is not a size: write 5GB, for instance"),
        ({"expert": ["a=x"], "method": "ties"}, "no base: name the model that the experts were fine-tuned from (--base)"),
        ({"expert": ["a=x"], "method": None}, "no base: name the model that the experts were fine-tuned from (--base)"),
    ],
)
def test_flags_that_are_refused(flags, message):
    assert refusal(combined, **flags) == message


def test_who_needs_a_base_and_a_base_merge(tmp_path):
    assert combined(expert=["a=x", "b=y"], method="slerp").base is None
    assert combined(expert=["a=x"]).base is None, "check reads experts without a base"
    file = write(tmp_path, "base: b\nexperts: {a: x}\non: {method: ties}")
    assert refusal(combined, file, method="ties").startswith(f"{file}: on: a merge is not made on another merge")
    for line in ("preset: paper", "closed_form: true", "metrics: {a: accuracy}"):
        of_a_fit = write(tmp_path, f"base: b\nexperts: {{a: x}}\n{line}")
        assert refusal(combined, of_a_fit, method="ties").endswith(": belongs to a fit, and would change nothing here")
        assert combined(of_a_fit, method=None, on=None, preset=None, closed_form=None, metric=None, evaluator=None)
    file = write(tmp_path, "base: b\nexperts: {a: x}\non: {method: ties}")
    assert combined(file, method=None, on=None).on == BaseMerge(method="ties")
    assert combined(file).on is not None
    without = write(tmp_path, "experts: {a: x}")
    assert refusal(combined, without, method=None).endswith(f"({without}: base)")


# -- options


def method(
    experts: object,
    *,
    on: object = None,
    share: float | Mapping[str, float] = 0.3,
    rank: int = 16,
    rescale: bool = True,
    trim: Literal["model", "tensor"] = "model",
    targets: str | Sequence[str] = "attention",
    scale: float | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Do nothing."""


def test_options_come_back_checked():
    options = {"share": {"a": 1, "b": 0.5}, "rank": 3, "rescale": False, "trim": "tensor", "targets": ["a", "b"], "scale": 1}
    checked = check_options(method, options, "method")
    assert checked == options
    assert isinstance(checked["scale"], float)
    assert check_options(method, {"scale": None, "share": 2}, "method") == {"scale": None, "share": 2.0}
    assert check_options(method, {}, "method") == {}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shar": 1}, "unknown option 'shar', did you mean 'share'? (known: share, rank, rescale, trim, targets, scale)"),
        ({"on": 1}, "unknown option 'on' (known: share, rank, rescale, trim, targets, scale)"),
        ({"progress": None}, "unknown option 'progress' (known: share, rank, rescale, trim, targets, scale)"),
        ({"experts": 1}, "unknown option 'experts' (known: share, rank, rescale, trim, targets, scale)"),
        ({"share": "abc"}, "share must be a number or a map from task to number, not 'abc'"),
        ({"share": {"a": "x"}}, "share must be a number or a map from task to number, not {'a': 'x'}"),
        ({"share": [1, 2]}, "share must be a number or a map from task to number, not [1, 2]"),
        ({"share": True}, "share must be a number or a map from task to number, not True"),
        ({"share": float("nan")}, "share must be a number or a map from task to number, not nan"),
        ({"share": {"a": float("inf")}}, "share must be a number or a map from task to number, not {'a': inf}"),
        ({"rank": 1.5}, "rank must be a whole number, not 1.5"),
        ({"rank": "16"}, "rank must be a whole number, not '16'"),
        ({"rescale": "yes"}, "rescale must be true or false, not 'yes'"),
        ({"trim": "all"}, "trim must be model or tensor, not 'all'"),
        ({"targets": [1]}, "targets must be text or a list, not [1]"),
        ({"scale": "x"}, "scale must be a number, not 'x'"),
    ],
)
def test_options_that_are_refused(options, message):
    assert refusal(check_options, method, options, "method") == f"method: {message}"


# -- recipes that extend others


def shared(folder: Path) -> None:
    """Models, data beside them, and a method, in files of their own."""
    (folder / "shared" / "models").mkdir(parents=True)
    (folder / "shared" / "a.csv").touch()
    (folder / "shared" / "models.yaml").write_text("base: models\nexperts: {a: org/a, b: org/b, c: org/c}\nmethod: ties\n")
    data = "data: {a: {path: a.csv, prompts: a.csv}, b: org/b, c: org/c}\noptions: {scale: 1, density: 0.2}\n"
    (folder / "shared" / "data.yaml").write_text(data)


def test_what_a_recipe_extends_is_completed_and_overruled(tmp_path):
    shared(tmp_path)
    file = write(tmp_path, "extends: [shared/models.yaml, shared/data.yaml]\nexperts: {b: org/other}\noptions: {scale: 0.5}\n")
    recipe = read_recipe(file)
    assert recipe.base == str(tmp_path / "shared" / "models")  # paths are relative to the file that has them
    assert recipe.experts == {"a": "org/a", "b": "org/other", "c": "org/c"}
    assert (recipe.data["a"].path, recipe.data["a"].prompts) == (str(tmp_path / "shared" / "a.csv"),) * 2
    assert recipe.options == {"scale": 0.5, "density": 0.2}
    other = write(tmp_path, "extends: shared/data.yaml\nmethod: della\non: {options: {scale: 2}}\n")
    top = tmp_path / "top.yaml"
    top.write_text(f"extends: {other.name}\non: {{method: ties}}\nmethod: dare_ties\n")
    assert read_recipe(other).options == {"scale": 1, "density": 0.2}
    assert read_recipe(top).options == {} and read_recipe(top).on == BaseMerge(method="ties", options={})
    assert combined(file, option=["scale=0.1"], expert=["d=org/d"]).experts["d"] == "org/d"


def test_tasks_are_chosen_from_what_is_extended(tmp_path):
    shared(tmp_path)
    file = write(tmp_path, "extends: [shared/models.yaml, shared/data.yaml]\ntasks: [c, a]\n")
    recipe = combined(file)
    assert list(recipe.experts) == ["c", "a"] == list(recipe.data)
    assert list(read_recipe(file).experts) == ["a", "b", "c"]
    file.write_text("extends: shared/models.yaml\ntasks: [aa]\n")
    assert refusal(combined, file) == f"{file}: tasks: unknown task 'aa', did you mean 'a'? (known: a, b, c)"


def test_extends_that_are_refused(tmp_path):
    file = write(tmp_path, "extends: [other.yaml]\n")
    assert refusal(read_recipe, file) == "other.yaml: cannot be read (No such file or directory)"
    (tmp_path / "other.yaml").write_text("extends: recipe.yaml\n")
    assert refusal(read_recipe, file).endswith("recipe.yaml: extends itself")
    file.write_text("extends: 3\n")
    assert refusal(read_recipe, file).startswith(f"{file}: extends must be a valid list")
    assert "a published table belongs to a fit" in refusal(combined, write(tmp_path, "paper: x/y"), method=None)


# -- the rest


@pytest.mark.parametrize(
    "text, expected",
    [
        ("5GB", 5 * 10**9),
        ("500 MB", 5 * 10**8),
        ("2GiB", 2 << 30),
        ("1.5kb", 1500),
        ("7", 7),
        (7, 7),
        ("3T", 3 * 10**12),
        ("9b", 9),
    ],
)
def test_sizes(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "0", "5 G B", "1e9", "5PB", "iB"])
def test_sizes_that_are_refused(text):
    assert refusal(parse_size, text).endswith("is not a size: write 5GB, for instance")


def test_unknown_names_the_nearest():
    assert unknown("method", "tie", ["ties", "della"]) == "unknown method 'tie', did you mean 'ties'? (known: ties, della)"
    assert unknown("option", "x", []) == "unknown option 'x' (known: none)"


def test_reading_a_recipe_imports_no_torch(tmp_path):
    file = write(tmp_path, "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]")
    code = (
        "import sys; from paretomerge.recipes.reading import combined, read_recipe; read_recipe(sys.argv[1]); "
        "combined(base='b', expert=['a=x'], method='ties', option=['density=1']); "
        "print([m for m in ('torch', 'numpy', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
