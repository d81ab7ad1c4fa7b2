"""Data-free Pareto Merging: the decomposition beside full SVDs, and K² numbers beside full cores for smooth Tchebycheff."""

import math

import pytest
import torch

import oracles
from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.experts import Experts, load_experts
from paretomerge.fitting import closed_form, pareto_merging, tchebycheff_mixing, tucker2
from paretomerge.merges import task_arithmetic, ties
from states import NAMES, near, opened

SHAPES = {
    "attn.query.weight": (12, 10),
    "attn.key.weight": (6, 10),
    "attn.value.weight": (6, 10),
    "mlp.weight": (20, 9),
    "norm.bias": (10,),
}


def family(K, seed=0, dtype=torch.float32, size=0.3, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return base, [near(base, seed + k, size) for k in range(K)]


def stack(base, experts, names):
    """Task vectors of the matrices `names`, stacked by rows: (K, m, n)."""
    return torch.stack([torch.cat([oracles.wide(e[n]) - oracles.wide(base[n]) for n in names]) for e in experts])


def draw(kind, K, shape, seed=0):
    """Stacks D with Σ_k D_k = 0 of several spectra."""
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    d = torch.randn(K, m, n, generator=generator)
    if kind == "low rank":
        d = torch.randn(K, m, 3, generator=generator) @ torch.randn(K, 3, n, generator=generator) + 0.01 * d
    if kind == "decaying":
        u = torch.linalg.qr(torch.randn(m, min(shape), generator=generator))[0]
        v = torch.linalg.qr(torch.randn(n, min(shape), generator=generator))[0]
        d = u * 0.8 ** torch.arange(min(shape)) @ torch.randn(K, min(shape), min(shape), generator=generator) @ v.T
    return d - d.mean(0) if K > 1 else d


def passes(d, step):
    """D in slices of `step` rows, as ``tucker2`` reads it."""
    return lambda: ((slice(i, min(i + step, d.shape[1])), d[:, i : i + step]) for i in range(0, d.shape[1], step))


def decomposed(d, rank, sweeps=3, step=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tucker2(passes(d, step), len(d), tuple(d.shape[1:]), rank, sweeps, generator)


# -- the decomposition


@pytest.mark.parametrize("kind", ["noise", "low rank", "decaying"])
@pytest.mark.parametrize(
    "K, shape, rank", [(1, (30, 20), 4), (2, (48, 32), 8), (3, (20, 64), 5), (8, (40, 40), 6), (2, (90, 7), 3)]
)
def test_captures_as_much_as_full_svds(kind, K, shape, rank):
    d = draw(kind, K, shape)
    _, cores, _, norms = decomposed(d, rank)
    best_a, best_b = oracles.tucker2(d.double(), rank)
    best = (best_a.T @ d.double() @ best_b.T).square().sum()
    # spectra that decay, as those of real experts do, are met to 1e-3 in three sweeps; noise has no head to find
    loss = {"decaying": 1e-3, "low rank": 5e-3, "noise": 5e-2}[kind]
    assert cores.square().sum() >= best * (1 - loss)
    assert decomposed(d, rank, sweeps=40)[1].square().sum() >= best * (1 - loss / 5)
    torch.testing.assert_close(norms, d.double().square().sum((1, 2)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("K, shape, rank", [(1, (30, 20), 4), (2, (48, 32), 8), (8, (16, 40), 30)])
def test_factors_are_orthonormal_and_cores_are_projections(K, shape, rank):
    d = draw("noise", K, shape)
    a, cores, b, _ = decomposed(d, rank)
    r = min(rank, *shape)
    assert a.shape == (shape[0], r) and b.shape == (r, shape[1]) and cores.shape == (K, r, r)
    torch.testing.assert_close(a.T @ a, torch.eye(r), rtol=0, atol=1e-5)
    torch.testing.assert_close(b @ b.T, torch.eye(r), rtol=0, atol=1e-5)
    torch.testing.assert_close(cores, a.double().T @ d.double() @ b.double().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_of_nothing_is_orthonormal_too(rank):
    a, cores, b, norms = decomposed(torch.zeros(3, 12, 10), rank)
    torch.testing.assert_close(a.T @ a, torch.eye(rank), rtol=0, atol=1e-5)
    torch.testing.assert_close(b @ b.T, torch.eye(rank), rtol=0, atol=1e-5)
    assert cores.abs().max() == 0 and norms.abs().max() == 0


def test_of_a_lower_rank_is_exact():
    d = torch.randn(1, 20, 2) @ torch.randn(2, 15)
    d = torch.cat([d, -d])
    a, cores, b, _ = decomposed(d, 6)
    torch.testing.assert_close(a.T @ a, torch.eye(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(a @ cores.float() @ b, d, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [1, 7, 30])
def test_slices_do_not_show(step):
    d = draw("decaying", 3, (30, 20))
    whole, sliced = decomposed(d, 4), decomposed(d, 4, step=step)
    for one, other in zip(approximations(whole), approximations(sliced), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def approximations(result):
    a, cores, b, norms = result
    return [a.double() @ core @ b.double() for core in cores] + [norms]


def test_norms_of_large_slices():
    """Of four million entries: plain sums in fp32 would be off by 1e-5 where a processor adds one after the other."""
    d = torch.randn(2, 2100, 1000, generator=torch.Generator().manual_seed(0))
    *_, norms = decomposed(d, 1, sweeps=1, step=5000)
    torch.testing.assert_close(norms, d.double().square().sum((1, 2)), rtol=1e-5, atol=0)


# -- the set


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merge", [None, ties])
@pytest.mark.parametrize("K", [1, 2, 3])
def test_equal_preference_is_the_base_merge_bit_for_bit(K, merge, dtype):
    loaded = opened(*family(K, dtype=dtype))
    on = merge(loaded) if merge else None
    weights = pareto_merging(loaded, on=on, rank=3, targets="all").at("equal")
    reference = on if merge else task_arithmetic(loaded, scale=1 / K)
    assert all(torch.equal(weights[name], reference[name]) for name in reference)


@pytest.mark.parametrize("scale", [None, 0.4])
def test_full_rank_is_equation_3(scale):
    # square matrices: r = side is no truncation; two tasks: D_1 = −D_2 has the rank of one matrix, so any shape will do
    for K, shape in ((3, (9, 9)), (2, (12, 7)), (5, (6, 6))):
        base, experts = family(K, shapes={"q.weight": shape})
        pareto_set = pareto_merging(opened(base, experts), rank=99, scale=scale)
        assert pareto_set.factors["q.weight"].rank == min(shape)
        lam = 1 / K if scale is None else scale
        v = stack(base, experts, ["q.weight"])
        for gamma in [preferences.one_hot(K, 0), preferences.priority(K, K - 1), preferences.equal(K)]:
            expected = base["q.weight"] + K * lam * torch.einsum("k,kmn->mn", torch.tensor(gamma), v)
            torch.testing.assert_close(pareto_set.at(gamma)["q.weight"], expected, rtol=1e-4, atol=1e-5)
        assert pareto_set.settings["captured"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("K", [2, 3, 8])
@pytest.mark.parametrize("rank", [1, 4])
def test_is_the_best_approximation_of_equation_3_in_its_subspace(K, rank):
    base, experts = family(K)
    pareto_set = pareto_merging(opened(base, experts), rank=rank, targets="all")
    for name, target in pareto_set.factors.items():
        d = oracles.deviations(stack(base, experts, [name]), 1 / K)
        a, b = target.a.double(), target.b.double()
        torch.testing.assert_close(target.g.double(), a.T @ d @ b.T, rtol=1e-4, atol=1e-4)
        assert target.g.sum(0).abs().max() < 1e-4


def test_q_k_and_v_together():
    base, experts = family(3)
    qkv = ["attn.query.weight", "attn.key.weight", "attn.value.weight"]
    fused = pareto_merging(opened(base, experts), rank=3, fuse_qkv=True)
    # the same as one matrix that holds the three
    rows = {"attn.qkv.weight": torch.cat([base[n] for n in qkv])}
    stacked = [{"attn.qkv.weight": torch.cat([e[n] for n in qkv])} for e in experts]
    whole = pareto_merging(opened(rows, stacked), rank=3)
    assert fused.added_parameters() == whole.added_parameters() == 24 * 3 + 3 * 9 + 3 * 10
    for k in range(3):
        gamma = preferences.one_hot(3, k)
        together = torch.cat([fused.at(gamma)[n] for n in qkv])
        torch.testing.assert_close(together, whole.at(gamma)["attn.qkv.weight"], rtol=1e-3, atol=1e-3)
    assert set(fused.varying) == set(qkv)


@pytest.mark.parametrize("scalarization", ["linear", "smooth-tchebycheff"])
def test_one_task(scalarization):
    base, experts = family(1)
    pareto_set = pareto_merging(opened(base, experts), rank=2, scalarization=scalarization)
    for name in base:
        torch.testing.assert_close(pareto_set.at("only:a")[name], experts[0][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scalarization", ["linear", "smooth-tchebycheff"])
def test_experts_that_are_the_base(scalarization):
    base, _ = family(1)
    pareto_set = pareto_merging(opened(base, [base, base, base]), rank=2, scalarization=scalarization)
    for name in base:
        assert torch.equal(pareto_set.at("only:b")[name], base[name])
    assert pareto_set.settings["captured"] == 1.0


@pytest.mark.parametrize("fuse_qkv", [True, False])
@pytest.mark.parametrize("scalarization", ["linear", "smooth-tchebycheff"])
def test_reading_anew_each_time_gives_the_same(monkeypatch, fuse_qkv, scalarization):
    loaded = opened(*family(3))
    options = {"rank": 2, "targets": "all", "fuse_qkv": fuse_qkv, "scalarization": scalarization}
    kept = pareto_merging(loaded, **options)
    monkeypatch.setattr(closed_form, "_IN_MEMORY", 0)
    chunks = Experts.chunks
    monkeypatch.setattr(Experts, "chunks", lambda self, name, entries=0: chunks(self, name, 25))  # slices of two rows
    anew = pareto_merging(loaded, **options)
    for k in range(3):
        one, other = kept.at(preferences.one_hot(3, k)), anew.at(preferences.one_hot(3, k))
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_same_seed_same_bytes():
    loaded = opened(*family(3))
    one, other = (pareto_merging(loaded, rank=2, seed=4).stored()[0] for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_number_of_cores_does_not_show():
    """Targets are decomposed side by side, on a core each: how many there are changes neither the sums nor the order."""
    shapes = {f"{i}.q_proj.weight": (1400 + i, 1100) for i in range(3)}
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found.append(pareto_merging(opened(*family(2, shapes=shapes)), rank=16).factors)
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert list(other) == list(found[0])
        for name, target in found[0].items():
            assert all(torch.equal(part, other[name].parts()[key]) for key, part in target.parts().items()), name


def test_progress_counts_every_entry_once():
    seen = {}
    pareto_merging(opened(*family(2)), rank=2, targets="all", progress=seen.__setitem__)
    assert seen == {name: 2 * math.prod(shape) for name, shape in SHAPES.items() if len(shape) == 2}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "rank 0"),
        ({"mu": 0.0}, "mu"),
        ({"alpha": -1.0}, "alpha"),
        ({"beta": -0.1}, "beta"),
        ({"sweeps": 0}, "sweeps"),
        ({"scalarization": "chebyshev"}, "linear or smooth-tchebycheff"),
        ({"targets": "nothing*"}, "nothing"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message) as error:
        pareto_merging(opened(*family(2)), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fuse_qkv", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["attn.key.weight", "norm.bias"])
def test_nan_is_an_error_that_names_the_tensor(fuse_qkv, bad, where):
    base, experts = family(2)
    experts[1][where].view(-1)[3] = bad
    with pytest.raises(UserError, match=rf"^expert b: {where}: 1 of \d+ entries are NaN or infinite"):
        pareto_set = pareto_merging(opened(base, experts), rank=2, fuse_qkv=fuse_qkv, scalarization="smooth-tchebycheff")
        for name in base:
            pareto_set.at("only:a")[name]


def test_a_tied_embedding_is_no_target():
    embedding = torch.zeros(9, 4)
    base = {"wte.weight": embedding, "lm_head.weight": embedding, "q.weight": torch.zeros(4, 4)}
    moved = torch.ones(9, 4)
    loaded = load_experts(base, {"a": {"wte.weight": moved, "lm_head.weight": moved, "q.weight": torch.eye(4)}})
    pareto_merging(loaded, rank=1)
    with pytest.raises(UserError, match=r"wte.weight: is stored again as lm_head.weight"):
        pareto_merging(loaded, rank=1, targets=["*"])


# -- smooth Tchebycheff


def problem(K, r=2, seed=0):
    """Cores P_k of one target with Σ_k P_k = 0, and constants."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(K, r, r, generator=generator, dtype=torch.float64) * 0.5
    constants = torch.rand(K, generator=generator, dtype=torch.float64)
    return p - p.mean(0), constants


def gram(p):
    return torch.tensordot(p, p, dims=([1, 2], [1, 2]))


def optimised(p, constants, gammas, mu, beta):
    """The best full cores (K, r, r) by direct optimisation of the definition."""
    g = p.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([g], max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = oracles.smooth_tchebycheff(g, p, constants, gammas, mu, beta)
        value.backward()
        return value

    optimizer.step(loss)
    return g.detach()


@pytest.mark.parametrize("K, mu, alpha, beta", [(2, 0.1, 0.5, 0.0), (2, 1.0, 0.1, 0.2), (3, 0.1, 0.3, 0.0), (3, 0.5, 1.0, 0.1)])
def test_k_squared_numbers_reach_the_optimum_of_the_full_cores(K, mu, alpha, beta):
    samples = 24
    p, constants = problem(K)
    gammas = torch.from_numpy(preferences.dirichlet(K, samples, alpha, 7))
    mixing = tchebycheff_mixing(gram(p), constants, mu, alpha, beta, samples=samples, seed=7)
    ours = torch.tensordot(mixing, p, dims=1)
    direct = optimised(p, constants, gammas, mu, beta)

    def value(g):
        return float(oracles.smooth_tchebycheff(g, p, constants, gammas, mu, beta))

    assert value(ours) <= value(direct) + 1e-7
    assert value(ours) < value(p)  # linear scalarisation's solution is another
    # the cores themselves may differ where no γ tells them apart; at the sampled γ they agree
    torch.testing.assert_close(
        torch.tensordot(gammas, ours, dims=1), torch.tensordot(gammas, direct, dims=1), rtol=1e-3, atol=2e-4
    )


@pytest.mark.parametrize("K", [2, 3, 8])
def test_the_weighted_gradients_vanish_at_the_optimum(K):
    # ∇g_γ = Σ_k w_k ∇S_k with w_k = γ_k softmax_k(γ_k S_k / μ) (METHOD.md, section 3), and ∇_{G_j} S_k = 2 γ_j (G_γ − P_k)
    mu, alpha, beta, samples = 0.1, 0.3, 0.05, 200
    p, constants = problem(K, r=3)
    gammas = torch.from_numpy(preferences.dirichlet(K, samples, alpha, 1))
    mixing = tchebycheff_mixing(gram(p), constants, mu, alpha, beta, samples=samples, seed=1)
    g = torch.tensordot(mixing, p, dims=1)

    def gradient(g):
        total = torch.zeros_like(g)
        for gamma in gammas:
            g_gamma = torch.tensordot(gamma, g, dims=1)
            s = (g_gamma - p).square().sum((1, 2)) + constants
            w = gamma * torch.softmax(gamma * s / mu, 0)
            towards = torch.tensordot(w, 2 * (g_gamma - p), dims=1) + 2 * beta * g_gamma
            total += gamma[:, None, None] * towards
        return total / samples

    # the formula is the gradient of the definition …
    leaf = p.clone().requires_grad_()
    oracles.smooth_tchebycheff(leaf, p, constants, gammas, mu, beta).backward()
    torch.testing.assert_close(gradient(p), leaf.grad, rtol=1e-9, atol=1e-12)
    # … and at the optimum it is zero in every direction of the full cores, not only in the span of the P_k
    assert gradient(g).norm() < 1e-5 * gradient(p).norm()


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_is_convex_in_the_mixing(seed):
    p, constants = problem(3, seed=seed)
    gammas = torch.from_numpy(preferences.dirichlet(3, 20, 0.5, seed))
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)

    def value(mixing):
        return float(oracles.smooth_tchebycheff(torch.tensordot(mixing, p, dims=1), p, constants, gammas, 0.2, 0.1))

    for t in (0.1, 0.5, 0.8):
        assert value(t * h[0] + (1 - t) * h[1]) <= t * value(h[0]) + (1 - t) * value(h[1]) + 1e-12


@pytest.mark.parametrize("scalarization", ["linear", "smooth-tchebycheff"])
def test_beta_shrinks(scalarization):
    loaded = opened(*family(3))
    sizes = []
    for beta in (0.0, 0.1, 1.0, 10.0):
        pareto_set = pareto_merging(loaded, rank=3, beta=beta, scalarization=scalarization)
        gammas = torch.eye(3, dtype=torch.float64) - 1 / 3
        sizes.append(
            float(
                sum(
                    torch.tensordot(gamma, t.g.double(), dims=1).square().sum()
                    for t in pareto_set.factors.values()
                    for gamma in gammas
                )
            )
        )
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[-1]
    if scalarization == "linear":
        assert sizes == pytest.approx([sizes[0] / (1 + beta) ** 2 for beta in (0.0, 0.1, 1.0, 10.0)], rel=1e-4)


def test_smooth_tchebycheff_of_the_whole_model():
    """The fitted set is no worse, by the definition over all tensors, than linear scalarisation's nor than random changes."""
    K, mu, alpha = 3, 0.1, 0.3
    base, experts = family(K)
    loaded = opened(base, experts)
    gammas = torch.from_numpy(preferences.dirichlet(K, 2048, alpha, 0))[:80]  # of the sample that the fit uses
    targets = {name: oracles.deviations(stack(base, experts, [name]), 1 / K) for name in SHAPES}
    unit = float(sum(d.square().sum() for d in targets.values()) / K)

    def value(pareto_set, shake=None):
        total = 0.0
        for gamma in gammas:
            weights = pareto_set.at(gamma.tolist())
            s = torch.zeros(K, dtype=torch.float64)
            for name, d in targets.items():
                center = base[name].double() + torch.stack([e[name].double() - base[name] for e in experts]).mean(0)
                s += (weights[name].double() - center - d).square().flatten(1).sum(1) / unit
            total += float(mu * torch.logsumexp(gamma * s / mu, 0))
        return total / len(gammas)

    smooth = pareto_merging(loaded, rank=3, scalarization="smooth-tchebycheff", mu=mu, alpha=alpha)
    linear = pareto_merging(loaded, rank=3)
    assert value(smooth) < value(linear) - 1e-4
    best = value(smooth)
    generator = torch.Generator().manual_seed(0)
    for target in smooth.factors.values():
        noise = torch.randn(target.g.shape, generator=generator) * 0.1
        target.g.add_(noise)
        assert value(smooth) > best
        target.g.sub_(noise)


def test_the_small_problem_is_the_large_one(monkeypatch):
    # the K² products and K constants that are left must give the S_k of the whole model, what no target reaches included
    seen = {}

    def recorded(gram, constants, *args, **kwargs):
        seen.update(gram=gram, constants=constants)
        return torch.eye(len(gram), dtype=torch.float64)  # linear scalarisation's solution

    monkeypatch.setattr(closed_form, "tchebycheff_mixing", recorded)
    K, lam = 3, 0.4
    base, experts = family(K)
    pareto_set = pareto_merging(opened(base, experts), rank=2, scale=lam, scalarization="smooth-tchebycheff")
    d = {name: oracles.deviations(stack(base, experts, [name]), lam).flatten(1) for name in SHAPES}
    unit = sum(d_name.square().sum() for d_name in d.values()) / K
    reference = task_arithmetic(opened(base, experts), scale=lam)
    for gamma in ((1, 0, 0), (0.2, 0.5, 0.3)):
        weights = pareto_set.at(gamma)
        moved = {name: (weights[name].double() - reference[name].double()).flatten() for name in SHAPES}
        whole = sum((moved[name] - d[name]).square().sum(1) for name in SHAPES) / unit
        x = torch.tensor(gamma, dtype=torch.float64)
        q = seen["gram"]
        torch.testing.assert_close(x @ q @ x - 2 * q @ x + q.diagonal() + seen["constants"], whole, rtol=1e-4, atol=1e-6)


def test_tasks_keep_their_order():
    assert pareto_merging(opened(*family(3)), rank=1).tasks == tuple(NAMES[:3])


@pytest.mark.parametrize("scalarization", ["linear", "smooth-tchebycheff"])
def test_any_integer_is_a_seed(scalarization):
    for seed in (-1, 2**70):
        pareto_merging(opened(*family(2)), rank=1, seed=seed, scalarization=scalarization)
