"""Text that may be shown and written down: without the logins and signatures of addresses."""

import re
import traceback

# An apostrophe may be a letter of an address, or the end of its quotation.
_APOSTROPHE = r"'(?=\w)"
_PATH = rf"(?:[^\s?'\"]|{_APOSTROPHE})*"
# Without what ends the clause that it stands in.
_SIGNATURE = rf"(?:[^\s'\"]|{_APOSTROPHE})+(?<![:;,])"
# urllib3 leaves the host out: "Max retries exceeded with url: /image.png?..."
_QUERY = re.compile(rf"((?:\w://|\burl: /){_PATH})\?{_SIGNATURE}")
_WEB_QUERY = re.compile(rf"(https?://{_PATH})\?{_SIGNATURE}", re.IGNORECASE)
# What begins another location behind a comma, and no more of a query (`?i=https://a,https://b&c=d`):
# up to its own query no parameter follows.
LOCATION = r"\s*[\w+.\-]+:(?://|:)(?:[^?,&]|&(?![^=?,&/\s]+=))*(?:[?,]|$)"
# Of a location alone, whose path may hold spaces; in a list up to the next one.
_LOCATION_QUERY = re.compile(rf"(https?://[^?]*)\?.*?(?=,{LOCATION}|$)", re.IGNORECASE | re.DOTALL)
_REDACTED_QUERY = re.compile(r"https?://[^?]*\?\*\*\*", re.IGNORECASE)
# To the last @: a password may hold one. A name alone is no secret (`abfs://container@account`,
# `sftp://me@host`), but for web addresses, where it may be a token.
_LOGIN = re.compile(
    r"((?<![a-z])(?:https?|ftps?)://)[^/\s]+@|(://)[^/\s:]*:[^/\s]*@", re.IGNORECASE
)


def redacted(text: str) -> str:
    """Returns text that may hold locations without logins and without the queries (signatures) of
    web addresses: fit to be shown and written down."""
    return _without_logins(_WEB_QUERY.sub(r"\1?***", text))


def redacted_location(text: str) -> str:
    """Returns a location, or a comma-list of them, with the same left out. Its end is known, where
    `redacted` has to guess in a sentence: paths may hold spaces and quotation marks."""
    if "://" not in text:  # at once: an input may have millions of paths
        return text
    return _without_logins(_LOCATION_QUERY.sub(r"\1?***", text))


def is_redacted(text: str) -> bool:
    """Returns whether `redacted` left something out of a location, so that it leads nowhere."""
    return "://***@" in text or _REDACTED_QUERY.search(text) is not None


def redacted_line(error: BaseException, *, length: int = 300) -> str:
    """Returns an exception's text on one line of at most `length` characters, without the queries
    (signatures) and the logins that URLs in it hold."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = _without_secrets(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def redacted_error(error: BaseException, *, length: int = 300) -> str:
    """Returns the class of an exception and its text as `redacted_line` has it."""
    return f"{type(error).__name__}: {redacted_line(error, length=length)}"


def redacted_traceback(error: BaseException) -> str:
    """Returns an exception's traceback, and those of what it was raised from, with the same left
    out."""
    return _without_secrets("".join(traceback.format_exception(error)))


def _without_secrets(text: str) -> str:
    return _without_logins(_QUERY.sub(r"\1?***", text))


def _without_logins(text: str) -> str:
    return _LOGIN.sub(r"\1\2***@", text)
