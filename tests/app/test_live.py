"""The live model: what it says is what a fresh model says, whoever asked before."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

import fronts
import task_data
import tiny
from paretomerge import api, load_front
from paretomerge.app import Live, kind_of
from paretomerge.errors import UserError
from paretomerge.experts import load_experts


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return fronts.front(tmp_path_factory.mktemp("llama"), measured=False)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return fronts.front(tmp_path_factory.mktemp("vit"), kind="vit", measured=False)


def test_a_prompt_goes_on_greedily_as_a_fresh_model_would(llama):
    live = Live(llama)
    tokenizer = AutoTokenizer.from_pretrained(llama.companions)
    for gamma in ((1.0, 0.0), (0.2, 0.8), (1.0, 0.0)):
        found = live.ask(gamma, None, "the cat sat", new_tokens=3)
        ids = tokenizer("the cat sat", return_tensors="pt")["input_ids"]
        for _ in range(3):
            ids = torch.cat([ids, fronts.logits(llama, gamma, ids)[:, -1:].argmax(-1)], 1)
        assert found.text == tokenizer.decode(ids[0, -3:], skip_special_tokens=True)
        assert found.switched > 0 and found.ran > 0


def test_an_image_is_classified_as_a_fresh_model_would(vit):
    live = Live(vit)
    picture = Image.new("RGB", (20, 12), (220, 30, 30))
    assert set(live.heads.values()) == {"image"}
    pixels = task_data.ViTImageProcessor.from_pretrained(vit.companions)(picture, return_tensors="pt")["pixel_values"]
    for gamma in ((0.5, 0.5), (0.0, 1.0)):
        head = next(iter(live.heads))
        found = live.ask(gamma, head, picture)
        with torch.no_grad():
            wanted = vit.model(gamma, head=head)(pixel_values=pixels).logits[0].softmax(-1)
        assert sum(found.classes.values()) == pytest.approx(1, abs=1e-5)
        assert list(found.classes.values()) == pytest.approx(sorted(wanted.tolist(), reverse=True), abs=1e-5)
    assert live.ask((0.5, 0.5), head, np.asarray(picture)).classes  # an array will do


def test_visitors_do_not_meet(llama):
    live = Live(llama)
    gammas = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    alone = {gamma: Live(llama).ask(gamma, None, "a very good film", new_tokens=4).text for gamma in gammas}
    found: list[tuple[tuple[float, ...], str]] = []

    def visit(gamma):
        for _ in range(6):
            found.append((gamma, live.ask(gamma, None, "a very good film", new_tokens=4).text))

    threads = [threading.Thread(target=visit, args=(gamma,)) for gamma in gammas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 18 and all(text == alone[gamma] for gamma, text in found)


def test_models_of_other_heads_make_room(vit, monkeypatch):
    live = Live(vit, room=1)
    heads = list(live.heads)
    monkeypatch.setattr(type(live), "heads", property(lambda _: dict.fromkeys([*heads, *vit.heads], "image")))
    for head in [*heads, *vit.heads]:
        live.ask((0.5, 0.5), head, Image.new("RGB", (9, 9)))
        assert list(live._models) == [head]


def test_mistakes_are_one_line(llama, vit, tmp_path):
    for front, given in ((llama, "  "), (vit, None)):
        with pytest.raises(UserError, match="first"):
            Live(front).ask((0.5, 0.5), next(iter(Live(front).heads)), given)
    base, experts = tiny.family("llama", tmp_path / "bare")
    api.fit(load_experts(base, experts), rank=2).save(tmp_path / "front")
    with pytest.raises(UserError, match="no tokenizer"):
        Live(load_front(tmp_path / "front")).ask((0.5, 0.5), None, "the cat")


def test_a_long_prompt_makes_room_at_its_beginning(llama):
    live = Live(llama)  # 16 positions
    assert live.ask((0.5, 0.5), None, "the dog sat . " * 9 + "the cat sat", new_tokens=12).text
    with pytest.raises(UserError, match="room for 16 tokens"):
        live.ask((0.5, 0.5), None, "the cat", new_tokens=16)
    assert live._tokens("dog " * 20 + "cat", leaving=12)["input_ids"].tolist() == [
        live._tokens("dog dog cat", leaving=1)["input_ids"][0, -4:].tolist()
    ]


def test_kinds():
    assert kind_of({"architectures": ["BertForSequenceClassification"]}) == "text"
    assert kind_of({"architectures": ["CLIPModel"], "text_config": {}, "vision_config": {}}) == "image and classes"
    assert kind_of({"architectures": ["ViTModel"]}) is None and kind_of({}) is None


def test_texts_and_zero_shot_images(tmp_path):
    for kind, given, classes in (("bert", "a very bad film", ()), ("clip", Image.new("RGB", (9, 9)), ("cat", "dog", "mat"))):
        front = fronts.front(tmp_path / kind, kind=kind, measured=False)
        live = Live(front)
        found = live.ask((0.3, 0.7), next(iter(live.heads)), given, classes=classes)
        assert sum(found.classes.values()) == pytest.approx(1, abs=1e-5)
        assert not classes or set(found.classes) == set(classes)
    with pytest.raises(UserError, match="two classes"):
        live.ask((0.3, 0.7), None, given)
