"""constraints-lowest.txt is pyproject.toml's lower bounds."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"torch", "datasets", "ray", "gradio", "tensorboard"}
"""No old CPU build of torch is at hand; the others are extras that the lowest environment does without."""


def parts(version: str) -> list[int]:
    numbers = [int(part) for part in version.split(".")]
    return numbers + [0] * (4 - len(numbers))


def test_the_lowest_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runs = project["dependencies"] + [line for name in ("lora", "data", "ray", "app", "log") for line in
                                      project["optional-dependencies"][name]]  # fmt: skip
    tests = [line for line in project["optional-dependencies"]["dev"] if line.startswith(("pytest", "hypothesis"))]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in runs + tests)
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints-lowest.txt").read_text(), re.M))
    for name in LEFT_OUT:
        bounds.pop(name)
    for name in ("torch", "torchvision", "torchaudio", "click", "pyparsing"):
        pinned.pop(name)
    assert {name: parts(version) for name, version in pinned.items()} == {name: parts(v) for name, v in bounds.items()}
