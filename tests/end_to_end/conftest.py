"""The models and the command line that every test here uses."""

import pytest

from commands import CommandLine, Zoo, command_line


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys) -> CommandLine:
    here = tmp_path / "here"
    here.mkdir()
    return command_line(here, monkeypatch, capsys)
