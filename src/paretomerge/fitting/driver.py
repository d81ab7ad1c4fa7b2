"""One fit on data from its options to the learned numbers: what every method does in the same way.

A method says what is learned and where it starts, and builds its set of what came out:

    fit = Fit(steered, locals())                                     # options checked, the run's folder ready, experts asked
    learned = Learned(fit.problem.base, fit.problem.task_vectors, …)
    fit.learn_(learned)
    return Steered(…, learned, fit.settings)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from paretomerge.data.tasks import Task
from paretomerge.experts.experts import Experts
from paretomerge.fitting.fittable import Fittable
from paretomerge.fitting.loop import check_run, fit_
from paretomerge.fitting.options import FitRun, TrainingOptions
from paretomerge.fitting.task_losses import Problem, sources_of
from paretomerge.options import settings_of


class Fit:
    """A fit on data that can begin or be resumed.

    Attributes:
        options: what it trains with.
        settings: what a front records of the method's options.
        problem: the inputs, the live models and the experts' predictions.
    """

    def __init__(
        self, method: Callable[..., object], arguments: Mapping[str, Any], *, preference: Sequence[float] | None = None,
        unused: Sequence[str] = (), facts: Mapping[str, Any] | None = None, task_vectors: bool = True, thin: bool = True,
    ) -> None:  # fmt: skip
        """Check what can be checked before any work is done, then load the models and ask the experts.

        Args:
            method: whose fit it is.
            arguments: of its call, by name: experts, tasks, options, run and the method's own options.
            preference: γ of every step; None: each step draws its own.
            unused: options of the method that mean nothing in this call.
            facts: what determines the result beside the options and the inputs.
            task_vectors: whether the problem keeps the base and the task vectors.
            thin: whether it keeps those of LoRA experts as their factors.

        Raises:
            UserError: a task without inputs, options that the method does not have, a run that cannot begin or be resumed.
        """
        experts: Experts = arguments["experts"]
        tasks: Mapping[str, Task] = arguments["tasks"]
        self.options: TrainingOptions = arguments["options"]
        self.run: FitRun = arguments["run"]
        settings = settings_of(method, arguments)
        self.settings = {name: value for name, value in settings.items() if name not in ("device", *unused)}
        sources = sources_of(experts.tasks, tasks, self.options)
        self._facts: dict[str, Any] = {"tasks": list(experts.tasks), "inputs": [len(fit.inputs) for fit, _ in sources.values()]}
        self._facts |= {**self.settings, **(facts or {})}
        if preference is not None:
            self._facts["preference"] = list(preference)
        self._preference = preference
        check_run(self.run.folder, self.options, self._facts, resume=self.run.resume)
        self.problem = Problem(experts, tasks, self.options, self.run, task_vectors=task_vectors, thin=thin)

    def learn_(
        self, learned: Fittable, weights: Mapping[str, nn.Parameter] | None = None, *, frozen: Sequence[str] = ()
    ) -> None:
        """Fit φ in place.

        Args:
            learned: φ at its start; at its end when this returns.
            weights: the live parameters that depend on φ; None: all that are merged.
            frozen: parts of φ that stay as they are.

        Raises:
            Stopped, UserError: see ``fit_``.
        """
        fit_(
            learned,
            self.problem.models.weights if weights is None else weights,
            self.problem.losses,
            self.options,
            preference=self._preference,
            frozen=frozen,
            folder=self.run.folder,
            resume=self.run.resume,
            facts=self._facts,
            held_out=self.problem.held_out if self.options.patience else None,
            whole=self.options.whole,
            report=self.problem.watching(self.run.report),
        )
