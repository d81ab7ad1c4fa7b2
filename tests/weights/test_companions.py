"""What is copied beside the weights, and what is fetched from the hub."""

import json

import pytest

import tiny
from commands import contents
from paretomerge import api, load_front
from paretomerge.errors import UserError
from paretomerge.experts import load_experts
from paretomerge.weights import copy_companions, local

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
]
FILES = {
    "1_Pooling/config.json": "{}",
    "2_Dense/config.json": "{}",
    "2_Dense/model.safetensors": "weights",
    "2_Dense/deeper/vocab.txt": "words",
    "additional_chat_templates/tool_use.jinja": "TOOLS",
    "additional_chat_templates/rag.jinja": "RAG",
    "chat_template.jinja": "{{ messages }}",
    "qwen.tiktoken": "YQ== 0",
    "source.spm": "x",
    "tokenization_own.py": "# never run",
    "config_sentence_transformers.json": "{}",
    "onnx/model.onnx": "not ours",
}


@pytest.fixture
def base(tmp_path):
    folder = tiny.save(tiny.model("llama"), tmp_path / "base")
    for name, text in {**FILES, "modules.json": json.dumps(MODULES)}.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    return folder


def test_a_front_and_its_picks_have_them_all(tmp_path, base):
    """Folders that modules.json names, and named chat templates, too, from base to front and from front to model."""
    expert = tiny.save(tiny.perturb(tiny.model("llama"), 1), tmp_path / "a")
    experts = load_experts(base, {"a": expert, "b": expert})
    assert [f.level for f in experts.findings if f.file == str(base / "2_Dense")] == ["warning"], "its weights are not merged"
    api.fit(experts, rank=1).save(tmp_path / "front")
    load_front(tmp_path / "front").pick("only:a", tmp_path / "model")
    load_front(tmp_path / "front").save(tmp_path / "again")
    for folder in ("front", "model", "again"):
        there = contents(tmp_path / folder)
        for name, text in FILES.items():
            assert there.get(name) == (None if name.startswith("onnx") else text.encode()), f"{folder}: {name}"
    load_front(tmp_path / "front").pick("only:a", tmp_path / "model", overwrite=True)  # nothing in it is a stranger's


def test_named_chat_templates_are_found_again(tmp_path):
    """As transformers writes and reads them."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(9)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "TOOLS {{ messages }}"}
    tokenizer.save_pretrained(tmp_path / "from")
    (tmp_path / "to").mkdir()
    copy_companions(tmp_path / "from", tmp_path / "to")
    assert AutoTokenizer.from_pretrained(tmp_path / "to").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "1_Pooling/../../x", "a\0b"])
def test_modules_lie_in_their_folder(tmp_path, base, path):
    (base / "modules.json").write_text(json.dumps([{"path": path}]))
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError, match=r"modules\.json: .* leads out"):
        copy_companions(base, tmp_path / "to")


@pytest.mark.parametrize("text", ["{", "5", '{"path": "x"}', '[5, {"path": 7}, {}, {"path": "not there"}]', ""])
def test_a_list_of_modules_of_another_kind_is_copied_as_it_is(tmp_path, base, text):
    (base / "modules.json").write_text(text)
    (tmp_path / "to").mkdir()
    copy_companions(base, tmp_path / "to")
    assert (tmp_path / "to" / "modules.json").read_text() == text


def test_what_is_fetched_from_the_hub(tmp_path, monkeypatch):
    """By the hub client's own rule: tokenizers and code, and no weights twice."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options) or str(tmp_path))
    local("org/name@main")
    assert asked.pop("revision") == "main"
    wanted = [
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "modeling_own.py", "qwen.tiktoken",
        "tokenizer.model", "chat_template.jinja", "additional_chat_templates/rag.jinja", "merges.txt", "1_Pooling/config.json",
        "2_Dense/model.safetensors", "source.spm",
    ]  # fmt: skip
    others = [
        "consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "original/consolidated.00.pth",
        "pytorch_model.bin", "original/params.json", "tf_model.h5", "onnx/config.json", "model.gguf", "README.md",
    ]  # fmt: skip
    assert [*filter_repo_objects([*wanted, *others], **asked)] == wanted
