"""Patterns of adapters: PEFT's own rule, and no pattern that takes for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretomerge.weights import scalings

MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "model.layers.1.mlp.experts.1.w1", "lm_head"]
PATTERNS = [
    "q_proj", "proj", ".*q_proj", "layers.0.self_attn.q_proj", r"layers\.\d+\.mlp\.up_proj", "^model.layers.0.self_attn.q_proj",
    "self_attn.*", ".*", "", "lm_head|q_proj", "[a-z_]+", "experts.1.w1", "q.proj", "model", "q_proj$",
]  # fmt: skip


@given(st.lists(st.sampled_from(PATTERNS), unique=True), st.sampled_from(MODULES))
def test_they_match_as_in_peft(patterns, module):
    """The first that fits, with whatever a dot stands for."""
    get_pattern_key = pytest.importorskip("peft.utils.other").get_pattern_key
    values = {pattern: 8 + number for number, pattern in enumerate(patterns)}
    expected = values.get(get_pattern_key(patterns, module), 4)
    assert scalings({"r": 1, "alpha_pattern": values, "lora_alpha": 4}, {module: 1}) == {module: expected}


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_none_runs_for_ever(monkeypatch, field):
    """Six patterns with which Python's own engine would not be done in years: they have one time limit together."""
    monkeypatch.setattr("paretomerge.weights.patterns._SECONDS", 0.1)
    hostile = ["(a|aa)+", "((a|aa)+)+", "(a|a?)+", "(a|aa|aaa)+", "((((a{0,50}){0,50}){0,50}){0,50})", "(aa|a)+"]
    with pytest.raises(ValueError, match=r"model\.a+b0: the patterns take longer than"):
        scalings({"r": 3, "lora_alpha": 3, field: dict.fromkeys(hostile, 3)}, {f"model.{'a' * 60}b{i}": 3 for i in range(50)})


def test_a_rank_that_is_not_that_of_the_factors():
    with pytest.raises(ValueError, match="r is 4, its tensors have rank 8"):
        scalings({"r": 4, "lora_alpha": 4}, {"q_proj": 8})
