"""Ids, numbers and sizes as people read them."""

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories


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


def amount(n_bytes: int) -> str:
    """Formats bytes in the largest unit of 1,000 that leaves one or more."""
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{rate(value)} {units[0]}"
