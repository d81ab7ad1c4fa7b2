"""Who can evaluate a merged model: labelled tasks, a Python function, a shell command. (A harness: ``lm_eval.py``.)

Each kind says what it measures (``objectives``) and what its numbers depend on (``identity``), and opens to a function of
the coefficients. All of them can be sent to another process.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from paretomerge.data.inputs import Inputs
from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.evaluation import command as shell
from paretomerge.evaluation.measure import measure
from paretomerge.evaluation.outcomes import checked
from paretomerge.evaluation.placeholders import VARIABLES, with_references
from paretomerge.evaluation.protocols import Measure, Models
from paretomerge.evaluation.tuning import Tuning, tuned, tuning_inputs
from paretomerge.io.leftovers import folder_for, remove_folder
from paretomerge.models.build import device_of
from paretomerge.results.metrics import METRICS
from paretomerge.results.objective import Objective
from paretomerge.weights.lazy import as_bytes
from paretomerge.weights.writing import SHARD_BYTES

_LARGEST_SCRIPT = 10**7


@dataclass(frozen=True)
class OnTasks:
    """--data: metrics of the tasks' labelled inputs, each task with its own head, on live models.

    Args:
        tasks: what is measured on are their ``held_out`` inputs: see ``for_search``.
        batch_size: Number of inputs per forward pass.
        device: Device of the models: cpu, cuda or mps; auto uses the best one available.
        precision: Precision of the forward passes.
        store_task_vectors: Precision of the task vectors in memory during a search; bfloat16 halves their memory.
        head_steps: Number of steps of Adam that fine-tune each merged model's classification heads on labelled inputs to fit
            on, before the model is measured on others; 0 keeps the experts' heads.
        head_lr: Learning rate of these steps.
        norm_statistics: Estimate the running statistics of batch norms from inputs to fit on, instead of using the base's.
    """

    tasks: Mapping[str, Task]
    _: KW_ONLY
    batch_size: int = 64
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    store_task_vectors: Literal["float32", "bfloat16"] = "float32"
    head_steps: int = 0
    head_lr: float = 1e-3
    norm_statistics: bool = False

    @property
    def objectives(self) -> Sequence[Objective]:
        return [Objective(name, task.metric, *METRICS[task.metric]) for name, task in self.tasks.items()]

    def identity(self) -> dict[str, Any]:
        seen = {name: {"metric": t.metric, "inputs": _fingerprint(t.held_out)} for name, t in self.tasks.items() if t.held_out}
        found = {"kind": "tasks", "tasks": seen, "precision": self.precision, "store_task_vectors": self.store_task_vectors}
        if not self.tuning:
            return found
        inputs = {name: _fingerprint(tuning_inputs(task)[0]) for name, task in self.tasks.items()}
        return {**found, "tuning": {**asdict(self.tuning), "inputs": inputs}}

    @property
    def tuning(self) -> Tuning:
        """What each merged model gets before it is measured."""
        return Tuning(head_steps=self.head_steps, head_lr=self.head_lr, norm_statistics=self.norm_statistics)

    def opened(self, models: Models) -> Measure:
        device = device_of(self.device)
        live = models.live(device, getattr(torch, self.store_task_vectors))
        text_varies = any("text" in name for name in models.varying)
        text_heads: dict[str, torch.Tensor] = {}
        tuning = self.tuning
        parts = {name: tuning_inputs(task) for name, task in self.tasks.items()} if tuning else {}

        def measured(c: tuple[float, ...], tasks: Sequence[str]) -> Mapping[str, float]:
            live.move_(c)
            found = {}
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                for name in tasks:
                    task, model = self.tasks[name], live.models[name]
                    if task.prompts is not None and (text_varies or name not in text_heads):
                        with torch.no_grad():
                            text_heads[name] = task.prompts.features(model)
                    if tuning:
                        on, measured_on = parts[name]
                        with tuned(model, task, on, tuning, self.batch_size):
                            found[name] = measure(model, replace(task, held_out=measured_on), self.batch_size)
                    else:
                        found[name] = measure(model, task, self.batch_size, text_heads.get(name))
            return found

        return measured


def for_search(tasks: Mapping[str, Task], names: Sequence[str], say: Callable[[str], None]) -> dict[str, Task]:
    """The tasks with what a search may look at in the place of what is held out: the inputs of the fit, with their labels.

    Where a task has no others, its held-out inputs have to do; it is then transductive, and so are all numbers measured on
    them.

    Args:
        tasks: with the labels of the inputs to fit on.
        names: of the tasks that are needed.
        say: is told what is transductive.

    Raises:
        UserError: a task without labelled inputs.
    """
    found = {}
    for name in names:
        task = tasks.get(name)
        inputs = None if task is None else task.fit or task.held_out
        if task is None or inputs is None:
            raise UserError(f"task {name} has no inputs to evaluate on: name them with --data {name}=PATH")
        if task.metric == "accuracy" and inputs.labels is None:
            raise UserError(f"task {name}: a search needs labels, and the inputs to fit on have none: name labelled ones (fit)")
        split = task.split if task.fit else "transductive"
        if split == "transductive":
            say(f"{name}: the search chooses by the inputs that are measured on: transductive")
        found[name] = replace(task, held_out=inputs, split=split)
    return found


@dataclass(frozen=True)
class ByFunction:
    """evaluator=FUNCTION, in Python: it gets a merged model.

    Args:
        function: takes what ``gets`` says, and ``tasks``, a list of those that are wanted, if it has such a parameter; gives
            task -> metric, or task -> {metric: number}.
        objectives: a metric per task.
        gets: Argument of the function. model: a live transformers model, which moves between calls. models: a map from task
            to its live model. weights: a map from name to tensor.
        device: Device of live models: cpu, cuda or mps; auto uses the best one available.
        store_task_vectors: Precision of the task vectors in memory during a search; bfloat16 halves their memory.
    """

    function: Callable[..., Mapping[str, Any]]
    objectives: Sequence[Objective]
    _: KW_ONLY
    gets: Literal["model", "models", "weights"] = "model"
    device: str = "auto"
    store_task_vectors: Literal["float32", "bfloat16"] = "float32"

    def identity(self) -> dict[str, Any]:
        try:
            source = inspect.getsource(self.function)
        except (OSError, TypeError):
            source = ""
        name = f"{getattr(self.function, '__module__', '')}.{getattr(self.function, '__qualname__', repr(self.function))}"
        return {
            "kind": "function", "name": name, "source": _digest(source.encode()), "gets": self.gets,
            "metrics": {o.task: o.metric for o in self.objectives}, "store_task_vectors": self.store_task_vectors,
        }  # fmt: skip

    def opened(self, models: Models) -> Measure:
        takes_tasks = "tasks" in inspect.signature(self.function).parameters
        if self.gets == "model" and models.heads:
            raise UserError('evaluator: tasks have heads of their own: say gets="models", and it gets a map from task to model')
        live = None
        if self.gets != "weights":
            live = models.live(device_of(self.device), getattr(torch, self.store_task_vectors))

        def measured(c: tuple[float, ...], tasks: Sequence[str]) -> Mapping[str, float]:
            if live is None:
                at = models.at(c)
                argument: Any = {name: at[name] for name in at}
            else:
                live.move_(c)
                argument = dict(live.models) if self.gets == "models" else next(iter(live.models.values()))
            extra = {"tasks": list(tasks)} if takes_tasks else {}
            return checked(self.function(argument, **extra), self.objectives, tasks)

        return measured


@dataclass(frozen=True)
class ByCommand:
    """--evaluator COMMAND: a shell command that prints metrics as JSON.

    ``{model}`` in it stands for the merged model's folder, which is removed afterwards (of tasks with heads of their own: a
    folder in which each task has one), ``{tasks}`` for the names of the tasks that are wanted, with commas; bare or in quotes,
    a value stays one word, whatever is in it. Scripts also find them in the environment, as PARETOMERGE_MODEL and
    PARETOMERGE_TASKS. The last JSON object that the command prints counts: task -> metric, or task -> {metric: number}.

    Args:
        command: for ``/bin/sh``.
        objectives: a metric per task.
        scratch: where the folder is for the while; None: the system's temporary folder.
        timeout: Longest time in seconds that an evaluation may take; null sets no limit.
        dtype: Precision of the checkpoint that the command reads; null is the base's.
    """

    command: str
    objectives: Sequence[Objective]
    scratch: Path | None = None
    _: KW_ONLY
    timeout: float | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def __post_init__(self) -> None:
        if "{model}" not in self.command and VARIABLES["{model}"] not in self.command:
            raise UserError("--evaluator: the command needs {model}, where the folder of the merged model goes")
        with_references(self.command)  # refuses what cannot be one
        if self.timeout is not None and self.timeout <= 0:
            raise UserError("timeout must be positive")

    def identity(self) -> dict[str, Any]:
        try:
            words = shlex.split(self.command)
        except ValueError:
            words = self.command.split()
        files = {word: Path(word) for word in words if "{" not in word}
        scripts = {word: _digest(path.read_bytes()) for word, path in files.items() if _is_script(path)}
        return {
            "kind": "command", "command": self.command, "files": scripts, "dtype": self.dtype,
            "metrics": {o.task: o.metric for o in self.objectives},
        }  # fmt: skip

    def opened(self, models: Models) -> Measure:
        def measured(c: tuple[float, ...], tasks: Sequence[str]) -> Mapping[str, float]:
            folder = folder_for(self.scratch)
            try:
                _write(models, c, folder / "model", getattr(torch, self.dtype) if self.dtype else None)
                values = {VARIABLES["{model}"]: str(folder / "model"), VARIABLES["{tasks}"]: ",".join(tasks)}
                given = shell.run(with_references(self.command), timeout=self.timeout, variables=values)
                return checked(given, self.objectives, tasks)
            finally:
                remove_folder(folder)

        return measured


def _is_script(path: Path) -> bool:
    """Whether a word of a command is a program, and not a file that it may write to, a log for instance."""
    if not path.is_file() or path.stat().st_size > _LARGEST_SCRIPT:
        return False
    return path.suffix in (".py", ".sh", ".pl", ".R", ".jl", ".js", ".rb") or os.access(path, os.X_OK)


def _write(models: Models, c: Sequence[float], folder: Path, dtype: torch.dtype | None) -> None:
    """θ(c) as a model's folder; where tasks have heads of their own, as one folder a task inside of it."""
    from paretomerge.front.model_folder import write_model

    weights = models.at(c, dtype)
    whole: dict[str, tuple[Any, Mapping[str, Any]]] = {"": (weights, models.config)}
    if models.heads:
        whole = {task: (head.on(weights, dtype), head.config) for task, head in models.heads.items()}
        whole |= {task: (weights, models.config) for task in models.tasks if task not in whole}
    for task, (model, config) in whole.items():
        provenance = {"method": "search", "settings": {"coefficients": list(c)}, "sources": {}, "versions": {}}
        write_model(
            model, folder / task, config=config, companions=models.companions, provenance=provenance,
            shard_bytes=SHARD_BYTES,
        )  # fmt: skip


def _fingerprint(inputs: Inputs) -> str:
    """Of all that a model is given, and of the labels."""
    digest = hashlib.sha256()
    for start in range(0, len(inputs), 64):
        for name, tensor in sorted(inputs.batch(range(start, min(start + 64, len(inputs)))).items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(as_bytes(tensor))
    if inputs.labels is not None:
        digest.update(as_bytes(inputs.labels))
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
