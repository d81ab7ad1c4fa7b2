"""Pages that are written from the code: tables of methods and options, and the recipe's keys.

In a page, ``{{ methods }}``, ``{{ options NAME }}``, ``{{ evaluators }}`` and ``{{ recipe }}`` stand for them.
"""

import re
from typing import Any

_PLACE = re.compile(r"^\{\{ (\w+)(?: ([\w-]+))? \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs' hook: the page's text, filled in."""
    return _PLACE.sub(lambda found: _WRITERS[found[1]](found[2]), markdown)


def methods(_: str | None) -> str:
    """Every method in a row."""
    from paretomerge.methods import describe_methods

    rows = ["| method | command | needs, beside the models | stores | paper |", "|---|---|---|---|---|"]
    for row in describe_methods(None):
        rows.append("| " + " | ".join(_cell(str(row[key])) for key in ("name", "command", "needs", "stores", "paper")) + " |")
    return "\n".join(rows)


def options(name: str | None) -> str:
    """The options of one method, for each command that has it."""
    from paretomerge.methods import describe_methods

    parts = []
    for row in describe_methods(name):
        parts.append(
            f"`paretomerge {row['command']}`, method `{row['name']}`. Needs: {row['needs']}. Stores: {row['stores']}.\n"
        )
        parts += [_table(row["options"])]
        parts.append("")
    return "\n".join(parts)


def evaluators(_: str | None) -> str:
    """The options of whatever measures a search's models."""
    from paretomerge.methods import evaluator_options

    return "\n\n".join(f"With {_cell(what)}:\n\n{_table(options)}" for what, options in evaluator_options().items())


def _table(options: dict[str, Any]) -> str:
    rows = ["| option | default | kind | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{key}` | {_cell(str(facts['default']))} | {_cell(facts['kind'])} | {_cell(facts['meaning'])} |"
        for key, facts in options.items()
    ]
    return "\n".join(rows)


def recipe(_: str | None) -> str:
    """The keys of a recipe and of a task's inputs, from the models that check them."""
    from paretomerge.data import DataSpec
    from paretomerge.recipes import Recipe

    parts = []
    for title, model in (("The recipe", Recipe), ("A task's inputs, under `data`", DataSpec)):
        schema = model.model_json_schema()
        parts.append(f"## {title}\n\n{_first(model.__doc__)}\n\n| key | kind | default | meaning |\n|---|---|---|---|")
        for key, facts in schema["properties"].items():
            default = "" if facts.get("default") in (None, {}, []) else f"`{facts['default']}`"
            parts.append(f"| `{key}` | {_kind(facts)} | {default} | {_cell(facts.get('description', ''))} |")
        parts.append("")
    return "\n".join(parts)


def _kind(facts: dict[str, Any]) -> str:
    """A type in words, from its JSON schema."""
    if "enum" in facts:
        return ", ".join(f"`{value}`" for value in facts["enum"])
    if "anyOf" in facts:
        return " or ".join(_kind(each) for each in facts["anyOf"] if each.get("type") != "null")
    if "$ref" in facts:
        return facts["$ref"].rsplit("/", 1)[1]
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "object": "map",
        "array": "list",
    }
    return words.get(facts.get("type", ""), "")


def _first(doc: str | None) -> str:
    return (doc or "").strip().split("\n\n")[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_WRITERS = {"methods": methods, "options": options, "evaluators": evaluators, "recipe": recipe}
