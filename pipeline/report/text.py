"""Ids, speeds and sizes as people read them."""

import unicodedata
from html import escape
from typing import Any

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories
_ID_LENGTH = 60


def printable(text: str) -> str:
    """The text with control, invisible and direction characters written as escapes."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _HIDDEN else c for c in text)


def shortened(text: str, length: int) -> str:
    """At most `length` characters, cut in the middle: of a path both ends tell rows apart."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def html_text(value: Any) -> str:
    """Anything as text of a page, also within quotes."""
    return escape(printable(str(value)))


def html_id(id_: str) -> str:
    """An id, a long one cut in the middle and whole when pointed at."""
    short = html_text(shortened(id_, _ID_LENGTH))
    return f'<span class="id" title="{html_text(id_)}">{short}</span>'


def rate(value: float) -> str:
    """A number to three digits; more where the whole part has more."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def amount(n_bytes: int) -> str:
    """Bytes in the largest unit of 1,000 that leaves one or more."""
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{rate(value)} {units[0]}"
