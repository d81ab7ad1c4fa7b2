"""Whether the rows of two embeddings stand for the same tokens, from the tokenizers beside the models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretomerge.errors import UserError
from paretomerge.experts.findings import Finding
from paretomerge.weights.checkpoint import read_json
from paretomerge.weights.lazy import Weights
from paretomerge.weights.lora_files import Adapter

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def token_findings(base: Weights, sources: Mapping[str, Weights | Adapter]) -> list[Finding]:
    """A warning for every expert whose tokenizer gives an id to another token than the base, or an expert before it, does."""
    findings = []
    folders = {"the base": getattr(base, "path", None)}
    folders |= {f"expert {task}": getattr(source, "path", None) for task, source in sources.items()}
    seen: dict[bytes, str] = {}  # tokenizers that are equal byte for byte need no second look
    known: dict[int, tuple[str, str]] = {}
    for whose, folder in folders.items():
        file = next((Path(folder) / name for name in _FILES if (Path(folder) / name).is_file()), None) if folder else None
        if file is None:
            continue
        try:
            content = file.read_bytes()
        except OSError:
            continue
        if content in seen:
            continue
        tokens = _tokens(file)
        if tokens is None and any(Path(name).suffix == file.suffix for name in seen.values()):
            what = f"{file.name} differs from that of another of these models"
            findings.append(Finding("warning", str(file), "", f"{what}: rows of the embedding may stand for other tokens"))
        seen[content] = file.name
        other = [(i, token, known[i]) for i, token in (tokens or {}).items() if i in known and known[i][0] != token]
        if other:
            i, token, (theirs, owner) = min(other)
            where = f"id {i}: {token[:40]!r}, there {theirs[:40]!r}"
            what = f"{len(other)} of {len(tokens or {})} ids are other tokens than in {owner} ({where})"
            findings.append(
                Finding("warning", str(file), "", f"{what}: rows of the embedding that mean different things are merged")
            )
        for i, token in (tokens or {}).items():
            known.setdefault(i, (token, whose))
    return findings


def _tokens(file: Path) -> dict[int, str] | None:
    """The token of each id; None: a format that is not read here, or a damaged file."""
    try:
        if file.suffix == ".txt":
            return dict(enumerate(file.read_text(encoding="utf-8").splitlines()))
        if file.suffix != ".json":
            return None
        content = read_json(file)
    except (UserError, OSError, UnicodeDecodeError):
        return None
    if file.name == "vocab.json":
        return _by_id(content)
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found = _by_id(vocabulary)
    for added in content.get("added_tokens") or () if isinstance(content.get("added_tokens"), list) else ():
        if isinstance(added, dict) and isinstance(added.get("id"), int) and isinstance(added.get("content"), str):
            found[added["id"]] = added["content"]
    return found or None


def _by_id(vocabulary: Any) -> dict[int, str]:
    """A vocabulary in either of the forms that tokenizers have: token -> id, or [token, score] in order."""
    if isinstance(vocabulary, dict):
        return {i: token for token, i in vocabulary.items() if isinstance(i, int)}
    if isinstance(vocabulary, list):
        return {i: str(entry[0]) for i, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    return {}
