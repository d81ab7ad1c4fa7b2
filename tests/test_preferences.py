import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.preferences import PreferenceError, dirichlet, equal, grid, one_hot, parse, priority

ABC = ["a", "b", "c"]
weights = st.lists(st.floats(0, 1.7e308), min_size=1, max_size=12).filter(any)


def names(K: int) -> list[str]:
    return [f"task-{k}" for k in range(K)]


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("a=0.7,b=0.3,c=0", (0.7, 0.3, 0.0)),
        ("c=1,a=2,b=1", (0.5, 0.25, 0.25)),
        ("a=1,b=1,c=1", (1 / 3, 1 / 3, 1 / 3)),
        (" a = 1e3 , b = 1e3 ,c=2e3 ", (0.25, 0.25, 0.5)),
        ("a=-0,b=1,c=0", (0.0, 1.0, 0.0)),
        ("equal", (1 / 3, 1 / 3, 1 / 3)),
        ("priority:b", (0.25, 0.5, 0.25)),
        ("only: c", (0.0, 0.0, 1.0)),
        ({"b": 3, "a": 1, "c": 0}, (0.25, 0.75, 0.0)),
        ([1, 2, 1], (0.25, 0.5, 0.25)),
        (np.array([0.0, 5.0, 0.0], np.float32), (0.0, 1.0, 0.0)),
        ((1e308, 1e308, 0), (0.5, 0.5, 0.0)),
        ((5e-324, 0, 0), (1.0, 0.0, 0.0)),
    ],
)
def test_parse(spec, expected):
    result = parse(spec, ABC)
    assert result == expected
    assert all(type(weight) is float and math.copysign(1, weight) == 1 for weight in result)


@pytest.mark.parametrize(
    "spec, tasks, message",
    [
        ("mth=1,code=1", ["math", "code"], "unknown task 'mth', did you mean 'math'? The tasks are math, code"),
        ("zzz=1", ABC, "unknown task 'zzz'; the tasks are a, b, c"),
        ("priority:cod", ["math", "code"], "did you mean 'code'?"),
        ("only:", ABC, "unknown task ''"),
        ("a=1", ABC, "no weight for b, c; name every task, if only as b=0,c=0"),
        ({"a": 1, "c": 0}, ABC, "no weight for b; name every task, if only as b=0"),
        ("a=1,b=1,a=1,c=0", ABC, "'a' is named twice"),
        ("a=-1,b=1,c=1", ABC, "weight of 'a' must be finite and not negative, got -1.0"),
        ("a=1,b=nan,c=1", ABC, "weight of 'b' must be finite and not negative, got nan"),
        ("a=1,b=1,c=inf", ABC, "weight of 'c' must be finite"),
        ("a=0,b=0,c=0", ABC, "all weights are 0"),
        ("a=x,b=0,c=0", ABC, "weight of 'a' is not a number: 'x'"),
        ("a=,b=0,c=0", ABC, "weight of 'a' is not a number: ''"),
        ([None, 1, 1], ABC, "weight of 'a' is not a number: None"),
        ("", ABC, "'' is not task=weight; write a=1,b=1,c=1, equal"),
        ("a=1,", ABC, "'' is not task=weight"),
        ("equal,a=1", ABC, "'equal' is not task=weight"),
        ("0.5,0.5,0", ABC, "'0.5' is not task=weight"),
        ([1, 2], ABC, "2 weights for 3 tasks (a, b, c)"),
        ([], [], "all weights are 0"),
        ("a\n=1", ABC, "no weight for b, c"),
        ("x\ny=1", ABC, r"unknown task 'x\ny'"),
    ],
)
def test_errors_are_one_clear_line(spec, tasks, message):
    with pytest.raises(PreferenceError) as error:
        parse(spec, tasks)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError)


@given(weights)
def test_parse_normalises_and_is_idempotent(w):
    tasks = names(len(w))
    γ = parse(w, tasks)
    assert all(0 <= weight <= 1 for weight in γ)
    assert math.fsum(γ) == pytest.approx(1, abs=1e-15)
    assert parse(γ, tasks) == γ
    assert parse(preferences.format(γ, tasks), tasks) == γ
    assert parse(dict(zip(tasks, γ, strict=True)), tasks) == γ


@given(st.lists(st.just(0.0) | st.floats(1e-200, 1e200), min_size=1, max_size=8).filter(any), st.integers(-40, 40))
def test_scale_does_not_matter(w, exponent):
    scaled = [math.ldexp(weight, exponent) for weight in w]
    assume(abs(math.fsum(w) - 1) > 1e-12 and abs(math.fsum(scaled) - 1) > 1e-12)  # such weights are left as they are
    assert parse(w, names(len(w))) == parse(scaled, names(len(w)))


@given(st.integers(1, 40), st.data())
def test_named_preferences(K, data):
    k = data.draw(st.integers(0, K - 1))
    tasks = names(K)
    assert parse("equal", tasks) == equal(K) == (1.0 / K,) * K
    assert parse([1] * K, tasks) == equal(K)
    assert parse(f"only:{tasks[k]}", tasks) == one_hot(K, k)
    assert parse(f"priority:{tasks[k]}", tasks) == priority(K, k)
    assert one_hot(K, k)[k] == 1 and sum(one_hot(K, k)) == 1
    assert priority(K, k)[k] == (0.5 if K > 2 else 2 / 3 if K == 2 else 1.0)
    assert K == 1 or priority(K, k) != equal(K)
    for γ in (equal(K), priority(K, k), one_hot(K, k)):
        assert parse(γ, tasks) == γ
        assert math.fsum(γ) == pytest.approx(1, abs=1e-15)


@given(st.integers(1, 5), st.integers(1, 8))
def test_grid(K, steps):
    points = grid(K, steps)
    assert len(points) == len(set(points)) == math.comb(steps + K - 1, K - 1)
    assert points == sorted(points)
    assert all(min(γ) >= 0 and math.fsum(γ) == pytest.approx(1, abs=1e-15) for γ in points)
    assert {one_hot(K, k) for k in range(K)} <= set(points)
    assert (equal(K) in points) == (steps % K == 0)


@given(st.integers(1, 6), st.integers(0, 50), st.floats(1e-320, 1e6), st.integers(0, 2**32))
def test_dirichlet_rows_lie_on_the_simplex(K, n, alpha, seed):
    γ = dirichlet(K, n, alpha, seed)
    assert γ.shape == (n, K) and γ.dtype == np.float64
    assert (γ >= 0).all()
    np.testing.assert_allclose(γ.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(γ, dirichlet(K, n, alpha, seed))


@pytest.mark.parametrize("alpha", [(0.3, 0.3, 0.3), (0.02, 0.5, 3.0), (1.0, 1.0, 1.0)])
def test_dirichlet_moments(alpha):
    α = np.array(alpha)
    mean = α / α.sum()
    γ = dirichlet(3, 100_000, alpha, seed=1)
    np.testing.assert_allclose(γ.mean(axis=0), mean, atol=0.006)
    np.testing.assert_allclose(γ.var(axis=0), mean * (1 - mean) / (α.sum() + 1), atol=0.006)


@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf])
def test_dirichlet_refuses(alpha):
    with pytest.raises(ValueError, match="positive and finite"):
        dirichlet(3, 1, alpha)


def test_grid_refuses():
    with pytest.raises(ValueError, match="at least 1"):
        grid(3, 0)


def test_import_is_light():
    program = "import sys, paretomerge.preferences; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
