"""Pareto Merging's toy problem (Chen & Kwok 2025, app. A, fig. 3): a whole front from one 2 × 2 matrix and one fit.

    python examples/toy_front.py --out toy.png                  # a few seconds
    python examples/toy_front.py --out toy.png --alpha 1        # preferences drawn evenly: the ends are not reached

Two losses of x = the row sums of X pull to (±7, −8.4). X₁ and X₂ minimise one each; what merging would make of them is their
mean. Around it θ(γ) = (X₁ + X₂)/2 + A (γ₁ G₁ + γ₂ G₂) B is learned by the same loop that merges language models:
`fit_` asks for the losses, one task at a time, and knows nothing else of the problem.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from paretomerge.fitting import Learned, Part, Target, TrainingOptions, fit_

STEPS = 2000


def losses(X: Tensor) -> Tensor:
    """L_i = c₁ f_i + c₂ h_i at X (2, 2), or at many (…, 2, 2): (…, 2)."""
    x1, x2 = X.sum(-1).unbind(-1)
    valleys = (-x1 - 7) / 2 + x2.tanh(), (-x1 + 3) / 2 + x2.tanh() + 2
    f = [valley.abs().clamp_min(5e-6).log() + 6 for valley in valleys]
    h = [((-x1 + side) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20 for side in (7, -7)]
    c1, c2 = (x2 / 2).tanh().clamp_min(0), (-x2 / 2).tanh().clamp_min(0)
    return torch.stack([c1 * f[i] + c2 * h[i] for i in (0, 1)], -1)


def minimum(task: int, start: Tensor) -> Tensor:
    """X_k: one loss alone, minimised by plain Adam, as fine-tuning would."""
    X = nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([X], lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        losses(X)[task].backward()
        optimizer.step()
    return X.detach()


def pareto_set(start: Tensor, experts: list[Tensor], settings: TrainingOptions) -> Learned:
    """Fit A, G and B around the mean of the experts."""
    ideal = torch.stack([losses(X)[k] for k, X in enumerate(experts)])  # z
    task_vectors = torch.stack([(X - start).flatten() for X in experts])
    learned = Learned({"X": start}, {"X": task_vectors}, [Target("X", (("X", 2),), (2, 2), 2)], task_wise=False)
    learned.view("lambda").fill_(1 / 2)  # start + ½ v₁ + ½ v₂ is the mean
    generator = torch.Generator().manual_seed(settings.seed)
    for part in ("X.A", "X.B"):  # G = 0
        nn.init.kaiming_uniform_(learned.view(part), a=5**0.5, generator=generator)
    X = nn.Parameter(start.clone())

    def losses_of_task(k: int, seed: int) -> Iterator[Part]:
        yield Part(losses(X)[k] - ideal[k], 1.0, {})

    fit_(learned, {"X": X}, losses_of_task, settings, frozen=["lambda"])
    return learned


def at(learned: Learned, share: float) -> Tensor:
    """θ(γ) with γ = (share, 1 − share)."""
    X = {"X": torch.empty(2, 2)}
    learned.build_(X, torch.tensor([share, 1 - share], dtype=torch.float64))
    return X["X"]


def non_dominated(points: Tensor) -> Tensor:
    """Which of (n, 2) points no other point dominates."""
    no_worse = (points[:, None] <= points[None]).all(-1)  # [j, i]: j is nowhere worse than i
    better = (points[:, None] < points[None]).any(-1)
    return ~(no_worse & better).any(0)


def exact_front(points: int = 1201) -> Tensor:
    """The front by brute force over a grid of x, in order: (n, 2)."""
    x1, x2 = torch.meshgrid(torch.linspace(-12, 12, points), torch.linspace(-12, 12, points), indexing="ij")
    every = losses(torch.stack([x1, x2], -1).flatten(0, 1)[:, :, None])
    every = every[every[:, 0].argsort(stable=True)]
    lowest = every[:, 1].cummin(0).values
    return every[torch.cat([torch.tensor([True]), every[1:, 1] < lowest[:-1]])]


def figure(path: Path, front: Tensor, marks: dict[str, Tensor], exact: Tensor, shares: Tensor, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        fig, axes = pyplot.subplots(figsize=(5.8, 5), layout="constrained")
        axes.plot(*exact.T, color="0.8", linewidth=5, solid_capstyle="round", label="the front, by brute force", zorder=1)
        dots = axes.scatter(*front.T, c=shares, cmap="viridis", s=40, edgecolors="white", linewidths=0.7, zorder=3,
                            label=f"one fit, {len(front)} preferences")  # fmt: skip
        for name, point in marks.items():
            axes.plot(*point, "D", color="#D55E00", markersize=11, markeredgecolor="white", zorder=2.5)
            axes.annotate(name, tuple(point.tolist()), (8, 8), textcoords="offset points", color="#D55E00")
        axes.set(xlabel="$L_1$", ylabel="$L_2$", title=title, aspect="equal")
        axes.set_xticks(range(-20, 1, 5))
        axes.set_yticks(range(-20, 1, 5))
        axes.legend(frameon=False, loc="upper right")
        fig.colorbar(dots, label=r"$\gamma_1 = 1 - \gamma_2$", ticks=[0, 0.25, 0.5, 0.75, 1], shrink=0.8)
        fig.savefig(path, dpi=150)
        pyplot.close(fig)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.add_argument("--alpha", type=float, default=0.1, help="of the Dirichlet distribution of γ [0.1, the paper's]")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"[{STEPS}]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    start = torch.zeros(2, 2)
    experts = [minimum(k, start) for k in (0, 1)]
    settings = TrainingOptions(
        steps=options.steps, lr=1e-3, schedule="constant", alpha=options.alpha, equal_every=0,
        scalarization="smooth-tchebycheff", mu=0.1, skip_below=0.0, seed=options.seed,
    )  # fmt: skip
    learned = pareto_set(start, experts, settings)

    shares = torch.linspace(0, 1, 31)
    front = torch.stack([losses(at(learned, float(share))) for share in shares])
    exact = exact_front()
    minima = torch.stack([losses(X) for X in experts])  # (2, 2): row k is L at X_k
    missed = (front[[-1, 0]].diagonal() - minima.diagonal()) / (minima.max(0).values - minima.diagonal())
    steps = (front[1:] - front[:-1]).norm(dim=1)
    whole = (exact[1:] - exact[:-1]).norm(dim=1).sum()
    print(f"non-dominated: {int(non_dominated(front).sum())} of {len(front)}")
    print(f"from one to the next: {steps.min():.2f} to {steps.max():.2f}; together {steps.sum() / whole:.0%} of the front")
    print(f"above the minimum at the ends: {missed[0]:.1%} of the range of L1, {missed[1]:.1%} of that of L2")
    marks = {"$X_1$": minima[0], "$X_2$": minima[1], "base $(X_1 + X_2)/2$": losses((experts[0] + experts[1]) / 2)}
    figure(options.out, front, marks, exact, shares, f"Pareto Merging's toy problem, α = {options.alpha:g}")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
