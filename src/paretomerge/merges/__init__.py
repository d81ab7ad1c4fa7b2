"""Single-model merges: each a function (experts, **options) -> weights, or (experts, tasks, **options) -> weights if it asks
the experts about inputs of their tasks; listed here by the names on the command line.
"""

from paretomerge.merges.fisher import fisher
from paretomerge.merges.linear import average, task_arithmetic
from paretomerge.merges.random_drop import dare_linear, dare_ties, della
from paretomerge.merges.regmean import regmean
from paretomerge.merges.slerp import slerp
from paretomerge.merges.spectral import iso_c, tsv
from paretomerge.merges.ties import ties

MERGES = {merge.__name__: merge for merge in (average, task_arithmetic, ties, dare_linear, dare_ties, della, slerp, tsv, iso_c)}
MERGES_ON_DATA = {merge.__name__: merge for merge in (fisher, regmean)}

__all__ = [*MERGES, *MERGES_ON_DATA, "MERGES", "MERGES_ON_DATA"]
