"""Tiny models on disk, and the command line: called in this process, or as the program that a user starts."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers as hf

import tiny

PROGRAM = Path(sys.executable).with_name("paretomerge")
HEADS = {"a": 5, "b": 3}
"""Classes of the two tasks of the family ``vit``, whose base is a backbone without a head."""


@dataclass(frozen=True)
class Zoo:
    """Families of tiny models, each made when it is first asked for: ``folder / kind / base``, ``/ a``, ``/ b``."""

    folder: Path

    def __call__(self, kind: str) -> Path:
        family = self.folder / kind
        if not family.exists():
            vision(family) if kind == "vit" else tiny.family(kind, family)
        return family

    def flags(self, kind: str, tasks: str = "ab") -> list[str]:
        """The command line's words for a family's base and experts."""
        family = self(kind)
        return ["--base", f"{family / 'base'}"] + [word for t in tasks for word in ("--expert", f"{t}={family / t}")]


def vision(folder: Path) -> None:
    """A backbone, and two classifiers of different labels near it."""
    backbone = tiny.model("vit", cls=hf.ViTModel, num_labels=2)
    tiny.save(backbone, folder / "base")
    for seed, (task, labels) in enumerate(HEADS.items(), 1):
        classifier = tiny.model("vit", seed, num_labels=labels)
        classifier.vit.load_state_dict(backbone.state_dict(), strict=False)
        tiny.save(tiny.perturb(classifier, seed), folder / task)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes (None: a folder)."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@dataclass(frozen=True)
class CommandLine:
    """``cli("merge", …)`` runs a command in this process, in an empty working directory."""

    here: Path
    call: Callable[[list[str]], tuple[int, str, str]]

    def __call__(self, *words: object) -> str:
        """What a command that succeeds prints."""
        code, out, err = self.call([str(word) for word in words])
        assert code == 0, err
        return out

    def errors(self, *words: object) -> str:
        """What a command that succeeds prints on standard error."""
        code, _, err = self.call([str(word) for word in words])
        assert code == 0, err
        return err

    def refuses(self, *words: object) -> str:
        """The one line of a command that fails as it should: exit code 2, nothing printed, nothing written."""
        before = contents(self.here)
        code, out, err = self.call([str(word) for word in words])
        assert (code, out) == (2, ""), f"{code}: {out}{err}"
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert contents(self.here) == before
        return err.removeprefix("error: ").removesuffix("\n")


def command_line(here: Path, monkeypatch, capsys) -> CommandLine:
    """The command line in this process; ``here`` is the working directory."""
    from paretomerge.cli import main

    monkeypatch.chdir(here)

    def call(words: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paretomerge", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return (stopped.value.code, *capsys.readouterr())

    return CommandLine(here, call)


def program(*words: object, **settings: str) -> subprocess.CompletedProcess:
    """Start ``paretomerge`` as a user does."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **settings}
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, env=environment, timeout=300)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().abs().max())
