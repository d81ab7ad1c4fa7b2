"""What the papers claim, and whether it holds on the offline suites: a comparison of two measured rows each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.claims import map_report, papers
from benchmarks.claims.cells import Results
from benchmarks.claims.numbers import KINDS, Number, lead, numbers
from benchmarks.claims.table import Table

PM = "Pareto Merging"
Side = tuple[str, str]
"""Method, and kind of preference: equal, priority, only."""


@dataclass(frozen=True)
class Claim:
    """The first side is better than the second, by the mean over the tasks."""

    text: str
    where: str
    """Paper and table."""
    better: Side
    worse: Side
    table: str = "a"


TA, TIES, ADA, ADA_TIES = "Task Arithmetic, λ 0.3", "TIES, λ 1", "AdaMerging", "AdaMerging + TIES"
SHORT = "PM, distilled, rank 16, short"
PWE, PWE_MLP, PWE_ALL = "PWE-MoE, table 2", "PWE-MoE, paper, MLP (labels)", "PWE-MoE, paper, attention + MLP (labels)"
PWE_EPO = "PWE-MoE EPO, paper, MLP (labels)"
PAPER, PAPER_TIES = "AdaMerging + PM, paper", "AdaMerging + TIES + PM, paper"
DISTILLED, STEERED = "PM, distilled, rank 16", "steered, distilled, rank 16"
OURS = "none: a question of ours"
CLAIMS = [
    Claim("Task Arithmetic is better than weight averaging", f"{PM}, table 2", (TA, "equal"), ("weight averaging", "equal")),
    Claim("TIES is better than Task Arithmetic", f"{PM}, table 2", (TIES, "equal"), (TA, "equal")),
    Claim("AdaMerging is better than Task Arithmetic", f"{PM}, table 2", (ADA, "equal"), (TA, "equal")),
    Claim("AdaMerging + TIES is better than AdaMerging", f"{PM}, table 2", (ADA_TIES, "equal"), (ADA, "equal")),
    Claim("Without data, Pareto Merging at priority is better than Task Arithmetic", f"{PM}, table 2",
          ("PM on TA λ 0.3, attention", "priority"), (TA, "equal")),
    Claim("Without data, Pareto Merging at priority is better than TIES", f"{PM}, table 2",
          ("PM on TIES, attention", "priority"), (TIES, "equal")),
    Claim("On unlabelled data, Pareto Merging is better than AdaMerging even at equal preference", f"{PM}, table 2",
          (PAPER, "equal"), (ADA, "equal")),
    Claim("On unlabelled data, Pareto Merging at priority is better than AdaMerging", f"{PM}, table 2",
          (PAPER, "priority"), (ADA, "equal")),
    Claim("AdaMerging + TIES + PM at priority is better than AdaMerging + TIES", f"{PM}, table 2",
          (PAPER_TIES, "priority"), (ADA_TIES, "equal")),
    Claim("On unlabelled data, Pareto Merging is better than MAP, which sees labels", f"{PM}, table 2", (PAPER, "equal"),
          ("MAP, 100 evaluations", "equal")),
    Claim("RegMean is better than weight averaging", f"{PM}, table 2", ("RegMean", "equal"), ("weight averaging", "equal")),
    Claim("Fisher merging is better than weight averaging", f"{PM}, table 2", ("Fisher merging", "equal"),
          ("weight averaging", "equal")),
    Claim("PWE-MoE on MLPs is better than Task Arithmetic", PWE, (PWE_MLP, "equal"), (TA, "equal"), "g"),
    Claim("PWE-MoE on MLPs is better than TIES", PWE, (PWE_MLP, "equal"), (TIES, "equal"), "g"),
    Claim("PWE-MoE on MLPs is better than RegMean", PWE, (PWE_MLP, "equal"), ("RegMean", "equal"), "g"),
    Claim("PWE-MoE on attention, too, is better than on MLPs alone", PWE, (PWE_ALL, "equal"), (PWE_MLP, "equal"), "g"),
    Claim("Linear scalarisation is better than EPO for PWE-MoE", PWE, (PWE_MLP, "equal"), (PWE_EPO, "equal"), "g"),
    Claim("Multi-task training of all parameters is better than PWE-MoE", PWE, ("multi-task training (labels)", "equal"),
          (PWE_ALL, "equal"), "g"),
    Claim("Multi-task training is better than MGDA", PWE, ("multi-task training (labels)", "equal"),
          ("MGDA training (labels)", "equal"), "g"),
    Claim("PWE-MoE on attention and MLPs: the preferred task gains at one-hot preference", "PWE-MoE, figure 5b",
          (PWE_ALL, "only"), (PWE_ALL, "equal"), "g3"),
    Claim("PWE-MoE at one-hot preference is better than Task Arithmetic", "PWE-MoE, figure 5b",
          (PWE_ALL, "only"), (TA, "equal"), "g3"),
    Claim("The tensor is better than the first outer product", f"{PM}, figure 12", (SHORT, "priority"),
          (f"{SHORT}, outer-1", "priority"), "e"),
    Claim("The tensor is better than the second outer product", f"{PM}, figure 12", (SHORT, "priority"),
          (f"{SHORT}, outer-2", "priority"), "e"),
    Claim("A higher rank is better (32 against 2)", f"{PM}, figure 6", ("PM, distilled, rank 32, short", "priority"),
          ("PM, distilled, rank 2, short", "priority"), "e"),
    *(Claim(f"Pareto Merging distilled from the experts is better than by the paper's entropy, at {KINDS[kind]} preference",
            OURS, (DISTILLED, kind), (PAPER, kind)) for kind in ("equal", "priority")),
    Claim("Pareto Merging, distilled, at equal preference is better than RegMean", OURS, (DISTILLED, "equal"),
          ("RegMean", "equal")),
    Claim("Pareto Merging, distilled, at equal preference is better than AdaMerging, distilled", OURS, (DISTILLED, "equal"),
          ("AdaMerging, distilled", "equal")),
    *(Claim(f"Pareto Merging without data on Task Arithmetic λ 1/K is better than Rewarded Soups, at {KINDS[kind]} preference",
            OURS, ("PM on TA λ 1/K, all matrices", kind), ("Rewarded Soups", kind)) for kind in ("priority", "only")),
    *(Claim(f"Steered sets are better than Rewarded Soups, at {KINDS[kind]} preference", OURS, (STEERED, kind),
            ("Rewarded Soups", kind)) for kind in ("equal", "priority", "only")),
    Claim("Steered sets are better than Pareto Merging at the same rank, at priority preference", OURS, (STEERED, "priority"),
          (DISTILLED, "priority")),
    Claim("ReACT improves Task Arithmetic at equal preference", OURS, ("ReACT on TA λ 1/K", "equal"),
          ("Task Arithmetic, λ 1/K", "equal")),
    Claim("ReACT improves Pareto Merging at equal preference", OURS, ("ReACT on PM, distilled", "equal"), (DISTILLED, "equal")),
    Claim("ReACT improves Rewarded Soups at priority preference", OURS, ("ReACT on Rewarded Soups", "priority"),
          ("Rewarded Soups", "priority")),
]  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """A claim on inputs of one use."""

    claim: Claim
    use: str
    sides: tuple[Number, Number]

    @property
    def word(self) -> str:
        return word(*lead(*self.sides))


def word(gain: float, noise: float) -> str:
    """Whether what is claimed to be better is, by how much better it is and two standard errors of that."""
    return "within the noise" if abs(gain) <= noise else "holds" if gain > 0 else "**does not hold**"


def verdicts(tables: Mapping[str, Table], results: Results) -> Iterator[Verdict]:
    """Of every claim whose two rows are measured; a row that sees no data stands in both columns."""
    for claim in CLAIMS:
        if claim.table not in tables:
            continue
        for use in ("held-out", "transductive"):
            sides = [_side(tables[claim.table], results, side, use) for side in (claim.better, claim.worse)]
            fitted = any(cell.use == use for cell in tables[claim.table].cells if cell.method.name == claim.better[0])
            if all(sides) and fitted:
                yield Verdict(claim, use, (sides[0], sides[1]))


def _side(table: Table, results: Results, side: Side, use: str) -> Number | None:
    method, kind = side
    of_method = [cell for cell in table.cells if cell.method.name == method]
    cells = [cell for cell in of_method if cell.use == use] or [cell for cell in of_method if not cell.method.fitted]
    line = numbers([found for cell in cells if (found := results.of(cell))], table.cells[0].names, kind)
    return line[-1] if line else None


def section(tables: Sequence[Table], results: Results) -> str:
    """How many hold, and a table of all verdicts, those that do not hold first."""
    by_name = {table.name: table for table in tables}
    rows = []
    for verdict in verdicts(by_name, results):
        claim = verdict.claim
        here = f"{verdict.sides[0]} against {verdict.sides[1]}"
        rows.append((claim.text, claim.where, _theirs(claim), here, verdict.use, verdict.word))
    for one in map_report.comparisons(by_name, results):
        rows.append((one.text, one.where, one.theirs, one.ours, one.use, word(one.gain, one.noise)))
    order = ["**does not hold**", "within the noise", "holds"]
    counts = {word: sum(row[-1] == word for row in rows) for word in order}
    lines = [f"Of {len(rows)} comparisons {', '.join(f'{n} {_COUNTED[word]}' for word, n in counts.items())}.", ""]
    lines += ["| claim | in the paper | | here | measured on | |", "|---" * 6 + "|"]
    lines += [f"| {' | '.join(row)} |" for row in sorted(rows, key=lambda row: order.index(row[-1]))]
    return "\n".join(lines) if rows else "Nothing is measured yet."


_COUNTED = {"**does not hold**": "do not hold", "within the noise": "are within the noise", "holds": "hold"}


def _theirs(claim: Claim) -> str:
    if claim.where == OURS:
        return ""
    values = [papers.average(*side, claim.table) for side in (claim.better, claim.worse)]
    return " against ".join(values) if all(values) else "a figure"
