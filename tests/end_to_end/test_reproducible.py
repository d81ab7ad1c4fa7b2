"""The same inputs and seed give the same bytes, in any process; and no command imports what it has no use for."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from commands import contents
from paretomerge.merges import MERGES

JOBS = [
    *(f"merge {{models}} --method {method} --output {method}" for method in MERGES),
    "merge {models} --method della --option seed=7 --output della-7",
    "fit {models} --option rank=3 --output front",
    "fit {models} --option rank=3 --option seed=1 --option targets=all --output front-1",
    "fit {models} --option rank=2 --option scalarization=smooth-tchebycheff --on dare_ties --dtype bf16 --output smooth",
    "fit {models} --method soup --output soup",
    "pick front --preference a=0.7,b=0.3 --output picked",
    "pick soup --preference priority:a --dtype fp16 --output picked-soup",
]
RUN = """
    import json, sys
    from paretomerge.cli import main
    for job in json.loads(sys.argv[1]):
        sys.argv = ["paretomerge", *job.split(" "), "--quiet"]
        try:
            main()
        except SystemExit as done:
            assert done.code == 0
    print(json.dumps(sorted({module.partition(".")[0] for module in sys.modules})))
"""


def run(jobs, folder, **settings):
    """Run commands in one process of its own; the packages that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN), json.dumps(jobs)],
        cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout.splitlines()[-1])


def test_same_bytes(zoo, tmp_path, cli):
    """Every file of every merge, fit and pick, from two processes that hash and schedule differently."""
    jobs = [job.format(models=" ".join(zoo.flags("llama"))) for job in JOBS]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, settings in zip(
        folders, ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2"}), strict=True
    ):
        folder.mkdir()
        imported = run(jobs, folder, **settings)
        assert "torch" in imported
        assert not {"transformers", "peft", "huggingface_hub", "matplotlib", "scipy", "pandas"} & set(imported)
    one, two = map(contents, folders)
    assert one.keys() == two.keys() and len(one) > 60
    assert [name for name in one if one[name] != two[name]] == []
    assert one["della/model.safetensors"] != one["della-7/model.safetensors"]
    assert one["front/pareto_set.safetensors"] != one["front-1/pareto_set.safetensors"]
    # and from Python, in a process that has done much else before
    cli("fit", *zoo.flags("llama"), "--option", "rank=3", "-o", "front")
    cli("pick", "front", "-p", "a=0.7,b=0.3", "-o", "picked")
    assert contents(cli.here / "front") == contents(folders[0] / "front")
    assert contents(cli.here / "picked") == contents(folders[0] / "picked")


def test_same_adapters(zoo, tmp_path):
    """Adapters, with a head and without, and of fronts of adapters; target modules in one order."""
    for kind in ("vit", "llama"):
        start = [f"fit {' '.join(zoo.flags(kind))} --option rank=12 --option targets=all --output {kind}"]
        run(start, tmp_path, PYTHONHASHSEED="0")
    jobs = [
        "pick vit --preference a=0.7,b=0.3 --lora --base-model org/front --head a --output with-head",
        "pick llama --preference a=0.7,b=0.3 --lora --base-model org/front --output adapter",
        "pick llama --preference a=0.7,b=0.3 --lora --base-model org/front --rank 2 --output smaller",
    ]
    found = []
    for seed in ("1", "2", "3"):
        folder = tmp_path / seed
        folder.mkdir()
        run([job.replace("pick ", "pick ../") for job in jobs], folder, PYTHONHASHSEED=seed)
        found.append(contents(folder))
    assert found[0] == found[1] == found[2] and len(found[0]) == 3 * 5
    config = json.loads(found[0]["adapter/adapter_config.json"])
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize("job", ["--help", "merge --help", "methods --help"])
def test_help_imports_nothing_heavy(tmp_path, job):
    imported = run([], tmp_path)
    assert not {"torch", "numpy", "transformers", "pydantic", "yaml"} & set(imported)
    code = (
        f"import sys; from paretomerge.cli import app; app({job.split()}, standalone_mode=False); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, paretomerge; dir(paretomerge); print({'torch', 'numpy', 'typer', 'pydantic'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"
