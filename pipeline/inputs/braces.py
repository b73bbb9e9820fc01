"""Braces in the names of an input: lists `{a,b}` and ranges `{000000..000127}`, as in a shell."""

import re
from collections.abc import Iterator
from itertools import islice

from pipeline.errors import UsageError

MOST_NAMES = 1_000_000

_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?0*([1-9]\d*))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")


def expand(text: str) -> list[str]:
    """Every name that the braces of a text stand for, in order; the text itself without any.

    Lists and ranges may stand side by side and within each other. Numbers are padded with zeros
    where one of the two ends is; `{0..10..2}` has a step. Other braces are plain characters.
    Raises UsageError for more than MOST_NAMES names.
    """
    names = list(islice(_expanded(text), MOST_NAMES + 1))
    if len(names) > MOST_NAMES:
        raise UsageError(
            f"expected braces in --input that stand for at most {MOST_NAMES} names, found more in "
            f"{text}; next: a folder or a glob"
        )
    return names


def _expanded(text: str) -> Iterator[str]:
    start = text.find("{")
    end = _closing(text, start) if start >= 0 else None
    if start < 0:
        yield text
    elif end is None:  # never closed: a plain character
        yield from (text[: start + 1] + rest for rest in _expanded(text[start + 1 :]))
    else:
        for middle in _alternatives(text[start + 1 : end]):
            for rest in _expanded(text[end + 1 :]):
                yield text[:start] + middle + rest


def _alternatives(inner: str) -> Iterator[str]:
    """What stands for a pair of braces with this between them."""
    items = split_list(inner)
    if len(items) > 1:
        for item in items:
            yield from _expanded(item)
    elif numbers := _NUMBERS.fullmatch(inner):
        first, last, step = numbers.groups()
        padded = any(re.match(r"-?0\d", end) for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        yield from (f"{n:0{width}d}" for n in _between(int(first), int(last), int(step or 1)))
    elif letters := _LETTERS.fullmatch(inner):
        yield from map(chr, _between(ord(letters[1]), ord(letters[2]), 1))
    else:
        yield from (f"{{{name}}}" for name in _expanded(inner))


def _between(first: int, last: int, step: int) -> range:
    """From first to last, both included, upwards or downwards."""
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def split_list(text: str) -> list[str]:
    """The items of a comma-list, cut at the commas that stand outside of braces."""
    items, start, at = [], 0, 0
    while at < len(text):
        if text[at] == "{":
            at = _closing(text, at) or at
        elif text[at] == ",":
            items.append(text[start:at])
            start = at + 1
        at += 1
    return [*items, text[start:]]


def _closing(text: str, start: int) -> int | None:
    """Where the brace closes that opens at `start`; None: nowhere."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return at
    return None
