"""`igpt retry-failed`: what failed is done again, from the options in run.json, from anywhere."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pictures import BAD, GOOD, encoded, photo
from pipeline.stages.blocks import shard_metadata
from pipeline.stages.model_batches import ComputePlan
from pipeline.stages.write_parts import WriteParts
from runs import parts, refusal

WORDS = ["complete", "--samples=2", "--batch-size=8", "--shard-size=5", "--seed=7", "--quiet"]
WORDS += ["--max-error-fraction=0.5", "--device=cpu", "--mask=masks/one.png"]


@pytest.fixture
def place(in_process, photos, tiny_model, tmp_path, monkeypatch) -> Path:
    """A folder with photos, a model and a run, all named as seen from it."""
    shutil.copytree(photos, tmp_path / "photos", symlinks=True)
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "one.png").write_bytes(encoded(photo(3)))
    monkeypatch.chdir(tmp_path)
    main([*WORDS, "--input=photos", "--model=model", "--output=run"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_a_mended_image_gets_its_row_and_nothing_else_changes(place, capsys, monkeypatch):
    run = place / "run"
    before = parts(run, "data", "errors")
    stamps = {path: path.stat().st_mtime_ns for path in (run / "data").iterdir()}
    failed = {path.name for path in (run / "errors").iterdir()}
    (place / "photos" / "truncated.jpg").write_bytes(encoded(photo(20), "JPEG"))
    main(["retry-failed", "../run", "--quiet", "--model-actors=1"])
    assert pq.read_table(run / "data").num_rows == GOOD + 1
    assert set(pq.read_table(run / "errors")["id"].to_pylist()) == BAD - {"truncated.jpg"}
    report = json.loads((run / "report.json").read_text())
    assert (report["rows"], report["errors"]) == (GOOD + 1, len(BAD) - 1)
    for path, stamp in stamps.items():
        assert (path.stat().st_mtime_ns != stamp) == (path.name in failed)
    monkeypatch.chdir(place)
    main([*WORDS, "--input=photos", "--model=model", "--output=fresh"])
    assert parts(run, "data", "errors") == parts(place / "fresh", "data", "errors") != before
    main(["verify", str(run), "--replay=2"])


def test_a_repaired_image_is_the_runs_from_then_on_and_a_good_one_may_not_change(place, capsys):
    words = [*WORDS, f"--mask={place}/masks/one.png", f"--input={place}/photos"]
    words = [w for w in words if w != "--mask=masks/one.png"]
    words += [f"--model={place}/model", "--output=../run"]
    (place / "photos" / "truncated.jpg").write_bytes(encoded(photo(20), "JPEG"))
    assert f"found it changed: {place}/photos/truncated.jpg" in refusal(capsys, *words)
    main(["retry-failed", "../run", "--quiet"])
    main(words)
    main(["verify", "../run"])
    before = parts(place / "run", "data", "errors")
    (place / "photos" / "03.png").write_bytes(encoded(photo(99)))  # of a shard without errors
    assert f"{place}/photos/03.png" in refusal(capsys, "retry-failed", "../run")
    assert parts(place / "run", "data", "errors") == before


def test_what_is_still_bad_is_an_error_again(place):
    before = parts(place / "run", "data", "errors")
    main(["retry-failed", str(place / "run"), "--quiet"])
    assert parts(place / "run", "data", "errors") == before


def test_the_error_budget_may_be_another(place, capsys):
    report = (place / "run" / "report.json").read_bytes()
    words = ["retry-failed", place / "run", "--quiet", "--max-error-fraction=0"]
    refusal(capsys, *words, code=3)
    assert (place / "run" / "report.json").read_bytes() == report


def test_a_run_that_went_over_its_budget_is_mended_and_keeps_what_is_done(place, capsys):
    """As its message says."""
    words = [*WORDS, "--max-error-fraction=0", f"--input={place}/photos", "--output=../mended"]
    words[words.index("--mask=masks/one.png")] = f"--mask={place}/masks/one.png"
    line = refusal(capsys, *words, f"--model={place}/model", code=3)
    assert "repair the images and do them again with igpt retry-failed" in line
    for name in BAD:
        (place / "photos" / name).unlink()  # one is a link to the photos of all tests
        (place / "photos" / name).write_bytes(encoded(photo(21)))
    main(["retry-failed", str(place / "mended"), "--quiet"])
    assert pq.read_table(place / "mended" / "data").num_rows == GOOD + len(BAD)
    assert (place / "mended" / "report.json").exists()


def test_nothing_is_deleted_where_the_job_cannot_run(place, capsys):
    before = parts(place / "run", "data", "errors")
    shutil.move(place / "model", place / "away")
    line = refusal(capsys, "retry-failed", place / "run")
    assert str(place / "model") in line
    assert parts(place / "run", "data", "errors") == before
    assert (place / "run" / "report.json").exists()


def test_a_location_that_was_masked_cannot_be_used(place, capsys):
    record = json.loads((place / "run" / "run.json").read_text())
    record["options"]["input"] = "https://host/photos.parquet?***"
    (place / "run" / "run.json").write_text(json.dumps(record))
    before = parts(place / "run", "data", "errors")
    line = refusal(capsys, "retry-failed", place / "run")
    assert "--input https://host/photos.parquet?***" in line
    assert parts(place / "run", "data", "errors") == before


def test_without_errors_there_is_nothing_to_do(in_process, tiny_model, tmp_path, capsys):
    words = ["sample", "--count=3", f"--model={tiny_model}", f"--output={tmp_path}/run"]
    main([*words, "--quiet", "--device=cpu"])
    before = contents(tmp_path / "run")
    capsys.readouterr()
    main(["retry-failed", str(tmp_path / "run")])
    assert "nothing to retry" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before


def contents(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }


JOBS = {
    "quantize": [],
    "embed": ["--layers=1,2", "--batch-size=8"],
    "score": ["--map", "--batch-size=8"],
    "complete": ["--best-of=3", "--samples=2", "--batch-size=9", "--seed=3", "--window=8"],
}


@pytest.mark.parametrize(
    ("job", "kind"), [*((job, "files") for job in JOBS), ("embed", "table"), ("complete", "table")]
)
def test_only_failed_rows_are_done_again_and_the_bytes_are_those_of_a_whole_run(
    in_process, photos, tiny_model, tmp_path, monkeypatch, job, kind
):
    """Past bug: one bad image in a shard of a thousand had all of them computed again."""
    names = sorted(path.relative_to(photos) for path in Path(photos).rglob("*.*"))
    good = [(Path(photos) / name).read_bytes() for name in names if name.name not in BAD][:12]
    bad = [b"no image" if i in (0, 5, 11) else image for i, image in enumerate(good)]
    source = tmp_path / "input"
    words = [job, f"--input={source}", "--shard-size=7", f"--model={tiny_model}", "--quiet"]
    words += ["--max-error-fraction=0.5", *JOBS[job]]
    words += [] if job == "quantize" else ["--device=cpu"]
    write_input(source, bad, kind)
    main([*words, f"--output={tmp_path}/run"])
    before = json.loads((tmp_path / "run" / "report.json").read_text())
    write_input(source, good, kind)
    looked_at = spy(monkeypatch)
    main(["retry-failed", str(tmp_path / "run"), "--quiet"])
    assert sum(looked_at) == (0 if job == "quantize" else 3 if kind == "files" else 12)
    main([*words, f"--output={tmp_path}/fresh"])
    assert parts(tmp_path / "run", "data", "errors") == parts(tmp_path / "fresh", "data", "errors")
    assert not list((tmp_path / "run" / "errors").iterdir())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report == before | {"rows": 12, "errors": 0, "errors_by_kind": {}}
    for name in ("part-000000.json", "part-000001.json"):
        stats, fresh = (
            json.loads((tmp_path / run / "stats" / name).read_text()) for run in ("run", "fresh")
        )
        assert (stats["rows"], stats["errors"]) == (fresh["rows"], fresh["errors"])
        assert stats.get("nats") == fresh.get("nats")
        assert stats["tokens"] == fresh["tokens"]
        ids = pq.read_table(tmp_path / "run" / "data" / name.replace("json", "parquet"))["id"]
        assert all(each["row"] < len(ids) for each in stats.get("examples", []))
    main(["verify", str(tmp_path / "run"), *([] if job == "quantize" else ["--replay=4"])])


def write_input(source: Path, images: list[bytes], kind: str) -> None:
    """Writes images that differ from those that were there, as files or as a table."""
    source.mkdir(exist_ok=True)
    if kind == "table":
        pq.write_table(pa.table({"image": pa.array(images)}), source / "a.parquet")
        return
    for i, image in enumerate(images):
        path = source / f"{i:02d}.png"
        if not path.exists() or path.read_bytes() != image:
            path.write_bytes(image)


def spy(monkeypatch) -> list[int]:
    """Returns a list to which the rows that a model is given are added."""
    seen: list[int] = []
    in_batches = ComputePlan.in_batches

    def counting(self, compute, *arrays):
        seen.append(len(arrays[0]))
        return in_batches(self, compute, *arrays)

    monkeypatch.setattr(ComputePlan, "in_batches", counting)
    return seen


def test_an_input_that_is_gone_changes_nothing(place, capsys):
    """Past bug: 20 good rows became 14, and report.json was gone."""
    before = contents(place / "run")
    shutil.move(place / "photos", place / "away")
    line = refusal(capsys, "retry-failed", place / "run")
    assert str(place / "photos") in line
    assert contents(place / "run") == before
    shutil.move(place / "away", place / "photos")
    main(["retry-failed", str(place / "run"), "--quiet"])


def test_images_that_were_good_and_cannot_be_read_now_are_still_there(place):
    """They are not looked at: their rows stay."""
    before = parts(place / "run", "data", "errors")
    stamp = (place / "photos" / "03.png").stat()
    (place / "photos" / "03.png").write_bytes(bytes(stamp.st_size))
    os.utime(place / "photos" / "03.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    main(["retry-failed", str(place / "run"), "--quiet"])
    assert parts(place / "run", "data", "errors") == before


@pytest.mark.parametrize("shard_size", [2, 5, 100])
def test_a_tar_that_was_cut_and_is_whole_again_gives_all_its_rows(
    in_process, tiny_model, tmp_path, shard_size
):
    """Also those that nobody has counted, and from shards without errors too."""
    source = tmp_path / "in"
    source.mkdir()
    pack(tmp_path / "whole.tar", [encoded(photo(i)) for i in range(12)])
    whole = (tmp_path / "whole.tar").read_bytes()
    (source / "a.tar").write_bytes(whole[: len(whole) * 7 // 12])
    words = ["quantize", f"--input={source}", f"--model={tiny_model}", "--quiet"]
    words += ["--max-error-fraction=0.9", f"--shard-size={shard_size}"]
    main([*words, f"--output={tmp_path}/run"])
    assert pq.read_table(tmp_path / "run" / "data").num_rows < 12
    (source / "a.tar").write_bytes(whole)
    main(["retry-failed", f"{tmp_path}/run", "--quiet"])
    main([*words, f"--output={tmp_path}/fresh"])
    found, fresh = (pq.read_table(tmp_path / run / "data") for run in ("run", "fresh"))
    assert found.sort_by("id").equals(fresh.sort_by("id"))
    assert fresh.num_rows == 12
    assert not list((tmp_path / "run" / "errors").iterdir())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["rows"], report["errors"]) == (12, 0)
    main(["verify", f"{tmp_path}/run"])


def test_a_table_is_repaired_where_only_some_of_its_shards_have_errors(
    in_process, photos, tiny_model, tmp_path
):
    good = [encoded(photo(i)) for i in range(10)]
    words = ["quantize", f"--input={tmp_path}/in", f"--model={tiny_model}", "--quiet"]
    words += ["--max-error-fraction=0.9", "--shard-size=3"]
    write_input(tmp_path / "in", [*good[:9], b"no image"], "table")
    main([*words, f"--output={tmp_path}/run"])
    write_input(tmp_path / "in", [*good[1:], good[0]], "table")  # all rows are others
    main(["retry-failed", f"{tmp_path}/run", "--quiet"])
    main([*words, f"--output={tmp_path}/fresh"])
    assert parts(tmp_path / "run", "data") == parts(tmp_path / "fresh", "data")


def test_a_sample_that_is_larger_now_moves_the_bytes_of_all_behind_it(
    in_process, tiny_model, tmp_path
):
    """Past bug: other shards of the tar were read from where their samples had been."""
    source = tmp_path / "in"
    source.mkdir()
    good = [encoded(photo(i)) for i in range(11)]
    pack(source / "a.tar", [*good[:4], b"", *good[5:]])
    words = ["quantize", f"--input={source}", f"--model={tiny_model}", "--quiet"]
    words += ["--max-error-fraction=0.9", "--shard-size=3"]
    main([*words, f"--output={tmp_path}/run"])
    pack(source / "a.tar", good)
    main(["retry-failed", f"{tmp_path}/run", "--quiet"])
    main([*words, f"--output={tmp_path}/fresh"])
    assert parts(tmp_path / "run", "data") == parts(tmp_path / "fresh", "data")
    assert not list((tmp_path / "run" / "errors").iterdir())


def test_a_tar_that_holds_other_samples_is_refused_and_nothing_changes(
    in_process, tiny_model, tmp_path, capsys
):
    source = tmp_path / "in"
    source.mkdir()
    pack(source / "a.tar", [b"", *(encoded(photo(i)) for i in range(10))])
    words = ["quantize", f"--input={source}", f"--model={tiny_model}", "--quiet"]
    main([*words, f"--output={tmp_path}/run", "--max-error-fraction=0.9", "--shard-size=3"])
    before = contents(tmp_path / "run")
    pack(source / "a.tar", [encoded(photo(0))])
    line = refusal(capsys, "retry-failed", tmp_path / "run")
    assert f"the tar {source}/a.tar to hold the samples that were planned" in line
    assert contents(tmp_path / "run") == before


def pack(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(images):
            member = tarfile.TarInfo(f"{i:02d}.png")
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))


def test_a_repair_that_was_stopped_is_taken_up_again_whole(
    in_process, tiny_model, tmp_path, monkeypatch, capsys
):
    """Past bug: the next retry took the table for the one that was planned, and rows of the old and
    the new one stayed side by side."""
    good = [encoded(photo(i)) for i in range(9)]
    words = ["quantize", f"--input={tmp_path}/in", f"--model={tiny_model}", "--quiet"]
    words += ["--max-error-fraction=0.9", "--shard-size=3"]
    write_input(tmp_path / "in", [b"no image", *good[1:]], "table")
    main([*words, f"--output={tmp_path}/run"])
    write_input(tmp_path / "in", good[::-1], "table")  # all rows are others
    with monkeypatch.context() as patch:
        call = WriteParts.__call__

        def stopped(self, block):
            if shard_metadata(block).index > 0:
                raise RuntimeError("stopped")
            return call(self, block)

        patch.setattr(WriteParts, "__call__", stopped)
        refusal(capsys, "retry-failed", tmp_path / "run", code=1)
    assert not list((tmp_path / "run" / "errors").iterdir())
    main(["retry-failed", f"{tmp_path}/run", "--quiet"])
    main([*words, f"--output={tmp_path}/fresh"])
    assert parts(tmp_path / "run", "data") == parts(tmp_path / "fresh", "data")
    main(["verify", f"{tmp_path}/run"])


def test_a_report_that_a_killed_retry_left_is_brought_up_to_date(place):
    (place / "photos" / "truncated.jpg").write_bytes(encoded(photo(20), "JPEG"))
    stale = (place / "run" / "report.json").read_bytes()
    main(["retry-failed", str(place / "run"), "--quiet"])
    report = (place / "run" / "report.json").read_bytes()
    assert report != stale
    (place / "run" / "report.json").write_bytes(stale)
    main(["retry-failed", str(place / "run"), "--quiet"])
    assert (place / "run" / "report.json").read_bytes() == report


def test_killed_between_results_and_errors_the_next_retry_clears_up(place, monkeypatch, capsys):
    (place / "photos" / "truncated.jpg").write_bytes(encoded(photo(20), "JPEG"))
    with monkeypatch.context() as patch:

        def killed(self, shard, payload):
            raise RuntimeError("killed")

        patch.setattr(WriteParts, "_replace_errors", killed)
        line = refusal(capsys, "retry-failed", place / "run", code=1)
    assert f"next: igpt retry-failed {place}/run" in line
    assert pq.read_table(place / "run" / "data").num_rows == GOOD + 1
    main(["retry-failed", str(place / "run"), "--quiet"])
    assert set(pq.read_table(place / "run" / "errors")["id"].to_pylist()) == BAD - {"truncated.jpg"}
    assert pq.read_table(place / "run" / "data").num_rows == GOOD + 1
    main(["verify", str(place / "run")])


def test_no_run_is_a_usage_error(tmp_path, capsys):
    assert str(tmp_path) in refusal(capsys, "retry-failed", tmp_path)
