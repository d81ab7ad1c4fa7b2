"""φ and the weights: θ(γ) beside the formula, and gradients pulled back beside autograd through the whole graph."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from paretomerge.fitting import Learned, Target
from paretomerge.weights import LowRank

SHAPES = {
    "attn.query.weight": (6, 5),
    "attn.key.weight": (4, 5),
    "attn.value.weight": (3, 5),
    "dense.weight": (5, 8),
    "norm.bias": (7,),
    "logit_scale": (),
    "conv.weight": (3, 2, 2, 2),
    "empty.weight": (0, 4),
}
QUERY, KEY, VALUE, DENSE = list(SHAPES)[:4]
FUSED = Target("attn.{qkv}.weight", ((QUERY, 6), (KEY, 4), (VALUE, 3)), (13, 5), 3)
TARGETS = {
    "none": (),
    "one": (Target(DENSE, ((DENSE, 5),), (5, 8), 2),),
    "several": (Target(DENSE, ((DENSE, 5),), (5, 8), 5), Target(QUERY, ((QUERY, 6),), (6, 5), 1)),
    "fused": (FUSED, Target(DENSE, ((DENSE, 5),), (5, 8), 2)),
    "outer": (replace(FUSED, structure="outer-1"), Target(DENSE, ((DENSE, 5),), (5, 8), 2, "outer-2")),
}
GROUPS = {"attention": (QUERY, VALUE), "rest": (KEY, DENSE, "norm.bias", "logit_scale", "conv.weight", "empty.weight")}
everything = pytest.mark.parametrize(
    "K, task_wise, targets",
    [(K, task_wise, targets) for K in (1, 2, 5) for task_wise in (False, True) for targets in TARGETS],
)


def learned(
    K: int, task_wise: bool, targets: str, dtype: torch.dtype = torch.float64, stored: torch.dtype | None = None
) -> Learned:
    """Everything random, φ included."""
    generator = torch.Generator().manual_seed(10 * K + task_wise)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = {name: draw(*shape).to(dtype) for name, shape in SHAPES.items()}
    vectors = {name: draw(K, base[name].numel()).to(stored or dtype) for name in SHAPES}
    made = Learned(base, vectors, TARGETS[targets], task_wise=task_wise)
    made.phi.copy_(draw(len(made.phi)))
    return made


def steering(K: int, kind: str, grouped: bool, targets: str) -> Learned:
    """The same with coefficients that depend on γ, of each tensor or of groups."""
    plain = learned(K, False, targets)
    made = Learned(plain.base, plain.task_vectors, TARGETS[targets], kind=kind, groups=GROUPS if grouped else None)
    made.phi.copy_(torch.randn(len(made.phi), generator=torch.Generator().manual_seed(K), dtype=torch.float64))
    return made


def preference(K: int, seed: int = 0) -> Tensor:
    weights = torch.rand(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weights / weights.sum()


def low_rank(of: Learned, gamma: Tensor, phi: Tensor) -> dict[str, Tensor]:
    """Each target's term as a full matrix, written down from eq. 7 and the ablation's outer products; differentiable in φ."""
    terms = {}
    for target in of.targets:
        a, b = (of.view(f"{target.name}.{part}", phi) for part in "AB")
        if target.structure == "tensor":
            g = of.view(f"{target.name}.G", phi)
            terms[target.name] = a @ sum(gamma[k].to(g) * g[k] for k in range(len(gamma))) @ b
        elif target.structure == "outer-1":  # Σ_i (P_i γ) ⊗ b_i, with P_i's columns A_k[:, i]
            terms[target.name] = sum(
                torch.outer(sum(gamma[k].to(a) * a[k, :, i] for k in range(len(gamma))), b[i]) for i in range(target.rank)
            )
        else:  # Σ_i a_i ⊗ (Q_i γ)
            terms[target.name] = sum(
                torch.outer(a[:, i], sum(gamma[k].to(b) * b[k, i] for k in range(len(gamma)))) for i in range(target.rank)
            )
    return terms


def coefficients(of: Learned, row: int, gamma: Tensor, phi: Tensor) -> Tensor:
    """c(γ) of one row: λ, M γ + b, or the router's two layers."""
    part = {name: of.view(name, phi)[row] for name in of.parts() if "." not in name}
    if "lambda" in part:
        return part["lambda"]
    if "M" in part:
        return part["M"] @ gamma.to(phi) + part["b"]
    return part["W2"] @ torch.relu(part["W1"] @ gamma.to(phi) + part["b1"]) + part["b2"]


def theta(of: Learned, gamma: Tensor, phi: Tensor, task_wise: bool) -> dict[str, Tensor]:
    """θ(γ) from its definition, differentiable in φ."""
    weights = {}
    for place, (name, base) in enumerate(of.base.items()):
        row = coefficients(of, 0 if task_wise else place, gamma, phi)
        weights[name] = base + sum(row[k] * of.task_vectors[name][k].to(base).view_as(base) for k in range(of.n_tasks))
    for target, term in zip(of.targets, low_rank(of, gamma, phi).values(), strict=True):
        for (name, rows), own in zip(target.members, term.split([rows for _, rows in target.members]), strict=True):
            assert own.shape[0] == rows
            weights[name] = weights[name] + own
    return weights


def steered_theta(of: Learned, gamma: Tensor, phi: Tensor, grouped: bool) -> dict[str, Tensor]:
    """θ(γ) with the row of each tensor's group."""
    groups = list(GROUPS.values()) if grouped else [(name,) for name in SHAPES]
    weights = {}
    for name, base in of.base.items():
        (row,) = (i for i, members in enumerate(groups) if name in members)
        c = coefficients(of, row, gamma, phi)
        weights[name] = base + sum(c[k] * of.task_vectors[name][k].view_as(base) for k in range(of.n_tasks))
    for target, term in zip(of.targets, low_rank(of, gamma, phi).values(), strict=True):
        for (name, _), own in zip(target.members, term.split([rows for _, rows in target.members]), strict=True):
            weights[name] = weights[name] + own
    return weights


def objective(weights: dict[str, Tensor]) -> Tensor:
    """Something smooth that is far from linear and in which every entry counts in its own way."""
    total = torch.zeros((), dtype=torch.float64)
    for number, tensor in enumerate(weights.values(), 1):
        places = torch.arange(1, tensor.numel() + 1, dtype=tensor.dtype).view_as(tensor)
        total = total + (torch.sin(tensor * places) + 0.1 * number * tensor.square() / places).sum()
    return total


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@everything
def test_builds_the_formula(K, task_wise, targets):
    of, gamma = learned(K, task_wise, targets), preference(K)
    weights = {name: torch.full_like(base, torch.nan) for name, base in of.base.items()}
    of.build_(weights, gamma)
    for name, expected in theta(of, gamma, of.phi, task_wise).items():
        torch.testing.assert_close(
            weights[name], expected, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_builds_into_any_dtype():
    of, gamma = learned(2, False, "fused", torch.float32), preference(2)
    weights = {name: torch.empty_like(base, dtype=torch.bfloat16) for name, base in of.base.items()}
    of.build_(weights, gamma)
    for name, expected in theta(of, gamma, of.phi, False).items():
        torch.testing.assert_close(weights[name], expected.bfloat16(), rtol=2**-6, atol=1e-2)


@everything
def test_pulls_back_what_autograd_finds(K, task_wise, targets):
    of, gamma = learned(K, task_wise, targets), preference(K, seed=1)
    phi = of.phi.clone().requires_grad_()
    (expected,) = torch.autograd.grad(objective(theta(of, gamma, phi, task_wise)), phi)
    leaves = {name: nn.Parameter(tensor) for name, tensor in theta(of, gamma, of.phi, task_wise).items()}
    objective(leaves).backward()
    small = of.pull_back({name: leaf.grad for name, leaf in leaves.items()}, gamma)
    assert small.dtype == torch.float64 and small.shape == of.phi.shape
    for part in of.parts():
        assert relative(of.view(part, small), of.view(part, expected)) < 1e-10, part


@pytest.mark.parametrize("kind", ["affine", "routed"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("K, targets", [(K, targets) for K in (1, 2, 5) for targets in ("none", "fused")])
def test_coefficients_that_depend_on_the_preference(kind, grouped, K, targets):
    """θ(γ) is the formula, and every gradient what autograd finds through the whole graph."""
    of, gamma = steering(K, kind, grouped, targets), preference(K, seed=1)
    phi = of.phi.clone().requires_grad_()
    whole = steered_theta(of, gamma, phi, grouped)
    weights = {name: torch.full_like(base, torch.nan) for name, base in of.base.items()}
    of.build_(weights, gamma)
    for name, expected in whole.items():
        torch.testing.assert_close(weights[name], expected.detach(), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(of.built(gamma)[name], weights[name]) for name in weights)
    (expected,) = torch.autograd.grad(objective(whole), phi)
    leaves = {name: nn.Parameter(tensor) for name, tensor in weights.items()}
    objective(leaves).backward()
    small = of.pull_back({name: leaf.grad for name, leaf in leaves.items()}, gamma)
    for part in of.parts():
        if of.view(part, expected).abs().max() > 0:
            assert relative(of.view(part, small), of.view(part, expected)) < 1e-10, part
    c = of.steering({"copy": DENSE})
    assert c.row["copy"] == c.row[DENSE] and c.parts.keys() == of.coefficients.parts.keys()
    torch.testing.assert_close(c.at(gamma), of.coefficients.at(gamma).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("absent", [(KEY,), (QUERY, KEY, VALUE), tuple(SHAPES)])
def test_a_gradient_that_is_none_counts_as_zero(absent):
    of, gamma = learned(3, False, "fused"), preference(3)
    gradients = {name: torch.randn_like(base) for name, base in of.base.items()}
    zeros = {name: torch.zeros_like(g) if name in absent else g for name, g in gradients.items()}
    nones = {name: None if name in absent else g for name, g in gradients.items()}
    missing = {name: g for name, g in gradients.items() if name not in absent}
    for given in (nones, missing):
        assert torch.equal(of.pull_back(given, gamma), of.pull_back(zeros, gamma))


def test_task_vectors_in_bfloat16_are_close():
    gamma = preference(4)
    wide, narrow = (learned(4, False, "fused", torch.float32, stored) for stored in (None, torch.bfloat16))
    built = []
    for of in (wide, narrow):
        of.phi.copy_(wide.phi)
        weights = {name: torch.empty_like(base) for name, base in of.base.items()}
        of.build_(weights, gamma)
        built.append(torch.cat([tensor.flatten() for tensor in weights.values()]))
    assert 0 < relative(built[1], built[0]) < 2**-8
    gradients = {name: torch.randn_like(base) for name, base in wide.base.items()}
    expected, small = wide.pull_back(gradients, gamma), narrow.pull_back(gradients, gamma)
    assert small.dtype == torch.float32
    assert 0 < relative(narrow.view("lambda", small), wide.view("lambda", expected)) < 2**-6
    start = wide.view("lambda").numel()
    assert torch.equal(small[start:], expected[start:])  # only λ sees the task vectors


@pytest.mark.parametrize("K, targets", [(K, targets) for K in (1, 2, 5) for targets in TARGETS])
def test_penalty_is_that_of_the_full_matrices(K, targets):
    of, gamma = learned(K, False, targets), preference(K, seed=2)
    phi = of.phi.clone().requires_grad_()
    expected = sum((term.square().sum() for term in low_rank(of, gamma, phi).values()), phi.sum() * 0)
    (gradient,) = torch.autograd.grad(expected, phi)
    value, small = of.penalty(gamma)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    for part in of.parts():
        torch.testing.assert_close(of.view(part, small), of.view(part, gradient), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("task_wise", [False, True])
def test_parts_fill_phi_without_overlap(task_wise):
    of = learned(3, task_wise, "fused")
    sizes = [of.view(part).numel() for part in of.parts()]
    assert of.view("lambda").shape == (1 if task_wise else len(SHAPES), 3)
    assert sum(sizes) == len(of.phi)
    for number, part in enumerate(of.parts()):
        of.view(part).fill_(number)
    assert torch.equal(of.phi, torch.arange(len(sizes), dtype=torch.float64).repeat_interleave(torch.tensor(sizes)))


def test_factors_are_copies_in_fp32():
    of = learned(2, False, "fused")
    factors = of.factors()
    fused = factors[FUSED.name]
    assert fused.members == FUSED.members and fused.a.dtype == torch.float32
    assert fused.a.shape == (13, 3) and fused.g.shape == (2, 3, 3) and fused.b.shape == (3, 5)
    torch.testing.assert_close(fused.g, of.view(f"{FUSED.name}.G").float(), rtol=0, atol=0)
    of.phi.zero_()
    assert fused.a.abs().max() > 0


def test_task_vectors_as_products():
    """θ(γ) and all gradients are those of the same task vectors stacked, to rounding in fp64."""
    plain = learned(3, False, "fused")
    generator = torch.Generator().manual_seed(5)
    thin, stacked = {}, dict(plain.task_vectors)
    for name, ranks in ((QUERY, (1, 3, 2)), (DENSE, (2, 0, 4))):
        shape = SHAPES[name]
        pairs = [
            LowRank(
                torch.randn(shape[0], r, generator=generator, dtype=torch.float64),
                torch.randn(r, shape[1], generator=generator, dtype=torch.float64),
            )
            for r in ranks
        ]
        thin[name] = LowRank.beside(pairs)
        stacked[name] = torch.stack([(left @ right).flatten() for left, right in pairs])
    made = [Learned(plain.base, vectors, TARGETS["fused"], kind="affine") for vectors in ({**stacked, **thin}, stacked)]
    gamma = preference(3)
    for each in made:
        each.phi.copy_(torch.randn(len(each.phi), generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    first, second = (each.built(gamma) for each in made)
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-12) for name in SHAPES)
    phi = made[1].phi.clone().requires_grad_()
    weights = steered_theta(made[1], gamma, phi, False)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    objective(weights).backward()
    objective(leaves).backward()
    pulled = made[0].pull_back({name: leaf.grad for name, leaf in leaves.items()}, gamma)
    torch.testing.assert_close(pulled, phi.grad, rtol=1e-10, atol=1e-10)
