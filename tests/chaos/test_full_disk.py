"""A node whose disk is full, while others work."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from drivers import driver, finish, workers
from pictures import encoded, photo
from runs import parts

TARS, IMAGES = 16, 4
NODE = {"num_cpus": 2, "object_store_memory": 128 << 20, "include_dashboard": False}


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Mounts a disk that is full as soon as a tar is copied to it."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a disk takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """Compressed tars, each of which is copied to a disk of its node before it is read."""
    folder = tmp_path_factory.mktemp("tars")
    for i in range(TARS):
        with tarfile.open(folder / f"{i:02d}.tar.gz", "w:gz") as tar:
            for k in range(IMAGES):
                image = encoded(photo(i * IMAGES + k, size=(64, 64)))
                member = tarfile.TarInfo(f"{k}.png")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))
    return folder


@pytest.mark.slow
def test_a_node_whose_disk_is_full_costs_no_row(tars, tiny_model, tmp_path):
    """What it cannot read is read by others. Past bug: a shard that it took was tried there again,
    at each start."""
    words = ("quantize", f"--input={tars}", f"--model={tiny_model}", "--cpu-actors=4")
    finish(*words, f"--output={tmp_path / 'undisturbed'}", log=tmp_path / "log")
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    with small_disk(tmp_path / "full"):
        try:
            full = cluster.add_node(**NODE, env_vars={"TMPDIR": str(tmp_path / "full")})
            cluster.add_node(**NODE)
            cluster.wait_for_nodes()
            words = (*words, f"--output={tmp_path / 'run'}", f"--address={cluster.address}")
            (raylet,) = full.all_processes["raylet"]
            seen = 0
            with driver(*words, log=tmp_path / "log") as run:
                while run.running:
                    seen = max(seen, len(workers(raylet.process.pid)))
                assert run.wait() == 0, run.log()[-3000:]
        finally:
            cluster.shutdown()
    assert seen
    assert "No space left on device" in (tmp_path / "log").read_text()
    made = parts(tmp_path / "run", "data", "errors")
    assert made == parts(tmp_path / "undisturbed", "data", "errors")
    assert len(made) == TARS
