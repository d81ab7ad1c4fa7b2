"""Text from anybody's files as people may be shown it: nothing in it steers a terminal, hides, or fills the screen."""

from __future__ import annotations

from html import escape

LONGEST = 2000
"""Characters of one line."""


def printable(text: object) -> str:
    r"""Text in which each character that cannot be seen is written as its escape.

    Escape sequences, which move a terminal's cursor or rename its window, signs that turn the direction of writing or have no
    width, and surrogates, which no encoding has.

    >>> printable("a\x1b[31m\u202eb")
    'a\\x1b[31m\\u202eb'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def line(text: object, most: int = LONGEST) -> str:
    """The same on one line, and a long one without its middle: what is wrong is at its beginning, the cure at its end.

    >>> line("a" * 40 + "b" * 40, 60)
    'aaaaaaaaaa … (60 characters left out) … bbbbbbbbbb'
    """
    whole = printable(" ".join(str(text).splitlines()))
    if len(whole) <= most:
        return whole
    half = (most - 40) // 2
    return f"{whole[:half]} … ({len(whole) - 2 * half} characters left out) … {whole[-half:]}"


def html(text: object) -> str:
    """Text that a page shows as it is, in an element or an attribute."""
    return escape(printable(text))
