"""Pareto sets: each a map from a preference to merged weights, listed here by its name on the command line."""

from paretomerge.sets.corrected import Corrected
from paretomerge.sets.low_rank import LowRank
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.sets.routed import Routed
from paretomerge.sets.searched import Searched
from paretomerge.sets.soup import Soup
from paretomerge.sets.steered import Steered

SETS: dict[str, type[ParetoSet]] = {kind.method: kind for kind in (Soup, LowRank, Searched, Routed, Steered, Corrected)}
