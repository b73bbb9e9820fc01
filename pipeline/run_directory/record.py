"""The content of run.json: made, checked, compared."""

import datetime
import importlib.metadata
import platform
import shlex
import uuid
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UsageError
from pipeline.rows import JOBS
from pipeline.run_directory.layout import FORMAT

_PACKAGES = ("igpt", "torch", "ray", "pyarrow", "pillow", "numpy")


def resuming(command: str) -> str:
    """Returns the command of a run without what would make it start anew."""
    return shlex.join(word for word in shlex.split(command) if word != "--overwrite")


def new_record(
    job: str, *, command: str, options: Mapping[str, Any], **facts: Any
) -> dict[str, Any]:
    """Returns the content of run.json. `options` must hold no secrets."""
    return {
        "format": FORMAT,
        "run": uuid.uuid4().hex,
        "job": job,
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": dict(options),
        **facts,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def check_format(location: str, record: Mapping[str, Any]) -> None:
    """Raises UsageError where run.json is of another format than this igpt reads, KeyError where it
    names none."""
    if record["format"] != FORMAT:
        raise UsageError(
            f"{location} is a run of format {record['format']}, this igpt reads format {FORMAT}; "
            "next: the version of igpt that wrote it, or another folder"
        )


def known_job(location: str, record: Mapping[str, Any]) -> str:
    """Returns the job of a run. Raises UsageError where this igpt does not know it."""
    if record["job"] not in JOBS:
        raise UsageError(
            f"{location} is a run of {record['job']}, this igpt knows {', '.join(JOBS)}; next: the "
            "version of igpt that wrote it"
        )
    return str(record["job"])


def refuse_other_noise(
    location: str, recorded: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Raises UsageError where the same seed drew other images than it does now."""
    there, now = recorded.get("noise", 1), wanted.get("noise")  # 1 was not written down
    if now is not None and there != now:
        raise UsageError(
            f"{location} was drawn with noise version {there}, this igpt draws with version {now}: "
            "the same seed gives other images; next: the version of igpt that began it, or "
            "--overwrite to draw all of it anew, or another --output"
        )


def refuse_other_run(
    location: str, recorded: Mapping[str, Any], wanted: Mapping[str, Any], *, kind: str = "run"
) -> None:
    """Raises UsageError where something in `wanted`, on which results depend, is not as it was."""
    differing = differences(recorded, wanted)
    if differing:
        raise UsageError(
            f"{location} holds another {kind} ({'; '.join(differing)}); next: the same options to "
            "resume it, --overwrite to replace it, or another --output"
        )


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns what in `wanted` is not as it was, each in words."""
    return [
        f"{name}: {recorded.get(name)} there, {value} now"
        for name, value in wanted.items()
        if value != recorded.get(name)
    ]
