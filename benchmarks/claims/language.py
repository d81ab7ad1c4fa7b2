"""The language suite: a small GPT-2 that has read manual pages, half of them English, and an expert for each of four languages.

    python -m benchmarks.claims.language

A page is in the same split in every language, so no expert has read a held-out page in another language.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from benchmarks.claims import sources
from benchmarks.claims.suite import FOLDER, Suite, digest, stamp, stamped
from benchmarks.claims.vit import fast_maths, save, schedule

BASE = {"en": 0.5, "de": 0.125, "fr": 0.125, "pl": 0.125, "es": 0.125}
"""What the base reads: enough of each language that a merge of experts works, so little that they have much to learn."""
TASKS = {"german": "de", "french": "fr", "polish": "pl", "spanish": "es"}
BLOCK = 128
VOCABULARY = 4096
SHARES = {"test": 0.08, "validation": 0.04, "fit": 0.13}
"""Of the pages; experts and the base are trained on the rest."""
CHARACTERS = {"test": 60_000, "validation": 30_000, "fit": 400_000, "train": 1_500_000}
"""Of a language at most."""
PAGE = 6_000
"""Characters of a page at most, but for training: else a few long pages are all that is measured on."""


@dataclass(frozen=True)
class Recipe:
    """How the base and the experts are trained: blocks of ``BLOCK`` tokens, so many a step."""

    seed: int = 0
    width: int = 192
    layers: int = 4
    pretrain_steps: int = 500
    pretrain_batch: int = 32
    pretrain_lr: float = 3e-3
    pretrain_muon_lr: float = 1e-2
    expert_steps: int = 60
    expert_batch: int = 16
    expert_lr: float = 4e-4


def pages(language: str) -> Iterator[tuple[str, str]]:
    """(page, its text) in a fixed order; roff markup is taken out."""
    packages = ["manpages", "manpages-dev"] if language == "en" else [f"manpages-{language}"]
    folder = sources.fetch(packages)
    root = Path("usr/share/man") / ("" if language == "en" else language)
    found = {path.name: path for package in packages for path in (folder / package / root).glob("man?/*.gz")}
    for name in sorted(found):
        if found[name].is_symlink():
            continue
        text = plain(gzip.decompress(found[name].read_bytes()).decode("utf-8", "replace"))
        if len(text) > 400:
            yield name, text


def plain(roff: str) -> str:
    """The words of a manual page.

    >>> plain('.SH NAME\\n\\\\fBls\\\\fP \\\\- list\\n.\\\\" a remark\\n.so man1/ls.1')
    'NAME\\nls - list\\n'
    """
    lines = []
    for line in roff.splitlines():
        if line.startswith(('.\\"', "'\\\"", ".so ", ".TH", ".de", ".ds", ".if", ".ie", ".el", ".nr", ".hy", ".nh", ".ad")):
            continue
        line = re.sub(r"^[.'][A-Za-z]{1,3}\s*", "", line)
        line = re.sub(r"\\f(\[\w*\]|\(\w\w|.)|\\[,/&|^]|\\s[-+]?\d", "", line)
        line = (
            re.sub(r"\\\*?\[?\(?([lr]q|aq|dq|cq|oq)\]?", '"', line).replace("\\-", "-").replace("\\ ", " ").replace("\\e", "\\")
        )
        if line := line.strip().strip('"'):
            lines.append(line)
    return "\n".join(lines) + "\n"


def split_of(page: str) -> str:
    """The split of a page, the same in every language: a hash of its name."""
    place = int(hashlib.sha256(page.encode()).hexdigest()[:8], 16) / 2**32
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "train"


def texts(language: str) -> dict[str, list[tuple[str, str]]]:
    """split -> (page, text); pages that open with the same 200 characters are kept once."""
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in CHARACTERS}
    room = dict(CHARACTERS)
    seen: set[str] = set()
    ordered = sorted(pages(language), key=lambda page: hashlib.sha256(page[0].encode()).digest()[8:])
    for name, text in ordered:
        split = split_of(name)
        if text[:200] not in seen and room[split] > 0:
            seen.add(text[:200])
            taken = text[: room[split] if split == "train" else min(room[split], PAGE)]
            found[split].append((name, taken))
            room[split] -= len(taken)
    return found


def write(folder: Path, tasks: Mapping[str, Mapping[str, list[tuple[str, str]]]]) -> None:
    """A folder per task, as `--data` takes it: train.txt (to fit on), validation.txt, test.txt; and the names of all pages."""
    for name, task in tasks.items():
        (folder / name).mkdir(parents=True)
        for split in ("fit", "validation", "test"):
            file = "train" if split == "fit" else split
            (folder / name / f"{file}.txt").write_text("".join(text for _, text in task[split]))
        index = {split: [page for page, _ in found] for split, found in task.items()}
        (folder / name / "index.json").write_text(json.dumps(index, ensure_ascii=False) + "\n")


def suite() -> Suite:
    """Where the suite's files are, made or not."""
    folder = FOLDER / "language"
    return Suite(
        "language",
        folder / "base",
        {task: folder / "experts" / task for task in TASKS},
        {task: FOLDER / "language-data" / task for task in TASKS},
        max_length=BLOCK,
    )


def build() -> Suite:
    """Make what is missing of the suite: texts, tokenizer, the base, four experts."""
    whole, recipe = suite(), Recipe()
    folder, data = whole.base.parent, FOLDER / "language-data"
    made = {"tasks": TASKS, "characters": CHARACTERS, "shares": SHARES, "code": digest(Path(__file__).read_text())}
    settings = {**made, "recipe": asdict(recipe)}
    if stamped(data, made) and stamped(folder, settings):
        return whole
    read = {language: texts(language) for language in ("en", *TASKS.values())}
    if not stamped(data, made):
        shutil.rmtree(data, ignore_errors=True)
        write(data, {name: read[language] for name, language in TASKS.items()})
        stamp(data, made)
    tokenizer = learned_tokenizer([text for found in read.values() for _, text in found["train"]])
    streams = {
        language: torch.tensor(tokenizer("".join(text for _, text in found["train"]), verbose=False)["input_ids"])
        for language, found in read.items()
    }
    seen = digest(*(stream.numpy() for stream in streams.values()))
    diet = {key: value for key, value in asdict(recipe).items() if not key.startswith("expert")}
    stage = FOLDER / "stages" / f"language-{digest(diet, BASE, seen)}"
    stage.mkdir(parents=True, exist_ok=True)
    pretrained = pretrain(streams, recipe, stage)
    tuned = stage / f"experts-{digest(asdict(recipe))}"
    tuned.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    model = gpt2(recipe)
    model.load_state_dict(pretrained)
    model.save_pretrained(whole.base)
    tokenizer.save_pretrained(whole.base)
    for name, language in TASKS.items():
        model.load_state_dict(finetune(pretrained, streams[language], name, recipe, tuned))
        model.save_pretrained(whole.experts[name])
    stamp(folder, settings)
    return whole


def gpt2(recipe: Recipe) -> GPT2LMHeadModel:
    """The model before it has read anything, the same for the same seed."""
    torch.manual_seed(recipe.seed)
    # Eager attention: its bfloat16 gradient is faster on CPU.
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=recipe.width, n_layer=recipe.layers, n_head=recipe.width // 32,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def learned_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of all the languages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=BLOCK
    )


def pretrain(streams: Mapping[str, torch.Tensor], recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    """The base's state, which lies in `folder`, too."""
    model = gpt2(recipe)
    matrices = [p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimisers = [
        torch.optim.AdamW(others, recipe.pretrain_lr, weight_decay=0.01, fused=True),
        torch.optim.Muon(matrices, recipe.pretrain_muon_lr, weight_decay=0.01),
    ]
    mixture = [(streams[language], share) for language, share in BASE.items()]
    return trained(model, optimisers, mixture, recipe.pretrain_steps, recipe.pretrain_batch, recipe.seed, folder / "base.pt")


def finetune(
    pretrained: Mapping[str, torch.Tensor], stream: torch.Tensor, name: str, recipe: Recipe, folder: Path
) -> dict[str, torch.Tensor]:
    """An expert's state, which lies in `folder`, too."""
    model = gpt2(recipe)
    model.load_state_dict(pretrained)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.expert_lr, weight_decay=0.01, fused=True)
    return trained(
        model, [optimiser], [(stream, 1.0)], recipe.expert_steps, recipe.expert_batch, recipe.seed, folder / f"{name}.pt"
    )


def trained(
    model: GPT2LMHeadModel, optimisers: Sequence[torch.optim.Optimizer], mixture: Sequence[tuple[torch.Tensor, float]],
    steps: int, batch: int, seed: int, done: Path,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The model's state after training on blocks from a mixture of streams of tokens with their shares."""
    if done.exists():
        return torch.load(done)
    clock, rng = time.time(), torch.Generator().manual_seed(seed)
    shares = torch.tensor([share for _, share in mixture])
    plans = [schedule(optimiser, steps, 20) for optimiser in optimisers]
    model.train()
    last: list[float] = []
    for step in range(steps):
        chosen = [mixture[k][0] for k in torch.multinomial(shares, batch, replacement=True, generator=rng).tolist()]
        starts = [int(torch.randint(len(stream) - BLOCK, (1,), generator=rng)) for stream in chosen]
        ids = torch.stack([stream[start : start + BLOCK] for stream, start in zip(chosen, starts, strict=True)])
        with fast_maths():
            logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, plan in zip(optimisers, plans, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            plan.step()
        last = [*last[-20:], loss.item()]
        if (step + 1) % 100 == 0:
            print(f"  {done.stem}: step {step + 1}, loss {sum(last) / len(last):.3f}, {time.time() - clock:.0f} s", flush=True)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    save(state, done)
    return state


if __name__ == "__main__":
    disable_progress_bar()
    torch.set_num_threads(1)
    started = time.time()
    print(f"{build().name}: {FOLDER}, {time.time() - started:.0f} s, {time.process_time():.0f} CPU s")
