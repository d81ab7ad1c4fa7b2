"""The models and the command line that every test here uses."""

import sys

import pytest

from commands import CommandLine, Zoo
from paretomerge.cli import main


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys) -> CommandLine:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def call(words: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paretomerge", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return (stopped.value.code, *capsys.readouterr())

    return CommandLine(here, call)
