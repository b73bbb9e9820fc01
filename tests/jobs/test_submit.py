"""`igpt submit` without a cluster: what it refuses, what it ships, how it tails logs."""

import asyncio
import http.server
import importlib.metadata
import json
import re
import subprocess
import sys
import threading
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from jobs.__main__ import COMMANDS, main
from jobs.command import command, parse, words_of
from jobs.submit import COMMAND
from pipeline.batch.record import SUBMITTED_WITH, command_line
from pipeline.errors import RunFailed, UsageError
from pipeline.submit import log as tailing
from pipeline.submit import submit as submitting
from pipeline.submit.credentials import refuse_credentials
from pipeline.submit.log import tail_logs
from pipeline.submit.package import PACKAGES, is_needed, packaged
from pipeline.submit.submit import Cluster, check_versions, find_cluster, server_url

SECRET = "s3cr3t-k3y"


@pytest.fixture
def submitted(monkeypatch):
    """The words that were submitted to a cluster which does not exist."""
    words = []
    there = Cluster("http://head:8265", {}, "2.60.0", "3.11.7")
    monkeypatch.setattr("pipeline.submit.submit.find_cluster", lambda address: there)
    monkeypatch.setattr("pipeline.submit.submit.check_versions", lambda cluster: None)
    monkeypatch.setattr(
        Cluster, "submit", lambda self, job, *, typed: words.append((job, typed)) or "job-1"
    )
    return words


def refusal(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["submit", *words])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("igpt: ")
    assert line.count("\n") == 1
    assert SECRET not in line
    return line


JOB = ["complete", "--input=s3://bucket/in", "--output=s3://bucket/out"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["demo"], "runs on a cluster"),
        (["complete", "--input=x"], "--output is missing"),
        ([*JOB, "--samples=0"], "--samples"),
        ([*JOB, "--address=10.0.0.1:6379"], "before the job"),
        ([*JOB, f'--storage-options={{"key": "{SECRET}"}}'], "key may hold a secret"),
        ([*JOB, f'--storage-options={{"input": {{"secret": "{SECRET}"}}}}'], "input.secret"),
        (
            [*JOB, f'--storage-options={{"client_kwargs": {{"aws_session_token": "{SECRET}"}}}}'],
            "client_kwargs.aws_session_token",
        ),
        ([*JOB, f'--storage-options={{"endpoint_url": "http://me:{SECRET}@x"}}'], "endpoint_url"),
        ([*JOB, f'--storage-options={{"unheard_of": "{SECRET}"}}'], "unheard_of"),
        ([*JOB, '--storage-options={"password": 123456}'], "password"),
        ([*JOB, f"--model=https://me:{SECRET}@host/model"], "--model https://***@host/model"),
        (
            ["quantize", f"--input=https://host/a.parquet?sig={SECRET}", "--output=x"],
            "--input https://host/a.parquet?*** holds",
        ),
        (["export", "--to=png", "--output=x", f"ftp://me:{SECRET}@host/run"], "--run ftp://***@"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_one_line(submitted, capsys, words, says):
    assert says in refusal(capsys, *words)
    assert submitted == []


def test_secrets_in_a_config_file_are_refused_too(submitted, tmp_path, capsys):
    (tmp_path / "job.yaml").write_text(f"storage_options:\n  sas_token: {SECRET}\n")
    assert "sas_token" in refusal(capsys, *JOB, f"--config={tmp_path}/job.yaml")
    assert submitted == []


def test_options_of_a_filesystem_that_are_no_secrets_travel():
    options = {
        "input": {"anon": True, "client_kwargs": {"region_name": "eu-central-1"}},
        "output": {"endpoint_url": "http://minio:9000", "max_concurrency": 4, "key": None},
    }
    refuse_credentials({"storage_options": options, "input": "s3://bucket/a@b?.png"})
    refuse_credentials({"input": "abfs://photos@account.dfs.core.windows.net/in"})


def test_a_job_is_submitted_as_it_was_meant(submitted, tmp_path, monkeypatch, capsys):
    """Options of a file are in it, local paths are whole, and its id is all of stdout."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("input: photos\nkeep: 0.25\ntop-k: 100\n")
    words = ["complete", "--config=job.yaml", "--output=out", "--quiet", "--shard-size=auto"]
    main(["submit", "--address=http://head:8265", "--no-wait", *words])
    ((job, typed),) = submitted
    assert job[0] == "complete"
    assert set(job[1:]) == {
        f"--input={tmp_path}/photos",
        f"--output={tmp_path}/out",
        "--keep=0.25",
        "--top-k=100",
        "--quiet",
    }
    assert typed == ["submit", "--address=http://head:8265"]
    out, err = capsys.readouterr()
    assert out == "job-1\n"
    assert "ray job stop --address http://head:8265 job-1" in err


def test_jobs_within_jobs_and_arguments_keep_their_places(submitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["submit", "--no-wait", "plan", "embed", "--input=s3://b/in", "--layers=all"])
    main(["submit", "--no-wait", "export", "--to=png", "--output=s3://b/png", "run"])
    assert submitted[0][0] == ["plan", "embed", "--input=s3://b/in", "--layers=all"]
    assert submitted[1][0][-2:] == ["--", f"{tmp_path}/run"]


# By the type of an option, dict before the types within one.
VALUES = {dict: {"a": {"b": [1]}}, bool: True, int: 7, float: 0.5, str: "-text with 'quotes'"}


@pytest.mark.parametrize("job", COMMAND.commands.values(), ids=lambda job: job.name)
def test_words_give_the_same_options_again(job):
    """Each option of every job that can be submitted, with a value that is not its default."""
    for one in getattr(job, "commands", {"": job}).values():
        options = parse(one.model, {n: other_value(f) for n, f in one.model.model_fields.items()})
        seen = []
        again = command("x", one.model, seen.append, help="", example="", argument=one.argument)
        words = words_of(options.model_dump(), one.model, one.argument)
        again.main(words, standalone_mode=False)
        assert seen == [options]


def other_value(field):
    kind = field.annotation
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)[-1]
    return next(value for known, value in VALUES.items() if known.__name__ in str(kind))


def test_the_package_runs_by_itself_and_holds_nothing_else():
    with packaged() as folder:
        here = subprocess.run(
            [
                sys.executable,
                "-c",
                "import jobs, pipeline; print(jobs.__file__, pipeline.__file__)",
            ],
            cwd=folder,
            env={"PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(path.startswith(folder) for path in here.stdout.split())
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        inner = [path.relative_to(folder) for path in files if "__pycache__" not in path.parts]
        version = f"igpt-{importlib.metadata.version('igpt')}.dist-info"
        assert {path.parts[0] for path in inner} == {*PACKAGES, version}
        kinds = {path.suffix for path in inner if "assets" not in path.parts}
        assert kinds == {".py", ".j2", ".css", ""}  # the last is the METADATA of the version
        assert sum(path.stat().st_size for path in files) < 64 << 20  # Ray takes 512 MiB
    assert not Path(folder).exists()


def test_other_files_are_not_shipped():
    kept = ["a.py", "stages/b.py", "assets/model/config.json", "assets/model/README.md"]
    kept += ["report/page.html.j2", "report/style.css"]
    left = [".git/config.py", "__pycache__/a.py", "out/data/part.parquet", ".ipynb/a.py", "a.so"]
    assert [name for name in kept + left if is_needed(Path(name))] == kept


@pytest.mark.parametrize(
    ("address", "environment", "url"),
    [
        ("https://head:1/", {"RAY_ADDRESS": "http://other:2"}, "https://head:1"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "http://b:2"}, "http://a:1"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://10.0.0.1:8265"),
        ("ray://head:10001", {}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "auto"}, "http://127.0.0.1:8265"),
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_where_the_job_server_is(monkeypatch, address, environment, url):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert server_url(address) == url


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A job server that wants `token` where that is set, and what it was shown."""
    found = SimpleNamespace(token=None, seen=[], body={"rayVersion": "2.60.0"})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            shown = self.headers.get("Authorization")
            found.seen.append(shown)
            wanted = found.token and f"Bearer {found.token}"
            self.send_response(200 if shown == wanted or not wanted else 403 if shown else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"data": found.body}).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        found.url = f"http://127.0.0.1:{running.server_port}"
        found.body |= {"pythonVersion": "3.11.7"}
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_HEADERS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield found
        running.shutdown()


def test_a_token_goes_to_a_cluster_that_asks_for_it_and_to_no_other(server, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    assert "Authorization" not in find_cluster(server.url).headers
    server.token = SECRET
    assert find_cluster(server.url).headers == {"Authorization": f"Bearer {SECRET}"}
    assert server.seen == [None, None, f"Bearer {SECRET}"]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{SECRET}\n")
    assert find_cluster(server.url).headers == {"Authorization": f"Bearer {SECRET}"}


def test_a_cluster_that_does_not_let_in_or_is_none_is_named(server, monkeypatch):
    server.token = SECRET
    with pytest.raises(UsageError, match=r"the token of the cluster at .*, found none; next"):
        find_cluster(server.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    with pytest.raises(UsageError, match="found one that it refuses"):
        find_cluster(server.url)
    server.token, server.body = None, "hello"
    with pytest.raises(UsageError, match="found another server"):
        find_cluster(server.url)
    with pytest.raises(UsageError, match="found nothing that answers"):
        find_cluster("http://127.0.0.1:9")
    with pytest.raises(UsageError, match="found head:6379; next: --address http://head:8265"):
        find_cluster("head:6379")
    monkeypatch.setenv("RAY_JOB_HEADERS", "text")
    with pytest.raises(UsageError, match="RAY_JOB_HEADERS"):
        find_cluster(server.url)


@pytest.mark.parametrize(
    ("ray", "python", "says"),
    [
        (submitting.ray.__version__, submitting.platform.python_version(), None),
        ("2.999.1", submitting.platform.python_version(), r"^Ray 2\.999\.1 there, 2\."),
        (submitting.ray.__version__, "3.99.0", r"^Python 3\.99\.0 there, 3\.1\d\.\d+ here"),
    ],
)
def test_other_versions_are_named(ray, python, says):
    note = check_versions(Cluster("http://head", {}, ray, python))
    assert note is None if says is None else re.search(says, note)


@pytest.mark.parametrize(("ray", "python"), [("2.9.3", "3.11.7"), ("2.60.0", "3.9.1")])
def test_versions_with_which_igpt_does_not_run_are_refused(ray, python):
    with pytest.raises(UsageError, match="igpt needs >="):
        check_versions(Cluster("http://head", {}, ray, python))


class Client:
    """Ray's client of a job whose log comes in chunks, over connections that break."""

    def __init__(self, log: str, *, breaks_at=(), status=JobStatus.SUCCEEDED, **details):
        self.log, self.breaks, self.status, self.details = log, list(breaks_at), status, details
        self.asked = 0

    async def tail_job_logs(self, job):
        end = self.breaks.pop(0) if self.breaks else len(self.log)
        for at in range(0, end, 3):
            yield self.log[at : min(at + 3, end)]
        if end < len(self.log):
            raise RuntimeError("the connection broke")

    def get_job_info(self, job):
        self.asked += 1
        running = self.breaks or self.asked == 1
        details = {"message": None, "driver_exit_code": 0} | self.details
        return SimpleNamespace(status=JobStatus.RUNNING if running else self.status, **details)

    def get_job_logs(self, job):
        return self.log + "the last line\n"


def test_a_log_is_printed_once_whatever_breaks(monkeypatch, capsys):
    monkeypatch.setattr(tailing, "_PAUSE_SECONDS", 0)
    log = "".join(f"line {i}\n" for i in range(20))
    assert tail_logs(Client(log, breaks_at=[40, 10, 0, 90]), "job").code == 0
    assert capsys.readouterr().out == log + "the last line\n"


def test_a_silent_connection_is_replaced(monkeypatch, capsys):
    monkeypatch.setattr(tailing, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(tailing, "_SILENT_SECONDS", 0.05)
    client = Client("all of it\n")
    tail = client.tail_job_logs

    async def dead(job):
        yield "all"
        client.tail_job_logs = tail
        await asyncio.sleep(3600)

    client.tail_job_logs = dead
    assert tail_logs(client, "job").code == 0
    assert capsys.readouterr().out == "all of it\nthe last line\n"


def test_an_unreachable_cluster_is_given_up_after_a_while(monkeypatch):
    monkeypatch.setattr(tailing, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(tailing, "_UNREACHABLE_SECONDS", 0)
    client = Client("", breaks_at=[0])
    client.get_job_info = lambda job: (_ for _ in ()).throw(ConnectionError("refused"))
    with pytest.raises(RunFailed, match="does not answer: refused"):
        tail_logs(client, "job")


MISSING = "Traceback ...\nModuleNotFoundError: No module named 'safetensors'\n"


@pytest.mark.parametrize(
    ("status", "details", "code", "says"),
    [
        (JobStatus.SUCCEEDED, {}, 0, ""),
        (JobStatus.FAILED, {"driver_exit_code": 2}, 2, "exit code 2"),
        (JobStatus.FAILED, {"driver_exit_code": 3}, 3, "exit code 3"),
        (JobStatus.FAILED, {"driver_exit_code": -9}, 1, "exit code -9"),
        (JobStatus.STOPPED, {"driver_exit_code": None}, 1, "the same command resumes"),
        (JobStatus.FAILED, {"driver_exit_code": None, "message": "no\nagent"}, 1, "no agent"),
        (JobStatus.FAILED, {"driver_exit_code": 1, "message": MISSING}, 1, "no safetensors"),
    ],
)
def test_the_result_of_a_job_is_passed_on(monkeypatch, status, details, code, says):
    monkeypatch.setattr(tailing, "_PAUSE_SECONDS", 0)
    result = tail_logs(Client("log\n", status=status, **details), "job")
    assert result.code == code
    assert says in result.reason


def test_leaving_a_job_says_how_to_come_back_to_it(submitted, monkeypatch, capsys):
    def interrupted(client, job):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.submit.log.tail_logs", interrupted)
    monkeypatch.setattr(Cluster, "client", lambda self: None)
    with pytest.raises(SystemExit) as stopped:
        main(["submit", *JOB])
    assert stopped.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "job job-1 goes on at http://head:8265" in last
    assert "ray job logs --follow --address http://head:8265 job-1 follows it" in last


def test_the_command_of_a_submitted_job_is_the_one_that_submits_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs", "complete", "--output=out"])
    assert command_line() == "igpt complete --output=out"
    monkeypatch.setenv(SUBMITTED_WITH, "submit '--address=http://a b'")
    assert command_line() == "igpt submit '--address=http://a b' complete --output=out"


def test_only_jobs_that_run_on_a_cluster_can_be_submitted():
    on_ray = {
        c.name
        for c in COMMANDS
        if "address" in getattr(getattr(c, "model", None), "model_fields", {})
    }
    assert set(COMMAND.commands) == on_ray | {"plan"}
