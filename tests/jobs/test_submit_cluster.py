"""`igpt submit` to heads that `ray start --head` made, with Ray's token authentication and without:
a job to its end; one that is stopped and resumed; no secret in anything that is left; one on a
cluster that has no worker yet."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from pictures import photo
from pipeline.submit.submit import find_cluster
from runs import parts

IMAGES = 40
TOKEN = "t0ken-of-the-cluster-0123456789abcdef"
SECRETS = {"AWS_SECRET_ACCESS_KEY": "s3cr3t-0f-the-st0re", "HF_TOKEN": "s3cr3t-0f-the-hub"}


def free_port() -> str:
    """One below those that the system hands out: another process would take it meanwhile."""
    for port in range(20_000 + os.getpid() % 5000, 32_000):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("", port))
            return str(port)
    raise OSError("no free port")


@contextlib.contextmanager
def head(mode: str, home: Path, *, grows: bool = False):
    """A head in a session of its own, which only its own processes are in.

    Args:
        grows: whether it runs no work, and Ray's autoscaler brings workers of a fake cloud.
    """
    folder = Path(tempfile.mkdtemp(prefix="igpt", dir="/tmp"))  # a socket's path must be short
    ports = dict.fromkeys(("port", "dashboard-port", "dashboard-agent-listen-port"), "")
    with contextlib.ExitStack() as held:  # so that they differ
        for name in ports:
            ports[name] = free_port()
            held.enter_context(socket.socket()).bind(("", int(ports[name])))
    environment = {
        **os.environ,
        **SECRETS,
        "HOME": str(home),
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
        "RAY_AUTH_MODE": mode,
        "RAY_ADDRESS": "",
    }
    environment.pop("PYTHONPATH", None)  # what a job needs it brings along
    flags = [f"--{name}={port}" for name, port in ports.items()]
    flags += [f"--temp-dir={folder}", "--object-store-memory=100000000"]
    if grows:
        config = folder / "autoscaling.json"
        config.write_text(json.dumps(fake_cloud(ports["port"])))
        flags += ["--num-cpus=0", "--num-gpus=0", f"--autoscaling-config={config}"]
        environment |= FAKE_CLOUD
    else:
        flags += ["--num-cpus=2"]
    words = ["ray", "start", "--head", "--block", "--disable-usage-stats", *flags]
    with open(folder / "start.log", "w") as log:
        process = subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=home
        )
    try:
        _, server, agent = (int(port) for port in ports.values())
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{server}",
            ports=(server, agent),
            process=process,
            folder=folder,
            environment=environment,
            said=[],
        )
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(15)
        shutil.rmtree(folder, ignore_errors=True)


# What Ray's fake cloud wants to see of a head.
HEAD_ID = "f" * 51 + "00000"
FAKE_CLOUD = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}


COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def fake_cloud(port: str) -> dict:
    """The shape of cluster.yaml, whose machines are processes here."""

    def kind(most: int, **resources: int) -> dict:
        return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}

    memory = {"object_store_memory": 100_000_000}
    return {
        **{key: [] for key in COMMANDS},
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        "upscaling_speed": 10.0,
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": kind(0, CPU=0),
            "cpu": kind(4, CPU=2, **memory),
            "gpu": kind(4, CPU=2, GPU=1, **memory),
        },
    }


def wait_for(condition, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def takes_jobs(there) -> bool:
    """Whether the server is up, and the agent that starts jobs for it."""
    assert there.process.poll() is None, (there.folder / "start.log").read_text()
    try:
        for port in there.ports:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def submit(there, words: list[str]) -> subprocess.Popen:
    """The command as somebody types it whose credentials stand in the environment."""
    environment = {**there.environment, "RAY_ADDRESS": there.url}
    environment.pop("RAY_AUTH_MODE")
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(there, running: subprocess.Popen) -> tuple[int, str, str]:
    out, err = running.communicate(timeout=300)
    there.said += [out, err]
    return running.returncode, out, err


def leaks(there, output: Path, home: Path, monkeypatch) -> list[str]:
    """Where a secret stands: in files of the run, in Ray's logs, in what its server tells."""
    monkeypatch.setenv("HOME", str(home))
    told = [str(job) for job in find_cluster(there.url).client().list_jobs()]
    files = [p for folder in (output, there.folder) for p in folder.rglob("*") if p.is_file()]
    assert [path for path in files if path.name.startswith("job-driver-raysubmit")]
    texts = {str(path): path.read_bytes() for path in files}
    texts |= {f"text {i}": text.encode() for i, text in enumerate(told + there.said)}
    secrets = [*SECRETS.values(), TOKEN]
    return [name for name, text in texts.items() if any(s.encode() in text for s in secrets)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home with the token of a cluster, as Ray's own commands leave it there."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(TOKEN)
    return folder


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_model) -> list[str]:
    """A job of some ten seconds."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(IMAGES):
        photo(i).save(folder / f"{i:02d}.png")
    words = [f"--input={folder}", f"--model={tiny_model}", "--device=cpu", "--samples=4"]
    return [*words, "--batch-size=4", "--shard-size=1", "--cpu-actors=1", "--model-actors=1"]


@pytest.fixture(scope="module")
def undisturbed(home, job, tmp_path_factory):
    """What a job leaves that was submitted to a cluster with authentication."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    with head("token", home) as there, pytest.MonkeyPatch.context() as patch:
        wait_for(lambda: takes_jobs(there))
        words = ["submit", "complete", *job, f"--output={output}"]
        code, out, err = ended(there, submit(there, words))
        leaking = leaks(there, output, home, patch)
    return SimpleNamespace(output=output, code=code, out=out, err=err, leaking=leaking)


@pytest.mark.slow
def test_a_job_runs_to_its_end_on_a_cluster_with_a_token(undisturbed):
    assert (undisturbed.code, undisturbed.leaking) == (0, []), undisturbed.out + undisturbed.err
    assert undisturbed.out.endswith(f"{undisturbed.output}/report.html\n")
    assert "RAY_AUTH_MODE=token ray job stop" in undisturbed.err
    report = json.loads((undisturbed.output / "report.json").read_text())
    assert (report["rows"], report["errors"]) == (IMAGES, 0)


@pytest.mark.slow
def test_a_job_that_was_stopped_resumes_by_the_command_that_it_names(
    undisturbed, home, job, tmp_path, monkeypatch
):
    output = tmp_path / "run"
    with head("disabled", home) as there:
        wait_for(lambda: takes_jobs(there))
        running = submit(there, ["submit", "complete", *job, f"--output={output}"])
        wait_for(lambda: running.poll() is not None or list(output.glob("data/part-*")))
        client = find_cluster(there.url).client()
        assert [client.stop_job(found.submission_id) for found in client.list_jobs()] == [True]
        code, out, err = ended(there, running)
        assert code == 1
        assert f"of {IMAGES} shards are done and kept; next: igpt submit complete" in out
        assert "it was stopped; the same command resumes it" in err
        done = len(list(output.glob("data/part-*")))
        assert 0 < done < IMAGES
        again = shlex.split(json.loads((output / "run.json").read_text())["command"])
        code, out, err = ended(there, submit(there, again[1:]))
        assert code == 0, out + err
        assert leaks(there, output, home, monkeypatch) == []
    assert json.loads((output / "report.json").read_text())["resumed_shards"] == done
    assert parts(output) == parts(undisturbed.output)


@pytest.mark.slow
def test_a_training_on_two_workers_is_submitted(home, job, tmp_path, monkeypatch):
    output = tmp_path / "model"
    words = ["submit", "train", job[0], "--palette=embedded", "--image-size=8", "--n-layer=1"]
    words += ["--n-embd=16", "--n-head=2", "--steps=4", "--batch-size=4", "--workers=2"]
    with head("disabled", home) as there:
        wait_for(lambda: takes_jobs(there))
        words += [f"--output={output}", f"--eval-input={job[0].partition('=')[2]}"]
        code, out, err = ended(there, submit(there, words))
        assert code == 0, out + err
        assert leaks(there, output, home, monkeypatch) == []
    assert f"{output}: 4 steps in " in out
    assert re.search(rf"\d\.\d+ nats per pixel on {IMAGES} validation images", out)
    assert (output / "model.safetensors").exists()


@pytest.mark.slow
def test_a_job_begins_on_a_cluster_without_workers_and_brings_those_that_it_needs(
    home, job, tmp_path
):
    """Past bug: a task looked at each shard first, and nodes of every kind came up for these."""
    output = tmp_path / "tokens"
    words = ["submit", "quantize", *job[:2], f"--output={output}", "--shard-size=4"]
    with head("disabled", home, grows=True) as there:
        wait_for(lambda: takes_jobs(there))
        code, out, err = ended(there, submit(there, [*words, "--cpu-actors=2"]))
        assert code == 0, out + err
        (log,) = there.folder.glob("session_2*/logs/monitor.log")
        brought = re.findall(r"Adding (\d+) node\(s\) of type (\w+)", log.read_text())
    assert {kind for _, kind in brought} == {"cpu"}
    assert sum(int(n) for n, _ in brought) == 2  # of two CPUs each, for two readers and a writer
    assert json.loads((output / "report.json").read_text())["rows"] == IMAGES
