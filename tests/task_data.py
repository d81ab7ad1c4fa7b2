"""Tiny data in real formats, and the tokenizer and image processor of tiny models."""

import csv
import json
import warnings
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from tiny import model

VOCABULARY = """[PAD] [CLS] [SEP] [UNK] red green blue a photo of the good bad film was not very cat dog sat on mat and . ?"""
WORDS = VOCABULARY.split()[4:]
NAMES = ["blue", "green", "red"]
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
REVIEWS = [(f"the film was {'not ' * (i % 5)}{'good' if i % 2 else 'bad'}", "good" if i % 2 else "bad") for i in range(20)]


def companions(target: Path) -> Path:
    """Put beside a base a word-level tokenizer that knows pairs, and an image processor."""
    vocabulary = {word: i for i, word in enumerate(VOCABULARY.split())}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.normalizer = normalizers.Lowercase()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(target)  # fmt: skip
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(target)
    return target


def config(kind: str, *names: str, **changes: object) -> dict:
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} if names else {}
    return json.loads(model(kind, **changes, **labels).config.to_json_string()) | {
        "architectures": [type(model(kind)).__name__], **({"id2label": labels["id2label"]} if names else {})
    }  # fmt: skip


def paint(folder: Path, per_class: int = 4, size: tuple[int, int] = (20, 12)) -> Path:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("RGB", size, tuple(c + i for c in colour)).save(folder / name / f"{i}.png")
    return folder


def write_csv(path: Path, rows: list[tuple], header: tuple[str, ...] = ("text", "label"), delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def adapters(base: Path, folder: Path, *tasks: str) -> None:
    """LoRA adapters of different ranks and random factors on a causal model."""
    import peft
    import transformers as hf

    for seed, task in enumerate(tasks):
        net = hf.AutoModelForCausalLM.from_pretrained(base)
        config = peft.LoraConfig(r=3 + seed, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        with warnings.catch_warnings():  # peft asks the hub for the base's configuration
            warnings.simplefilter("ignore")
            peft.get_peft_model(net, config).save_pretrained(folder / task)
