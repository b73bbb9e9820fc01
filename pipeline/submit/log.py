"""The log of a submitted job, tailed while the job runs, and the job's result."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import cast

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.errors import RunFailed
from pipeline.storage.redact import redacted_line

_PAUSE_SECONDS = 0.5
_SILENT_SECONDS = 60  # then the log is requested again: a dead connection stays silent
_UNREACHABLE_SECONDS = 120  # then a cluster that does not answer is given up
_CONNECTION_ERRORS = (aiohttp.ClientError, OSError, RuntimeError)  # what Ray's client raises
_CODES = (1, 2, 3)  # of igpt


@dataclass(frozen=True)
class JobResult:
    """igpt's exit code of a job, and the reason where that is not 0."""

    code: int
    reason: str = ""


def tail_logs(client: JobSubmissionClient, job: str) -> JobResult:
    """Prints the log of a job on stdout until the job ends, over broken connections too.

    Raises RunFailed where the cluster stays unreachable: the job may go on there.
    """
    return _result(asyncio.run(_Log(client, job).print_until_job_ends()))


class _Log:
    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client, self._job = client, job
        self._printed = 0  # characters

    async def print_until_job_ends(self) -> JobDetails:
        answered = time.monotonic()
        while True:
            with suppress(*_CONNECTION_ERRORS):  # the request below tells whether it is there
                await self._print_until_connection_ends()
            try:
                details = self._client.get_job_info(self._job)
                answered = time.monotonic()
                if details.status.is_terminal():
                    self._print(self._client.get_job_logs(self._job), offset=0)
                    return details
            except _CONNECTION_ERRORS as error:
                if time.monotonic() - answered > _UNREACHABLE_SECONDS:
                    raise RunFailed(
                        f"the cluster does not answer: {redacted_line(error)}"
                    ) from error
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _print_until_connection_ends(self) -> None:
        """Prints what Ray sends, which is always the log from its beginning on."""
        offset = 0
        # Ray declares an iterator, and makes a generator, whose connection must be closed.
        tail = cast(AsyncGenerator[str, None], self._client.tail_job_logs(self._job))
        async with aclosing(tail):
            while True:
                async with asyncio.timeout(_SILENT_SECONDS):
                    text = await anext(tail, None)
                if text is None:
                    return
                self._print(text, offset=offset)
                offset += len(text)

    def _print(self, text: str, *, offset: int) -> None:
        """Prints the part of `text`, which begins at `offset` of the log, that is new."""
        print(text[max(self._printed - offset, 0) :], end="", flush=True)
        self._printed = max(self._printed, offset + len(text))


def _result(details: JobDetails) -> JobResult:
    if details.status == JobStatus.SUCCEEDED:
        return JobResult(0)
    if details.status == JobStatus.STOPPED:
        return JobResult(1, "it was stopped; the same command resumes it, without --overwrite")
    message = details.message or ""
    code = details.driver_exit_code
    if code is None:  # it never ran
        return JobResult(1, redacted_line(RuntimeError(message)))
    if missing := re.findall(r"ModuleNotFoundError: No module named '([\w.]+)'", message):
        return JobResult(
            1, f"the nodes have no {missing[-1]}: what igpt depends on must be installed there"
        )
    return JobResult(code if code in _CODES else 1, f"exit code {code}; its log says why")
