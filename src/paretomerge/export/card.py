"""The model card (README.md) that is written with each model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any


def model_card(provenance: Mapping[str, Any]) -> str:
    """A README.md with Hugging Face metadata: what was merged, how, at which preference."""
    sources = provenance.get("sources", {})
    base = sources.get("base", {}).get("path")
    experts = {task: source.get("path") for task, source in sources.get("experts", {}).items()}
    named = [str(path) for path in [base, *experts.values()] if path]
    front_matter = ["---", "library_name: transformers", "tags:", "- merge", "- paretomerge"]
    if named:
        front_matter += ["base_model:", *(f"- {json.dumps(path, ensure_ascii=False)}" for path in named)]
    lines = [*front_matter, "---", "", f"# Merged by paretomerge: {provenance.get('method')}", ""]
    if preference := provenance.get("preference"):
        shares = ", ".join(f"{task} {share:.1%}" for task, share in preference.items())
        lines += [f"Preference: {shares}.", ""]
    if provenance.get("kind") == "front":
        preference = ",".join(f"{task}={2 if place == 0 else 1}" for place, task in enumerate(experts))
        lines += [
            "This folder is the model at equal preference, and holds what is needed for any other:",
            "", "```sh", f"paretomerge pick . --preference {shlex.quote(preference)} --output model", "```", "",
        ]  # fmt: skip
    lines += ["| | |", "|---|---|", f"| base | `{base}` |"]
    lines += [f"| expert **{task}** | `{path}` |" for task, path in experts.items()]
    settings = provenance.get("settings", {})
    lines += [f"| {name} | `{value}` |" for name, value in settings.items() if name != "lambda"]  # that one is a long list
    return "\n".join(lines) + "\n"
