"""Files made wrong on purpose: hypothesis strategies for bytes that were cut, flipped, pasted over and given odd values."""

import json
import re

from hypothesis import strategies as st

VALUES = (b"null", b"true", b"-1", b"0", b"1.5", b"1e999", b"9" * 25, b"9" * 5000, b"NaN", b"{}", b"[]", b"[1, 2]", b'{"a": 1}',
          b'""', b'"x"', b'"../x"', b'"\\ud800"', b'"[("', b"[" * 99)  # fmt: skip
"""In the place of a value of JSON or YAML."""
_VALUE = re.compile(rb'(?<=[:,\[ ])\s*("[^"]*"|-?\d+(\.\d+)?|true|false|null)')


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """What is left of a file after one or two accidents."""
    content = whole
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "end", "insert", "repeat", "value", "value", "value")))
        if kind == "flip":
            content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :] if content else b""
        elif kind == "cut":
            content = content[:at] + content[at + draw(st.sampled_from((1, 3, 20, 200))) :]
        elif kind == "end":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + draw(st.binary(min_size=1, max_size=5)) + content[at:]
        elif kind == "repeat":
            start = draw(st.integers(0, max(0, len(content) - 1)))
            content = content[:at] + content[start : start + draw(st.sampled_from((5, 50)))] + content[at:]
        elif places := list(_VALUE.finditer(content)):
            place = places[draw(st.integers(0, len(places) - 1))]
            content = content[: place.start()] + b" " + draw(st.sampled_from(VALUES)) + content[place.end() :]
    return content


def header_only(whole: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file whose header is damaged, with its length set right."""
    size = int.from_bytes(whole[:8], "little")
    return damaged(whole[8 : 8 + size]).map(lambda header: len(header).to_bytes(8, "little") + header + whole[8 + size :])


ODD = ("\ud800x", float("nan"), float("inf"), "\x1b[31m\u202e$x_{", {"\ud800": float("-inf")}, [[["\ud800"]]])
"""What a JSON file can hold, in Python at least: half of a surrogate pair, numbers that are none, characters that steer."""


def strict_json(text: str) -> object:
    """As other readers than Python's take it: without NaN and Infinity, and in UTF-8."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    text.encode()
    return json.loads(text, parse_constant=refuse)
