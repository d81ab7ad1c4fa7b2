"""YAML as people expect it: 1.2's scalars (``on`` is a word, ``1e-3`` a number), no repeated keys, and no anchors.

Anchors are what YAML bombs are made of; a recipe has no use for them.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from paretomerge.errors import UserError

_ANCHOR = "text that begins with * or & must be quoted (anchors are not read)"
_DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without anchors, repeated keys, keys that are not text, and YAML 1.1's scalars."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if event.anchor is not None:
            raise yaml.composer.ComposerError(None, None, _ANCHOR, event.start_mark)
        self.depth += 1
        if self.depth > _DEEPEST:  # PyYAML's time grows with the square of it
            raise yaml.composer.ComposerError(None, None, "nested too deeply", event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in mapping:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?\d+", list("-+0123456789")),
    ("float", r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def parse_yaml(text: str, what: str) -> Any:
    """A YAML document; ``what`` names it in errors.

    Raises:
        UserError: with the line, where there is one.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark and not what.startswith("--") else ""
        if error.problem == "but found another document":
            raise UserError(f"{what}: {line}several documents in one file are not supported: write a file for each") from None
        glob = error.context in ("while scanning an alias", "while scanning an anchor")
        raise UserError(f"{what}: {line}{_ANCHOR if glob else error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{what}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from None
