"""Which examples are fitted on, and which are measured on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paretomerge.data.sources import WHOLE, Split, read_splits, split_name
from paretomerge.errors import UserError
from paretomerge.specs.data_spec import DataSpec


class Part(NamedTuple):
    """Examples for one purpose."""

    split: Split
    indices: list[int]
    """n, ascending."""

    def overlaps(self, other: Part) -> bool:
        """Whether an example is in both."""
        return _same(self.split, other.split) and not set(self.indices).isdisjoint(other.indices)


class Parts(NamedTuple):
    """What ``choose`` found."""

    fit: Part | None
    held_out: Part | None


def choose(
    splits: dict[str, Split],
    spec: DataSpec,
    *,
    labelled: Callable[[Split], bool],
    ready: Callable[[Split], Split],
    seed: int,
    say: Callable[[str], None],
) -> Parts:
    """The examples to fit on, and those to measure on, by the rules of ``load_task``.

    Args:
        splits: the data.
        spec: what the user wants.
        labelled: whether a split can be measured on.
        ready: turns a split that is used into examples.
        seed: of the limits.
        say: is told what was found.

    Raises:
        UserError: a name that is no split, no labels to measure with, or one example where two are needed.
    """
    fit = _named(spec.fit, splits, ("train",)) if spec.fit else None
    if spec.evaluate is None:
        held_out = _usual(splits, fit, labelled, say)
    else:
        held_out = _named(spec.evaluate, splits, ("test", "validation"))
        if not labelled(held_out):
            raise UserError(f"{held_out.where}: no labels to measure with (columns: {', '.join(held_out.columns)})")
    if spec.transductive:
        if held_out is None:
            raise UserError("transductive, but nothing with labels to measure on: name it with evaluate")
        fit = held_out
    elif fit is None:
        others = [splits[name] for name in ("train", *splits) if name in splits and splits[name] is not held_out]
        fit = others[0] if others else None

    split = held_out if fit is None and spec.evaluate is None else None
    if split is not None:
        split = ready(split)
        if len(split) < 2:
            raise UserError(f"{split.where}: one example is too few to fit and to measure")
        say(f"{split.where} has nothing set apart: one half by chance (always the same) to fit on, the other to measure on")
        order = np.random.default_rng(0).permutation(len(split))  # whatever the seed: an evaluation meets the fit's halves
        middle = len(split) // 2
        return Parts(
            Part(split, _limited(order[:middle], spec.fit_inputs, seed, 2)),
            Part(split, _limited(order[middle:], spec.evaluate_inputs, seed, 1)),
        )
    measured = None
    if held_out is not None:
        whole = ready(held_out)
        measured = Part(whole, _limited(np.arange(len(whole)), spec.evaluate_inputs, seed, 1))
        if spec.transductive:
            return Parts(Part(whole, _limited(np.array(measured.indices), spec.fit_inputs, seed, 2)), measured)
    if fit is None:
        return Parts(None, measured)
    whole = measured.split if measured and fit is held_out else ready(fit)
    return Parts(Part(whole, _limited(np.arange(len(whole)), spec.fit_inputs, seed, 2)), measured)


def _usual(
    splits: dict[str, Split], fit: Split | None, labelled: Callable[[Split], bool], say: Callable[[str], None]
) -> Split | None:
    """What to measure on if the user does not say."""
    order = [splits[name] for name in ("test", "validation") if name in splits]
    for split in order if len(splits) > 1 else splits.values():
        if split is not fit:
            if labelled(split):
                return split
            say(f"{split.where} has no labels: not measured on (columns: {', '.join(split.columns)})")
    return None


def _named(name: str, splits: dict[str, Split], usual: Sequence[str]) -> Split:
    """The split of that name, or of the data there."""
    if found := splits.get(name) or splits.get(split_name(name)):
        return found
    if "/" not in name and not Path(name).exists():
        raise UserError(f"{name!r} is neither a split (there are: {', '.join(splits)}) nor a file")
    other = read_splits(name)
    for key in (*usual, WHOLE, *(other if len(other) == 1 else ())):
        if key in other:
            return next((split for split in splits.values() if _same(split, other[key])), other[key])
    raise UserError(f"{name}: has the splits {', '.join(other)}, and none is called {usual[0]}")


def _same(one: Split, other: Split) -> bool:
    return os.path.realpath(one.where) == os.path.realpath(other.where)


def _limited(indices: np.ndarray, count: int | None, seed: int, salt: int) -> list[int]:
    """At most ``count`` of the indices, by chance, ascending."""
    if count is not None and count < len(indices):
        indices = np.random.default_rng([seed, salt]).choice(indices, count, replace=False)
    return sorted(indices.tolist())
