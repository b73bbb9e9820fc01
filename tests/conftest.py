"""What several test files share: a tiny model, small images good and bad, one Ray session."""

import atexit
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

# Without a GPU kernels in Triton run in its interpreter, which is chosen when it is imported.
os.environ.setdefault("TRITON_INTERPRET", str(int(not torch.cuda.is_available())))

# A palette's table is cached by its fingerprint: not in the home of whoever runs the tests.
os.environ.setdefault("IGPT_CACHE", os.path.join(os.path.dirname(__file__), ".cache"))

from models import save_tiny
from pictures import encoded, photo
from pipeline.engine import dispatch, stage
from pipeline.engine.shard_result import ShardResult, serialize
from pipeline.engine.stage import _ReportingShards
from pipeline.storage.filesystem import open_location


@atexit.register
def without_counts_of_leaks() -> None:
    """Closes stderr where Triton was imported: its library writes there what is left of it."""
    if "triton" in sys.modules:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """The folder of a model with random weights for images of 8 x 8 pixels in 32 colors."""
    return save_tiny(tmp_path_factory.mktemp("tiny-model"), std=0.3)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> str:
    """A folder of 20 good images of several kinds, 4 bad ones, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(17):
        photo(i).save(folder / f"{i:02d}.png")
    photo(17).convert("L").save(folder / "17-gray.jpg")
    (folder / "deeper").mkdir()
    photo(18).convert("CMYK").save(folder / "deeper" / "18-cmyk.JPG")
    photo(19).quantize(16).save(folder / "deeper" / "19-palette.gif")
    whole = encoded(photo(20, size=(200, 200)), "JPEG")
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("skipped")
    return str(folder)


@pytest.fixture(scope="session")
def labeled_parquet(tmp_path_factory) -> str:
    """A Parquet file in the Hub's layout: 23 images with labels, one of them broken."""
    images = [{"bytes": encoded(photo(100 + i)), "path": f"{i}.png"} for i in range(23)]
    images[5]["bytes"] = images[5]["bytes"][:60]
    table = pa.table(
        {
            "img": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array([i % 3 for i in range(23)], pa.int64()),
        }
    )
    features = (
        '{"info": {"features": {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", '
        '"names": ["cat", "dog", "frog"]}}}}'
    )
    path = tmp_path_factory.mktemp("parquet") / "labeled.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), path, row_group_size=7)
    return str(path)


@pytest.fixture(scope="session")
def s3_bucket():
    """Makes a bucket on a local S3 server: a function from its name to storage options and
    filesystem."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()

    def make(name: str, *, secret: str = "s3cr3t"):
        options = {
            "endpoint_url": f"http://{host}:{port}",
            "key": "fake-key-id",
            "secret": secret,
            "client_kwargs": {"region_name": "eu-central-1"},
        }
        fs, _ = open_location(f"s3://{name}", options)
        fs.mkdir(name)
        return options, fs

    yield make
    server.stop()


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray for all tests that run jobs in this process; jobs join what is there."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=256 << 20,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


class _InProcess:
    """What `stage.chain` gives, but the actors are objects here, one block after the other."""

    def __init__(self, blocks, stages, *, lease=None, proven=False, avoided=()):
        self._blocks, self._stages, self._lease = blocks, stages, lease

    def iter_batches(self, **_):
        lent = [self._lease] * (len(self._stages) - 1) + [None]
        actors = [
            type(each.cls.__name__, (_ReportingShards,), {"stage": each.cls, "lease": lease})(
                **each.arguments
            )
            for each, lease in zip(self._stages, lent, strict=True)
        ]
        for shard, block in self._blocks.items():
            table = serialize([ShardResult(shard, block)])
            for actor in actors:
                table = actor(table)
            yield table


@pytest.fixture(scope="module")
def in_process(ray_session):
    """Jobs without actors, whose start takes seconds: for tests of what jobs do to rows. That Ray
    hands blocks on as they are is shown by those that run with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "chain", _InProcess)
        patch.setattr(stage, "SHARD_BACKOFF", (0, 0, 0))
        patch.setattr(stage, "_MAX_BACKOFF_SECONDS", 0)
        yield
