"""Ids, numbers, sizes and speeds as people read them."""

import unicodedata
from collections.abc import Mapping

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories
_MOST_KINDS = 8  # of files left out that are named


def printable(text: str) -> str:
    """Replaces control, invisible and direction characters by their escapes."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _HIDDEN else c for c in text)


def shortened(text: str, length: int) -> str:
    """Cuts to `length` characters, in the middle: both ends of a path tell rows apart."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def rate(value: float) -> str:
    """Formats a number with three digits; more where the whole part has more."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def left_out_text(skipped: Mapping[str, int]) -> str:
    """Counts the files of an input that are of no use to a job, by extension as `Plan.skipped` has
    them: "3 of .heic, 1 without extension"."""
    most = sorted(skipped.items(), key=lambda kind: (-kind[1], kind[0]))
    shown = [_kind_text(kind, n) for kind, n in most[:_MOST_KINDS]]
    rest = sum(n for _, n in most[_MOST_KINDS:])
    return ", ".join([*shown, f"{rest:,} of other kinds"] if rest else shown)


def _kind_text(kind: str, n: int) -> str:
    if not kind:
        return f"{n:,} without extension"
    is_extension = kind.startswith(".")
    return f"{n:,} of {printable(shortened(kind, 40))}" if is_extension else f"{n:,} with {kind}"


def speed_text(
    images_per_second: float, seconds: float | None, tokens_per_pass: float | None = None
) -> str:
    """Says figures of a run's `Speed`, in the words that stand for them everywhere; tokens per
    pass where windows draw several."""
    from pipeline.engine.progress import duration  # with pyarrow, which other words do without

    text = f"{rate(images_per_second)} images/s while working"
    if seconds is not None:
        text += f", {duration(seconds)} with start-up"
    if tokens_per_pass is not None and tokens_per_pass > 1:
        text += f", {tokens_per_pass:.2f} tokens per pass"
    return text


def amount(n_bytes: int) -> str:
    """Formats bytes in the largest unit of 1,000 that leaves one or more."""
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{rate(value)} {units[0]}"
