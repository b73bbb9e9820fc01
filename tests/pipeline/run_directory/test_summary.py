"""What the driver holds and reads of a run of many shards, at its end."""

import json
import tracemalloc
from pathlib import Path

import pytest

from made_runs import ids, make_run
from pipeline.report.write import write_report
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.summary import read_summary


def many(folder: Path, n: int) -> RunDirectory:
    """Makes a run of n shards whose results nobody may read, each with 20 KB of examples, the
    likelihoods of five images, and one failed row."""
    output = make_run(folder, [ids(5)], job="score", failed=[(0, "x.jpg", "ImageError", "cut")])
    stats = json.loads((folder / "stats/part-000000.json").read_text())
    stats["examples"] = [{"row": 0, "png": "QUJD" * 5000}]
    text = json.dumps(stats)
    for shard in range(n):
        name = f"part-{shard:06d}"
        (folder / f"stats/{name}.json").write_text(text)
        if shard:
            (folder / f"data/{name}.parquet").touch()
            (folder / f"errors/{name}.parquet").symlink_to(folder / "errors/part-000000.parquet")
    return RunDirectory.at(output, {})


def held(call) -> int:
    """Returns the bytes that a call holds at most, of what Python allocates."""
    call()  # what is loaded at the first call stays
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[RunDirectory, RunDirectory]:
    """Two runs of 150 and of 600 shards."""
    folder = tmp_path_factory.mktemp("runs")
    return many(folder / "small", 150), many(folder / "large", 600)


def test_a_summary_holds_little_of_a_shard(runs):
    """Past bug: it held the stats of every shard, examples and all, here more than 20 KB. What
    threads have read ahead comes and goes: at most 1 MB, 2 KB for each shard between the runs."""
    small, large = (held(lambda run=run: read_summary(run)) for run in runs)
    assert (large - small) / 450 < 5000
    summary = read_summary(runs[1])
    assert (summary.done, len(summary.filled)) == (600, 600)
    assert (summary.figures.rows, summary.figures.errors, summary.nll.n) == (3000, 600, 3000)
    assert [(kind.error, kind.count) for kind in summary.errors] == [("ImageError", 600)]


def test_pictures_are_read_of_the_shards_alone_that_the_report_shows(tmp_path, monkeypatch):
    """Each of the stats is read once for its figures, and those of 24 shards for pictures."""
    output = make_run(tmp_path / "run", [ids(2, start=2 * i) for i in range(60)], job="embed")
    read: list[str] = []
    whole = RunDirectory.read
    monkeypatch.setattr(
        RunDirectory, "read", lambda run, name: read.append(name) or whole(run, name)
    )
    write_report(output)
    stats = [name for name in read if name.startswith("stats/")]
    assert len(stats) == 60 + 24
    assert len(set(stats)) == 60
