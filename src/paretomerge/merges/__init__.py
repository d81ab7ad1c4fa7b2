"""Single-model merges: each a function (experts, **options) -> weights, listed here by its name on the command line."""

from paretomerge.merges.linear import average, task_arithmetic
from paretomerge.merges.random_drop import dare_linear, dare_ties, della
from paretomerge.merges.slerp import slerp
from paretomerge.merges.spectral import iso_c, tsv
from paretomerge.merges.ties import ties

MERGES = {merge.__name__: merge for merge in (average, task_arithmetic, ties, dare_linear, dare_ties, della, slerp, tsv, iso_c)}

__all__ = [*MERGES, "MERGES"]
