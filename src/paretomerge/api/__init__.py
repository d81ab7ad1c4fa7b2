"""The verbs of the library: ``merge`` gives one model, ``fit`` one for every preference (a front), ``evaluate`` measures it."""

from paretomerge.api.evaluations import evaluate as evaluate
from paretomerge.api.fits import fit as fit
from paretomerge.api.merges import merge as merge
from paretomerge.api.tasks import load_tasks as load_tasks
from paretomerge.fitting.options import FitRun as FitRun
