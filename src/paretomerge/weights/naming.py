"""The same tensor under several names: prefixes that checkpoints carry or lack, and globs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor's name fits one of the globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def prefix_between(names: Collection[str], base: Collection[str]) -> str:
    """The prefix that ``names`` carry in front of the base's names (``"vit."``), or lack (``"-vit."``).

    A model saved with its task's head names its tensors ``vit.encoder…``, the bare backbone ``encoder…``. Of the
    prefixes that some pair of names suggests, the one under which most names agree is taken; none if that is as good.
    """
    ends = defaultdict(list)
    for name in base:
        ends[tuple(name.split(".")[-2:])].append(name)
    votes: Counter[str] = Counter({"": 0})
    for name in names:
        for other in ends.get(tuple(name.split(".")[-2:]), ()):
            if name.endswith("." + other):
                votes[name.removesuffix(other)] += 0
            elif other.endswith("." + name):
                votes["-" + other.removesuffix(name)] += 0
    known = set(base)
    for prefix in votes:
        votes[prefix] = sum(to_base(name, prefix) in known for name in names)
    # of equals the shortest, then by the alphabet: names may come in any order
    best, count = max(votes.items(), key=lambda item: (item[1], -len(item[0]), item[0]))
    return best if count > votes[""] else ""


def to_base(name: str, prefix: str) -> str:
    """An expert's name in the base's naming."""
    return prefix[1:] + name if prefix.startswith("-") else name.removeprefix(prefix)


def from_base(name: str, prefix: str) -> str:
    """A name of the base in the expert's naming: the inverse of ``to_base``."""
    return name.removeprefix(prefix[1:]) if prefix.startswith("-") else prefix + name
