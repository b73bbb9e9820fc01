"""Submission of a job to a cluster through Ray's job API."""

import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
import requests
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.job_submission import JobSubmissionClient

from pipeline.batch.record import SUBMITTED_WITH
from pipeline.engine.cluster import ray_kept_quiet
from pipeline.engine.signals import GRACE_SECONDS
from pipeline.errors import RunFailed, UsageError
from pipeline.storage.redact import redacted, redacted_line
from pipeline.submit.package import packaged

_PORT = 8265  # of Ray's job server by default
_REQUEST_SECONDS = 20
# Ray kills a job three seconds after a request to stop, unless its environment says otherwise.
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_SECONDS = int(GRACE_SECONDS) + 30
_SERVER = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True)
class Cluster:
    """A cluster whose job server answers at a URL.

    `headers` are those of every request, `ray` and `python` the cluster's versions.
    """

    url: str
    headers: dict[str, str]
    ray: str
    python: str

    @property
    def shown(self) -> str:
        """Returns the URL without a login, as it may be printed."""
        return redacted(self.url)

    def client(self) -> JobSubmissionClient:
        """Makes Ray's own client of this cluster, whatever the environment names."""
        with _environment(_SERVER, self.url):
            return JobSubmissionClient(self.url, headers=dict(self.headers))

    def submit(self, words: Sequence[str], *, typed: Sequence[str]) -> str:
        """Submits `igpt WORDS` and returns the id of the job.

        Args:
            typed: the words before the job, which run.json keeps with it.

        Raises:
            RunFailed: the cluster does not take the job.
        """
        environment = {
            SUBMITTED_WITH: redacted(shlex.join(typed)),
            STOP_WAIT: str(STOP_SECONDS),
        }
        try:
            with ray_kept_quiet(), packaged() as folder:
                return str(
                    self.client().submit_job(
                        entrypoint=shlex.join(["python", "-m", "jobs", *words]),
                        runtime_env={"working_dir": folder, "env_vars": environment},
                    )
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise RunFailed(
                f"the cluster at {self.shown} took no job: {redacted_line(error)}"
            ) from error

    def command(self, verb: str, job: str) -> str:
        """Returns Ray's own command for a job, with a verb such as `stop` or `logs --follow`."""
        mode = "RAY_AUTH_MODE=token " if "Authorization" in self.headers else ""
        return f"{mode}ray job {verb} --address {self.shown} {job}"


def find_cluster(address: str | None) -> Cluster:
    """Finds the cluster at an address, without one that of the environment or of this machine.

    Ray's token is sent to a cluster that asks for one, and to no other.

    Raises:
        UsageError: nothing answers, something else does, or the token is missing or wrong.
    """
    url = server_url(address)
    host, _, port = (address or "").rpartition(":")
    if address and host and "://" not in host and port.isdigit() and int(port) != _PORT:
        raise UsageError(
            f"expected the URL of a job server after submit --address, found {redacted(address)}; "
            f"next: --address {url}, unless Ray's dashboard has another port there"
        )
    headers = _own_headers()
    reply = _ask(url, headers)
    if reply.status_code == requests.codes.unauthorized and (token := _token()):
        headers["Authorization"] = f"Bearer {token}"
        reply = _ask(url, headers)
    if reply.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        found = "one that it refuses" if "Authorization" in headers else "none"
        raise UsageError(
            f"expected the token of the cluster at {redacted(url)}, found {found}; next: put what "
            "`ray get-auth-token` says on its head into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    try:
        facts = reply.json()["data"]
        return Cluster(url, headers, facts["rayVersion"], facts["pythonVersion"])
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"expected Ray's job server at {redacted(url)}, found another server (status "
            f"{reply.status_code}); check --address"
        ) from None


def server_url(address: str | None) -> str:
    """Returns the URL of a cluster's job server: `https://host:port` as it is, the host of another
    address with the default port of Ray's server."""
    address = address or os.environ.get(_SERVER) or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    host = address.removeprefix("ray://").rpartition(":")[0] or address.removeprefix("ray://")
    return f"http://{'127.0.0.1' if host in ('auto', 'local') else host}:{_PORT}"


def check_versions(cluster: Cluster) -> str | None:
    """Returns a line on versions that differ from those here, None where none does.

    Raises:
        UsageError: igpt does not run with the versions of the cluster.
    """
    needed = {
        "Ray": _requirement("ray"),
        "Python": SpecifierSet(importlib.metadata.metadata("igpt")["Requires-Python"]),
    }
    there = {"Ray": cluster.ray, "Python": cluster.python}
    here = {"Ray": ray.__version__, "Python": platform.python_version()}
    for name, versions in needed.items():
        if not versions.contains(there[name], prereleases=True):
            raise UsageError(
                f"the cluster at {cluster.shown} has {name} {there[name]}, igpt needs {versions}; "
                "next: a cluster with the versions of constraints.txt"
            )
    other = [name for name in needed if _minor(there[name]) != _minor(here[name])]
    if not other:
        return None
    return (
        " and ".join(f"{name} {there[name]}" for name in other)
        + " there, "
        + " and ".join(here[name] for name in other)
        + " here: the job runs with those of the cluster"
    )


def _requirement(package: str) -> SpecifierSet:
    """Returns the versions of a package that igpt's metadata asks for."""
    wanted = (Requirement(text) for text in importlib.metadata.requires("igpt") or ())
    return next(found.specifier for found in wanted if found.name == package)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _ask(url: str, headers: dict[str, str]) -> requests.Response:
    """Requests a job server's description of its cluster."""
    try:
        return requests.get(
            f"{url}/api/v0/cluster_metadata", headers=headers, timeout=_REQUEST_SECONDS
        )
    except requests.RequestException as error:
        raise UsageError(
            f"expected Ray's job server at {redacted(url)}, found nothing that answers "
            f"({type(error).__name__}); check --address, RAY_API_SERVER_ADDRESS and RAY_ADDRESS"
        ) from error


def _own_headers() -> dict[str, str]:
    """Reads the HTTP headers of RAY_JOB_HEADERS, as Ray's own commands do: proxies want them."""
    try:
        return dict(json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}"))
    except (ValueError, TypeError):
        raise UsageError("expected a JSON object in RAY_JOB_HEADERS, found other text") from None


def _token() -> str | None:
    """Reads Ray's token from the places that Ray documents, in their order."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable meanwhile: Ray prefers its own variables to the arguments of its client."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
