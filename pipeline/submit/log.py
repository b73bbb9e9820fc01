"""The log of a submitted job as it grows, and how the job ended."""

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.errors import RunFailed
from pipeline.storage.redact import redacted_line

_PAUSE_SECONDS = 0.5
_SILENT_SECONDS = 60  # after which the log is asked for anew: a dead connection says nothing
_PATIENCE_SECONDS = 120  # with a cluster that does not answer
_OUT_OF_REACH = (aiohttp.ClientError, OSError, RuntimeError)  # what Ray's client raises
_CODES = (1, 2, 3)  # of igpt


@dataclass(frozen=True)
class End:
    """How a job ended: igpt's exit code, and what is to be said of it where that is not 0."""

    code: int
    reason: str = ""


def follow(client: JobSubmissionClient, job: str) -> End:
    """Print the log of a job on stdout until the job ends; connections that break are made anew.

    Raises RunFailed where the cluster cannot be reached any more: the job may go on there.
    """
    return _end(asyncio.run(_Log(client, job).print_to_its_end()))


class _Log:
    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client, self._job = client, job
        self._shown = 0  # characters

    async def print_to_its_end(self) -> JobDetails:
        answered = time.monotonic()
        while True:
            with suppress(*_OUT_OF_REACH):  # whether the cluster is, the next request shows
                await self._print_as_it_comes()
            try:
                details = self._client.get_job_info(self._job)
                answered = time.monotonic()
                if details.status.is_terminal():
                    self._print(self._client.get_job_logs(self._job), begins_at=0)
                    return details
            except _OUT_OF_REACH as error:
                if time.monotonic() - answered > _PATIENCE_SECONDS:
                    raise RunFailed(
                        f"the cluster does not answer: {redacted_line(error)}"
                    ) from error
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _print_as_it_comes(self) -> None:
        """From the beginning on, as Ray sends it; what was shown before is left out."""
        at = 0
        chunks = self._client.tail_job_logs(self._job)
        try:
            while True:
                async with asyncio.timeout(_SILENT_SECONDS):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                self._print(chunk, begins_at=at)
                at += len(chunk)
        finally:
            await chunks.aclose()

    def _print(self, text: str, *, begins_at: int) -> None:
        print(text[max(self._shown - begins_at, 0) :], end="", flush=True)
        self._shown = max(self._shown, begins_at + len(text))


def _end(details: JobDetails) -> End:
    if details.status == JobStatus.SUCCEEDED:
        return End(0)
    if details.status == JobStatus.STOPPED:
        return End(1, "it was stopped; the same command goes on from there, without --overwrite")
    message = details.message or ""
    code = details.driver_exit_code
    if code is None:  # it never ran
        return End(1, redacted_line(RuntimeError(message)))
    if missing := re.findall(r"ModuleNotFoundError: No module named '([\w.]+)'", message):
        return End(1, f"the nodes have no {missing[-1]}: igpt and what it needs must be installed")
    return End(code if code in _CODES else 1, f"exit code {code}; its log says why")
