"""Live models own their weights: moving one leaves files, fronts and other models as they are."""

import pytest
import torch

import fit_data
from paretomerge import api, load_front


@pytest.mark.parametrize("kind", ["vit", "gpt2", "clip"])
def test_moving_a_model_moves_nothing_else(tmp_path, kind):
    place = fit_data.save(kind, tmp_path)
    api.fit(fit_data.experts(place), rank=4, hashes=False).save(tmp_path / "front")
    front = load_front(tmp_path / "front")
    before = {gamma: {name: t.clone() for name, t in front.at(gamma).items()} for gamma in ("equal", "only:a")}
    first, second = (front.model("equal", head=head) for head in (("a", "b") if front.heads else (None, None)))
    kept = {name: p.detach().clone() for name, p in second.named_parameters()}
    front.apply_(first, "only:a")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert all(torch.equal(p, kept[name]) for name, p in second.named_parameters())
    for gamma, expected in before.items():
        found = front.at(gamma)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), gamma


def test_a_fit_leaves_its_experts_as_they_are(tmp_path):
    place = fit_data.save("vit", tmp_path)
    experts = fit_data.experts(place)
    before = {name: experts.base[name].clone() for name in experts.base}
    vectors = {name: experts.task_vectors(name) for name in experts.merged}
    api.fit(experts, data=fit_data.tasks("vit"), steps=2, rank=2, hashes=False)
    assert all(torch.equal(experts.base[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(experts.task_vectors(name), v) for name, v in vectors.items())
