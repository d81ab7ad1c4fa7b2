"""A config.json or tokenizer_config.json from anywhere: whatever transformers makes of it is one line, and no code is run."""

import json
import math
import shutil
from pathlib import Path

import pytest
import transformers as hf

import fronts
import task_data
from paretomerge import load_front
from paretomerge.app import Live
from paretomerge.errors import UserError
from paretomerge.experts import empty_model, load_beside, model_class

CHANGES = [
    {"architectures": -1}, {"architectures": "LlamaForCausalLM"}, {"architectures": [7]}, {"architectures": {"0": "x"}},
    {"architectures": ["AutoTokenizer"]}, {"architectures": ["pipeline"]}, {"architectures": ["logging"]},
    {"architectures": ["__class__"]}, {"architectures": ["Nonsense"]}, {"vocab_size": True}, {"vocab_size": math.inf},
    {"vocab_size": -3}, {"vocab_size": "40"}, {"tie_word_embeddings": None}, {"rope_parameters": "x"},
    {"rope_parameters": {"rope_type": "none such"}}, {"rope_parameters": {"rope_type": "yarn"}}, {"model_type": 5},
    {"model_type": ["llama"]}, {"model_type": "none such"}, {"model_type": None}, {"hidden_size": 0}, {"hidden_size": [16]},
    {"num_attention_heads": 0}, {"num_attention_heads": 3}, {"hidden_act": "none"}, {"hidden_act": 3}, {"dtype": "x"},
    {"num_hidden_layers": math.nan}, {"num_hidden_layers": "two"}, {"max_position_embeddings": "x"},
    {"max_position_embeddings": [1]}, {"pad_token_id": "x"}, {"id2label": 3}, {"id2label": {"a": "b"}}, {"label2id": [1]},
    {"vision_config": 3}, {"text_config": "x"}, {"quantization_config": False}, {"torch_dtype": 7}, {"self": 1}, {"cls": 2},
]  # fmt: skip


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    fronts.front(folder, measured=False)
    (folder / "text.txt").write_text("the cat sat\nthe dog\na cat and a dog\n" * 4)
    return folder


@pytest.mark.filterwarnings("ignore")  # transformers' own, of what it makes of them
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: json.dumps(change))
def test_wrong_types_are_one_line_or_do_no_harm(cli, front, change):
    shutil.copytree(front / "front", "front")
    file = Path("front/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    data = ["--data", f"a={front / 'text.txt'}", "--data", f"b={front / 'text.txt'}"]
    for words in (
        ["evaluate", "front", *data, "-p", "only:a", "--dry"],
        ["pick", "front", "-p", "only:a", "--lora", "-o", "m"],
    ):
        code, out, err = cli.call([str(word) for word in [*words, "--quiet"]])
        assert code == 0 or (code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1), err
    if "architectures" in change:
        assert code == 2


@pytest.mark.parametrize("change", [{"architectures": ["AutoTokenizer"]}, {"architectures": [7]}, {"architectures": -1}])
def test_only_models_are_built(change):
    with pytest.raises(UserError):
        model_class(change)


def test_the_line_says_what_is_wrong():
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_parameters": "x"}
    with pytest.raises(UserError, match=r"config\.json \("):
        empty_model(config)


def with_code(folder):
    """A tokenizer and an image processor that name code of their own, which leaves a file when it is run."""
    run = folder / "was-run"
    for name, part, kind in (
        ("tokenizer_config.json", "AutoTokenizer", "tokenizer_class"),
        ("preprocessor_config.json", "AutoImageProcessor", "image_processor_type"),
    ):
        config = json.loads((folder / name).read_text())
        own = ["own.Own", None] if part == "AutoTokenizer" else "own.Own"
        (folder / name).write_text(json.dumps({**config, kind: "Own", "auto_map": {part: own}}))
    (folder / "own.py").write_text(f"open({str(run)!r}, 'w').write('run')\nclass Own: pass\n")
    return run


@pytest.mark.parametrize("kind", ["AutoTokenizer", "AutoImageProcessor"])
def test_code_of_a_model_is_not_run_and_nobody_is_asked(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    run = with_code(task_data.companions(tmp_path))
    with pytest.raises(UserError, match="that transformers can load") as error:
        load_beside(tmp_path, kind)
    assert "\n" not in str(error.value) and not run.exists()


def test_nor_by_evaluate_or_the_page(cli, front, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    shutil.copytree(front / "front", "front")
    run = with_code(Path("front"))
    config = Path("front/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoConfig": "own.Own"}}))
    data = ["--data", f"a={front / 'text.txt'}", "--data", f"b={front / 'text.txt'}"]
    assert "no tokenizer that transformers can load" in cli.refuses("evaluate", "front", *data, "--quiet")
    with pytest.raises(UserError, match="no tokenizer that transformers can load"):
        Live(load_front("front")).ask((0.5, 0.5), None, "the cat")
    cli("pick", "front", "-p", "only:a", "--lora", "-o", "adapter")
    assert isinstance(load_front("front").model("only:a"), hf.LlamaForCausalLM)
    assert not run.exists()
