"""Fitting on data: θ(γ) is built once a step, and gradients are pulled back to the few learned numbers φ.

    γ ~ Dirichlet(α)
    write θ(γ) into the model                           one product per tensor
    for each task k that matters:
        S_k = objective of the model on a batch of task k;  ∂S_k/∂θ by one backward pass
    step φ along Σ_k w_k ∂S_k/∂φ + β ∇R,  w = scalarisation(S, γ, …)        see ``gradients``

Memory: task vectors (K), base, θ and one dense gradient, and one task's activations. Every random choice of a step is a
function of (seed, step), so a run that is stopped and resumed ends with the bits of one that was not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from paretomerge.errors import Stopped, UserError
from paretomerge.fitting.distributed import summed, world
from paretomerge.fitting.fittable import Fittable
from paretomerge.fitting.gradients import Part, by_one_gradient, by_small_gradients
from paretomerge.fitting.options import Report, TrainingOptions
from paretomerge.fitting.sampling import preference_of_step, seed_of, tasks_of_step
from paretomerge.fitting.scalarization import relative_weight, scalarization
from paretomerge.io.signals import handled
from paretomerge.io.strict_json import as_json
from paretomerge.weights.checkpoint import read_json
from paretomerge.weights.lazy import Weights
from paretomerge.weights.writing import write_json, write_safetensors

Losses = Callable[[int, int], Iterable[Part]]
"""(task k, seed of this step and task) -> the micro-batches of S_k; they are run and freed one by one."""


def fit_(
    learned: Fittable,
    weights: Mapping[str, nn.Parameter],
    losses: Losses,
    options: TrainingOptions,
    *,
    preference: Sequence[float] | None = None,
    frozen: Sequence[str] = (),
    folder: Path | None = None,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
    held_out: Callable[[], float] | None = None,
    whole: bool = False,
    report: Report | None = None,
) -> None:
    """Fit φ in place.

    Args:
        learned: φ at its start; at its end when this returns.
        weights: the parameters of the live models that θ(γ) is written into, by the base's names.
        losses: S_k, micro-batch by micro-batch.
        options: how many steps, and of what kind.
        preference: γ of every step; None: each step draws its own.
        frozen: parts of φ that stay as they are.
        folder: the run's folder (config.json, metrics.jsonl, state.safetensors); None: nothing is written.
        resume: go on from the state in ``folder``.
        facts: what else determines the run; a resumed run must have the same.
        held_out: the objective on held-out inputs at equal preference, for early stopping.
        whole: ``losses`` gives each S_k in one part, which spares smooth Tchebycheff the K small gradients.
        report: called after each step.

    Raises:
        Stopped: SIGINT, SIGTERM or SIGHUP came (to any process); the state is saved in ``folder``.
        UserError: nothing to resume, or a run with other settings; a threshold that leaves no task in a step; an objective
            that is not finite.
    """
    n_tasks, device = learned.n_tasks, learned.phi.device
    fixed = None if preference is None else torch.tensor(preference, dtype=torch.float64)
    if options.skip_threshold > 1 / n_tasks:
        raise UserError(f"skip_below must be at most 1 / {n_tasks}, an equal share: no task may take part otherwise")
    told: dict[str, Any] = {}
    weigh = scalarization(options.scalarization, options.mu, told.__setitem__)
    relative = relative_weight(options.scalarization, options.mu, whole=whole and world()[1] == 1)
    phi = nn.Parameter(learned.phi, requires_grad=True)  # the same storage: learned's views follow the optimiser
    optimizer = torch.optim.Adam([phi], lr=options.lr, betas=(0.9, 0.999))
    config = {**(facts or {}), **options.recorded()}
    run = _Run(folder, config) if folder and world()[0] == 0 else None
    start, best, waited = 0, math.inf, 0
    best_phi = learned.phi.clone() if options.patience else None
    if resume:
        start, best, waited, best_phi = _restore(folder, learned, optimizer, phi, config)
    elif run:
        run.begin()

    def save(done: int) -> None:
        if run:
            run.save(done, learned, optimizer, phi, best, waited, best_phi)

    with _stop_requested() as stop:
        for step in range(start, options.steps):
            optimizer.param_groups[0]["lr"] = lr_of_step(step, options)
            gamma = preference_of_step(step, n_tasks, options) if fixed is None else fixed
            chosen, factors = tasks_of_step(gamma, step, options)
            learned.build_(weights, gamma)
            parts = partial(_parts, losses, options.seed, step)
            arguments = (learned, weights, parts, chosen, gamma, factors, weigh)
            found = by_small_gradients(*arguments) if relative is None else by_one_gradient(*arguments, relative)
            if found.culprits:
                tasks = ", ".join(str(k + 1) for k in found.culprits)
                raise UserError(
                    f"step {step + 1}: the gradient of task {tasks} of {n_tasks} is not finite: try a smaller lr, or clip"
                )
            gradient = found.vector
            if options.beta:
                gradient += options.beta * learned.penalty(gamma)[1]
            for part_name in frozen:
                learned.view(part_name, gradient).zero_()
            if options.clip:
                gradient *= min(1.0, options.clip / max(float(gradient.norm()), 1e-30))
            phi.grad = gradient
            optimizer.step()
            logged = {
                "step": step + 1,
                "steps": options.steps,
                "gamma": gamma.tolist(),
                "losses": {str(k): float(found.values[k]) for k in chosen},
                "watched": {str(k): dict(each) for k, each in found.watched.items()},
                "lr": optimizer.param_groups[0]["lr"],
                **({str(options.scalarization): dict(told)} if told else {}),
            }
            done = step + 1
            checkpoint = done % options.checkpoint_every == 0 or done == options.steps
            if held_out and options.patience and checkpoint:
                learned.build_(weights, torch.full((n_tasks,), 1 / n_tasks, dtype=torch.float64))
                value = float(summed(torch.tensor([held_out()], dtype=torch.float64), device)) / world()[1]
                best, waited = (value, 0) if value < best else (best, waited + 1)
                if waited == 0 and best_phi is not None:
                    best_phi.copy_(learned.phi)
                logged |= {"held_out": value, "over": waited >= options.patience}
            if run:
                run.log(logged)
            if report:
                report(done, logged)
            if logged.get("over"):  # as a run that is at its end, so that nothing is left to resume
                save(options.steps)
                break
            if checkpoint:
                save(done)
            if float(summed(torch.tensor([float(bool(stop))]), device)):  # one process asked to stop stops them all
                save(done)
                hint = f"; go on with --resume (state in {folder})" if folder else ""
                raise Stopped(f"stopped after step {done} of {options.steps}{hint}", *stop[:1])
    if held_out and best_phi is not None and best < math.inf:
        learned.phi.copy_(best_phi)


def lr_of_step(step: int, options: TrainingOptions) -> float:
    """Learning rate of a step: constant, or a cosine from lr to a tenth of it."""
    if options.schedule == "constant":
        return options.lr
    return options.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / options.steps)))


class _Run:
    """A run's folder: config.json says what is run, metrics.jsonl has a line per step, state.safetensors where it stands."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = config
        for name in ("config.json", "metrics.jsonl", "state.safetensors", ".state.writing"):
            if (folder / name).is_symlink():  # what is written must not follow one out of the folder
                raise UserError(f"{folder / name}: is a link: remove it, or name another folder (--run)")

    def begin(self) -> None:
        with _written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "state.safetensors").unlink(missing_ok=True)
            (self.folder / "metrics.jsonl").write_text("")
            write_json(self.folder / "config.json", self.config)

    def log(self, line: Mapping[str, Any]) -> None:
        with _written(self.folder), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(as_json(line, indent=None) + "\n")

    def save(
        self, done: int, learned: Fittable, optimizer: torch.optim.Adam, phi: nn.Parameter, best: float, waited: int,
        best_phi: Tensor | None,
    ) -> None:  # fmt: skip
        state = optimizer.state[phi]
        tensors = {
            "phi": learned.phi, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"],
            "numbers": torch.tensor([done, waited, best], dtype=torch.float64),
        }  # fmt: skip
        if best_phi is not None:
            tensors["best_phi"] = best_phi
        temporary = self.folder / ".state.writing"
        with _written(self.folder):
            try:
                write_safetensors(Weights.of({name: t.detach().cpu() for name, t in tensors.items()}), temporary)
                os.replace(temporary, self.folder / "state.safetensors")
            except OSError:
                temporary.unlink(missing_ok=True)  # the state before stays
                raise


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A full disk, a folder without permission: said in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: the run's state cannot be written ({error.strerror or error})") from error


def check_run(folder: Path | None, options: TrainingOptions, facts: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse, before any work is done, what ``fit_`` would refuse to resume, and to begin where a run waits to be resumed.

    Raises:
        UserError: to resume: no saved state in the folder, or one of a run with other settings or facts; otherwise: the
            state of a run that has not come to its end.
    """
    if resume:
        _resumable(folder, {**facts, **options.recorded()})
    elif folder is not None and (stands := _stands(folder)) is not None and stands[0] < stands[1]:
        raise UserError(
            f"{folder}: holds a run that stopped after step {stands[0]} of {stands[1]}: go on with --resume, name another "
            f"folder (--run), or remove it"
        )


def _stands(folder: Path) -> tuple[int, int] | None:
    """After which step of how many the run in a folder stands; None: there is none, or nothing that can be read."""
    try:
        with safe_open(folder / "state.safetensors", "pt") as state:
            done = int(state.get_tensor("numbers")[0])
        return done, int(read_json(folder / "config.json")["steps"])
    except (OSError, SafetensorError, UserError, LookupError, TypeError, ValueError):
        return None


def _resumable(folder: Path | None, config: Mapping[str, Any]) -> Path:
    if folder is None or not (folder / "state.safetensors").exists():
        raise UserError(f"{folder or 'no folder is given'}: no saved state to resume from: leave --resume out")
    before = read_json(folder / "config.json")
    now = json.loads(json.dumps(config))
    if others := sorted(before.keys() ^ now.keys()):
        raise UserError(
            f"{folder}: that run was begun by another version of paretomerge, or by another method ({others[0]}): remove the "
            f"folder and start again without --resume"
        )
    if differing := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        key = sorted(differing)[0]
        raise UserError(f"{folder}: that run had {key} = {before.get(key)}, not {now.get(key)}: resume with the same settings")
    return folder


def _restore(
    folder: Path | None, learned: Fittable, optimizer: torch.optim.Adam, phi: nn.Parameter, config: Mapping[str, Any]
) -> tuple[int, float, int, Tensor | None]:
    """Put a saved state back; the log loses the lines of steps that are done again."""
    folder = _resumable(folder, config)
    try:
        saved = load_file(folder / "state.safetensors")
        done, waited, best = saved["numbers"].tolist()
        done, waited = int(done), int(waited)
        names = ("phi", "exp_avg", "exp_avg_sq", *(("best_phi",) if config["patience"] else ()))
        vectors = [saved[name].to(phi.detach()) for name in names]
        if any(vector.shape != phi.shape for vector in vectors):
            raise ValueError("of another size")
        if done < 0 or not all(bool(vector.isfinite().all()) for vector in vectors):
            raise ValueError("entries that are no numbers")
    except (OSError, SafetensorError, LookupError, TypeError, RuntimeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{folder / 'state.safetensors'}: damaged ({error}): start again without --resume") from error
    learned.phi.copy_(vectors[0])
    optimizer.state[phi] = {"step": torch.tensor(float(done)), "exp_avg": vectors[1], "exp_avg_sq": vectors[2]}
    if world()[0] == 0:
        log = folder / "metrics.jsonl"
        with _written(folder):
            lines = log.read_bytes().splitlines(keepends=True)[:done] if log.exists() else []
            shorter = folder / ".metrics.writing"
            shorter.write_bytes(b"".join(lines))
            os.replace(shorter, log)
    return done, best, waited, vectors[3] if config["patience"] else None


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """The signals that have asked to stop, so that a step is never cut in two; outside the main thread none is seen."""
    came: list[int] = []
    with handled(lambda number, _: came.append(number)):
        yield came


def _parts(losses: Losses, seed: int, step: int, k: int) -> Iterable[Part]:
    return losses(k, seed_of(seed, step, 3 + k))
