"""Whole jobs over an S3 (moto) behind a proxy with 500s, 503s, resets, delays and answers cut
short, 5 % of each; and drivers, actors and nodes killed meanwhile."""

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from disturbances import NIGHTS, Night, drivers_die
from drivers import finish
from faulty_proxy import FAULTS, READ_TIMEOUT, FaultyProxy
from pictures import encoded, photo

IMAGES, SHARD = 40, 3
SECRET = "fake-s3cr3t-of-chaos"


@pytest.fixture(scope="module")
def store(tiny_model, s3_bucket):
    """The address of a store that answers as it should, its options, and its filesystem."""
    options, fs = s3_bucket("chaos", secret=SECRET)
    url = urlsplit(options["endpoint_url"])
    for i in range(IMAGES):
        fs.pipe_file(f"chaos/photos/{i:02d}.png", encoded(photo(i)))
    fs.pipe_file("chaos/photos/broken.png", b"no image")
    for file in Path(tiny_model).iterdir():
        fs.pipe_file(f"chaos/model/{file.name}", file.read_bytes())
    return (url.hostname, url.port), options, fs


def completing(options: dict, output: str) -> tuple[str, ...]:
    words = ["complete", "--input=s3://chaos/photos", "--model=s3://chaos/model"]
    words += [f"--output={output}", f"--shard-size={SHARD}", "--batch-size=4", "--samples=2"]
    words += ["--device=cpu", "--max-error-fraction=0.5", "--model-actors=2"]
    return (*words, "--storage-options", json.dumps(options))


def named(fs, run: str) -> list[str]:
    """The parts of results and errors that are there under their names."""
    fs.invalidate_cache()
    found = [path for folder in ("data", "errors") for path in fs.find(f"{run}/{folder}")]
    return [path for path in found if "/part-" in path]


def parts(fs, run: str) -> dict[str, bytes]:
    return {path.removeprefix(run): fs.cat_file(path) for path in named(fs, run)}


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory) -> dict[str, bytes]:
    _, options, fs = store
    log = tmp_path_factory.mktemp("undisturbed") / "log"
    finish(*completing(options, "s3://chaos/undisturbed"), log=log)
    made = parts(fs, "chaos/undisturbed")
    assert len(made) == -(-(IMAGES + 1) // SHARD) + 1
    return made


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where a run's Ray writes its logs; sockets lie there too, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize(("disturbance", "seed"), NIGHTS)
def test_a_store_on_a_bad_day_and_what_dies_change_no_byte(
    store, undisturbed, tmp_path, ray_folder, disturbance, seed
):
    """Also the model is read from there. What comes to be under a final name is whole each time
    that somebody looks. The secret, in --storage-options or in the environment, is in no file of
    the run and in no log, Ray's included."""
    address, options, fs = store
    run, log = f"chaos/{disturbance.__name__}-{seed}", tmp_path / "log"
    proxy = FaultyProxy(address, share=0.05, seed=seed)
    given = options | {"endpoint_url": proxy.url, "config_kwargs": {"read_timeout": READ_TIMEOUT}}
    environment = {"IGPT_CACHE": str(tmp_path / "cache"), "RAY_TMPDIR": str(ray_folder)}
    if seed % 2 or disturbance is not drivers_die:
        environment["AWS_ACCESS_KEY_ID"] = given.pop("key")
        environment["AWS_SECRET_ACCESS_KEY"] = given.pop("secret")

    def done() -> int:
        there = parts(fs, run)
        assert there.items() <= undisturbed.items()
        return sum(name.startswith("/data/") for name in there)

    shards = sum(name.startswith("/data/") for name in undisturbed)
    night = Night(completing(given, f"s3://{run}"), log, shards, done, environment)
    try:
        disturbance(night, random.Random(seed))
    finally:
        proxy.shutdown()
    assert parts(fs, run) == undisturbed
    assert all(proxy.counts[fault] for fault in FAULTS), proxy.counts
    written = [fs.cat_file(path) for path in fs.find(run)]
    logs = [path for path in [*ray_folder.rglob("*"), log] if path.is_file()]
    assert len(logs) > 10
    written += [path.read_bytes() for path in logs]
    assert not [content for content in written if SECRET.encode() in content]
