"""Fits: each a function (experts, on=base merge, **options) -> Pareto set, listed here by its name."""

from paretomerge.fitting.closed_form import pareto_merging
from paretomerge.fitting.soup import soup

FITS = {"soup": soup, "pareto-merging": pareto_merging}
