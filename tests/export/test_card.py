"""The metadata of model cards, as the hub's own library reads it."""

import pytest
from huggingface_hub import ModelCard

from paretomerge.front import model_card

CACHED = "/home/me/.cache/huggingface/hub/models--{}/snapshots/0123abcd"


def card(base: str, *experts: str, **facts: object) -> ModelCard:
    sources = {"base": {"path": base}, "experts": {f"t{i}": {"path": path} for i, path in enumerate(experts)}}
    return ModelCard(model_card({"method": "pareto-merging", "sources": sources, **facts}))


def test_models_of_the_hub_are_named_by_their_repositories():
    data = card(CACHED.format("openai--clip-vit"), CACHED.format("org--a--b"), kind="front").data
    assert data.base_model == ["openai/clip-vit", "org/a--b"] and data.base_model_relation == "merge"
    assert data.library_name == "transformers" and data.tags == ["merge", "paretomerge", "pareto-set"]


def test_folders_of_this_machine_are_no_base_model_but_in_the_table(tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for base in (str(tmp_path / "models" / "base"), "models/base", "models/moved", "C:\\models\\base", "in memory"):
        found = card(base, str(tmp_path / "a"))
        assert found.data.base_model is None and "base_model_relation" not in found.data.to_dict()
        assert f"| base | `{base}` |" in found.content


@pytest.mark.parametrize("of, wanted", [("org/front", "org/front"), ("/here/front", None)])
def test_an_adapter_names_what_it_is_for(of, wanted):
    data = card("/here/base", adapter_of=of).data
    assert data.base_model == ([wanted] if wanted else None) and data.library_name == "peft" and "lora" in data.tags


def test_measured_numbers_are_results_and_estimates_are_not():
    metrics = [
        {"task": "math: 1 & 2", "metric": "accuracy", "value": 0.75, "how": "measured, held-out"},
        {"task": "code", "metric": "accuracy", "value": 0.5, "how": "estimated"},
    ]
    (result,) = card("/here/base", metrics=metrics, preference={"math: 1 & 2": 0.7, "code": 0.3}).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("math: 1 & 2", "accuracy", 0.75)
