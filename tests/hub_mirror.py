"""A folder in the hub's place: tiny repositories with the names, files, columns and splits that examples/papers use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor

import tiny
from paretomerge.data import read_prompts

datasets = pytest.importorskip("datasets")

PAPERS = Path(__file__).parents[1] / "examples" / "papers"
IMAGES = {
    "tanganke/sun397": "sun397", "tanganke/stanford_cars": "cars", "tanganke/resisc45": "resisc45",
    "tanganke/eurosat": "eurosat", "ufldl-stanford/svhn": "svhn", "tanganke/gtsrb": "gtsrb", "ylecun/mnist": "mnist",
    "tanganke/dtd": "dtd",
}  # fmt: skip
"""Data set -> its prompts."""
SUBSETS = {"ufldl-stanford/svhn": "cropped_digits", "ylecun/mnist": "mnist"}
EXPERTS = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
TEXT = datasets.Value("string")
GLUE: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
}
"""Configuration -> columns of text, names of the labels."""
SENTENCES = (
    "The cat sat on the mat.",
    "A film that is not very good.",
    "Is it a dog?",
    "Nobody knows.",
    "He went home, and slept.",
)
LANGUAGES = {
    "fra_Latn": "Le chat est assis. ",
    "arb_Arab": "القط جالس. ",
    "zho_Hans": "猫坐着。",
    "jpn_Jpan": "猫が座っている。",
}


def make(root: Path) -> Path:
    """All of it; small random models, and experts near them."""
    for name, size in (("base-patch32", 16), ("large-patch14", 24)):
        clip(root, name, size)
    datasets.disable_progress_bars()
    for name, prompts in IMAGES.items():
        classes = read_prompts(str(PAPERS / "prompts" / f"{prompts}.yaml")).classes
        images(root / "datasets" / name, classes, SUBSETS.get(name, ""), grey=prompts == "mnist")
    images(root / "datasets" / "uoft-cs" / "cifar10", [f"class {i}" for i in range(10)], "plain_text", column="img")
    flowers = [f"flower {i}" for i in range(102)]
    images(
        root / "datasets" / "dpdl-benchmark" / "oxford_flowers102", flowers, splits={"train": 12, "validation": 4, "test": 8}
    )
    resnet(root / "microsoft" / "resnet-18")
    gpt2(root)
    glue(root / "datasets" / "nyu-mll" / "glue")
    llama(root)
    belebele(root / "datasets" / "facebook" / "belebele")
    return root


def repository(folder: Path, tensors: Mapping[str, Tensor], config: hf.PretrainedConfig, architecture: str) -> Path:
    """A model's folder, with names of tensors as they are on the hub, whatever this transformers would call them."""
    folder.mkdir(parents=True)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    facts = json.loads(config.to_json_string()) | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def near(tensors: Mapping[str, Tensor], seed: int, size: float = 0.02) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: t + size * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t for n, t in tensors.items()}


def clip(root: Path, name: str, width: int) -> None:
    """openai/clip-vit-NAME, and CLIPVisionModel folders near it: no tokenizer, no processor, no text tower."""
    vision = {"hidden_size": width, "intermediate_size": 2 * width, "image_size": 32, "patch_size": 16}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 514, "max_position_embeddings": 77}
    torch.manual_seed(0)
    net = hf.CLIPModel(
        hf.CLIPConfig(
            text_config={**text, **layers, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
            vision_config={**vision, **layers},
            projection_dim=16,
        )
    )
    state = dict(net.state_dict())
    config = net.config
    base = repository(root / "openai" / f"clip-vit-{name}", state | {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }, config, "CLIPModel")  # fmt: skip
    letters = [*pre_tokenizers.ByteLevel.alphabet()]
    words = sorted(letters) + sorted(f"{letter}</w>" for letter in letters) + ["<|startoftext|>", "<|endoftext|>"]
    (base / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (base / "merges.txt").write_text("#version: 0.2\n")
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}))
    hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(base)
    tower = {n: t for n, t in state.items() if n.startswith("vision_model.")}
    for seed, task in enumerate(EXPERTS, 1):
        repository(root / "tanganke" / f"clip-vit-{name}_{task}", near(tower, seed), config.vision_config, "CLIPVisionModel")


def dataset(folder: Path, subset: str, splits: Mapping[str, datasets.Dataset]) -> None:
    """Splits as parquet files, and in README.md the configuration that they belong to."""
    place = folder / (subset or "data")
    place.mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(place / f"{split}-00000-of-00001.parquet")
    readme = folder / "README.md"
    lines = (readme.read_text() if readme.exists() else "---\nconfigs:\n---\n").removesuffix("---\n")
    lines += f"- config_name: {subset or 'default'}\n  data_files:\n"
    lines += "".join(f"  - split: {split}\n    path: {place.name}/{split}-*\n" for split in splits)
    readme.write_text(f"{lines}---\n")


def images(
    folder: Path, classes: Sequence[str], subset: str = "", *, grey: bool = False, column: str = "image",
    splits: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """Random images of different sizes; labels are numbers with names."""
    draw = np.random.default_rng(len(classes))
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    made = {}
    for split, n in (splits or {"train": 12, "test": 8}).items():
        shapes = [(int(h), int(w)) if grey else (int(h), int(w), 3) for h, w in draw.integers(24, 48, (n, 2))]
        rows = {
            column: [Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes],
            "label": draw.integers(0, len(classes), n).tolist(),
        }
        made[split] = datasets.Dataset.from_dict(rows, features)
    dataset(folder, subset, made)


def resnet(folder: Path) -> None:
    """microsoft/resnet-18: two basic layers, running statistics, a head of 1 000 classes."""
    net = tiny.model("resnet", num_labels=1000)
    repository(folder, net.state_dict(), net.config, "ResNetForImageClassification")
    hf.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(folder)


def gpt2(root: Path) -> None:
    """openai-community/gpt2, whose tensors have no prefix, and classifiers with one and with a head ``score``."""
    options = {
        "vocab_size": 257,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "bos_token_id": 256,
        "eos_token_id": 256,
    }
    torch.manual_seed(0)
    net = hf.GPT2LMHeadModel(hf.GPT2Config(**options))
    body = {name.removeprefix("transformer."): t for name, t in net.state_dict().items() if name != "lm_head.weight"}
    mask = {f"h.{i}.attn.bias": torch.ones(64, 64).tril()[None, None] for i in range(2)}
    base = repository(root / "openai-community" / "gpt2", body | mask, net.config, "GPT2LMHeadModel")
    tokenizer(base)
    for seed, (task, (_, names)) in enumerate(GLUE.items(), 1):
        config = hf.GPT2Config(**options, num_labels=len(names), pad_token_id=256)
        score = {"score.weight": torch.randn(len(names), 16, generator=torch.Generator().manual_seed(seed))}
        tensors = {f"transformer.{name}": t for name, t in near(body, seed).items()} | score
        repository(root / "tanganke" / f"gpt2_{task}", tensors, config, "GPT2ForSequenceClassification")


def tokenizer(folder: Path) -> None:
    """GPT-2's files, with bytes for tokens."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64}))


def glue(folder: Path) -> None:
    """Seven configurations; labels of the test sets are −1."""
    for subset, (columns, names) in GLUE.items():
        draw = np.random.default_rng(len(subset))
        features = datasets.Features(
            dict.fromkeys(columns, TEXT) | {"label": datasets.ClassLabel(names=list(names)), "idx": datasets.Value("int32")}
        )
        ends = ("_matched", "_mismatched") if subset == "mnli" else ("",)
        sizes = {"train": 12} | {f"{kind}{end}": 8 for end in ends for kind in ("validation", "test")}
        made = {}
        for split, n in sizes.items():
            labels = [-1] * n if split.startswith("test") else draw.integers(0, len(names), n).tolist()
            texts = {column: [SENTENCES[i] for i in draw.integers(0, len(SENTENCES), n)] for column in columns}
            made[split] = datasets.Dataset.from_dict({**texts, "label": labels, "idx": list(range(n))}, features)
        dataset(folder, subset, made)


def llama(root: Path) -> None:
    """The base, whose tokenizer begins every text with a token, and four experts in shards."""
    options = {**tiny.LLAMA, "vocab_size": 258, "bos_token_id": 256, "eos_token_id": 257, "max_position_embeddings": 64}
    base = tiny.save(tiny.model("llama", **options), root / "meta-llama" / "Meta-Llama-3-8B-Instruct")
    for seed, name in enumerate((
        "jpacifico/French-Alpaca-Llama3-8B-Instruct-v1.0", "MohamedRashad/Arabic-Orpo-Llama-3-8B-Instruct",
        "shenzhi-wang/Llama3-8B-Chinese-Chat", "haqishen/Llama-3-8B-Japanese-Instruct",
    ), 1):  # fmt: skip
        tiny.save(tiny.perturb(tiny.model("llama", **options), seed), root / name, max_shard_size="20KB")
    from tokenizers import Tokenizer, decoders, models, processors

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|begin_of_text|>", "<|end_of_text|>"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 256)]
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", model_max_length=10**12
    ).save_pretrained(base)


def belebele(folder: Path) -> None:
    """One split, ``test``; a passage has up to two questions."""
    for subset, sentence in LANGUAGES.items():
        columns = ("link", "flores_passage", "question", "mc_answer1", "mc_answer2", "correct_answer_num", "dialect", "ds")
        rows = {column: ["1"] * 12 for column in columns} | {"question_number": [1, 2] * 6, "dialect": [subset] * 12}
        rows["flores_passage"] = [sentence * (4 + i // 2) for i in range(12)]
        dataset(folder, subset, {"test": datasets.Dataset.from_dict(rows)})
