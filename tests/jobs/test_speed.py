"""The speed of a run and its errors: one figure for one word, wherever a run says them."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from made_runs import Page
from pictures import encoded, photo
from runs import igpt

FIGURES = ("seconds", "working_seconds", "images_per_second", "tokens_per_second")
FIGURES += ("tokens_per_pass",)
IMAGES, ERRORS = 9, 2  # an image that is cut, and its tar, which is none


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """A tar of six images, and one that is cut within the fourth of its six."""
    folder = tmp_path_factory.mktemp("tars")
    for name in ("whole", "cut"):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for i in range(6):
                (folder / "x.png").write_bytes(encoded(photo(i)))
                tar.add(folder / "x.png", f"{i}.png")
    (folder / "x.png").unlink()
    with tarfile.open(folder / "cut.tar") as tar:
        end = tar.getmember("3.png").offset_data + 9
    with open(folder / "cut.tar", "r+b") as file:
        file.truncate(end)
    return folder


@pytest.fixture
def command(in_process, tars, tiny_model, tmp_path) -> dict:
    """Options of a run of both."""
    options = {"input": tars, "model": tiny_model, "output": tmp_path / "run", "device": "cpu"}
    return options | {"batch_size": 4, "max_error_fraction": 0.5}


def report_of(output: Path) -> dict:
    return json.loads((output / "report.json").read_text())


def stats_of(output: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((output / "stats").iterdir())]


def said(capsys, *words: object, **options: object) -> tuple[str, str]:
    """Runs a command; returns what it says on stdout and on stderr."""
    capsys.readouterr()
    igpt(*words, quiet=False, **options)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_every_place_says_the_same_figures(command, capsys):
    """Past bug: 269.5 images/s on stderr, 10.3 in report.json, 0.24 and 0.88 on the page."""
    output = command["output"]
    _, err = said(capsys, "complete", **command)
    report = report_of(output)
    assert (report["rows"], report["errors"]) == (IMAGES, ERRORS)
    # The definition, from what the shards say of themselves; they are done one after the other.
    parts = stats_of(output)
    working = sum(sum(part["seconds"].values()) for part in parts)
    ends = max(part["finished"] for part in parts)
    assert report["working_seconds"] == pytest.approx(working, abs=0.011)
    assert report["images_per_second"] == pytest.approx(IMAGES / working, rel=0.001)
    tokens = sum(part["tokens"] for part in parts)
    assert tokens > 0
    assert report["tokens_per_second"] == pytest.approx(tokens / working, rel=0.001)
    passes = sum(part["passes"] for part in parts)
    assert report["tokens_per_pass"] == pytest.approx(tokens / passes, abs=0.005)
    assert report["tokens_per_pass"] > 1
    assert report["seconds"] == pytest.approx(ends - parts[0]["started"], abs=0.011)
    assert report["seconds"] >= report["working_seconds"]

    (speed,) = re.findall(
        r"\S+ images/s while working, .* with start-up, .* tokens per pass", err.splitlines()[-1]
    )
    assert err.splitlines()[-1] == f"{IMAGES}/{IMAGES + ERRORS} images (100 %), 2 errors, {speed}"
    number = float(speed.split()[0].replace(",", ""))
    assert number == pytest.approx(report["images_per_second"], rel=0.01)  # three digits
    text, _ = said(capsys, "status", output)
    assert f"images   {IMAGES}, 2 errors\n" in text
    assert f"speed    {speed}\n" in text
    found = json.loads(said(capsys, "status", output, json=True)[0])
    assert (found["images"], found["errors"]) == (IMAGES, ERRORS)
    assert {name: found[name] for name in ("images_per_second", "seconds")} == {
        name: report[name] for name in ("images_per_second", "seconds")
    }
    assert f"- speed: `{speed}`" in (output / "README.md").read_text()
    for _ in range(2):  # as the run wrote it, and written again
        page = Page((output / "report.html").read_text()).figures()
        shown = ("Wall time", "Working time", "Images per second", "Tokens per second")
        shown += ("Tokens per pass",)
        assert [page[name] for name in shown] == [report[name] for name in FIGURES]
        assert (page["Images"], page["Failed rows"]) == (IMAGES, ERRORS)
        said(capsys, "report", output)


def test_events_say_the_same_figures(command, capsys):
    out, _ = said(capsys, "complete", **command, json=True)
    *_, last, done = map(json.loads, out.splitlines())
    report = report_of(command["output"])
    assert {name: done[name] for name in report} == report
    assert (last["event"], last["images"], last["errors"]) == ("progress", IMAGES, ERRORS)
    assert last["images_per_second"] == report["images_per_second"]


def test_the_speed_of_a_resumed_run_is_that_of_all_its_starts(command, capsys):
    output = command["output"]
    igpt("complete", **command)
    first = report_of(output)
    earlier = stats_of(output)
    (output / "report.json").unlink()
    (output / "data" / "part-000001.parquet").unlink()
    _, err = said(capsys, "complete", **command)
    report, parts = report_of(output), stats_of(output)
    assert report["resumed_shards"] == len(parts) - 1
    assert parts[0] == earlier[0]
    assert parts[1]["started"] > parts[0]["finished"]
    working = sum(sum(part["seconds"].values()) for part in parts)
    assert report["working_seconds"] == pytest.approx(working, abs=0.011)
    ends: dict[float, float] = {}  # of each start
    for part in sorted(parts, key=lambda part: part["finished"]):
        ends[part["started"]] = part["finished"]
    assert len(ends) == 2
    seconds = sum(end - started for started, end in ends.items())
    assert report["seconds"] == pytest.approx(seconds, abs=0.011)
    assert report != first
    assert " with start-up, " in err
    page = Page((output / "report.html").read_text()).figures()
    assert page["Images per second"] == report["images_per_second"]


def test_a_run_that_is_done_again_in_part_keeps_its_speed(command, capsys):
    """As by a retry, which leaves report.json until there is another."""
    output = command["output"]
    igpt("complete", **command)
    first = report_of(output)
    speed = {"seconds": 1000.0, "working_seconds": 90.0, "images_per_second": 0.1}
    speed["tokens_per_second"] = 3.2
    (output / "report.json").write_text(json.dumps(first | speed | {"rows": 5}))
    (output / "data" / "part-000001.parquet").unlink()
    _, err = said(capsys, "complete", **command)
    assert report_of(output) == first | speed | {"resumed_shards": first["shards"] - 1}
    total = IMAGES + ERRORS
    line = f"{IMAGES}/{total} images (100 %), 2 errors, 0.10 images/s while working, "
    each = first["tokens_per_pass"]
    assert err.splitlines()[-1] == line + f"16 min 40 s with start-up, {each:.2f} tokens per pass"
    assert "0.10 images/s while working" in said(capsys, "status", output)[0]
