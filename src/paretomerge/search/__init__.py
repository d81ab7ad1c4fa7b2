"""Searches: Pareto fronts from evaluations only (MAP and its relatives)."""

from paretomerge.search.bayesian import bayesian as bayesian
from paretomerge.search.bayesian import bin_scores as bin_scores
from paretomerge.search.bayesian import bins as bins
from paretomerge.search.bayesian import draw as draw
from paretomerge.search.bayesian import n_bins as n_bins
from paretomerge.search.bayesian import softmax as softmax
from paretomerge.search.cached import Counted as Counted
from paretomerge.search.direct import direct_search as direct_search
from paretomerge.search.direct import moead as moead
from paretomerge.search.link_functions import link_of as link_of
from paretomerge.search.methods import SEARCHES as SEARCHES
from paretomerge.search.nested import nested as nested
from paretomerge.search.plain import partitions as partitions
from paretomerge.search.plain import plain as plain
from paretomerge.search.plain import predicted_front as predicted_front
from paretomerge.search.result import spread as spread
from paretomerge.search.run import evaluator_for as evaluator_for
from paretomerge.search.run import facts_of as facts_of
from paretomerge.search.run import measured_rows as measured_rows
from paretomerge.search.sampling import anchor_points as anchor_points
from paretomerge.search.sampling import box as box
from paretomerge.search.sampling import budget as budget
from paretomerge.search.sampling import sample as sample
from paretomerge.search.surrogate import features as features
from paretomerge.search.surrogate import fit_surrogates as fit_surrogates
from paretomerge.search.surrogate import r_squared as r_squared
