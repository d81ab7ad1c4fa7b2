"""Workers: the same numbers to the bit as in process, workers that are lost, mistakes that are told."""

import os
import sys

import pytest
import torch

import fit_data
from paretomerge import api
from paretomerge.errors import UserError
from paretomerge.evaluation import ByFunction, FrontModels, OnTasks, Work, evaluate, for_search, in_process, pool_of
from paretomerge.merges import processed
from paretomerge.models import ingredients_of
from paretomerge.results import objective

SCORES = [objective("a", "score:max"), objective("b", "score:max")]
JOBS = [((0.1 * i, 1 - 0.07 * i), ("a", "b") if i % 3 else ("b",)) for i in range(7)]


@pytest.fixture(scope="module")
def ray():
    """A cluster that all tests here share."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return fit_data.experts(fit_data.save("vit", tmp_path_factory.mktemp("vit")))


def search(experts, evaluator):
    return Work(evaluator, ingredients_of(experts, processed(experts)))


def tasks_of(kind):
    return for_search(fit_data.tasks(kind, 24, labels=True), "ab", print)


def outcomes(pool, jobs=JOBS):
    found = dict(pool(jobs))
    assert sorted(found) == list(range(len(jobs)))
    return [found[number].metrics for number in range(len(jobs))]


def test_one_worker_is_this_process(vit):
    work = search(vit, OnTasks(tasks_of("vit"), device="cpu"))
    with pool_of(work) as pool:
        found = outcomes(pool)
    assert found == outcomes(in_process(work)) and [set(each) for each in found] == [set(names) for _, names in JOBS]


def test_what_is_sent_is_the_same_again(tmp_path):
    """Without Ray: the large part by itself, the rest through pickle."""
    import pickle

    experts = fit_data.experts(fit_data.save("bert", tmp_path))
    front = api.fit(experts, "soup", hashes=False)
    models = ingredients_of(experts, processed(experts)), FrontModels(
        front.pareto_set, front.tasks, front.config, front.heads
    )  # fmt: skip
    for own in models:
        again = pickle.loads(pickle.dumps(own.without_weights())).with_weights(own.weights())
        one, other = own.at((0.25, 0.75)), again.at((0.25, 0.75))
        assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
        assert again.heads.keys() == own.heads.keys() and len(pickle.dumps(own.without_weights())) < 20_000


def test_numbers_that_make_no_sense(vit):
    work = search(vit, OnTasks(tasks_of("vit")))
    for wrong in ({"workers": 0}, {"gpus": -1.0}):
        with pytest.raises(UserError, match="workers must be at least 1"), pool_of(work, **wrong):
            pass


def test_without_ray(vit, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    work = search(vit, OnTasks(tasks_of("vit")))
    with pytest.raises(UserError, match=r"pip install 'paretomerge\[ray\]'"), pool_of(work, workers=2):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "gpt2"])
def test_workers_measure_the_same_bits(ray, kind, tmp_path):
    assert torch.get_num_threads() == 1
    experts = fit_data.experts(fit_data.save(kind, tmp_path))
    work = search(experts, OnTasks(tasks_of(kind), device="cpu", batch_size=7))
    with pool_of(work, workers=2) as pool:
        assert outcomes(pool) == outcomes(in_process(work))
        assert outcomes(pool, JOBS[:1]) == outcomes(in_process(work), JOBS[:1])  # workers stay for the next round
    assert ray.is_initialized()  # it was not ours to stop


@pytest.mark.slow
def test_fronts_are_measured_the_same(ray, vit):
    front = api.fit(vit, "soup", hashes=False)
    tasks = list(tasks_of("vit").values())
    preferences = ["equal", "only:a", "a=0.3,b=0.7"]
    assert evaluate(front, tasks, preferences, workers=2) == evaluate(front, tasks, preferences)


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_its_job_done_again(ray, vit, tmp_path):
    def dies_once(weights):
        value = float(weights["layernorm.weight"][0])
        if not (tmp_path / "died").exists():
            (tmp_path / "died").write_text("")
            os._exit(1)
        return {"a": value, "b": 0.0}

    work = search(vit, ByFunction(dies_once, SCORES, gets="weights"))
    with pool_of(work, workers=2) as pool:
        found = outcomes(pool)
    assert (tmp_path / "died").exists() and found == outcomes(in_process(work))


@pytest.mark.slow
def test_failures_and_mistakes_come_back(ray, vit, tmp_path):
    def fails(weights):
        raise ValueError("of no use")

    def dies(weights):
        os._exit(1)

    with pool_of(search(vit, ByFunction(fails, SCORES, gets="weights")), workers=2) as pool:
        assert {(o.message, o.mistake) for _, o in pool(JOBS[:2])} == {("ValueError: of no use", False)}
    with pool_of(search(vit, ByFunction(dies, SCORES, gets="weights")), workers=2) as pool:
        ((_, lost),) = pool(JOBS[:1])
        assert lost.message.startswith("3 workers were lost over it") and not lost.mistake
    with pool_of(search(vit, OnTasks(tasks_of("vit"), device="tpus")), workers=2) as pool:
        ((_, wrong),) = pool(JOBS[:1])
        assert wrong.mistake and "device 'tpus'" in wrong.message
    for words, said in (
        ({"workers": 9}, "the cluster has room for 2 workers, not for 9"),
        ({"workers": 2, "gpus": 1.0}, "1 GPUs a worker"),
    ):
        with pytest.raises(UserError, match=said), pool_of(search(vit, OnTasks(tasks_of("vit"))), **words):
            pass
