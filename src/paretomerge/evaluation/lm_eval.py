"""lm-eval, the Language Model Evaluation Harness, as an evaluator: benchmarks on the live merged model, nothing written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch

from paretomerge.errors import UserError
from paretomerge.evaluation.outcomes import Failed, checked
from paretomerge.evaluation.protocols import Measure, Models
from paretomerge.experts.pretrained import load_beside
from paretomerge.models.build import device_of
from paretomerge.results.objective import Objective

NAME = "lm-eval"


@dataclass(frozen=True)
class ByHarness:
    """--evaluator lm-eval: benchmarks on the live model (pip install 'paretomerge[llm]').

    A metric is declared with its benchmark: ``--metric math=gsm8k/exact_match,strict-match``.

    Args:
        objectives: a metric per task.
        inputs: Number of questions per benchmark, or, below 1, the fraction of them; null asks all.
        num_fewshot: Number of examples in a prompt; null uses the benchmark's own.
        batch_size: Number of questions per forward pass.
        device: Device of the models: cpu, cuda or mps; auto uses the best one available.
        precision: Precision of the forward passes.
        store_task_vectors: Precision of the task vectors in memory during a search; bfloat16 halves their memory.
    """

    objectives: Sequence[Objective]
    _: KW_ONLY
    inputs: float | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    store_task_vectors: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for objective in self.objectives:
            benchmark, slash, metric = objective.metric.rpartition("/")
            if not (benchmark and slash and metric):
                raise UserError(
                    f"metric of {objective.task}: {objective.metric}: name the benchmark and its metric, "
                    "for instance gsm8k/exact_match,strict-match"
                )

    def identity(self) -> dict[str, Any]:
        try:
            of = version("lm_eval")
        except PackageNotFoundError:
            of = ""
        return {
            "kind": NAME, "version": of, "metrics": {o.task: o.metric for o in self.objectives}, "inputs": self.inputs,
            "num_fewshot": self.num_fewshot, "precision": self.precision, "store_task_vectors": self.store_task_vectors,
        }  # fmt: skip

    def opened(self, models: Models) -> Measure:
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise UserError(f"lm-eval cannot be imported ({error}): pip install 'paretomerge[llm]'") from error
        if models.heads:
            raise UserError("lm-eval measures language models; these tasks have heads of their own")
        if models.companions is None:
            raise UserError("lm-eval needs a tokenizer: name the base as a folder that has one")
        device = device_of(self.device)
        live = models.live(device, getattr(torch, self.store_task_vectors))
        tokenizer = load_beside(models.companions, "AutoTokenizer")
        # the harness keeps this very model, which moves under its hands
        model = HFLM(pretrained=next(iter(live.models.values())), tokenizer=tokenizer, batch_size=self.batch_size)

        def measured(c: tuple[float, ...], tasks: Sequence[str]) -> Mapping[str, float]:
            live.move_(c)
            wanted = {o.task: o.metric.rpartition("/") for o in self.objectives if o.task in tasks}
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                given = lm_eval.simple_evaluate(
                    model=model, tasks=list(dict.fromkeys(name for name, _, _ in wanted.values())), limit=self.inputs,
                    num_fewshot=self.num_fewshot, batch_size=self.batch_size, log_samples=False, bootstrap_iters=0,
                )  # fmt: skip
            if given is None:  # what it gives on all but the first of several processes
                raise Failed("lm-eval gave no results")
            results = {**given.get("groups", {}), **given["results"]}
            self._check_directions(given.get("higher_is_better", {}))
            values = {task: _value(results, benchmark, metric) for task, (benchmark, _, metric) in wanted.items()}
            return checked(values, self.objectives, tasks)

        return measured

    def _check_directions(self, higher: Mapping[str, Mapping[str, bool | None]]) -> None:
        for o in self.objectives:
            benchmark, _, metric = o.metric.rpartition("/")
            known = (higher.get(benchmark) or {}).get(metric.partition(",")[0])
            if known is not None and known != o.larger_is_better:
                raise UserError(f"metric of {o.task}: lm-eval says that {'more' if known else 'less'} {metric} is better")


def _value(results: Mapping[str, Mapping[str, Any]], benchmark: str, metric: str) -> Any:
    """A number of lm-eval's results, whose keys are ``METRIC,FILTER``; without a filter the only one of that metric.

    Raises:
        UserError: no such metric, or several filters.
    """
    own = results.get(benchmark, {})
    if metric in own:
        return own[metric]
    names = [name for name in own if "," in name and "_stderr" not in name]
    fitting = [name for name in names if name.partition(",")[0] == metric]
    if len(fitting) == 1:
        return own[fitting[0]]
    raise UserError(f"{benchmark}: no metric {metric!r} in lm-eval's results (there are: {', '.join(names) or 'none'})")
