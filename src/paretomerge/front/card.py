"""The model card (README.md) that is written with each model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from paretomerge.experts.heads import NO_HEAD
from paretomerge.io.plain_text import printable

METRICS = ("<!-- paretomerge: metrics -->", "<!-- paretomerge: end of metrics -->")
"""Around the part of a front's card that ``evaluate`` writes anew."""


def model_card(provenance: Mapping[str, Any], loading: Sequence[str] = ()) -> str:
    """A README.md with Hugging Face metadata: what was merged, how, at which preference, and how good it is.

    Args:
        provenance: method, settings, sources, versions; ``recipe``: method, options, on and data as a recipe has them (``data``
            empty: they were in memory); ``preference`` of a pick; ``kind`` ``"front"``; ``metrics``: lines
            {task, metric, value, how} of a model (of a front, the one at equal preference that its folder is), for the table
            and the hub's model index; ``table``: of a front, the lines of its table as ``metrics_table`` makes them;
            ``adapter_of``: of an adapter, the model that it is for; ``head``: where tasks have heads, the task whose head the
            model has, or ``"none"``.
        loading: lines of Python that load it.
    """
    sources = provenance.get("sources", {})
    base = sources.get("base", {}).get("path")
    experts = {task: source.get("path") for task, source in sources.get("experts", {}).items()}
    method = str(provenance.get("method"))
    lines = ["---", *_metadata(provenance, [str(path) for path in [base, *experts.values()] if path]), "---", ""]
    lines += [f"# Merged by paretomerge: {_text(method)}", ""]
    if preference := provenance.get("preference"):
        shares = ", ".join(f"{_text(task)} {share:.1%}" for task, share in preference.items())
        lines += [f"Preference: {shares}.", ""]
    if head := provenance.get("head"):
        lines += [
            "No task's head is in this folder: it is a model of the base's own class, and loaded with a class that adds a head "
            "(`AutoModelFor…`) it would get a random one." if head == NO_HEAD else
            f"With the head of task **{_text(head)}**: the model is for this task.", "",
        ]  # fmt: skip
    if loading:
        lines += ["```python", *loading, "```", ""]
    if provenance.get("kind") == "front":
        preference = ",".join(f"{task}={2 if place == 0 else 1}" for place, task in enumerate(experts))
        lines += [
            "This folder is the model at equal preference, and holds what is needed for any other:",
            "", "```sh", f"paretomerge pick . --preference {shlex.quote(preference)} --output model", "```", "",
            METRICS[0], *provenance.get("table", []), METRICS[1], "",
        ]  # fmt: skip
    elif metrics := provenance.get("metrics"):
        lines += ["## Metrics", "", "| task | metric | value | |", "|---|---|---|---|"]
        lines += [f"| {_text(m['task'])} | {_text(m['metric'])} | {m['value']:.4g} | {_text(m['how'])} |" for m in metrics]
        lines += [""]
    lines += ["## What was merged", "", "| | |", "|---|---|", f"| base | {_code(base)} |"]
    lines += [f"| expert **{_text(task)}** | {_code(path)} |" for task, path in experts.items()]
    settings = provenance.get("settings", {})
    lines += [f"| {_text(name)} | {_code(value)} |" for name, value in settings.items() if name != "lambda"]  # a long list
    if recipe := _recipe(provenance.get("recipe", {}), base, experts):
        lines += ["", "## Recipe", "", "```yaml", *recipe.splitlines(), "```"]
    if versions := provenance.get("versions"):
        lines += ["", "Made with " + ", ".join(f"{_text(name)} {_text(version)}" for name, version in versions.items()) + "."]
    return "\n".join(lines) + "\n"


def metrics_table(metrics: Mapping[str, str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """The lines of a front's table: a column per task (task -> its metric), a row per model (name, cells)."""
    if not rows:
        return []
    head = "".join(f" {_text(task)}: {_text(metric)} |" for task, metric in metrics.items())
    lines = [f"| {_text(name)} |" + "".join(f" {_text(cell)} |" for cell in cells) for name, cells in rows]
    return ["## Metrics", "", f"| |{head}", "|---|" + "---|" * len(metrics), *lines]


def _metadata(provenance: Mapping[str, Any], named: Sequence[str]) -> list[str]:
    """The lines of YAML that the hub reads."""
    adapter_of = provenance.get("adapter_of")
    lines = [f"library_name: {'peft' if adapter_of else 'transformers'}", "tags:", "- merge", "- paretomerge"]
    if provenance.get("kind") == "front":
        lines += ["- pareto-set"]
    if adapter_of:
        lines += ["- lora"]
    ids = [found for name in named if (found := _cached(name))]
    if adapter_of:  # as it was typed; the paths above are those of files
        a_name = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(adapter_of)) and not Path(adapter_of).exists()
        ids = [str(adapter_of)] if a_name else [found] if (found := _cached(str(adapter_of))) else []
    if ids:  # folders of this machine are in the card's table: the hub refuses a base_model that is none of its own
        lines += ["base_model:", *(f"- {name}" for name in ids)]
        lines += [f"base_model_relation: {'adapter' if adapter_of else 'merge'}"]
    return lines + _index(str(provenance.get("method")), provenance.get("metrics", []))


def _index(method: str, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the hub's model index: what was measured, an estimate is no result."""
    results = [
        {
            "task": {"type": "other", "name": m["task"]},
            "dataset": {"type": "custom", "name": m["task"]},
            "metrics": [{"type": m["metric"], "value": m["value"], "verified": False}],
        }
        for m in metrics
        if str(m["how"]).startswith("measured")
    ]
    if not results:
        return []
    index = [{"name": f"{method} merge", "results": results}]
    return str(yaml.safe_dump({"model-index": index}, allow_unicode=True, sort_keys=False)).splitlines()


def renewed(card: str, method: str, table: Sequence[str], metrics: Sequence[Mapping[str, Any]]) -> str:
    """A front's card with other numbers in its table and its model index; all else, which people edit, stays.

    Args:
        card: its text.
        method: of the front.
        table: lines of ``metrics_table``.
        metrics: of the model at equal preference, as ``model_card`` takes them.
    """
    before, begins, rest = card.partition(METRICS[0])
    _, ends, after = rest.partition(METRICS[1])
    if begins and ends:
        card = "\n".join([before + begins, *table, ends + after])
    if not (found := re.match(r"---\n(.*?)^---\n", card, re.DOTALL | re.MULTILINE)):
        return card
    ours = rf"^model-index:\n- name: ['\"]?{re.escape(method)} merge['\"]?\n(?:[ -][^\n]*\n)*"  # by the name that _index gives
    metadata = re.sub(ours, "", found[1], flags=re.MULTILINE)
    if re.search(r"^model-index:", metadata, re.MULTILINE):  # somebody's own
        return card
    return "---\n" + metadata + "".join(f"{line}\n" for line in _index(method, metrics)) + card[found.end(1) :]


def _cached(path: str) -> str | None:
    """The repository whose snapshot in the hub's cache this is."""
    found = re.search(r"models--([\w.-]+)[/\\]snapshots[/\\]", path)  # it goes into YAML as it is
    return found[1].replace("--", "/", 1) if found else None


def _recipe(recipe: Mapping[str, Any], base: Any, experts: Mapping[str, Any]) -> str:
    """What ``paretomerge fit`` or ``merge`` can read again: method, options and data of ``recipe``, with the models' paths."""
    if not recipe or not base or any(path in (None, "in memory") for path in (base, *experts.values())):
        return ""
    models = {"base": str(base), "experts": {str(task): str(path) for task, path in experts.items()}}
    missing = "# and data: the inputs of each task\n" if recipe.get("data") == {} else ""
    try:
        text: str = yaml.safe_dump(
            {**models, **{key: value for key, value in recipe.items() if value}},
            allow_unicode=True,
            sort_keys=False,
            width=10**6,
        )
    except yaml.YAMLError:  # somebody else's front may hold anything
        return ""
    return text + missing


def _text(value: object) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    text = printable(" ".join(str(value).split()))
    for sign, shown in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, shown)
    return re.sub(r"([\\|`*\[$])", r"\\\1", text)


def _code(value: object) -> str:
    """The same, as code: longer quotes than any that is in it."""
    text = printable(" ".join(str(value).split())).replace("|", "\\|")
    quotes = "`"
    while quotes in text:
        quotes += "`"
    return f"{quotes} {text} {quotes}" if len(quotes) > 1 else f"`{text}`"
