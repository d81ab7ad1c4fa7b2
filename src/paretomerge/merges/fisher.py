"""Fisher merging (Matena & Raffel 2022): a mean in which an entry counts as much as its expert depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from paretomerge.data.tasks import Task
from paretomerge.decompositions import eigh
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.calibration import Room, Turn, in_turn, moved, not_finite
from paretomerge.merges.linear import average
from paretomerge.merges.streaming import PerTask, per_task
from paretomerge.models.build import device_of
from paretomerge.weights.lazy import Weights, matrix_shape

_FEW = 32
"""Up to this many classes the expectation is exact by default."""
_NEGLIGIBLE = 0.01
"""Share of the traces of all diag(p) − ppᵀ together that the exact expectation may leave out."""


def fisher(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    predictions: Literal["auto", "exact", "sampled", "labels"] = "auto",
    inputs: int = 256,
    floor: float = 1e-6,
    normalize: bool = False,
    weights: PerTask = 1.0,
    seed: int = 0,
    memory: float = 8.0,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Weights:
    """Σ_k F_k θ_k / Σ_k F_k per entry, F_k the diagonal of expert k's Fisher information on inputs x of its task:

        F_k = 1/n Σ_x E_{y ~ p_k(·|x)} [ (∂ log p_k(y|x) / ∂θ)² ],   then max(F_k, floor).

    The square is of each input's own gradient, so inputs pass one at a time. y is the model's own guess: labels are not
    needed. Exact: with J the Jacobian of the logits, F is the diagonal of Jᵀ (diag(p) − ppᵀ) J, one backward pass for each
    eigenvector of that small matrix; the smallest eigenvalues of all inputs, 1 % of their sum, are left out. Language models:
    at each token one y is drawn from the model's prediction there, given the text before it; as the draws are independent,
    the square of the summed gradient has the sum of the tokens' Fisher information as its mean; it is divided by the number
    of tokens. A zero-shot head (CLIP) counts as constant. Written θ₀ + Σ F_k v_k / Σ F_k, so that only differences are
    rounded.

    Memory: one model, F_k and two sums of its size, all fp32; never a whole gradient.

    Args:
        experts: base and experts.
        tasks: task -> its inputs.
        predictions: Labels for which gradients are taken. exact: the expectation over all classes. sampled: one draw from the
            expert's prediction per input. labels: the data's own (empirical Fisher). auto: exact for up to 32 classes,
            otherwise sampled.
        inputs: Largest number of inputs per task; the paper finds a few hundred sufficient.
        floor: Smallest Fisher information of an entry; where all experts are below it, the merge is the plain average.
        normalize: Divide each expert's Fisher information by its mean first, so that an uncertain expert does not count more
            than the others.
        weights: Weight of each expert's Fisher information. One number for all tasks, or one per task.
        seed: Random seed of the choice of inputs and of the draws.
        memory: Memory in GiB for the sums; the rest goes to temporary files.
        device: Device of the models: cpu, cuda or mps; auto uses the best one available.
        say: is told what the user should know, a line at a time.

    Raises:
        UserError: a task without inputs, labels that are missing, weights that sum to zero.

    Needs: inputs (labels if asked for).
    Stores: one model.
    Paper: Matena & Raffel 2022, arXiv 2111.09832.
    """
    w = per_task(weights, experts.tasks, "weights").flatten().tolist()
    if min(w) < 0 or sum(w) == 0:
        raise UserError("weights must not be negative, and not all zero")
    if floor <= 0:
        raise UserError("floor must be positive: where all F are zero there would be no mean")
    room = Room(memory)
    shapes = {name: experts.infos[name].shape for name in experts.merged}
    where = device_of(device)
    importance = {name: room.zeros(s) if where.type == "cpu" else torch.zeros(s, device=where) for name, s in shapes.items()}
    total, delta = ({name: room.zeros(shape) for name, shape in shapes.items()} for _ in range(2))
    for turn in in_turn(experts, tasks, inputs, seed, where):
        _fisher_information(turn, predictions, seed, importance, say)
        unit = sum(float(f.sum(dtype=torch.float64)) for f in importance.values()) / sum(f.numel() for f in importance.values())
        if not unit < torch.inf:
            raise not_finite(turn)
        for name, f in importance.items():
            f.div_(unit if normalize and unit else 1.0).clamp_min_(floor).mul_(w[turn.k])
            matrix = f.cpu().view(matrix_shape(f.shape))
            total[name] += matrix.view_as(f)
            for rows, _, v in turn.alone.chunks(name):
                delta[name].view_as(matrix)[rows] += matrix[rows] * v[0]
            f.zero_()
    for name in delta:
        delta[name] /= total.pop(name)
    return moved(experts, delta, average(experts))


def _fisher_information(
    turn: Turn, predictions: str, seed: int, into: Mapping[str, Tensor], say: Callable[[str], None]
) -> None:
    """Add F_k to ``into`` (zeros, by name)."""
    # squared as soon as a tensor's gradient is complete, and freed: no whole gradient is ever held
    places = {weight: into[name] for name, weight in turn.weights.items()}

    def square(weight: Tensor) -> None:
        assert weight.grad is not None
        place = places[weight]  # type: ignore[index]
        gradient = weight.grad.to(place)
        place.addcmul_(gradient, gradient)
        weight.grad = None

    with torch.no_grad():
        text_head = turn.text_head()
        predictions, smallest = _plan(turn, predictions, text_head)
    generator = torch.Generator().manual_seed(seed + 1)
    hooks = [weight.register_post_accumulate_grad_hook(square) for weight in turn.weights.values()]
    count, passes = 0, 0
    try:
        for indices, batch in turn.batches(1):
            logits = _predictions(turn, batch, text_head)
            p = logits.detach().double().softmax(-1).cpu()
            if not torch.isfinite(p).all():
                raise not_finite(turn)
            if predictions == "exact":
                directions = _roots(p[0], smallest)
            else:
                y = (
                    torch.multinomial(p, 1, generator=generator)[:, 0]
                    if predictions == "sampled"
                    else _labels(turn, indices, batch)
                )
                directions = [nn.functional.one_hot(y, p.shape[1]) - p] if len(p) else []
            for number, direction in enumerate(directions, 1):
                logits.backward(direction.to(logits), retain_graph=number < len(directions))
            count, passes = count + len(p), passes + len(directions)
    finally:
        for hook in hooks:
            hook.remove()
    for f in into.values():
        f /= max(1, count)
    say(f"{turn.task.name}: Fisher information of {count} predictions on {len(turn.chosen)} inputs, {passes} backward passes")


def _plan(turn: Turn, predictions: str, text_head: Tensor | None) -> tuple[str, float]:
    """How the expectation is taken, and for the exact one the eigenvalue up to which directions are left out."""
    if turn.task.kind == "language-modelling":
        if predictions == "exact":
            raise UserError("predictions=exact: a language model has a vocabulary of classes; use sampled")
        return ("sampled" if predictions == "auto" else predictions), 0.0
    if predictions in ("sampled", "labels"):
        return predictions, 0.0
    values: list[Tensor] = []
    for _, batch in turn.batches():
        p = turn.logits(batch, text_head).double().softmax(-1).cpu()
        if predictions == "auto" and p.shape[1] > _FEW:
            return "sampled", 0.0
        if not torch.isfinite(p).all():
            raise not_finite(turn)
        values += [eigh(_covariance(each))[0] for each in p]
    ordered = torch.cat(values).sort().values
    left_out = int((ordered.cumsum(0) <= _NEGLIGIBLE * ordered.sum()).sum())
    return "exact", float(ordered[left_out - 1]) if left_out else 0.0


def _covariance(p: Tensor) -> Tensor:
    """diag(p) − ppᵀ, of the one-hot class: p (classes,)."""
    return p.diag() - p[:, None] * p


def _roots(p: Tensor, smallest: float) -> list[Tensor]:
    """Rows l, (1, classes), with Σ lᵀl = diag(p) − ppᵀ but for eigenvalues up to ``smallest``."""
    values, vectors = eigh(_covariance(p))
    return [
        (value.sqrt() * vector)[None] for value, vector in zip(values, vectors.T, strict=True) if value > max(smallest, 1e-12)
    ]


def _predictions(turn: Turn, batch: Mapping[str, Tensor], text_head: Tensor | None) -> Tensor:
    """One input's logits (m, classes): one row, or one for each token of a text that has another before it."""
    logits = turn.logits(batch, text_head)
    if turn.task.kind != "language-modelling":
        return logits
    mask = batch.get("attention_mask")
    kept = logits[0, :-1]
    return kept if mask is None else kept[mask[0, 1:].bool().to(kept.device)]


def _labels(turn: Turn, indices: Sequence[int], batch: Mapping[str, Tensor]) -> Tensor:
    """The classes, or the tokens that the text goes on with, (m,)."""
    if turn.task.kind == "language-modelling":
        tokens = batch["input_ids"][0, 1:]
        return tokens[batch["attention_mask"][0, 1:].bool()] if "attention_mask" in batch else tokens
    if turn.inputs.labels is None:
        raise UserError(f"task {turn.task.name}: predictions=labels, but its inputs have none; leave predictions out")
    return turn.inputs.labels[indices]
