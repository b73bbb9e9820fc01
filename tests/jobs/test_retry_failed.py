"""`igpt retry-failed`: what failed is done again, from the options in run.json, from anywhere."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pictures import BAD, GOOD, encoded, photo
from pipeline.run_directory.directory import RunDirectory
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
    words = ["retry-failed", place / "run", "--quiet", "--max-error-fraction=0"]
    refusal(capsys, *words, code=3)
    assert not (place / "run" / "report.json").exists()


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
    before = contents_without_errors(tmp_path / "run")
    capsys.readouterr()
    main(["retry-failed", str(tmp_path / "run")])
    assert "nothing to retry" in capsys.readouterr().out
    assert contents_without_errors(tmp_path / "run") == before


def contents_without_errors(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_the_report_goes_before_results_and_errors_stay_until_there_are_others(place, monkeypatch):
    """Killed between two deletions: what is left is a run that resumes. Past bug: what an actor of
    another driver still wrote at that moment lay there without its errors."""
    directory = RunDirectory.at(str(place / "run"), {})
    deleted = []
    remove = type(directory.fs).rm_file
    monkeypatch.setattr(
        type(directory.fs), "rm_file", lambda fs, path: deleted.append(path) or remove(fs, path)
    )
    directory.invalidate({0, 3})
    folders = [path.removeprefix(f"{directory.path}/").split("/")[0] for path in deleted]
    assert folders == ["report.json", "data", "data"]
    assert {Path(path).stem for path in deleted[1:]} == {"part-000000", "part-000003"}
    assert len(list((place / "run" / "data").iterdir())) == 3


def test_no_run_is_a_usage_error(tmp_path, capsys):
    assert str(tmp_path) in refusal(capsys, "retry-failed", tmp_path)
