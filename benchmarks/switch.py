"""Moving a live model from one preference to the next, in place (`front.apply_`), beside what memory allows.

    .venv/bin/python benchmarks/switch.py                # GPT-2's size, 4 tasks, rank 16, every block's matrices
    .venv/bin/python benchmarks/switch.py --small        # does it run?

Weights and factors are random: the work is the same for any. The floor is one in-place `addmm_` of given factors into each
matrix, which reads and writes every varying weight once; `apply_` makes the factors, too. Rounds alternate, so that both meet
the same load; times are medians and minima over --rounds, CPU is user + system seconds of all threads.
"""

import argparse
import json
import time
from statistics import median
from typing import Any

import torch
import transformers

from paretomerge.front import Front
from paretomerge.sets import Factors, ParetoSet
from paretomerge.weights import Weights

SMALL = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}


def made(k: int, rank: int, dtype: torch.dtype, small: bool) -> Front:
    """A front of K tasks whose every block matrix has a random low-rank term."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**(SMALL if small else {}))
    model = transformers.GPT2LMHeadModel(config).to(dtype)
    base = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    factors = {}
    for name, weight in base.items():
        if weight.ndim == 2 and ".h." in name:
            rows, columns = weight.shape
            g = 0.01 * torch.randn(k, rank, rank)
            a, b = (torch.linalg.qr(torch.randn(n, rank))[0] for n in (rows, columns))
            factors[name] = Factors(a, g - g.mean(0), b.T.contiguous(), ((name, rows),))
    tasks = [f"task{i}" for i in range(k)]
    pareto_set = ParetoSet(tasks, Weights.of(base), factors=factors)
    sources = {"base": {"path": "random", "files": {}}, "experts": {}}
    return Front(pareto_set, {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}, {}, sources, None)


def clocked(call) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def measured(given: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Milliseconds of the floor and of `apply_`."""
    front = made(given.k, given.rank, getattr(torch, dtype), given.small)
    model = front.model("equal")
    gammas = torch.distributions.Dirichlet(torch.ones(given.k)).sample((given.rounds,)).tolist()
    front.apply_(model, gammas[0])
    since = front.pareto_set.preference(gammas[0])
    varying = [p for name, p in model.named_parameters() if name in front.pareto_set.varying]
    shift = front.pareto_set.shift(since)
    pairs = [shift.pair(name) for name in front.pareto_set.varying]
    pairs = [(left.to(p.dtype), right.to(p.dtype)) for (left, right), p in zip(pairs, varying, strict=True)]

    @torch.no_grad()
    def floor() -> None:
        for parameter, (left, right) in zip(varying, pairs, strict=True):
            parameter.addmm_(left, right, alpha=1e-6)

    times: dict[str, list[tuple[float, float]]] = {"floor": [], "apply_": []}
    for gamma in gammas:
        times["floor"].append(clocked(floor))
        times["apply_"].append(clocked(lambda gamma=gamma: front.apply_(model, gamma)))
    found = {
        name: {
            "ms, median": round(1000 * median(wall for wall, _ in each), 1),
            "ms, least": round(1000 * min(wall for wall, _ in each), 1),
            "CPU ms, median": round(1000 * median(cpu for _, cpu in each), 1),
        }
        for name, each in times.items()
    }
    return {"dtype": dtype, "varying": len(varying), "entries": sum(p.numel() for p in varying), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps({**vars(given), "runs": [measured(given, dtype) for dtype in ("float32", "bfloat16")]}, indent=2))


if __name__ == "__main__":
    main()
