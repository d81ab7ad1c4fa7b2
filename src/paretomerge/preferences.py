"""Preferences: points γ of the simplex {γ ∈ ℝᴷ : γ_k ≥ 0, Σ_k γ_k = 1}, one entry per task.

A preference is a plain tuple of K floats in the order of the tasks. People write it as text:

    math=2,code=1     weights of any scale, every task named
    equal             γ_k = 1/K
    priority:math     1/2 on one task, the rest shared by the others; of two tasks 2/3, as 1/2 would be equal
    only:math         everything on one task
"""

from __future__ import annotations

import difflib
import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from paretomerge.errors import UserError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Preference",
    "PreferenceError",
    "Spec",
    "check_task",
    "dirichlet",
    "equal",
    "format",
    "grid",
    "one_hot",
    "parse",
    "priority",
    "priority_in_words",
    "priority_share",
]

Preference = tuple[float, ...]
Spec = str | Mapping[str, float] | Sequence[float]


class PreferenceError(UserError):
    """A preference that cannot be understood."""


def parse(spec: Spec, tasks: Sequence[str]) -> Preference:
    """Return the preference that `spec` describes, γ_k = w_k / Σ_j w_j.

    Parameters
    ----------
    spec
        Text as above, a mapping from every task to its weight, or K weights in the order of `tasks`.
    tasks
        The K names; in text they must be free of commas.

    Raises
    ------
    PreferenceError
        An unknown, missing or repeated task; a weight that is no number, negative, NaN or infinite; no positive weight.

    Weights that already sum to 1, up to rounding, come back bit for bit, so `parse` is idempotent.

    >>> parse("math=3,code=1", ["math", "code"])
    (0.75, 0.25)
    >>> parse("priority:b", ["a", "b", "c"])
    (0.25, 0.5, 0.25)
    >>> parse({"code": 0, "math": 2}, ["math", "code"])
    (1.0, 0.0)
    >>> parse("math=1", ["math", "code"])
    Traceback (most recent call last):
    paretomerge.preferences.PreferenceError: preference: no weight for code; name every task, if only as code=0
    """
    if not isinstance(spec, str):
        if isinstance(spec, Mapping):
            return _normalised(_in_order(spec.items(), tasks), tasks)
        weights = list(spec)
        if len(weights) != len(tasks):
            raise PreferenceError(f"preference: {len(weights)} weights for {len(tasks)} tasks ({', '.join(tasks)})")
        return _normalised(weights, tasks)

    spec = spec.strip()
    if spec == "equal":
        return equal(len(tasks))
    keyword, _, name = spec.partition(":")
    if keyword in ("priority", "only") and "=" not in spec:
        k = _index(name.strip(), tasks)
        return priority(len(tasks), k) if keyword == "priority" else one_hot(len(tasks), k)

    items = []
    for item in spec.split(","):
        name, equals, weight = (part.strip() for part in item.rpartition("="))
        if not equals:
            example = ",".join(f"{task}=1" for task in tasks)
            raise PreferenceError(
                f"preference: {item.strip()!r} is not task=weight; write {example}, equal, priority:TASK or only:TASK"
            )
        items.append((name, weight))
    return _normalised(_in_order(items, tasks), tasks)


def check_task(name: str) -> None:
    """Refuse a task's name that could be taken for anything but a name.

    A name comes from anybody's front, and goes into the text of preferences, into paths, shell commands, tables and pages. Of
    ASCII it may therefore hold letters, digits, spaces and ``. _ - +``, none of which a shell, a path or a page reads as
    syntax, and of other alphabets whatever can be printed.

    Raises:
        UserError: another character, a name that begins with anything but a letter, a digit or _, or one over 200 bytes.

    >>> check_task("../x")
    Traceback (most recent call last):
    paretomerge.errors.UserError: '../x' is no name for a task: use letters, digits, spaces and . _ - +, a letter or digit first
    >>> check_task("数学 v1.2")
    """
    known = all(sign.isprintable() and (not sign.isascii() or sign.isalnum() or sign in " ._-+") for sign in name)
    if not known or name[:1] in ("", *" .-+") or name.endswith(" ") or len(name.encode()) > 200:
        quoted = repr(name if len(name) <= 60 else f"{name[:57]}...")
        raise UserError(
            f"{quoted} is no name for a task: use letters, digits, spaces and . _ - +, a letter or digit first"
            + (", at most 200 bytes" if known and len(name) > 60 else "")
        )


def format(preference: Sequence[float], tasks: Sequence[str]) -> str:
    """Return the text of a preference; `parse` gives the same floats back.

    >>> format((0.75, 0.25), ["math", "code"])
    'math=0.75,code=0.25'
    """
    weights = parse(preference, tasks)
    return ",".join(f"{task}={repr(weight).removesuffix('.0')}" for task, weight in zip(tasks, weights, strict=True))


def equal(K: int) -> Preference:
    """γ_k = 1/K.

    >>> equal(4)
    (0.25, 0.25, 0.25, 0.25)
    """
    return (1 / K,) * K


def priority(K: int, k: int) -> Preference:
    """γ_k = ``priority_share(K)`` and an equal part of the rest for each other task.

    >>> priority(3, 0)
    (0.5, 0.25, 0.25)
    """
    share = priority_share(K)
    other = (1 - share) / max(1, K - 1)
    return tuple(float(share if j == k else other) for j in range(K))


def priority_share(K: int) -> Fraction:
    """What the task that has priority gets: 1/2, the papers' share; 2/3 of two tasks, all of one.

    Half of two tasks would be equal preference, which the papers, who use priority for eight tasks, do not come to. Two thirds
    are twice what the other task gets, as of three tasks.

    >>> [str(priority_share(K)) for K in (1, 2, 3, 8)]
    ['1', '2/3', '1/2', '1/2']
    """
    return {1: Fraction(1), 2: Fraction(2, 3)}.get(K, Fraction(1, 2))


def priority_in_words(K: int) -> str:
    """The same in words, for tables and pages.

    >>> priority_in_words(2), priority_in_words(8)
    ('two thirds', 'half')
    """
    return {1: "all", 2: "two thirds"}.get(K, "half")


def one_hot(K: int, k: int) -> Preference:
    """γ_k = 1, all others 0.

    >>> one_hot(3, 1)
    (0.0, 1.0, 0.0)
    """
    return tuple(float(j == k) for j in range(K))


def grid(K: int, steps: int) -> list[Preference]:
    """Return the simplex lattice of Das and Dennis, {γ : steps·γ_k ∈ ℕ, Σ_k γ_k = 1}, in lexicographic order.

    It has C(steps + K − 1, K − 1) points, among them the K one-hot preferences.

    >>> grid(2, 4)
    [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)]
    """
    if K < 1 or steps < 1:
        raise ValueError(f"grid: K and steps must be at least 1, got K = {K}, steps = {steps}")
    # stars and bars: K − 1 bars among `steps` stars; γ_k counts the stars between two bars
    places = steps + K - 1
    bars = ((-1, *inner, places) for inner in itertools.combinations(range(places), K - 1))
    return [tuple((right - left - 1) / steps for left, right in itertools.pairwise(bar)) for bar in bars]


def dirichlet(K: int, n: int, alpha: float | Sequence[float] = 1.0, seed: int | np.random.Generator = 0) -> np.ndarray:
    """Draw n preferences γ ~ Dir(α), an (n, K) float64 array; α is one number for all tasks, or one per task.

    γ = softmax(log g) with g_k ~ Gamma(α_k); log g_k is drawn as log Gamma(α_k + 1) + log(U)/α_k, which holds for
    however small an α: no row is lost to underflow, where g itself would be 0 for every task.

    >>> dirichlet(3, 2, alpha=0.3, seed=0).shape
    (2, 3)
    """
    import numpy as np

    α = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (K,))
    if not (np.isfinite(α).all() and (α > 0).all()):
        raise ValueError(f"dirichlet: alpha must be positive and finite, got {alpha}")
    α = np.maximum(α, 1e-300)  # one-hot all the same, and log(U)/α stays finite
    rng = np.random.default_rng(seed)
    log_g = np.log(rng.standard_gamma(α + 1, (n, K))) - rng.standard_exponential((n, K)) / α  # log U = −Exp(1)
    g = np.exp(log_g - log_g.max(axis=1, keepdims=True))
    return g / g.sum(axis=1, keepdims=True)


def _index(name: str, tasks: Sequence[str]) -> int:
    """Return the place of a task."""
    if name in tasks:
        return tasks.index(name)
    near = difflib.get_close_matches(name, tasks, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ";"
    the = "The" if near else "the"
    raise PreferenceError(f"preference: unknown task {name!r}{hint} {the} tasks are {', '.join(tasks)}")


def _in_order(items: Iterable[tuple[str, float | str]], tasks: Sequence[str]) -> list[float | str]:
    """Return the weights in the order of the tasks, each named exactly once."""
    weights: dict[int, float | str] = {}
    for name, weight in items:
        k = _index(name, tasks)
        if k in weights:
            raise PreferenceError(f"preference: task {name!r} is named twice")
        weights[k] = weight
    missing = [task for k, task in enumerate(tasks) if k not in weights]
    if missing:
        write = ",".join(f"{task}=0" for task in missing)
        raise PreferenceError(f"preference: no weight for {', '.join(missing)}; name every task, if only as {write}")
    return [weights[k] for k in range(len(tasks))]


def _normalised(raw: Sequence[float | str], tasks: Sequence[str]) -> Preference:
    """Return the weights over their sum."""
    weights = []
    for task, value in zip(tasks, raw, strict=True):
        try:
            weight = float(value) + 0.0  # −0 becomes 0
        except (TypeError, ValueError):
            raise PreferenceError(f"preference: the weight of {task!r} is not a number: {value!r}") from None
        if not 0 <= weight < math.inf:
            raise PreferenceError(f"preference: the weight of {task!r} must be finite and not negative, got {weight}")
        weights.append(weight)
    largest = max(weights, default=0.0)
    if largest == 0:
        raise PreferenceError("preference: all weights are 0; at least one task needs a positive weight")
    if largest <= 1 and abs(math.fsum(weights) - 1) <= 2 * sys.float_info.epsilon:
        return tuple(weights)
    _, exponent = math.frexp(largest)
    scaled = [math.ldexp(weight, -exponent) for weight in weights]  # exact, and the sum cannot overflow
    total = math.fsum(scaled)
    return tuple(weight / total for weight in scaled)
