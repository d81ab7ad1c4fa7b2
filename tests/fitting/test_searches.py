"""Searches over experts: from their options to a set that is kept and opened again."""

import inspect
import re

import numpy as np
import pytest
import torch

from paretomerge.errors import UserError
from paretomerge.front import front_of, load_front
from paretomerge.options import arguments, check_options
from paretomerge.search import SEARCHES
from search_data import Known
from states import family, opened

QUICK = {
    "map": {"population": 40, "generations": 10},
    "map-nested": {"population": 40, "generations": 10, "preferences": ["equal", "only:a", "a=1,b=2,c=1"]},
    "map-bayesian": {"population": 40, "generations": 10},
    "direct-search": {"evaluations": 60},
    "moead": {"population": 15, "generations": 4},
}


def search(name, experts, evaluator_for, *, say=print, **options):
    """A search with the options of a user."""
    return SEARCHES[name](experts, evaluator_for, say=say, **arguments(SEARCHES[name], options))


@pytest.mark.parametrize("name", SEARCHES)
def test_from_experts_to_a_front_and_back(name, tmp_path):
    experts, known, said = opened(*family(3)), Known(3, "sigmoid"), []
    options = check_options(SEARCHES[name], QUICK[name], name)
    pareto_set = search(name, experts, lambda vectors: known, say=said.append, **options)
    front_of(pareto_set, experts).save(tmp_path / "front")
    again = load_front(tmp_path / "front").pareto_set
    assert again.method == "searched" and again.settings["search"] == name
    assert again.settings["models_evaluated"] == sum(len(c) for c, _ in known.calls)
    assert again.settings["task_evaluations"] == known.task_evaluations
    assert again.settings["said"] == said
    base, states = family(3)
    for gamma in ("equal", "only:a", "priority:c"):
        c = pareto_set.mixture(pareto_set.preference(gamma)).numpy()
        weights, same = pareto_set.at(gamma), again.at(gamma)
        for key in ("layer.query.weight", "vector"):
            expected = base[key] + sum(float(x) * (state[key] - base[key]) for x, state in zip(c, states, strict=True))
            torch.testing.assert_close(weights[key], expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(weights[key], same[key])
    if name != "map-nested":
        best = known.truth(pareto_set.mixture(pareto_set.preference("only:b")).numpy()[None])[0]
        assert best[1] > 0.8 and best[1] > best[0]


@pytest.mark.parametrize("inside", ["ties", "dare", "tsv"])
def test_the_evaluator_gets_the_vectors_that_the_set_stores(inside):
    experts, seen = opened(*family(2)), []

    def evaluator_for(vectors):
        seen.append(vectors)
        return Known(2)

    pareto_set = search("map", experts, evaluator_for, inside=inside, seed=3, **QUICK["map"])
    for name in seen[0]:
        assert torch.equal(seen[0][name], pareto_set.task_vectors[name])
    assert pareto_set.settings["inside"] == inside


def test_a_preference_moves_the_model_towards_its_task():
    known = Known(3, "sigmoid")
    pareto_set = search("map", opened(*family(3)), lambda vectors: known)
    for k, task in enumerate("abc"):
        values = [
            known.truth(pareto_set.mixture(pareto_set.preference(p)).numpy()[None])[0, k]
            for p in ("equal", f"priority:{task}", f"only:{task}")
        ]
        assert values == sorted(values) and values[2] > values[0] + 0.05


@pytest.mark.parametrize("name", SEARCHES)
def test_every_option_is_described(name):
    function = SEARCHES[name]
    documented = set(re.findall(r"^ {4}(\w+): ", inspect.getdoc(function), re.MULTILINE))
    options = {p for p, kind in inspect.signature(function).parameters.items() if kind.kind is kind.KEYWORD_ONLY} - {"say"}
    assert options <= documented


def test_mistakes():
    experts = opened(*family(2))
    with pytest.raises(UserError, match="two experts"):
        search("map", opened(*family(1)), lambda vectors: Known(1))
    with pytest.raises(UserError, match="task b has no metric"):
        search("map", experts, lambda vectors: Known(1))
    with pytest.raises(UserError, match="no expert for it"):
        search("map", experts, lambda vectors: Known(3))
    with pytest.raises(UserError, match="box"):
        search("map", experts, lambda vectors: Known(2), box=[1, 0])
    with pytest.raises(UserError, match="preference"):
        search("map-nested", experts, lambda vectors: Known(2), preferences="only:z")
    for wrong in ({"sampling": "other"}, {"inside": "slerp"}, {"evaluations": 2.5}, {"loss": "l1"}):
        with pytest.raises(UserError):
            check_options(SEARCHES["map"], wrong, "map")
    senseless = {
        "map": {"evaluations": 0, "generations": 0, "runs": 0, "measure": -1},
        "map-bayesian": {"first": -1, "each": 0, "rounds": -1, "temperature": 0.0},
        "moead": {"population": 0},
        "direct-search": {"seed": -1},
    }
    for name, option, value in [(name, *pair) for name, options in senseless.items() for pair in options.items()]:
        with pytest.raises(UserError, match=f"{option} must be"):
            search(name, experts, lambda vectors: Known(2), **{option: value})
    assert check_options(SEARCHES["map"], {"box": [0, 1.5]}, "map") == {"box": [0, 1.5]}
    assert check_options(SEARCHES["map"], {"box": [[0, 1], [0, 0.5]]}, "map")


def test_poor_fits_are_told_and_kept():
    class Wild(Known):
        def truth(self, c):
            return np.sin(40 * np.asarray(c))

    said = []
    pareto_set = search("map", opened(*family(2)), lambda vectors: Wild(2), say=said.append, **QUICK["map"])
    assert any("does not describe it" in line for line in said) and pareto_set.settings["said"] == said
