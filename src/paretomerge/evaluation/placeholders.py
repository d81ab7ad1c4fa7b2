"""The {model} and {tasks} of an evaluator's command: references to environment variables, which no quoting can open.

A value that stood in the command's text would be read by the shell as a part of it. The shell reads the value of a variable as
it is, whatever is in it. So each placeholder becomes a reference to one, written as its place wants it: bare, in double
quotes, or in single quotes, which are closed for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from paretomerge.errors import UserError

VARIABLES = {"{model}": "PARETOMERGE_MODEL", "{tasks}": "PARETOMERGE_TASKS"}
"""Placeholder -> the environment variable that holds its value."""
_PLACEHOLDER = r"\{(?:model|tasks)\}"
_IN_SINGLE = re.compile(rf"{_PLACEHOLDER}|'")
_IN_DOUBLE = re.compile(rf'{_PLACEHOLDER}|\\.|"|\$\(|`', re.DOTALL)
_BARE = re.compile(
    rf"""{_PLACEHOLDER} | \\. | ['"`\n)] | \$?\(
    | (?:^|(?<=[\s;|&()]))\#[^\n]*                  # a comment, which the shell does not read
    | <<-?[ \t]*(?:'[^'\n]+'|"[^"\n]+"|\\?\w+)      # a here-document""",
    re.DOTALL | re.VERBOSE,
)


def with_references(command: str) -> str:
    r"""A command for ``/bin/sh`` whose placeholders are references to the environment variables of ``VARIABLES``.

    Raises:
        UserError: a placeholder in a here-document.

    >>> print(with_references("score {model} --tasks \"of {tasks}\" --note 'as {tasks}'"))
    score "$PARETOMERGE_MODEL" --tasks "of ${PARETOMERGE_TASKS}" --note 'as '"$PARETOMERGE_TASKS"''
    """
    return "".join(_pieces(command))


def _pieces(command: str) -> Iterator[str]:
    within = [""]  # innermost last: "" bare, ' or " quoted, ) bare in brackets, ` bare in backquotes
    documents: list[str] = []  # ends of the here-documents that begin at the next line
    at = 0
    while found := {"'": _IN_SINGLE, '"': _IN_DOUBLE}.get(within[-1], _BARE).search(command, at):
        text, now = found[0], within[-1]
        yield command[at : found.start()]
        at = found.end()
        if text in VARIABLES:
            name = VARIABLES[text]
            yield {"'": f"'\"${name}\"'", '"': f"${{{name}}}"}.get(now, f'"${name}"')
            continue
        yield text
        if text == now:
            within.pop()
        elif text in ("'", '"', "`"):
            within.append(text)
        elif text in ("(", "$("):
            within.append(")")
        elif text.startswith("<<"):
            documents.append(text.strip("<-\\ \t'\""))
        elif text == "\n":
            for word in documents:
                end = re.compile(rf"^\t*{re.escape(word)}$", re.MULTILINE).search(command, at)
                body = command[at : end.end() if end else None]
                _without_placeholders(body)
                yield body
                at += len(body)
            documents = []
    yield command[at:]


def _without_placeholders(text: str) -> None:
    for placeholder, name in VARIABLES.items():
        if placeholder in text:
            raise UserError(
                f"--evaluator: {placeholder} in a here-document: pass it as an argument, or read the variable {name} there"
            )
