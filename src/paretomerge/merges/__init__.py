"""Single-model merges: each a function (experts, **options) -> weights, or (experts, tasks, **options) -> weights if it asks
the experts about inputs of their tasks; listed here by the names on the command line.
"""

from paretomerge.merges.fisher import fisher as fisher
from paretomerge.merges.linear import average as average
from paretomerge.merges.linear import sum_of_adapters as sum_of_adapters
from paretomerge.merges.linear import task_arithmetic as task_arithmetic
from paretomerge.merges.processed import Inside as Inside
from paretomerge.merges.processed import for_every_name as for_every_name
from paretomerge.merges.processed import processed as processed
from paretomerge.merges.processed import with_coefficients as with_coefficients
from paretomerge.merges.random_drop import dare_linear as dare_linear
from paretomerge.merges.random_drop import dare_ties as dare_ties
from paretomerge.merges.random_drop import della as della
from paretomerge.merges.regmean import regmean as regmean
from paretomerge.merges.slerp import slerp as slerp
from paretomerge.merges.spectral import iso_c as iso_c
from paretomerge.merges.spectral import tsv as tsv
from paretomerge.merges.streaming import by_rows as by_rows
from paretomerge.merges.streaming import completed as completed
from paretomerge.merges.threshold import Threshold as Threshold
from paretomerge.merges.threshold import magnitude_thresholds as magnitude_thresholds
from paretomerge.merges.ties import ties as ties
from paretomerge.merges.ties import trimmed_and_elected as trimmed_and_elected

MERGES = {merge.__name__: merge for merge in (average, task_arithmetic, ties, dare_linear, dare_ties, della, slerp, tsv, iso_c)}
MERGES_ON_DATA = {merge.__name__: merge for merge in (fisher, regmean)}
