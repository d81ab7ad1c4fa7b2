"""The toy problem's front, as the example prints and draws it."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "toy_front.py"


def run(tmp_path, capsys, *options: str) -> tuple[int, float, list[float]]:
    """Points that are not dominated; share of the front's length that they span; how far above its minimum each end is."""
    picture = tmp_path / "toy.png"
    runpy.run_path(str(EXAMPLE))["main"](["--out", str(picture), *options])
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    said = capsys.readouterr().out
    percent = [float(number) / 100 for number in re.findall(r"([\d.]+)%", said)]
    return int(re.search(r"non-dominated: (\d+) of 31", said)[1]), percent[0], percent[1:]


def test_31_preferences_spread_over_the_whole_front(tmp_path, capsys):
    count, covered, missed = run(tmp_path, capsys, "--steps", "1000")
    assert count == 31
    assert 0.8 < covered < 1
    assert max(missed) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_other_seeds_find_the_same_front(tmp_path, capsys, seed):
    count, covered, missed = run(tmp_path, capsys, "--seed", seed)
    assert count == 31
    assert covered > 0.85
    assert max(missed) < 0.01


@pytest.mark.slow
def test_preferences_drawn_evenly_leave_the_ends_out(tmp_path, capsys):
    count, covered, missed = run(tmp_path, capsys, "--alpha", "1")
    assert count == 31
    assert covered < 0.65
    assert min(missed) > 0.025
