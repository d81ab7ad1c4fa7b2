"""Tasks from real file formats, prepared with real tokenizers and processors, offline."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, ViTImageProcessor

from paretomerge.data import (
    DataSpec,
    ImageInputs,
    Inputs,
    Task,
    TensorInputs,
    TextInputs,
    class_numbers,
    load_task,
    zero_shot_head,
)
from paretomerge.demo import run as demo
from paretomerge.errors import UserError
from paretomerge.models import predict
from paretomerge.weights import read_json
from task_data import COLOURS, NAMES, REVIEWS, WORDS, companions, config, paint, write_csv
from tiny import model, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return companions(tmp_path_factory.mktemp("base"))


def seen(inputs: Inputs | None) -> list[tuple]:
    """Every input as something that can be compared."""
    assert inputs is not None
    batches = [inputs.batch([i]) for i in range(len(inputs))]
    return [tuple(batch.get("pixel_values", batch.get("input_ids")).flatten().tolist()) for batch in batches]


def test_prompts_in_a_file(tmp_path: Path, folder: Path) -> None:
    """Classes and templates of a zero-shot head; labels by their names, or by their numbers where the names differ."""
    datasets = pytest.importorskip("datasets")
    file = tmp_path / "prompts.yaml"
    file.write_text("classes: [a red thing, green, blue]\ntemplates: ['a photo of {}', 'the {}']\n")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green", "blue"])})
    images = [Image.new("RGB", (16, 16), COLOURS[name]) for name in ("blue", "red", "green", "blue")]
    rows = {"image": images, "label": [2, 0, 1, 2]}
    datasets.DatasetDict(test=datasets.Dataset.from_dict(rows, features)).save_to_disk(tmp_path / "data")
    clip = config("clip") | {"architectures": ["CLIPModel"]}
    spec = DataSpec(path=str(tmp_path / "data"), prompts=str(file), evaluate="test")
    task = load_task("t", spec, companions=folder, config=clip)
    assert task.held_out.labels.tolist() == [2, 0, 1, 2]
    assert (len(task.prompts.inputs), task.prompts.n_classes) == (6, 3)
    assert any(line.endswith("1 of them the data call otherwise than the prompts: a red thing") for line in task.said)
    own = load_task("t", spec.model_copy(update={"classes": ["blue", "red", "green"]}), companions=folder, config=clip)
    assert own.held_out.labels.tolist() == [0, 1, 2, 0] and len(own.prompts.inputs) == 6
    for text, message in (("classes: [a]", "templates"), ("[a", "expected ',' or ']'"), ("classes: 3\ntemplates: []", "list")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_task("t", spec, companions=folder, config=clip)
    with pytest.raises(UserError, match="gone: cannot be read"):
        load_task("t", spec.model_copy(update={"prompts": "gone"}), companions=folder, config=clip)


# images


def test_image_folder_with_splits(tmp_path: Path, folder: Path) -> None:
    paint(tmp_path / "train", 5)
    paint(tmp_path / "test", 2)
    task = load_task("colours", str(tmp_path), companions=folder, config=config("vit", "red", "green", "blue"))
    assert (task.kind, task.metric, task.split) == ("image-classification", "accuracy", "held-out")
    assert isinstance(task.fit, Inputs) and len(task.fit) == 15 and task.fit.labels is None
    assert len(task.held_out) == 6
    assert task.held_out.labels.tolist() == [2, 2, 1, 1, 0, 0]  # blue, green, red in the folder; red is class 0 of the head
    pixels = task.held_out.batch([4, 0])["pixel_values"]
    assert pixels.shape == (2, 3, 16, 16) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[0, :, 3, 3], torch.tensor([220, 30, 30]) / 127.5 - 1, atol=1e-5)  # red
    assert any("measured: 6" in line for line in task.said)


def test_one_image_folder_is_cut_in_disjoint_halves(tmp_path: Path, folder: Path) -> None:
    spec = DataSpec(path=str(paint(tmp_path / "all", 6)))
    tasks = [load_task("t", spec, companions=folder, config=config("vit", *NAMES), seed=s) for s in (0, 7)]
    fit, held_out = set(seen(tasks[0].fit)), set(seen(tasks[0].held_out))
    assert len(fit) == len(held_out) == 9 and not fit & held_out
    assert all(seen(task.fit) == seen(tasks[0].fit) for task in tasks)  # an evaluation with another seed sees no fit input
    assert any("one half by chance" in line for line in tasks[0].said)


def test_images_without_classes_are_for_fitting_only(tmp_path: Path, folder: Path) -> None:
    paint(tmp_path / "painted")
    task = load_task("t", str(tmp_path / "painted" / "red"), companions=folder, config=config("vit", *NAMES))
    assert len(task.fit) == 4 and task.held_out is None
    assert any("no labels" in line for line in task.said)
    spec = DataSpec(path=str(tmp_path / "painted" / "red"), evaluate=str(tmp_path / "painted"))
    both = load_task("t", spec, companions=folder, config=config("vit", *NAMES))
    assert (len(both.fit), len(both.held_out), both.split) == (4, 12, "held-out")


def test_npz_of_the_demo(folder: Path) -> None:
    """Grey 28 × 28 images for a model of one channel: (x / 255 − ½) / ½, as its preprocessor_config.json says."""
    for file in sorted((demo.assets() / "data").glob("*.npz")):
        head = read_json(demo.assets() / "experts" / file.stem / "config.json")
        task = load_task(file.stem, str(file), companions=demo.assets() / "pretrained", config=head)
        with np.load(file) as arrays:
            pixels = (torch.from_numpy(arrays["test_images"]).float()[:, None] / 255 - 0.5) / 0.5
            assert torch.equal(task.held_out.labels, torch.from_numpy(arrays["test_labels"]))
            assert len(task.fit) == len(arrays["fit_images"])
        indices = range(0, len(pixels), 7)
        assert torch.allclose(task.held_out.batch(indices)["pixel_values"], pixels[::7], atol=1e-5)
        assert task.fit.labels is None and task.split == "held-out"


@pytest.mark.parametrize("cls", [ViTImageProcessor, CLIPImageProcessor])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_images_of_any_mode_for_models_of_any_channels(cls: type, channels: int, mode: str, tmp_path: Path) -> None:
    size = {"height": 16, "width": 16}
    processor = cls(size={"shortest_edge": 16} if cls is CLIPImageProcessor else size, crop_size=size, do_resize=True)
    grey = Image.fromarray(np.tile(np.arange(24, dtype=np.uint8) * 10, (24, 1)))
    image = grey.convert("RGB").quantize() if mode == "P" else grey.convert(mode)
    image.save(tmp_path / "image.png")
    pixels = ImageInputs([image, tmp_path / "image.png"], processor, channels).batch([0, 1])["pixel_values"]
    assert pixels.shape == (2, channels, 16, 16) and torch.equal(pixels[0], pixels[1])
    assert pixels[0, 0, 5, 0] < pixels[0, 0, 5, 15] and pixels.std(2).max() < 1e-3  # dark to light, rows alike


def test_images_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = sorted(paint(tmp_path).rglob("*.png"))
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    inputs = ImageInputs(paths, processor, 3)
    inputs._room = 3 * 3 * 16 * 16 * 4  # of three images
    first = inputs.batch(range(12))["pixel_values"]
    reads = []
    monkeypatch.setattr(inputs, "_read", lambda i, read=inputs._read: reads.append(i) or read(i))
    assert torch.equal(inputs.batch([11, 0, 5, 5])["pixel_values"], first[[11, 0, 5, 5]])
    assert reads == [11, 5]


def test_broken_and_unequal_images(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    processor = ViTImageProcessor(do_resize=False)
    with pytest.raises(UserError, match=r"bad.png: is not an image"):
        ImageInputs([tmp_path / "bad.png"], processor, 3).batch([0])
    sizes = [np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)]
    with pytest.raises(UserError, match="different sizes"):
        ImageInputs(sizes, processor, 3).batch([0, 1])


# texts


def test_csv_tsv_and_jsonl_agree(tmp_path: Path, folder: Path) -> None:
    write_csv(tmp_path / "a.csv", [(i, text, label) for i, (text, label) in enumerate(REVIEWS)], ("id", "review", "mood"))
    write_csv(tmp_path / "a.tsv", REVIEWS, delimiter="\t")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"sentence": t, "label": y == "good"}) for t, y in REVIEWS))
    found = []
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        spec = DataSpec(path=str(tmp_path / name), transductive=True)
        head = config("bert", "bad", "good") if name != "a.jsonl" else config("bert", num_labels=2)
        task = load_task("mood", spec, companions=folder, config=head)
        assert (task.kind, task.split, len(task.fit), len(task.held_out)) == ("text-classification", "transductive", 20, 20)
        assert task.fit.labels is None and any("transductive" in line for line in task.said)
        found.append((seen(task.held_out), task.held_out.labels.tolist()))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == [i % 2 for i in range(20)]


def test_texts_are_padded_per_batch_as_the_tokenizer_does(tmp_path: Path, folder: Path) -> None:
    task = load_task(
        "mood", DataSpec(path=str(write_csv(tmp_path / "a.csv", REVIEWS)), transductive=True),
        companions=folder, config=config("bert", "bad", "good"),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for indices in ([3], [0, 4, 1], list(range(20))):
        expected = tokenizer([REVIEWS[i][0] for i in indices], padding=True, return_tensors="pt")
        batch = task.held_out.batch(indices)
        assert set(batch) == set(expected) and all(torch.equal(batch[name], expected[name]) for name in batch)


def test_pairs_and_max_length(tmp_path: Path, folder: Path) -> None:
    rows = [("the cat sat on the mat", "a dog ?", "good"), ("red", "green", "bad")] * 2
    write_csv(tmp_path / "pairs.csv", rows, ("premise", "hypothesis", "label"))
    spec = DataSpec(path=str(tmp_path / "pairs.csv"), max_length=8, transductive=True)
    task = load_task("nli", spec, companions=folder, config=config("bert", "bad", "good"))
    batch = task.held_out.batch([0, 1])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["token_type_ids"][1].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert any("text column: premise and hypothesis" in line for line in task.said)
    assert any("2 fill all 8" in line for line in task.said)


def test_a_folder_of_split_files_and_a_split_without_labels(tmp_path: Path, folder: Path) -> None:
    write_csv(tmp_path / "train.csv", REVIEWS[:12])
    write_csv(tmp_path / "val.csv", REVIEWS[12:])
    write_csv(tmp_path / "test.csv", [(text, -1) for text, _ in REVIEWS])  # as the hub hides labels
    head = config("bert", "bad", "good")
    task = load_task("mood", str(tmp_path), companions=folder, config=head)
    assert (len(task.fit), len(task.held_out)) == (12, 8)
    assert any("test.csv has no labels" in line for line in task.said)
    other = load_task("mood", DataSpec(path=str(tmp_path), fit="test", evaluate="train"), companions=folder, config=head)
    assert (len(other.fit), len(other.held_out), other.split) == (20, 12, "held-out")
    same = load_task("mood", DataSpec(path=str(tmp_path), fit="train", evaluate="train"), companions=folder, config=head)
    assert same.split == "transductive"
    labelled = load_task("mood", str(tmp_path), companions=folder, config=head, keep_labels=True)
    assert labelled.fit.labels.tolist() == [i % 2 for i in range(12)]


@given(n=st.integers(2, 40), limit=st.integers(1, 50), seed=st.integers(0, 5))
def test_halves_and_limits_never_overlap(tmp_path_factory, folder: Path, n: int, limit: int, seed: int) -> None:
    from paretomerge.data import Split, choose

    split = Split("x", {"text": list(range(n))})
    found = choose(
        {"all": split}, DataSpec(path="x", fit_inputs=limit, evaluate_inputs=limit),
        labelled=lambda _: True, ready=lambda s: s, seed=seed, say=lambda _: None,
    )  # fmt: skip
    fit, held_out = found.fit.indices, found.held_out.indices
    assert not set(fit) & set(held_out) and not found.fit.overlaps(found.held_out)
    assert len(set(fit)) == min(limit, n // 2) and len(set(held_out)) == min(limit, n - n // 2)
    assert fit == sorted(fit) and set(fit) | set(held_out) <= set(range(n))


# language models


def test_text_file_in_blocks(tmp_path: Path, folder: Path) -> None:
    words = [WORDS[i % len(WORDS)] for i in range(107)]
    (tmp_path / "a.txt").write_text(" ".join(words[:50]) + "\n\n" + " ".join(words[50:]))
    spec = DataSpec(path=str(tmp_path / "a.txt"), max_length=10)
    task = load_task("words", spec, companions=folder, config=config("gpt2"))
    assert (task.kind, task.metric, len(task.fit), len(task.held_out)) == ("language-modelling", "perplexity", 5, 5)
    assert task.held_out.labels is None and not set(seen(task.fit)) & set(seen(task.held_out))
    vocabulary = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    blocks = {tuple(vocabulary[word] for word in words[i : i + 10]) for i in range(0, 100, 10)}
    assert set(seen(task.fit)) | set(seen(task.held_out)) == blocks  # [CLS] is no beginning of text: it is in none


def test_documents_are_joined_and_blocks_begin_with_the_first_token(tmp_path: Path, folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, bos_token="[CLS]")
    tokenizer.save_pretrained(tmp_path / "bos")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": "the cat sat"}) for _ in range(6)))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "a dog and a cat ."}))
    spec = DataSpec(path=str(tmp_path), max_length=5)
    task = load_task("words", spec, companions=tmp_path / "bos", config=config("gpt2"))
    the, cat, sat = tokenizer.convert_tokens_to_ids(["the", "cat", "sat"])
    assert task.fit.batch(range(6))["input_ids"].tolist() == [[1, the, cat, sat, 2]] * 6
    assert len(task.held_out) == 1 and task.held_out.batch([0])["input_ids"][0, 0] == 1


# a pair of towers


def test_zero_shot_is_what_the_model_says_of_each_prompt(tmp_path: Path, folder: Path) -> None:
    paint(tmp_path / "data", 2)
    net = model("clip")
    spec = DataSpec(path=str(tmp_path / "data"), transductive=True, templates=["a photo of a {} ."])
    task = load_task("colours", spec, companions=folder, config=config("clip"))
    assert task.held_out.labels.tolist() == [0, 0, 1, 1, 2, 2]  # blue, green, red: the data's own order
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    head = zero_shot_head(net, tokenizer, ["blue", "green", "red"], ["a photo of a {} ."])
    assert head.shape == (3, 8) and torch.allclose(head.norm(dim=1), torch.ones(3))
    batch = task.held_out.batch(range(6))
    texts = tokenizer([f"a photo of a {name} ." for name in ("blue", "green", "red")], return_tensors="pt")
    with torch.no_grad():
        whole = net(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"], **batch).logits_per_image
        assert torch.allclose(predict(net, batch, head), whole, atol=1e-4)
        assert torch.allclose(task.prompts.features(net), head)
        two = zero_shot_head(net, tokenizer, ["red"], ["a {}", "the {} ?"])
        each = [zero_shot_head(net, tokenizer, ["red"], [t]) for t in ("a {}", "the {} ?")]
    mean = (each[0] + each[1]) / 2
    assert torch.allclose(two, mean / mean.norm(), atol=1e-6)


# labels


def test_labels_are_read_as_the_head_names_them() -> None:
    named = {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}
    plain = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    assert class_numbers(["negative", "Positive"], None, named, None, "x")[0].tolist() == [1, 0]
    assert class_numbers([0, 1, 1], ["negative", "positive"], named, None, "x")[0].tolist() == [1, 0, 0]
    assert class_numbers([0, 1], ["no", "yes"], plain, None, "x")[0].tolist() == [0, 1]
    assert class_numbers(["1", "0"], None, named, None, "x")[0].tolist() == [1, 0]
    assert class_numbers(["b", "a"], None, {}, None, "x")[0].tolist() == [1, 0]  # in alphabetical order
    assert class_numbers(["b", "a"], None, named, ["b", "a"], "x")[0].tolist() == [0, 1]
    assert class_numbers([0, 1], ["no", "yes"], named, ["yes", "no"], "x")[0].tolist() == [1, 0]
    digits = {"id2label": {str(i): str((i + 1) % 10) for i in range(10)}}  # class 0 is the digit 1
    assert class_numbers(["1", "0"], None, digits, None, "x")[0].tolist() == [0, 9]
    clash = {"id2label": {"0": "a_b", "1": "A B", "2": "c"}}
    assert class_numbers(["A B", "a_b"], None, clash, None, "x")[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "names", "head", "message"),
    [
        (["good", "awful"], None, {"id2label": {"0": "bad", "1": "good"}}, r"labels that the head does not know: awful"),
        ([0, 1], ["no", "yes"], {"id2label": {"0": "bad", "1": "good"}}, r"does not know: no, yes .*classes"),
        ([0, 5], None, {"id2label": {"0": "a", "1": "b"}}, r"has the label 5, but the head has 2 classes"),
        (["a", ""], None, {}, r"example 2 has the label ''"),
        ([0.5], None, {}, r"example 1 has the label 0.5"),
        ([1], None, {"id2label": {"0": "LABEL_0"}}, r"one output"),
        (["a", "b", "c"], None, {}, r"does not know"),
    ],
)
def test_labels_that_do_not_fit(values: list, names: list | None, head: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        class_numbers(values, names, head, None, "x")
    assert "\n" not in str(error.value)


# functions, saved data sets, mistakes


def made() -> Task:
    return Task(
        "?", "image-classification", None, TensorInputs({"pixel_values": torch.zeros(2, 1)}, torch.zeros(2)), "accuracy"
    )


def test_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_task("mine", made, companions=None, config={}).name == "mine"
    (tmp_path / "my_data.py").write_text(
        "from paretomerge.data.tasks import Task\n"
        "def task():\n    return Task('', 'text-classification', None, None, 'accuracy')\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_task("mine", "my_data:task", companions=None, config={}).name == "mine"
    assert sys.path == before
    for path, message in (
        ("my_data:number", "returns a int"),
        ("my_data:nothing", "no such function"),
        ("no_such_module:f", "cannot be imported"),
    ):
        with pytest.raises(UserError, match=message):
            load_task("mine", path, companions=None, config={})


def test_saved_data_sets(tmp_path: Path, folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (16, 16), COLOURS[name]) for name in NAMES] * 2
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=NAMES)})
    rows = datasets.Dataset.from_dict({"img": images, "fine_label": [0, 1, 2] * 2}, features)
    datasets.DatasetDict({"train": rows, "test": rows.select([2, 1])}).save_to_disk(tmp_path / "images")
    task = load_task("colours", str(tmp_path / "images"), companions=folder, config=config("vit", "red", "green", "blue"))
    assert (len(task.fit), len(task.held_out)) == (6, 2)
    assert task.held_out.labels.tolist() == [0, 1]
    assert task.held_out.batch([0])["pixel_values"][0, 0].mean() > 0.5  # red
    texts = datasets.Dataset.from_dict({"idx": list(range(20)), "review": [r[0] for r in REVIEWS], "label": [0, 1] * 10})
    texts.save_to_disk(tmp_path / "texts")
    task = load_task("mood", str(tmp_path / "texts"), companions=folder, config=config("bert", "bad", "good"))
    assert (len(task.fit), len(task.held_out), task.split) == (10, 10, "held-out")


def test_datasets_is_asked_for(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    for path in (str(tmp_path / "saved"), "someone/some-data"):
        with pytest.raises(UserError, match=r"pip install 'paretomerge\[data\]'"):
            load_task("t", path, companions=folder, config=config("bert"))


MISTAKES = {
    "missing.csv": ("no such file", {}),
    "ragged.csv": ("line 3 has 3 fields, the header 2", {}),
    "empty.csv": ("is empty", {}),
    "bad.jsonl": ("line 2 is not JSON", {}),
    "list.jsonl": ("line 1 is not an object", {}),
    "latin.csv": ("UTF-8", {}),
    "data.xlsx": ("data are read from", {}),
    "pickled.npz": ("cannot be read", {}),
    "float.npz": ("must be uint8", {}),
    "two.csv": ("which column is the text", {}),
    "good.csv": ("no column 'nothing'", {"text": "nothing"}),
    "good.csv ": ("no column 'nothing'", {"label": "nothing"}),
    "good.csv  ": ("neither a split", {"evaluate": "tset"}),
    "good.csv   ": ("labels that the head does not know", {"classes": ["x", "y"]}),
    "unlabelled.csv": ("no labels to measure with", {"evaluate": "unlabelled.csv"}),
    "unlabelled.csv ": ("nothing with labels", {"transductive": True}),
    "one.csv": ("one example is too few", {}),
    "null.jsonl": ("example 1 of column text is not text: None", {"transductive": True}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "good.csv", REVIEWS)
    write_csv(tmp_path / "one.csv", REVIEWS[:1])
    write_csv(tmp_path / "unlabelled.csv", [(text,) for text, _ in REVIEWS], ("text",))
    write_csv(tmp_path / "two.csv", [("a", "b", "good"), ("c", "d", "bad")], ("first", "second", "label"))
    (tmp_path / "ragged.csv").write_text("text,label\na,b\na,b,c\n")
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "null.jsonl").write_text('{"text": null, "label": "good"}\n{"text": "a", "label": "bad"}\n')
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,good\n".encode("latin-1"))
    (tmp_path / "data.xlsx").write_bytes(b"")
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object))
    np.savez(tmp_path / "float.npz", images=np.zeros((2, 4, 4)))
    message, options = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_task(
            "t", DataSpec(path=str(tmp_path / name.strip()), **options), companions=folder, config=config("bert", "bad", "good")
        )
    assert str(error.value).startswith("data of task t: ") and "\n" not in str(error.value)


def test_what_the_model_lacks(tmp_path: Path, folder: Path) -> None:
    path = str(write_csv(tmp_path / "a.csv", REVIEWS))
    with pytest.raises(UserError, match="no tokenizer that transformers can load"):
        load_task("t", path, companions=tmp_path, config=config("bert"))
    with pytest.raises(UserError, match="no folder with a tokenizer"):
        load_task("t", path, companions=None, config=config("bert"))
    with pytest.raises(UserError, match="BertModel is no classifier"):
        load_task("t", path, companions=folder, config=config("bert") | {"architectures": ["BertModel"]})
    tokens = TensorInputs({"input_ids": torch.full((1, 3), 99)})
    with pytest.raises(UserError, match="BertForSequenceClassification refuses the inputs"):
        predict(model("bert"), tokens.batch([0]))
    body = model("bert").bert
    with pytest.raises(UserError, match="has no head"):
        predict(body, TextInputs({"input_ids": [[1, 2]]}, 0).batch([0]))
    saved = save(model("vit"), tmp_path / "vit")
    assert not (saved / "preprocessor_config.json").exists()
    with pytest.raises(UserError, match="image processor"):
        load_task("t", str(paint(tmp_path / "p")), companions=saved, config=config("vit", *NAMES))
