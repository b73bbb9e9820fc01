"""Checks the report of a run: figures, pictures and escaping, against run directories made here."""

import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from jinja2.meta import find_undeclared_variables
from PIL import Image

from igpt_core.images.palette import Palette
from made_runs import (
    COLUMNS,
    COMMAND,
    KNOWN_ROWS,
    PALETTE,
    SCALE,
    SIDE,
    Page,
    colors,
    ids,
    make_run,
    places,
    read_sheet,
    row,
    tokens_for,
    written,
)
from pictures import encoded
from pipeline import report, rows
from pipeline.errors import UsageError
from pipeline.report.contact_sheet import draw_contact_sheet
from pipeline.report.examples import read_examples
from pipeline.report.page import TEMPLATE, RenderContext, environment
from pipeline.report.pictures import Example, Picture
from pipeline.report.text import rate, shortened
from pipeline.report.write import write_report
from pipeline.run_directory.directory import RunDirectory

# --- the page -------------------------------------------------------------------------------------


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = written(make_run(tmp_path / "run", [ids(4)], report={"seconds": 10.0}))
    assert {"script", "iframe", "object", "embed", "base", "form", "a"}.isdisjoint(
        tag for tag, _ in page.tags
    )
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes[name])
    style = "".join(text for tag, text in page.text if tag == "style")
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style
    assert "@import" not in style


def test_template_and_context_agree() -> None:
    """Finds every name of the template in the context, and no other there."""
    templates = environment()
    source = (Path(report.__file__ or "").parent / TEMPLATE).read_text("utf-8")
    names = find_undeclared_variables(templates.parse(source)) - set(templates.globals)
    assert names == {field.name for field in fields(RenderContext)}


NASTY = [
    '<script>alert("x")</script>',
    "'\"><img src=http://evil/x onerror=alert(1)>",
    "</style></figure>&lt;b&amp;",
    "sub/日本語 café.png",
    "line\nbreak\0\u202egnp.exe",
    "x" * 70 + "/" + "y" * 70 + ".png",
]
SEEN = [*NASTY[:4], "line\\nbreak\\x00\\u202egnp.exe", NASTY[5]]


def test_every_id_is_escaped(tmp_path: Path) -> None:
    plain = written(make_run(tmp_path / "a", [ids(6)], failed=[(0, "id", "E", "m")]))
    failed = [(0, id_, "Bad<i>Error", f"about {id_}") for id_ in NASTY[:5]]
    page = written(make_run(tmp_path / "b", [NASTY], failed=failed))

    assert page.titles_of("id") == SEEN + SEEN[:5]  # whole ids: of six pictures, of five errors
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert sum(tag == "img" for tag, _ in page.tags) == 3 * len(NASTY)
    messages = [text for tag, text in page.text if tag == "span" and text.startswith("about ")]
    assert messages == [f"about {id_}" for id_ in SEEN[:5]]
    assert "Bad<i>Error" in page.all_text()
    long = next(text for tag, text in page.text if tag == "span" and text.startswith("xxx"))
    assert len(long) == 60
    assert long.endswith("y.png")


def test_commands_can_be_copied(tmp_path: Path) -> None:
    """Keeps a line break of a command, which ids would show as an escape."""
    output = make_run(tmp_path / "run", [ids(1)])
    run = json.loads(Path(output, "run.json").read_text())
    command = "igpt complete --input 'two\nlines' --output '<out>'"
    Path(output, "run.json").write_text(json.dumps(run | {"command": command}))
    texts = "".join(text for _, text in written(output).text)
    assert texts.count(command) == 2  # what was run, and what resumes it


@pytest.mark.parametrize(
    ("results", "shown"),
    [
        ({"top_p": 0.9, "top_k": None, "temperature": 1.0}, "top-p 0.9 · seed"),
        ({"top_p": None, "top_k": 40, "temperature": 0.5}, "temperature 0.5 · top-k 40 · seed"),
        ({}, "model tiny · seed"),
    ],
)
def test_page_and_sheet_say_how_pictures_are_drawn(tmp_path, monkeypatch, results, shown) -> None:
    output = make_run(tmp_path / "run", [ids(1)])
    run = json.loads(Path(output, "run.json").read_text())
    Path(output, "run.json").write_text(json.dumps(run | {"results": results}))
    notes: list[str] = []
    monkeypatch.setattr(
        "pipeline.report.write.draw_contact_sheet",
        lambda *_, title, note: notes.append(note) or b"",
    )
    text = " ".join(written(output).all_text().split())
    assert shown in text
    assert shown in notes[0]


def test_figures_are_those_of_the_stats(tmp_path: Path) -> None:
    failed = [(1, "broken.jpg", "ImageError", "cut short")]
    output = make_run(tmp_path / "run", [ids(5), ids(4, start=5)], failed=failed, starts=[0.0, 5.0])
    page = written(output)
    assert page.figures() == {
        "Images": 9,
        "Failed rows": 1,
        "Images per second": 9 / 15,  # from 0 to 10 and from 5 to 15
        "Tokens per second": 9 * (SIDE - KNOWN_ROWS) * SIDE / 15,
        "Working time": 15.0,
        "Wall time": 45.0,  # the driver was started 30 seconds before
    }
    seconds = [float(a["value"]) for tag, a in page.tags if tag == "data"][-4:]
    assert seconds == [1.0, 3.0, 14.0, 2.0]  # two shards of STATS
    widths = [
        a["style"] for tag, a in page.tags if tag == "div" and "width: " in a.get("style", "")
    ]
    assert widths == ["width: 7.1%", "width: 21.4%", "width: 100.0%", "width: 14.3%"]
    text = page.all_text()
    for text_shown in (
        COMMAND,
        "tiny",
        "f00d",
        PALETTE.fingerprint,
        "torch 2.13.0",
        "5 January 2026",
    ):
        assert text_shown in text


def test_the_speed_of_a_finished_run_is_that_of_its_report(tmp_path: Path) -> None:
    """Whatever stats say by now: a retry has rewritten some of them."""
    speed = {"seconds": 9.5, "working_seconds": 4.0, "images_per_second": 2.25}
    report = {**speed, "tokens_per_second": 90.0}
    output = make_run(tmp_path / "run", [ids(5), ids(4, start=5)], report=report)
    page = written(output)
    assert "Finished: 2 of 2 shards" in page.all_text()
    assert "Resume the run" not in page.all_text()
    shown = page.figures()
    assert (shown["Images per second"], shown["Tokens per second"]) == (2.25, 90)
    assert (shown["Working time"], shown["Wall time"]) == (4, 9.5)
    text = "speed: `2.25 images/s while working, 9.5 s with start-up`"
    assert text in Path(output, "README.md").read_text()


def test_partial_run_says_how_far_it_is(tmp_path: Path) -> None:
    # the spans are 0 to 10 and 5 to 15; then someone stopped the run for a while; then 1000 to 1010
    output = make_run(
        tmp_path / "run", [ids(4), ids(4, start=4), ids(4, start=8)], planned=7,
        starts=[0.0, 5.0, 1000.0],
    )  # fmt: skip
    page = written(output)
    text = page.all_text()
    assert "Not finished: 3 of 7 shards" in text
    assert text.count(COMMAND) == 2  # what was run, and what resumes it
    assert page.figures()["Working time"] == pytest.approx(25.0)
    assert page.figures()["Images per second"] == pytest.approx(12 / 25)
    assert "Not finished: 3 of 7 shards" in Path(output, "README.md").read_text()


def test_a_stale_report_and_one_of_an_earlier_version_do_not_count(tmp_path: Path) -> None:
    """report.json of a run whose parts were taken away again says nothing about what is there; the
    speed in that of an earlier version had another meaning."""
    stale = {"seconds": 1.0, "working_seconds": 1.0, "images_per_second": 1.0}
    stale |= {"tokens_per_second": 1.0}
    gone = written(make_run(tmp_path / "a", [ids(4)], planned=2, report=stale))
    assert "Not finished: 1 of 2 shards" in gone.all_text()
    assert gone.figures()["Working time"] == pytest.approx(10.0)
    earlier = {"seconds": 0.1, "images_per_second": 80.0, "tokens_per_second": 0.0}
    page = written(make_run(tmp_path / "b", [ids(4), ids(4, start=100)], report=earlier))
    assert "Finished: 2 of 2 shards" in page.all_text()
    assert page.figures()["Working time"] == pytest.approx(20.0)
    assert page.figures()["Images per second"] == pytest.approx(8 / 20)


def test_run_without_any_part(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [], planned=3)
    page = written(output)
    assert "Not finished: 0 of 3 shards" in page.all_text()
    assert page.figures()["Images per second"] == 0
    assert "`prompt_length`" in Path(output, "README.md").read_text()


def test_all_rows_failed(tmp_path: Path) -> None:
    failed = [(shard, f"{shard}.jpg", "ImageError", "cut short") for shard in range(3)]
    output = make_run(tmp_path / "run", [[], [], []], failed=failed)
    page = written(output)
    counts = {"Images": 0, "Failed rows": 3, "Images per second": 0}
    assert page.figures() == {**counts, "Working time": 30, "Wall time": 240}
    assert "No examples: no row has a result" in page.all_text()
    assert page.pictures() == []
    Image.open(Path(output, "contact_sheet.png")).verify()


def test_errors_by_kind(tmp_path: Path) -> None:
    failed = [(i % 2, f"cut-{i}.jpg", "ImageError", f"number {i}") for i in range(8)]
    failed += [(1, f"empty-{i}.jpg", "EmptyImage", "no bytes") for i in range(2)]
    page = written(make_run(tmp_path / "run", [ids(1), ids(1, start=1)], failed=failed))
    text = page.all_text()
    assert text.index("ImageError · 8") < text.index("EmptyImage · 2")  # the most frequent first
    shown = [title for title in page.titles_of("id") if not title.startswith("photo")]
    # five examples a kind, shard after shard
    assert shown == [f"cut-{i}.jpg" for i in (0, 2, 4, 6, 1)] + ["empty-0.jpg", "empty-1.jpg"]
    assert "and 3 more" in text


def test_lost_stats_are_counted_again(tmp_path: Path) -> None:
    failed = [(0, "broken.jpg", "ImageError", "cut short")]
    output = make_run(tmp_path / "run", [ids(5), ids(2, start=5)], failed=failed)
    Path(output, "stats/part-000000.json").unlink()
    page = written(output)
    assert page.figures()["Images"] == 7
    assert page.figures()["Failed rows"] == 1
    assert page.figures()["Images per second"] == pytest.approx(2 / 10)  # of the shard with stats


# --- pictures -------------------------------------------------------------------------------------


def test_contact_sheet_shows_every_pixel_at_its_place(tmp_path: Path) -> None:
    names = ids(5)
    output = make_run(tmp_path / "run", [names[:2], names[2:]], samples=2)
    page = written(output)
    sheet = read_sheet(output)
    lefts: set[tuple[int, ...]] = set()
    order: list[tuple[int, int]] = []
    for name in names:
        original = colors(tokens_for(name, 0))
        completions = [colors(tokens_for(name, k)) for k in (1, 2)]
        for completion in completions:
            completion[:KNOWN_ROWS] = original[:KNOWN_ROWS]
        [(y, x)] = places(sheet, original)
        found = [places(sheet, completion) for completion in completions]
        assert [len(f) for f in found] == [1, 1]
        assert {f[0][0] for f in found} == {y}
        # the known rows are the top of all four pictures; the first of them is the prompt
        tops = [place for place in places(sheet, original[:KNOWN_ROWS]) if place[0] == y]
        assert [left for _, left in tops] == [tops[0][1], found[0][0][1], found[1][0][1], x]
        assert [left for _, left in tops] == sorted(left for _, left in tops)
        lefts.add(tuple(left for _, left in tops))
        order.append((y, tops[0][1]))
        # below the known rows there is no pixel of the image, only two grays
        size = SIDE * SCALE
        unknown = sheet[y + KNOWN_ROWS * SCALE : y + size, tops[0][1] : tops[0][1] + size]
        assert len(np.unique(unknown.reshape(-1, 3), axis=0)) == 2
        # the bar beside a completion starts where the model did
        bar = sheet[y : y + size, found[0][0][1] - 2]
        assert len(np.unique(bar[: KNOWN_ROWS * SCALE], axis=0)) == 1
        assert len(np.unique(bar[KNOWN_ROWS * SCALE :], axis=0)) == 1
        assert not np.array_equal(bar[KNOWN_ROWS * SCALE - 1], bar[KNOWN_ROWS * SCALE])
    assert order == sorted(order)  # as in the run: line by line

    expected = [
        picture
        for name in names
        for r in [row("complete", name, 2)]
        for picture in (r["prompt"], *r["images"], r["original"])
    ]
    assert page.pictures() == [picture["bytes"] for picture in expected]  # the page's are as stored
    cells = [text for tag, text in page.text if tag == "div" and text.strip()]
    assert cells == ["prompt", "completion 1", "completion 2", "original"] * 5
    tops_on_page = {a["style"] for tag, a in page.tags if tag == "i"}
    assert tops_on_page == {"top: 37.50%"}  # 3 of 8 rows


def test_quantized_images_take_the_palette_of_the_run(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(3)], job="quantize", report={"seconds": 1.0})
    page = written(output, palette=PALETTE)
    sheet = read_sheet(output)
    for name, picture in zip(ids(3), page.pictures(), strict=True):
        pixels = colors(tokens_for(name, 0))
        assert len(places(sheet, pixels)) == 1
        with Image.open(io.BytesIO(picture)) as image:
            assert np.array_equal(np.asarray(image), pixels)
    assert "Tokens per second" not in page.figures()

    without = written(output)
    assert without.pictures() == []
    assert "tokens need the palette" in without.all_text()
    with pytest.raises(UsageError, match="expected the palette of the run"):
        write_report(output, palette=Palette([[0.0, 0.0, 0.0]]))


def test_rows_are_spread_over_the_whole_run(tmp_path: Path) -> None:
    shards = [ids(3, start=3 * shard) for shard in range(50)]
    output = make_run(tmp_path / "run", shards)
    chosen = [int(title[6:10]) for title in written(output).titles_of("id")]
    assert len(chosen) == 24
    gaps = np.diff([-1, *chosen, 150])
    assert gaps.min() > 0
    assert gaps.max() <= 2 * 150 / 24  # no stretch is passed over
    # Everything that was not chosen may be lost, so it was not read. (The first part has the
    # schema for the card.)
    for shard in set(range(1, 50)) - {at // 3 for at in chosen}:
        Path(output, f"data/part-{shard:06d}.parquet").write_bytes(b"no parquet")
    assert [int(title[6:10]) for title in written(output).titles_of("id")] == chosen


def test_only_needed_row_groups_are_read(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(200)], row_group_size=40)
    path = Path(output, "data/part-000000.parquet")
    directory = RunDirectory.at(output, {})
    examples = read_examples(directory, [0], job="complete", image_size=SIDE, n=2)
    assert [example.id for example in examples] == ["photo-0050.jpg", "photo-0150.jpg"]
    damaged = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    for group in (0, 2, 4):  # rows 50 and 150 lie in groups 1 and 3
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            damaged[start : start + chunk.total_compressed_size] = (
                b"?" * chunk.total_compressed_size
            )
    path.write_bytes(damaged)
    assert read_examples(directory, [0], job="complete", image_size=SIDE, n=2) == examples


def test_parts_without_rows_take_no_place(tmp_path: Path) -> None:
    """Takes pictures from where there are some: shards in which every row failed cost none."""
    shards = [ids(1, start=shard) if shard % 10 == 0 else [] for shard in range(60)]
    failed = [(shard, f"{shard}.jpg", "E", "m") for shard in range(60) if shard % 10]
    page = written(make_run(tmp_path / "run", shards, failed=failed))
    assert page.titles_of("id")[:6] == [f"photo-{i:04d}.jpg" for i in range(0, 60, 10)]


def test_gray_pictures_and_unconditional_ones() -> None:
    gray = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    pictures = (
        Picture("prompt", None, SIDE),
        Picture("completion", encoded(Image.fromarray(gray)), SIDE, 0),
    )
    raw = draw_contact_sheet([Example("a", pictures)], title="t", note="n")
    sheet = np.asarray(Image.open(io.BytesIO(raw)))
    [(y, x)] = places(sheet, np.stack([gray] * 3, axis=-1))
    left = x - SIDE * SCALE - 8
    given = sheet[y : y + SIDE * SCALE, left : left + SIDE * SCALE].reshape(-1, 3)
    assert len(np.unique(given, axis=0)) == 2  # hatched all over


def test_long_ids_stay_in_their_column() -> None:
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    example = Example("W" * 500, (Picture("quantized", encoded(Image.fromarray(white)), SIDE),))
    sheet = np.asarray(Image.open(io.BytesIO(draw_contact_sheet([example], title="", note=""))))
    inked = np.flatnonzero((sheet < 128).any(axis=(0, 2)))
    assert inked.size
    assert inked.max() - inked.min() < SIDE * SCALE


def test_classified_images_are_shown_with_class_and_probability(tmp_path: Path) -> None:
    names = ids(40)
    output = make_run(tmp_path / "run", [names[:30], [], names[30:]], job="classify")
    page = written(output)
    shown = page.titles_of("id")
    assert shown == [
        names[i] for i in range(40) if i in [(2 * k + 1) * 40 // 48 for k in range(24)]
    ]
    assert page.all_text().count("dog, 75%") == 24
    for name, picture in zip(shown, page.pictures(), strict=True):
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(picture))), colors(tokens_for(name, 0))
        )
    sheet = read_sheet(output)
    for name in shown:
        assert len(places(sheet, colors(tokens_for(name, 0)))) == 1
    assert "| `predicted_name` | `string` | its name |" in Path(output, "README.md").read_text()


# --- the folder -----------------------------------------------------------------------------------


TASKS = {
    "classify": ["image-classification"],
    "complete": ["image-to-image"],
    "embed": ["image-feature-extraction"],
    "sample": ["unconditional-image-generation"],
}


@pytest.mark.parametrize("job", COLUMNS)
def test_datasets_loads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    failed = [(0, "broken.jpg", "ImageError", "cut short")]  # errors/*.parquet has other columns
    output = make_run(
        tmp_path / "run",
        [ids(3), [], ids(2, start=3)],
        job=job,
        failed=failed,
        report={"seconds": 1.0},
    )
    write_report(output)
    card = Path(output, "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    parsed = yaml.safe_load(header)
    assert parsed["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert parsed["size_categories"] == ["n<1K"]
    assert parsed.get("task_categories") == TASKS.get(job)
    assert COMMAND in body
    names = rows.schema_for(job, COLUMNS[job]).names
    for name in names:
        assert f"| `{name}` |" in body

    loaded = datasets.load_dataset(output, cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    train = loaded["train"]
    assert train.column_names == names
    assert train["id"][:] == ids(5)
    picture = {"complete": "original", "sample": "image"}.get(job)
    if picture:
        pixels = np.asarray(train[4][picture])
        assert np.array_equal(pixels, colors(tokens_for("photo-0004.jpg", 0)))


def test_card_escapes_odd_columns(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(1)], job="quantize")
    path = Path(output, "run.json")
    run = json.loads(path.read_text())
    run["columns"].append({"name": "a|b`c", "type": "int64", "meaning": "as in the input"})
    path.write_text(json.dumps(run))
    write_report(output)
    card = Path(output, "README.md").read_text()
    assert "| `` a\\|b`c `` | `int64` | as in the input |" in card


def test_any_location(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(3)])
    memory = fsspec.filesystem("memory")
    memory.put(output, "/report-test/run", recursive=True)
    try:
        write_report("memory://report-test/run")
        page = Page(memory.cat("/report-test/run/report.html").decode())
        assert page.figures()["Images"] == 3
        assert memory.exists("/report-test/run/contact_sheet.png")
        assert memory.exists("/report-test/run/README.md")
    finally:
        memory.rm("/report-test", recursive=True)


def broken_json(output: Path) -> None:
    (output / "stats/part-000000.json").write_text("[1, ")


def other_job(output: Path) -> None:
    run = json.loads((output / "run.json").read_text()) | {"job": "dream"}
    (output / "run.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda output: (output / "run.json").unlink(), "expected a run directory"),
        (broken_json, r"expected a JSON object in .*part-000000\.json"),
        (other_job, "is a run of dream, this igpt knows quantize, complete"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    output = tmp_path / "run"
    make_run(output, [ids(1)])
    damage(output)
    with pytest.raises(UsageError, match=message) as refused:
        write_report(str(output))
    assert "\n" not in str(refused.value)
    assert not (output / "report.html").exists()


def test_texts() -> None:
    assert shortened("folder/name.png", 15) == "folder/name.png"
    assert shortened("folder/a-long-name.png", 10) == "fol…me.png"
    assert [rate(x) for x in (0.1234, 12.34, 1234.5)] == ["0.12", "12.3", "1,234"]
