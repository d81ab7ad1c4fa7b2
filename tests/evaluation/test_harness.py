"""lm-eval as an evaluator, against a stand-in of the same interface: the package itself is large and not installed."""

import sys
import types

import pytest
import torch

import task_data
import tiny
from paretomerge.errors import UserError
from paretomerge.evaluation import ByHarness
from paretomerge.experts import load_experts
from paretomerge.merges import processed
from paretomerge.models import ingredients_of
from paretomerge.results import objective

METRICS = [objective("a", "gsm8k/exact_match,strict-match"), objective("b", "wikitext/word_perplexity")]


class HFLM:
    def __init__(self, pretrained, tokenizer, batch_size):
        self.model, self.tokenizer, self.batch_size = pretrained, tokenizer, batch_size


@pytest.fixture
def lm_eval(monkeypatch):
    """What ``simple_evaluate`` of lm-eval 0.4 takes and gives."""
    asked = []

    def simple_evaluate(*, model, tasks, limit, num_fewshot, batch_size, log_samples, bootstrap_iters):
        assert isinstance(model, HFLM) and model.tokenizer("the film")["input_ids"]
        asked.append({"tasks": tasks, "limit": limit, "num_fewshot": num_fewshot})
        value = float(model.model.lm_head.weight.detach().mean())
        results = {
            "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": value, "exact_match_stderr,strict-match": "N/A",
                      "exact_match,flexible-extract": 0.5},
            "wikitext": {"alias": "wikitext", "word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A"},
        }  # fmt: skip
        higher = {"gsm8k": {"exact_match": True}, "wikitext": {"word_perplexity": False}}
        return {"results": {t: results[t] for t in tasks}, "higher_is_better": {t: higher[t] for t in tasks}, "versions": {}}

    module = types.ModuleType("lm_eval")
    module.simple_evaluate = simple_evaluate
    models, huggingface = types.ModuleType("lm_eval.models"), types.ModuleType("lm_eval.models.huggingface")
    huggingface.HFLM = HFLM
    for part in (module, models, huggingface):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    return asked


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base, experts = tiny.family("llama", tmp_path_factory.mktemp("llama"))
    task_data.companions(base)
    experts = load_experts(base, experts)
    return ingredients_of(experts, processed(experts))


def test_benchmarks_of_the_live_model(lm_eval, models):
    measured = ByHarness(METRICS, inputs=10, num_fewshot=2, device="cpu").opened(models)
    for c in ((0.0, 1.0), (0.5, 0.5)):
        found = measured(c, ["a", "b"])
        assert found == pytest.approx({"a": float(models.at(c)["lm_head.weight"].mean()), "b": 12.0}, abs=1e-7)
    assert measured((0.5, 0.5), ["b"]) == {"b": 12.0}
    assert lm_eval[0] == {"tasks": ["gsm8k", "wikitext"], "limit": 10, "num_fewshot": 2}
    assert lm_eval[-1]["tasks"] == ["wikitext"]


@pytest.mark.parametrize(
    "declared, said",
    [
        (
            "gsm8k/exact_match",
            "no metric 'exact_match' in lm-eval's results (there are: exact_match,strict-match, exact_match,flex",
        ),
        ("gsm8k/acc", "no metric 'acc' in lm-eval's results"),
        ("wikitext/word_perplexity,none:min:1", None),
        ("wikitext/other:max", "no metric 'other'"),
    ],
)
def test_what_results_hold(lm_eval, models, declared, said):
    measured = ByHarness([objective("a", declared)], device="cpu").opened(models)
    if said is None:
        assert measured((0.0, 0.0), ["a"]) == {"a": 12.0}
        return
    with pytest.raises(UserError) as refused:
        measured((0.0, 0.0), ["a"])
    assert said in str(refused.value)


def test_a_direction_that_the_harness_knows_better(lm_eval, models, monkeypatch):
    wrong = objective("a", "wikitext/word_perplexity")._replace(larger_is_better=True)
    with pytest.raises(UserError, match="lm-eval says that less word_perplexity is better"):
        ByHarness([wrong], device="cpu").opened(models)((0.0, 0.0), ["a"])


def test_refusals(models, monkeypatch):
    with pytest.raises(UserError, match="name the benchmark and its metric"):
        ByHarness([objective("a", "exact_match")])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'paretomerge\[llm\]'"):
        ByHarness(METRICS).opened(models)


def test_identity_is_json():
    import json

    assert json.loads(json.dumps(ByHarness(METRICS, inputs=0.5).identity()))["inputs"] == 0.5
    assert torch.float32  # the module is imported without lm-eval
