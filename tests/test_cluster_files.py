"""cluster.yaml and rayjob.yaml, as far as they can be checked without a cloud."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.__main__ import COMMANDS
from pipeline.engine.signals import GRACE_SECONDS
from pipeline.submit.submit import STOP_SECONDS, STOP_WAIT

ROOT = Path(__file__).parents[1]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "rayjob.yaml").read_text())

# The fields of ray.io/v1 as KubeRay's API reference lists them.
FIELDS = {
    "RayJob": "apiVersion kind metadata spec",
    "RayJobSpec": """activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata
        clusterSelector submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId
        submissionMode entrypointResources entrypointNumCpus entrypointNumGpus
        ttlSecondsAfterFinished shutdownAfterJobFinishes suspend""",
    "RayClusterSpec": """suspend managedBy autoscalerOptions authOptions headServiceAnnotations
        enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec rayVersion
        workerGroupSpecs""",
    "AuthOptions": "mode",
    "AutoscalerOptions": """resources image imagePullPolicy securityContext idleTimeoutSeconds
        upscalingMode version env envFrom volumeMounts""",
    "HeadGroupSpec": "template headService enableIngress rayStartParams serviceType",
    "WorkerGroupSpec": """suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds
        rayStartParams template scaleStrategy numOfHosts""",
}


def ray_version() -> str:
    (version,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return version


@pytest.fixture
def cluster(monkeypatch, tmp_path) -> dict:
    """cluster.yaml as `ray up` sees it, from the folder that it lies in."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    return prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_ray_takes_the_cluster(cluster):
    validate_config(cluster)


def test_ray_refuses_a_cluster_with_a_wrong_word(cluster):
    cluster["available_node_types"]["cpu"]["max_worker"] = 1
    with pytest.raises(Exception, match="max_worker"):
        validate_config(cluster)


def test_head_runs_no_work_and_workers_come_when_they_are_asked_for():
    types = CLUSTER["available_node_types"]
    assert types[CLUSTER["head_node_type"]]["resources"]["CPU"] == 0
    assert all(
        "--num-cpus=0" in line for line in CLUSTER["head_start_ray_commands"] if "start" in line
    )
    workers = {name: kind for name, kind in types.items() if name != CLUSTER["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) == CLUSTER["max_workers"]
    on_gpu = [kind for kind in workers.values() if "GPU" in kind["resources"]]
    assert on_gpu
    assert all(k["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for k in on_gpu)


NEEDED = {
    *("pyproject.toml", "constraints.txt", "README.md", "LICENSE"),
    *("igpt_core", "pipeline", "jobs"),
}


def is_excluded(path: Path) -> bool:
    """Whether rsync leaves out a path of the folder: patterns as rsync_exclude has them, those with
    a slash in front from the top."""
    return any(
        fnmatch(path.parts[0], pattern[1:])
        if pattern.startswith("/")
        else any(fnmatch(part, pattern) for part in path.parts)
        for pattern in CLUSTER["rsync_exclude"]
    )


def test_folders_are_mounted_and_no_files():
    """Past bug: a file that is mounted by itself stays as it was at the first `ray up`, and the
    folder above it belongs to root."""
    assert CLUSTER["file_mounts"] == {"/home/ray/igpt": ".", "/home/ray/.ray": "~/.ray"}


def test_nodes_get_what_a_job_needs_and_not_what_lies_beside_it():
    assert not any(is_excluded(Path(name)) for name in NEEDED)
    for name in ("igpt_core/assets/cifar10-32x32/model.safetensors", "jobs/complete.py"):
        assert (ROOT / name).exists()
        assert not is_excluded(Path(name))
    beside = [".git", ".venv", ".mypy_cache", "igpt.egg-info", "jobs/__pycache__/complete.pyc"]
    beside += ["benchmarks", "build", "dist", "docs", "out", "tests"]
    assert all(is_excluded(Path(name)) for name in beside)


@pytest.fixture
def node(tmp_path):
    """The home of a node's user, who may read what is mounted in `igpt` and not write there."""
    mount = tmp_path / "igpt"
    mount.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, mount / name, ignore=hidden)
        else:
            shutil.copy(ROOT / name, mount)
    for path in (mount, *mount.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # It builds as on a node, but without a network: nothing else is fetched or installed.
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m pip --quiet "$@" --no-deps --no-index '
        f'--no-build-isolation --target="$HOME/site"\n'
    )
    pip.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    yield tmp_path
    for path in (mount, *mount.rglob("*")):
        path.chmod(0o755)


def set_up(home: Path, command: str) -> subprocess.CompletedProcess:
    """Runs a command as the node's user does; root's own right to write anywhere is taken away."""
    words = ["/bin/bash", "-c", command]
    if os.geteuid() == 0:
        words = ["setpriv", "--bounding-set=-dac_override", *words]
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    environment = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": path}
    return subprocess.run(words, env=environment, cwd=home, capture_output=True, text=True)


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv"
)
def test_a_node_builds_igpt_though_it_may_not_write_where_it_is_mounted(node):
    """Past bug: `pip install ~/igpt` built in the mount, as a user who may not write there."""
    mounted = sorted((node / "igpt").rglob("*"))
    in_place = set_up(node, "pip install --no-cache-dir -c ~/igpt/constraints.txt ~/igpt")
    assert in_place.returncode != 0, "the mount can be written"
    (command,) = CLUSTER["setup_commands"]
    done = set_up(node, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (node / "site").iterdir()} >= {"igpt_core", "pipeline", "jobs"}
    assert sorted((node / "igpt").rglob("*")) == mounted
    assert not list((node / "tmp").iterdir())


def test_the_image_is_built_as_a_node_is():
    page = (ROOT / "docs" / "clusters.md").read_text()
    (run,) = re.findall(r"^RUN (.+\\\n.+)$", page, re.MULTILINE)
    (command,) = CLUSTER["setup_commands"]
    assert " ".join(run.replace("\\\n", " ").split()) == command.replace("~/igpt", "igpt")


def test_every_ray_is_that_of_the_constraints():
    """In the images, for KubeRay, and in what docs/clusters.md tells to type."""
    version = ray_version()
    texts = [(ROOT / name).read_text() for name in ("cluster.yaml", "rayjob.yaml")]
    images = re.findall(r"rayproject/ray:([\d.]+)-py311", texts[0])
    assert images == [version] * 2
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == version
    page = (ROOT / "docs" / "clusters.md").read_text()
    named = re.findall(r"\b2\.\d\d\.\d\b", "\n".join([*texts, page]))
    assert len(named) > 6
    assert set(named) == {version}


def unknown(kind: str, found: dict) -> set[str]:
    return set(found) - set(FIELDS[kind].split())


def test_kuberay_knows_every_field():
    spec, cluster = RAYJOB["spec"], RAYJOB["spec"]["rayClusterSpec"]
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    assert not unknown("RayJob", RAYJOB)
    assert not unknown("RayJobSpec", spec)
    assert not unknown("RayClusterSpec", cluster)
    assert not unknown("AuthOptions", cluster["authOptions"])
    assert not unknown("AutoscalerOptions", cluster["autoscalerOptions"])
    assert not unknown("HeadGroupSpec", cluster["headGroupSpec"])
    assert not any(unknown("WorkerGroupSpec", group) for group in cluster["workerGroupSpecs"])
    assert unknown("RayJobSpec", {"backofLimit": 5}) == {"backofLimit"}


def test_kuberay_gets_numbers_and_words_where_it_wants_them():
    spec, cluster = RAYJOB["spec"], RAYJOB["spec"]["rayClusterSpec"]
    assert spec["backoffLimit"] > 0
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in groups.values())
    for group in (cluster["headGroupSpec"], *groups.values()):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"].endswith(f":{ray_version()}")
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        assert "env" not in container  # secrets come by reference
    spot = groups["gpu-spot"]["template"]["spec"]
    assert spot["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spot["tolerations"]
    assert spot["nodeSelector"]


def test_a_job_on_kubernetes_has_as_long_to_stop_as_a_submitted_one():
    """Past bug: Ray killed it after three seconds."""
    variables = yaml.safe_load(RAYJOB["spec"]["runtimeEnvYAML"])["env_vars"]
    assert variables == {STOP_WAIT: str(STOP_SECONDS)}
    head = RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["terminationGracePeriodSeconds"] >= STOP_SECONDS > GRACE_SECONDS


def test_what_rayjob_runs_is_a_command_of_igpt():
    """Those of docs/clusters.md: test_documentation.py."""
    program, job, *words = shlex.split(RAYJOB["spec"]["entrypoint"])
    (command,) = [command for command in COMMANDS if command.name == job]
    assert program == "igpt"
    assert command.make_context(job, words).params["output"]


def test_the_role_on_the_page_may_end_an_upload_that_failed():
    """Past bug: the refusal of that hid why the upload had failed, and its pieces stayed."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    (policy,) = re.findall(r"cat > bucket\.json <<END\n(.+?)\nEND\n", page, re.DOTALL)
    (statement,) = json.loads(policy)["Statement"]
    assert {"s3:PutObject", "s3:AbortMultipartUpload"} <= set(statement["Action"])
