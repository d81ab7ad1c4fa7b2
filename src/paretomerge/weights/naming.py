"""The same tensor under several names: prefixes that checkpoints carry or lack, and globs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor's name fits one of the globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def prefix_between(names: Collection[str], base: Collection[str]) -> str:
    """The prefix that ``names`` carry in front of the base's names (``"vit."``), or lack (``"-vit."``).

    A model saved with its task's head names its tensors ``vit.encoder…``, the bare backbone ``encoder…``. Of the
    prefixes that some pair of names suggests, the one under which most names agree is taken; none if that is as good.
    """
    known, own = set(base), set(names)
    plain = sum(name in known for name in own)
    if plain == len(own):
        return ""
    # counted from the ends of each name: the work grows with the names alone, of which a mixture of experts has 18 000
    carried: Counter[str] = Counter(start for name in own for start, rest in _cuts(name) if rest in known)
    lost = Counter(start for name in own if name in known for start, _ in _cuts(name) if start in carried)
    lacked = Counter(start for name in known for start, rest in _cuts(name) if rest in own)
    votes = {prefix: count + plain - lost[prefix] for prefix, count in carried.items()}
    votes |= {f"-{prefix}": count for prefix, count in lacked.items()}
    # of equals the shortest, then by the alphabet: names may come in any order
    best, count = max(votes.items(), key=lambda item: (item[1], -len(item[0]), item[0]), default=("", 0))
    return best if count > plain else ""


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """The ways to cut a name behind a dot: ``a.b.c`` gives (``a.``, ``b.c``) and (``a.b.``, ``c``)."""
    at = name.find(".") + 1
    while at:
        yield name[:at], name[at:]
        at = name.find(".", at) + 1


def to_base(name: str, prefix: str) -> str:
    """An expert's name in the base's naming."""
    return prefix[1:] + name if prefix.startswith("-") else name.removeprefix(prefix)


def from_base(name: str, prefix: str) -> str:
    """A name of the base in the expert's naming: the inverse of ``to_base``."""
    return name.removeprefix(prefix[1:]) if prefix.startswith("-") else prefix + name
