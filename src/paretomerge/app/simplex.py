"""Moving about on the simplex: what sliders, presets and the triangle do to a preference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paretomerge import preferences
from paretomerge.preferences import Preference

CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(3) / 2))
"""Where the triangle has its three tasks: left, right, top; its sides have length 1."""


def moved(gamma: Sequence[float], k: int, share: float) -> Preference:
    """γ with task k's share set; the others keep their proportions, or share alike where they had nothing.

    >>> moved((0.5, 0.3, 0.2), 0, 0.0)
    (0.0, 0.6, 0.4)
    >>> moved((1.0, 0.0, 0.0), 0, 0.5)
    (0.5, 0.25, 0.25)
    """
    others = len(gamma) - 1
    if not others:
        return (1.0,)
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    rest = math.fsum(value for j, value in enumerate(gamma) if j != k)
    left = 1 - share
    scaled = [left * (value / rest) if rest > 1e-12 else left / others for value in gamma]
    scaled[k] = share
    return preferences.parse(scaled, [str(j) for j in range(len(gamma))])


def percentages(gamma: Sequence[float]) -> list[float]:
    """Shares in per cent with one digit that still sum to 100: the largest remainders are rounded up.

    >>> percentages((1 / 3, 1 / 3, 1 / 3))
    [33.4, 33.3, 33.3]
    """
    exact = [1000 * share for share in gamma]
    steps = [math.floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda j: steps[j] - exact[j])
    for j in order[: 1000 - sum(steps)]:
        steps[j] += 1
    return [step / 10 for step in steps]


def place(gamma: Sequence[float]) -> tuple[float, float]:
    """Where three shares lie in the triangle, y upwards."""
    return sum(g * x for g, (x, _) in zip(gamma, CORNERS, strict=True)), sum(
        g * y for g, (_, y) in zip(gamma, CORNERS, strict=True)
    )


def at_place(x: float, y: float) -> Preference:
    """The preference at a place of the triangle; from outside, the nearest of its points.

    >>> [round(share, 3) for share in at_place(0.5, -1.0)]
    [0.5, 0.5, 0.0]
    """
    top = y / CORNERS[2][1]
    right = x - top / 2
    return _nearest((1 - right - top, right, top))


def _nearest(shares: tuple[float, float, float]) -> Preference:
    """The nearest point of the triangle, for shares that sum to 1 and may be negative.

    Distances of shares are distances in the plane up to a factor, so this is the projection to the simplex: subtract the same
    from all and cut at 0 (Held, Wolfe & Crowder 1974).
    """
    ordered = sorted(shares, reverse=True)
    level = max((sum(ordered[: n + 1]) - 1) / (n + 1) for n in range(3) if ordered[n] > (sum(ordered[: n + 1]) - 1) / (n + 1))
    return preferences.parse([max(0.0, share - level) for share in shares], "abc")
