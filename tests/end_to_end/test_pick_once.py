"""What ``pick`` does once, however large the model is."""

import pytest

import paretomerge
import tiny
from paretomerge import preferences
from paretomerge.front import Front


@pytest.mark.parametrize("method", ["soup", "pareto-merging"])
def test_the_preference_is_parsed_once_and_the_model_built_once(method, cli, tmp_path, monkeypatch):
    experts = paretomerge.load_experts(*tiny.family("llama", tmp_path / "models"))
    paretomerge.fit(experts, method, hashes=False).save(tmp_path / "front")
    counted = {"parse": 0, "at": 0}

    def counting(name, function):
        def call(*given, **options):
            counted[name] += 1
            return function(*given, **options)

        return call

    monkeypatch.setattr(preferences, "parse", counting("parse", preferences.parse))
    monkeypatch.setattr(Front, "at", counting("at", Front.at))
    cli("pick", tmp_path / "front", "-p", "a=0.7,b=0.3", "-o", tmp_path / "picked")
    assert counted == {"parse": 1, "at": 1}
