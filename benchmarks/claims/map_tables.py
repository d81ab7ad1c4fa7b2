"""The tables of MAP's paper (Li et al. 2025): fronts against direct search, few evaluations, preferences, two languages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.claims import language, map_report, methods, vision
from benchmarks.claims.cells import Cell
from benchmarks.claims.methods import Bench, Method
from benchmarks.claims.searches import POINTS, PREFERENCES, asked, search
from benchmarks.claims.table import SEEDS, Table, cells_of

ORDER = ("greek", "cyrillic", "fashion", "mnist", "arabic", "georgian", "digits", "hebrew")
"""The first N of these are merged; all of them in the suite's order, for the sake of fits that are there already."""
PAIRS = (ORDER[:2], ("arabic", "georgian"))
SIZES = (3, 4, 8)
WEIGHED = (2, 4, 8)
LANGUAGES = (("german", "french"), ("polish", "spanish"))
ONCE = ("direct search", "MOEA/D", "nested MAP")
"""The yardstick, and what costs the most."""
BLOCKS = 16
"""Of text a language that a search looks at."""


def _evaluations(on: Bench, seed: int) -> int | None:
    """The paper's number, which is the library's default."""
    n = len(on.suite.tasks)
    return None if on.mode == "full" else (n + 1) * (n + 2) // 2 + 4


def _population(on: Bench, seed: int) -> int:
    return 50 if on.mode == "full" else 6


def _generations(on: Bench, seed: int) -> int:
    return 20 if on.mode == "full" else 3


def _map(inputs: int) -> Method:
    return search("MAP", "map", inputs=inputs, evaluations=_evaluations, measure=0)


def _direct(inputs: int) -> Method:
    return search("direct search", "direct-search", inputs=inputs, evaluations=_evaluations)


def _first(n: int) -> tuple[str, ...]:
    return ORDER[:n] if n < len(ORDER) else vision.suite().tasks


def _inputs(names: tuple[str, ...]) -> int:
    return 100 if len(names) <= 4 else 50


def _cells(names: tuple[str, ...], chosen: list[Method], how: str, mode: str, **more: Any) -> list[Cell]:
    """With every seed, where it matters and is not too dear."""
    return [
        Cell(more.get("suite") or vision.suite(), method, "held-out", seed, how, mode, names)
        for method in chosen
        for seed in (SEEDS[mode] if method.seeded and method.name not in ONCE else (0,))
    ]


def _searches(names: tuple[str, ...], mode: str) -> list[Cell]:
    """MAP and direct search of some tasks; with choices by preference, where these are wanted, too."""
    how = "searched" if len(names) in WEIGHED and names == _first(len(names)) else "points"
    return _cells(names, [_direct(_inputs(names)), _map(_inputs(names))], how, mode)


def wins(mode: str) -> Table:
    cells = [cell for names in (*map(_first, reversed(SIZES)), *PAIRS) for cell in _searches(names, mode)]
    note = (
        "Greek and Cyrillic, then clothes, handwritten digits, Arabic, Georgian, font digits and Hebrew; for two tasks Arabic "
        f"and Georgian, too. The paper's numbers of c, {_inputs(PAIRS[0])} validation pictures a task ({_inputs(ORDER)} from "
        f"five tasks on), bf16. Win rate: of {POINTS['full']} points of MAP's front over direct search's, all metrics and "
        "pairs of points, a tie one half; on the pictures that both searches saw, of which direct search keeps the luckiest, "
        "and on test pictures. The paper counts ties as lost."
    )
    return Table("f", "MAP's front against direct search", "MAP, tables 2 and 3", cells, map_report.wins, note)


def few(mode: str) -> Table:
    chosen = [
        search("MAP, Bayesian, 6 + 2 × 3", "map-bayesian", first=6, rounds=2, each=3, measure=0),
        search("MAP, 12 at random", "map", evaluations=12, sampling="uniform", measure=0),
        search("MAP, 12 Sobol points", "map", evaluations=12, measure=0),
    ]
    cells = [cell for names in PAIRS for cell in [*_searches(names, mode), *_cells(names, chosen, "seen points", mode)]]
    note = (
        "Mean distance in accuracy from a point of MAP's front to direct search's (GD), and back (IGD); two pairs of tasks, on "
        "the pictures that the searches saw. The paper has a figure of seven pairs."
    )
    title = "MAP with few evaluations, and Bayesian sampling"
    return Table("f2", title, "MAP, figures 6 and 13", cells, map_report.distances, note)


def weighed(mode: str) -> Table:
    cells = []
    for n in WEIGHED:
        names = _first(n)
        cells += _searches(names, mode)
        if n == 2:
            evolved = search("MOEA/D", "moead", population=_population, generations=_generations)
            cells += _cells(names, [evolved], "searched", mode)
        if n == 8:  # whose fits are those of table a
            cells += cells_of(vision.suite(), [methods.ADA_TIES, methods.TRAINED], mode, seeds=1, how="chosen", tasks=names)
            cells += _cells(names, [search("nested MAP", "map-nested", inputs=50, preferences=asked)], "chosen", mode)
        singles = [method for method in methods.SINGLE if method.name in SINGLES]
        others = [methods.EXPERTS, *singles, *DROPPED, methods.SOUPS, methods.PM_TA_ALL]
        cells += _cells(names, others, "chosen", mode)
    note = (
        f"Mean over {PREFERENCES['full']} preferences γ of Σ_k γ_k accuracy_k on test pictures, ± standard deviation over the "
        "preferences; searches chose by validation pictures. Rewarded Soups are the paper's Task Arithmetic with preferences "
        "as weights. Nested MAP was asked for 9 of the preferences. Last columns: the paper's."
    )
    return Table("f3", "The model for a preference", "MAP, tables 4 and 9", cells, map_report.weighed, note)


SINGLES = ("weight averaging", "Task Arithmetic, λ 0.3", "TIES, λ 1", "DARE + TA, λ 0.3")
DROPPED = [
    methods.merged("DARE + TIES, λ 0.3", "dare_ties", scale=0.3, seeded=True),
    methods.merged("DELLA, λ 0.3", "della", scale=0.3, seeded=True),
]
"""λ as of Task Arithmetic: what is left of a task vector is enlarged, and λ 1 is far too much."""


def languages(mode: str) -> Table:
    cells = [
        cell for names in LANGUAGES
        for cell in _cells(names, [_direct(BLOCKS), _map(BLOCKS)], "seen points", mode, suite=language.suite())
    ]  # fmt: skip
    note = (
        f"As f2, in nats a token, on {BLOCKS} blocks of validation text a language; the paper's metric, too, is a loss. "
        "Extent: of direct search's front."
    )
    return Table("h", "Two languages", "MAP, table 7 (Llama-3)", cells, map_report.distances, note)


TABLES: dict[str, Callable[[str], Table]] = {"f": wins, "f2": few, "f3": weighed, "h": languages}
