"""From models on disk to a merged model that transformers loads, for every merge and six architectures."""

import shutil

import pytest
import torch

import tiny
from paretomerge.experts import load_experts
from paretomerge.fitting import pareto_merging, soup
from paretomerge.merges import MERGES, task_arithmetic
from paretomerge.weights import whole_folder, write_shards

KINDS = list(tiny.ARCHITECTURES)


@pytest.fixture(scope="module", params=KINDS)
def models(request, tmp_path_factory):
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    base, experts = tiny.family(kind, folder)
    return kind, base, experts, load_experts(base, experts)


def loaded(kind, weights, base, folder, **options):
    """Write weights beside the base's configuration; the model that transformers makes of the folder, checked."""
    with whole_folder(folder) as temporary:
        write_shards(weights, temporary, **options)
        shutil.copy(base / "config.json", temporary)
    cls = tiny.ARCHITECTURES[kind][0]
    net, report = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return net.eval()


def logits_of(kind, folder):
    return tiny.logits(kind, tiny.ARCHITECTURES[kind][0].from_pretrained(folder).eval())


@pytest.mark.parametrize("name", list(MERGES))
def test_every_merge_makes_a_model(models, name, tmp_path):
    kind, base, _, experts = models
    merged = MERGES[name](experts)
    logits = tiny.logits(kind, loaded(kind, merged, base, tmp_path / "merged", shard_bytes=6000))
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits, logits_of(kind, base))


@pytest.mark.parametrize("task", ["a", "b"])
def test_the_only_expert_that_counts_is_what_comes_out(models, task, tmp_path):
    kind, base, folders, experts = models
    merged = task_arithmetic(experts, scale={t: float(t == task) for t in "ab"})
    net = loaded(kind, merged, base, tmp_path / "merged")
    expected = tiny.ARCHITECTURES[kind][0].from_pretrained(folders[task]).eval()
    if kind == "resnet":
        # statistics of batches are the base's: with them in place, the expert itself must come out
        start = dict(tiny.ARCHITECTURES[kind][0].from_pretrained(base).named_buffers())
        for name, buffer in expected.named_buffers():
            buffer.copy_(start[name])
    torch.testing.assert_close(tiny.logits(kind, net), tiny.logits(kind, expected), rtol=1e-4, atol=1e-5)


def test_nothing_merged_is_the_base(models, tmp_path):
    kind, base, _, experts = models
    net = loaded(kind, task_arithmetic(experts, scale=0.0), base, tmp_path / "merged")
    assert torch.equal(tiny.logits(kind, net), logits_of(kind, base))


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_sets(models, targets, tmp_path):
    kind, base, folders, experts = models
    equal = tiny.logits(kind, loaded(kind, task_arithmetic(experts, scale=0.5), base, tmp_path / "equal"))
    only = tiny.logits(kind, loaded(kind, soup(experts).at("only:b"), base, tmp_path / "soup"))
    if kind != "resnet":
        torch.testing.assert_close(only, logits_of(kind, folders["b"]), rtol=1e-4, atol=1e-5)
    if kind == "resnet":  # convolutions only
        return
    fitted = pareto_merging(experts, rank=2, targets=targets, fuse_qkv=True)
    assert torch.equal(tiny.logits(kind, loaded(kind, fitted.at("equal"), base, tmp_path / "pm")), equal)
    towards = tiny.logits(kind, loaded(kind, fitted.at("only:b"), base, tmp_path / "b"))
    assert torch.isfinite(towards).all() and not torch.equal(towards, equal)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_narrower(models, dtype, tmp_path):
    kind, base, _, experts = models
    merged = MERGES["ties"](experts.stored_as(dtype))
    assert all(merged[name].dtype == dtype for name in merged if merged[name].is_floating_point())
    wide = MERGES["ties"](experts)
    assert all(torch.equal(merged[name], wide[name].to(merged[name].dtype)) for name in merged)  # rounded once, at the end
    assert torch.isfinite(tiny.logits(kind, loaded(kind, merged, base, tmp_path / "merged").float())).all()
