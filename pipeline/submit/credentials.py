"""Options that must not leave this machine: Ray writes the command of a submitted job and its
environment into logs and shows them on its dashboard."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import UsageError
from pipeline.storage.redact import redacted

# Options of filesystems whose text is no secret. What others hold is unknown here.
_HARMLESS = {
    "account_name",
    "acl",
    "addressing_style",
    "cache_storage",
    "default_location",
    "endpoint_override",
    "endpoint_url",
    "host",
    "profile",
    "profile_name",
    "project",
    "protocol",
    "region",
    "region_name",
    "remote_protocol",
    "repo_type",
    "request_checksum_calculation",
    "response_checksum_validation",
    "retries",
    "revision",
    "ServerSideEncryption",
    "signature_version",
    "StorageClass",
    "target_protocol",
    "version",
}
_SECRET_NAME = re.compile(r"pass|secret|token|key|cred|sas|auth|sign", re.IGNORECASE)
_NEXT = (
    "Ray writes the command of a job into its logs, so credentials belong on the nodes, as their "
    "role or in their environment (AWS_SECRET_ACCESS_KEY and the like)"
)


def refuse_credentials(options: Mapping[str, Any]) -> None:
    """Refuses options that may hold a secret: a storage option that is not known to be harmless, or
    a location with a login or a signature.

    Raises:
        UsageError: there is one; the message holds its name, never its value.
    """
    found = list(_hidden(options.get("storage_options") or {}, ""))
    if found:
        raise UsageError(
            f"--storage-options {', '.join(found)} may hold a secret and cannot be submitted: "
            f"{_NEXT}; next: without it. What travels are numbers, true and false, and text of "
            "options such as endpoint_url and region_name"
        )
    for name, value in options.items():
        if isinstance(value, str) and redacted(value) != value:
            raise UsageError(
                f"--{name.replace('_', '-')} {redacted(value)} holds a login or the query of a web "
                f"address and cannot be submitted: {_NEXT}; next: the location without it"
            )


def _hidden(value: Any, name: str) -> Iterator[str]:
    """Yields the names of storage options, `outer.inner`, that may hold a secret."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _hidden(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _hidden(inner, name)
    elif not _is_harmless(value, name.rpartition(".")[2]):
        yield name


def _is_harmless(value: Any, key: str) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return _SECRET_NAME.search(key) is None
    return key in _HARMLESS and redacted(value) == value
