"""Whole jobs over an object store: moto's S3 server, its address and keys in --storage-options."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from igpt_core.generation.sampling import SamplingConfig
from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from jobs.__main__ import main
from pictures import SIDE, encoded, photo
from pipeline import rows
from pipeline.inputs.source import find_source
from pipeline.stages.generate import Complete
from pipeline.stages.model_batches import ComputePlan
from pipeline.stages.read_images import ReadImages
from pipeline.stages.sampling import Drawing
from pipeline.stages.write_parts import WriteParts

SECRET = "fake-s3cr3t-k3y"
IMAGES, SHARD = 7, 3
GIVEN = SIDE**2 // 2


@pytest.fixture(scope="module")
def s3(tiny_model, s3_bucket):
    """Storage options of a local S3 server with images and a model, and its filesystem."""
    options, fs = s3_bucket("jobs", secret=SECRET)
    for i in range(IMAGES):
        fs.pipe_file(f"jobs/photos/{i % 2}/{i:02d} #.png", encoded(photo(i)))
    fs.pipe_file("jobs/photos/1/broken.png", b"no image")
    for file in Path(tiny_model).iterdir():
        fs.pipe_file(f"jobs/models/tiny/{file.name}", file.read_bytes())
    return options, fs


@pytest.fixture
def igpt(monkeypatch):
    """Runs a command as it would be typed, so that the run's record of it is of these words."""

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["igpt", *map(str, words)])
        main()

    return run


def completing(options: object, output: str) -> list[object]:
    words = ["complete", "--input=s3://jobs/photos", "--model=s3://jobs/models/tiny/", "--json"]
    words += [f"--output={output}", f"--shard-size={SHARD}", "--batch-size=4", "--samples=2"]
    words += ["--device=cpu", "--model-actors=1", "--max-error-fraction=0.5"]
    return [*words, "--storage-options", options]


def local_parts(fs, model: str, folder: Path) -> dict[str, bytes]:
    """What the same options make of the same images on a disk, without Ray: the data parts."""
    for path in fs.find("jobs/photos"):
        file = folder / "photos" / path.removeprefix("jobs/photos/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(fs.cat_file(path))
    plan = find_source(str(folder / "photos")).cut(SHARD)
    read = ReadImages(
        format="images",
        image_column=None,
        id_column=None,
        passthrough=plan.passthrough,
        palette=model,
        image_size=SIDE,
        resize="exact",
        crop="squash",
        input_options={},
        model_options={},
    )
    complete = Complete(
        ComputePlan(model, "cpu", "float32", images=2),
        Drawing(2, 2, False, seed=0, sampling=SamplingConfig()),
        prompt_length=GIVEN,
    )
    write = WriteParts(
        output=str(folder / "out"),
        lease=None,
        job="complete",
        schema=rows.schema_for(
            "complete", rows.complete_columns(SIDE**2), passthrough=plan.passthrough
        ),
        image_size=SIDE,
        palette=model,
        examples=24,
        output_options={},
        model_options={},
    )
    for shard in range(len(plan.shards)):
        write(complete(read(plan.to_table().slice(shard, 1))))
    return {path.name: path.read_bytes() for path in (folder / "out" / "data").iterdir()}


@pytest.mark.slow
def test_complete_reads_and_writes_an_object_store_and_resumes_there(
    ray_session, s3, tiny_model, tmp_path, capsys, igpt
):
    options, fs = s3
    igpt(*completing(json.dumps(options), "s3://jobs/out/run/"))
    captured = capsys.readouterr()
    done = json.loads(captured.out.splitlines()[-1])
    assert (done["rows"], done["errors"], done["shards"]) == (IMAGES, 1, 3)
    assert done["output"] == "s3://jobs/out/run"
    run = "jobs/out/run"
    assert {path.split("/")[-1] for path in fs.ls(run, detail=False)} == {
        ".owner",
        *("run.json", "plan.parquet", "data", "errors", "stats"),
        *("report.json", "report.html", "contact_sheet.png", "README.md"),
    }
    parts = {path.split("/")[-1]: fs.cat_file(path) for path in fs.ls(f"{run}/data", detail=False)}
    assert parts == local_parts(fs, tiny_model, tmp_path)
    assert "--storage-options ..." in json.loads(fs.cat_file(f"{run}/run.json"))["command"]
    objects = fs.find("jobs/out")
    assert not [path for path in objects if SECRET.encode() in fs.cat_file(path)]
    assert SECRET not in captured.out + captured.err

    lost = f"{run}/data/part-000001.parquet"
    fs.rm_file(lost)
    before = {path: fs.info(path, refresh=True)["LastModified"] for path in fs.find(f"{run}/data")}
    igpt(*completing(json.dumps(options), "s3://jobs/out/run"))
    captured = capsys.readouterr()
    done = json.loads(captured.out.splitlines()[-1])
    assert (done["rows"], done["errors"], done["resumed_shards"]) == (IMAGES, 1, 2)
    fs.invalidate_cache()
    assert fs.cat_file(lost) == parts["part-000001.parquet"]
    for path, stamp in before.items():
        assert fs.info(path)["LastModified"] == stamp

    igpt("report", "s3://jobs/out/run", "--storage-options", json.dumps(options))
    assert SECRET.encode() not in fs.cat_file(f"{run}/report.html")


def test_options_of_the_input_alone(ray_session, s3, tiny_model, tmp_path, igpt):
    """From a store to a disk; `output` and `model` have none."""
    options, fs = s3
    words = ["quantize", "--input=s3://jobs/photos/0/*.png", f"--model={tiny_model}", "--quiet"]
    words += [f"--output={tmp_path / 'out'}", "--storage-options", json.dumps({"input": options})]
    igpt(*words)
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [row["id"] for row in rows] == [f"{i:02d} #.png" for i in range(0, IMAGES, 2)]
    palette = load_palette(tiny_model)
    for row in rows:
        pixels = load_pixels(fs.cat_file(f"jobs/photos/0/{row['id']}"), SIDE)
        assert row["tokens"] == palette.encode(pixels).ravel().tolist()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input": "s3://no-such-bucket/photos"}, "s3://no-such-bucket/photos"),
        ({"input": "s3://jobs/nothing/here"}, "s3://jobs/nothing/here"),
        ({"model": "s3://jobs/photos"}, "s3://jobs/photos"),
        ({"output": "s3://jobs/photos"}, "s3://jobs/photos"),
    ],
)
def test_mistakes_in_locations_are_one_line_without_the_secret(s3, igpt, capsys, changes, says):
    options, _ = s3
    locations = {
        "input": "s3://jobs/photos",
        "model": "s3://jobs/models/tiny",
        "output": "s3://jobs/elsewhere",
    }
    with pytest.raises(SystemExit) as stopped:
        igpt(
            "complete",
            *(f"--{name}={uri}" for name, uri in (locations | changes).items()),
            f"--storage-options={json.dumps(options)}",
        )
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("igpt: ")
    assert line.count("\n") == 1
    assert says in line
    assert SECRET not in line


def test_status_verify_and_retry_of_a_run_in_a_store(ray_session, s3, capsys, igpt):
    """The run is that of images of which one is bad until it is mended."""
    options, fs = s3
    where = ["s3://jobs/out/retried", "--storage-options", json.dumps(options)]
    for i in range(4):
        fs.pipe_file(f"jobs/mended/{i}.png", encoded(photo(i)) if i else b"no image")
    words = ["quantize", "--input=s3://jobs/mended", "--model=s3://jobs/models/tiny/", "--quiet"]
    words += ["--shard-size=2", "--max-error-fraction=0.5", f"--output={where[0]}", *where[1:]]
    igpt(*words)
    fs.pipe_file("jobs/mended/0.png", encoded(photo(0)))
    fs.rm_file("jobs/out/retried/data/part-000001.parquet")
    capsys.readouterr()
    igpt("status", *where, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["finished"], found["shards"], found["total_shards"]) == (False, 1, 2)
    assert (found["images"], found["errors"]) == (1, 1)
    assert (
        found["last_part"]
        == json.loads(fs.cat_file("jobs/out/retried/stats/part-000000.json"))["finished"]
    )
    igpt("retry-failed", *where, "--quiet")
    igpt("verify", *where, "--replay=2")
    captured = capsys.readouterr()
    assert "FAILED" not in captured.out
    assert "4 rows and 0 errors" in captured.out
    assert SECRET not in captured.out + captured.err
